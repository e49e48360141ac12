"""Bodies, pictures, sizes and paths that no honest client sends: each is refused with one line, the server lives."""

import base64
import io
import json
import struct
import zlib

import pytest
from PIL import Image

from latent_diffusion.registry import find, names
from latent_diffusion.server.request import OF_FILES

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def saved(picture: Image.Image, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return encoded(buffer.getvalue())


SMALL = saved(Image.new("RGB", (32, 32)))
BOMB = encoded(png(20_000, 20_000, chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000))))
TEXTS = png(1, 1, *(chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 2**22)) for _ in range(40)))
REDRAW = {"task": "image_to_image"}
REPAINT = {"task": "inpaint", "image": SMALL}

FIELDS: dict[str, dict] = {
    "a field that is none": {"prompts": "x"},
    "an attribute of Python": {"__class__": "x"},
    "a prompt that is a number": {"prompt": 3},
    "a prompt that is a list": {"prompt": ["a", "b"]},
    "a prompt that is too long": {"prompt": "a" * 20_000},
    "half a character": {"prompt": "\ud800"},
    "an adapter outside the folder": {"prompt": "<lora:../../etc/passwd:1>"},
    "an adapter by its full path": {"prompt": "<lora:/etc/passwd:1>"},
    "a negative seed": {"seed": -1},
    "a seed beyond 32 bits": {"seed": 2**32},
    "a seed with a fraction": {"seed": 1.5},
    "seeds beyond 32 bits": {"seed": 2**32 - 1, "num_images": 2},
    "no pictures": {"num_images": 0},
    "many pictures": {"num_images": 1000},
    "no steps": {"num_inference_steps": 0},
    "many steps": {"num_inference_steps": 10**9},
    "many repeats": {**REPAINT, "mask": SMALL, "resample": 1000, "num_inference_steps": 100},
    "a width of nothing": {"width": 0},
    "a negative width": {"width": -64},
    "a width between two steps": {"width": 65},
    "a huge width": {"width": 10**300},
    "a large picture": {"width": 8192, "height": 8192},
    "a large second pass": {"task": "hires", "width": 1024, "height": 1024, "scale": 8},
    "a second pass without end": {"task": "hires", "scale": 1e308},
    "a guidance beyond its range": {"guidance_scale": 1e300},
    "a guidance of text": {"guidance_scale": "strong"},
    "a guidance that is none": {"guidance": "none-such"},
    "a guidance that reads a file": {"guidance": "autoguidance:model=/etc/passwd"},
    "a second guidance that reads a file": {"guidance": ["cfg", " autoguidance:model=/etc/passwd"]},
    "a classifier that is read": {"guidance": "classifier:model=/etc,label=passwd"},
    "an approximation that reads a file": {"approximate": "taesd:model=/etc"},
    "a sampler that is none": {"sampler": "../../etc/passwd"},
    "a sampler with a wrong field": {"sampler": "restart:repeats=1e999"},
    "a spacing that is none": {"spacing": "\n\n"},
    "times that are none": {"timesteps": []},
    "many times": {"timesteps": list(range(999, 0, -1))},
    "a model by its path": {"model": "/etc/passwd"},
    "a model above the folder": {"model": "../../../etc"},
    "a task that is none": {"task": "__init__"},
    "a picture without a use": {"image": SMALL},
    "a task without its picture": REDRAW,
    "a mask that is missing": REPAINT,
    "a picture that is empty": {**REDRAW, "image": ""},
    "a picture that is no base64": {**REDRAW, "image": "%%%"},
    "a picture that is text": {**REDRAW, "image": encoded(b"hello world")},
    "a picture that is a page": {**REDRAW, "image": encoded(b"<html></html>")},
    "a picture that is cut off": {**REDRAW, "image": PNG[:60]},
    "a picture that is a bomb": {**REDRAW, "image": BOMB},
    "a picture that is a GIF": {**REDRAW, "image": saved(Image.new("P", (8, 8)), "GIF")},
    "a picture that is a TIFF": {**REDRAW, "image": saved(Image.new("RGB", (8, 8)), "TIFF")},
    "an address of a picture": {**REDRAW, "image": "http://127.0.0.1:22/x.png"},
    "a file's address": {**REDRAW, "image": "file:///etc/passwd"},
    "a path of a picture": {**REDRAW, "image": "/etc/passwd"},
    "a mask of another size": {**REPAINT, "mask": PNG},
    "a mask that is a bomb": {**REPAINT, "mask": BOMB},
    "a mask without transparency": {**REPAINT, "mask_channel": "alpha"},
    "edges without end": {"task": "outpaint", "image": SMALL, "left": 8192, "top": 8192, "right": 8192, "bottom": 8192},
    "edges of nothing": {"task": "outpaint", "image": SMALL},
    "an edge that is negative": {"task": "outpaint", "image": SMALL, "left": -8},
    "a strength beyond 1": {**REDRAW, "image": SMALL, "strength": 7},
    "a strength of less than a step": {**REDRAW, "image": SMALL, "strength": 0.001},
}  # fmt: skip
BODIES = {
    "no JSON": b"{", "nothing": b"", "a list": b"[]", "a number": b"1", "nested deeply": b"[" * 100_000,
    "not UTF-8": b"\xff\xfe{}", "a number that is none": b'{"guidance_scale": NaN}', "infinity": b'{"eta": Infinity}',
    "a long number": b'{"seed": ' + b"9" * 5000 + b"}",
}  # fmt: skip
PATHS = [
    "/jobs/../../etc/passwd", "/jobs/%2e%2e%2f%2e%2e", "/jobs/x/pictures/0", "/jobs/x/events",
    "/history/..%2f..%2fetc%2fpasswd", "/history/%00", "/history/passwd", "/page/../app.py", "/page/%2e%2e/app.py",
    "/page/%2e%2e%2f%2e%2e%2fapp.py", "/none",
]  # fmt: skip


def is_refused(answer, status=range(400, 500)) -> None:
    assert answer.status_code in status, (answer.status_code, answer.text[:300])
    line = answer.json()["error"]
    assert line and "\n" not in line and len(line) < 2000 and "Traceback" not in line


def outcome(server, fields: dict):
    """Return what is refused at once, or what the job ends with where only drawing finds it."""
    answer = server.call("POST", "/jobs", data=json.dumps(fields), headers={"content-type": "application/json"})
    return answer if answer.status_code != 202 else server.finish(answer.json()["id"])


@pytest.mark.parametrize("name", FIELDS)
def test_fields(server, name):
    found = outcome(server, FIELDS[name])
    if isinstance(found, dict):
        assert found["status"] == "failed" and "\n" not in found["error"] and "bug" not in found["error"], found
    else:
        is_refused(found)


def test_every_text_that_names_a_file_is_refused_at_once():
    """Those are the objects of `guidance/` and `approximations/` with the field `model`."""
    packages = ("latent_diffusion.guidance", "latent_diffusion.approximations")
    kinds = [(name, find(package, name)) for package in packages for name in names(package)]
    assert sorted(OF_FILES) == sorted(name for name, kind in kinds if "model" in kind.__dataclass_fields__)


def test_bodies_and_paths(server):
    for name, body in BODIES.items():
        answer = server.call("POST", "/jobs", data=body, headers={"content-type": "application/json"})
        assert answer.status_code in range(400, 500), (name, answer.text[:200])
        is_refused(answer)
    for path in PATHS:
        is_refused(server.call("GET", path))
    for length in ("-1", "x", str(10**18)):
        answer = server.call("POST", "/jobs", data=b"", headers={"content-length": length})
        assert answer.status_code in (400, 413) and len(answer.text.splitlines()) == 1
    is_refused(server.call("POST", "/parameters", data=TEXTS))
    is_refused(server.call("POST", "/parameters", data=base64.b64decode(BOMB)))
    is_refused(server.call("POST", "/parameters", data=b"x"))
    assert server.draw(num_inference_steps=1)["status"] == "done"


def test_a_body_without_a_length_is_counted(server, monkeypatch):
    from latent_diffusion.server import guard

    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    pieces = (b"x" * 100 for _ in range(50))
    answer = server.call("POST", "/parameters", data=pieces)
    is_refused(answer, [413])
    assert "1000" in answer.json()["error"]
