"""Pictures and data sets with the faults of docs/reliability.md, section Data; D09, D10, D14, D16 to D18, D20 to D22
and D32 are in tests/data."""

import io
import json
import os
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from latent_diffusion.cli.main import main
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.batches.loader import batches
from latent_diffusion.data.checks.examination import examine
from latent_diffusion.data.pictures.images import decode_image, load_image
from latent_diffusion.data.places import files
from latent_diffusion.data.places.files import open_files
from latent_diffusion.data.rows.metadata import read_rows
from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionWarning
from latent_diffusion.evaluation.pictures import read_pictures
from latent_diffusion.training.networks.frozen_states import Latents

FORMS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def encoded(form="PNG", seed=0, size=(32, 32), **more) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **more)
    return stream.getvalue()


def png(width, height, depth, colour, rows=b"") -> bytes:
    """Return a PNG file of these header fields and of rows as they stand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path):
    """A data set of four good pictures."""
    root = tmp_path / "set"
    root.mkdir()
    for k in range(4):
        (root / f"{k}.png").write_bytes(encoded(seed=k))
        (root / f"{k}.txt").write_text(f"picture {k}")
    return root


def read(path, **settings) -> ImageFolder:
    return ImageFolder(DataConfig(path=str(path), size=16, **settings), seed=7)


def added(folder, name, data) -> None:
    (folder / name).write_bytes(data)
    (folder / name).with_suffix(".txt").write_text("odd")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.5, 0.999])
def test_d01_cut_pictures_stop_the_run_or_are_left_out_by_name(folder, caplog, form, share):
    data = encoded(form, size=(64, 64))
    added(folder, f"cut.{FORMS[form]}", data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"1 of 5 pictures .*cut\..*(damaged|not a picture)") as caught:
        read(folder)
    assert caught.value.exit_code == 3
    assert len(read(folder, on_bad="skip", max_bad=0.2)) == 4
    assert "left out: 1 of 5 pictures" in caplog.text and f"cut.{FORMS[form]}" in caplog.text
    with pytest.raises(DataError, match=r"more than data\.max_bad=0\.1"):
        read(folder, on_bad="skip", max_bad=0.1)


def test_d03_pictures_under_another_ending_are_read_and_counted(folder, caplog):
    added(folder, "a.jpg", encoded("PNG"))
    added(folder, "b.png", encoded("WEBP", 1))
    assert len(read(folder)) == 6
    assert "2 pictures are of another format than their ending" in caplog.text and "'a.jpg', 'b.png'" in caplog.text


@pytest.mark.parametrize("side", [65535, 14000, 9000])  # Pillow has a limit of its own, which 9000 px pass
def test_d04_a_size_that_only_the_header_claims_takes_no_memory(peak_memory, side):
    with peak_memory() as taken:
        with pytest.raises(DataError, match=rf"too large|{side}x{side} px is over the limit of 64000000 px") as caught:
            decode_image(png(side, side, 8, 2), name="a.png")
        assert taken() < 50e6 and caught.value.exit_code == 3


def test_d05_a_real_picture_over_the_default_cap(peak_memory):
    stream = io.BytesIO()
    Image.new("1", (13_000, 5_000)).save(stream, "PNG")
    with peak_memory() as taken:
        with pytest.raises(DataError, match=r"13000x5000 px is over the limit of 64000000 px \(`max_pixels`\); scale"):
            decode_image(stream.getvalue(), name="a.png")
        assert taken() < 50e6
    assert decode_image(stream.getvalue(), name="a.png", max_pixels=65_000_000).size == (13_000, 5_000)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_d06_slivers_are_no_tensor_error(folder, tiny_pipeline, here, monkeypatch, capsys, size):
    added(folder, "thin.png", encoded(size=size))
    with pytest.raises(DataError, match=f"{size[0]}x{size[1]} px, but the smallest side must be 16 px"):
        read(folder)
    monkeypatch.setattr("latent_diffusion.cli.picture_files.load_pipeline", lambda *_, **__: tiny_pipeline)
    (here / "a.png").write_bytes(encoded(size=size))
    Image.new("L", size, 255).save(here / "m.png")
    for command, more in (("img2img", []), ("inpaint", ["--mask", "m.png"]), ("outpaint", ["--right", "8"])):
        code = main([command, "a cat", "-i", "a.png", *more, "--steps", "2", "--output", f"{command}.png"])
        told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert (code == 0 and not told) or (code in (2, 3) and len(told) == 1), (command, code, told)


def test_d07_colour_modes_of_print_and_grey_have_their_colours():
    for ink, colour in (((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 255, 0), (0, 255, 0)), ((0, 0, 0, 128), (127,) * 3)):
        stream = io.BytesIO()
        Image.new("CMYK", (16, 16), ink).save(stream, "JPEG", quality=95)
        data = stream.getvalue()
        assert b"Adobe" in data  # its inks are stored inverted
        assert np.abs(np.asarray(decode_image(data, name="a")).mean((0, 1)) - colour).max() <= 2
    for mode, value, mean in (("L", 100, 100), ("1", 1, 255), ("1", 0, 0)):
        stream = io.BytesIO()
        Image.new(mode, (16, 16), value).save(stream, "PNG")
        assert np.abs(np.asarray(decode_image(stream.getvalue(), name="a")).astype(int) - mean).max() <= 2


def test_d08_deep_pictures_are_scaled_or_refused():
    ramp = np.linspace(0, 65535, 256).round().astype(">u2")
    rgb = b"".join(b"\0" + np.repeat(ramp, 3).tobytes() for _ in range(16))
    for data in (png(256, 16, 16, 2, rgb), png(256, 16, 16, 0, b"".join(b"\0" + ramp.tobytes() for _ in range(16)))):
        pixels = np.asarray(decode_image(data, name="a"))
        assert abs(pixels.mean() - 127.5) <= 1 and pixels.min() == 0 and pixels.max() == 255
    with pytest.raises(DataError, match="float pixels have no defined white"):
        load_image(Image.new("F", (16, 16), 0.5))
    with pytest.raises(DataError, match="32-bit grey values up to 70000 have no defined white"):
        load_image(Image.new("I", (16, 16), 70_000))


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_d11_of_moving_pictures_the_first_frame_is_taken_and_counted(folder, caplog, form):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((200, 10, 10), (10, 200, 10))]
    stream = io.BytesIO()
    frames[0].save(stream, form, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    added(folder, f"moving.{FORMS[form]}", stream.getvalue())
    data = read(folder)
    row = next(k for k, row in enumerate(data.rows) if "moving" in str(row["file_name"]))
    assert torch.equal(data.image(row)[:, 0, 0], torch.tensor([200, 10, 10], dtype=torch.uint8))
    assert f"1 pictures move or have pages; the first frame of each is taken: 'moving.{FORMS[form]}'" in caplog.text
    added(folder, "still.gif", encoded("GIF"))
    read(folder)
    assert "1 pictures are left out" in caplog.text and "1 .gif" in caplog.text


def test_d12_colour_profiles_are_counted_and_broken_ones_do_no_harm(folder, caplog):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = srgb.replace(b"sRGB", b"wide").replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    for number, profile in enumerate((srgb, wide, b"broken")):
        added(folder, f"p{number}.png", encoded(seed=10, icc_profile=profile, compress_level=number))
    data = read(folder)
    assert (
        "2 pictures have a colour profile other than sRGB; those that can be read are converted: 'p1.png', 'p2.png'"
        in caplog.text
    )
    assert torch.equal(data.image(4), data.image(6))
    torch.testing.assert_close(data.image(4), data.image(5), atol=1, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_d12_colours_of_a_profile_become_srgb(folder, mode):
    """A profile whose red primary is green and whose green is red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[place : place + 4]): place for place in range(132, 132 + 12 * profile[131], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    named = bytes(profile).replace(b"sRGB", b"odd ").replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))
    Image.new(mode, (32, 32), (200, 40, 90, 255)[: len(mode)]).save(folder / "odd.png", icc_profile=named)
    (folder / "odd.txt").write_text("odd")
    torch.testing.assert_close(read(folder).image(4)[:, 8, 8].tolist(), [40, 200, 90], atol=1, rtol=0)


@pytest.mark.parametrize("data", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"8BPS\0\1" + bytes(40), b"%PDF-1.7\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"SIMPLE  =                    T" + b" " * 2850,
    b"\0\0\1\0\1\0" + bytes(40), b"II*\0" + bytes(64), b"GIF89a" + bytes(20),
], ids=["eps", "psd", "pdf", "svg", "fits", "ico", "tiff", "gif"])  # fmt: skip
def test_d13_other_formats_are_refused_and_no_program_is_started(folder, monkeypatch, data):
    for start in ("subprocess.Popen", "os.system", "os.popen", "os.posix_spawn"):
        monkeypatch.setattr(start, lambda *_, **__: pytest.fail("a program was started"))
    added(folder, "other.png", data)
    with pytest.raises(DataError, match=r"other\.png'?: not a picture of JPEG, PNG, WEBP, BMP, TIFF, AVIF, HEIC, but"):
        read(folder)


def test_d17_captions_of_any_length_are_cut_and_counted(tiny_pipeline, caplog, peak_memory):
    from latent_diffusion.training.networks.frozen_states import TextStates

    states = TextStates(tiny_pipeline.components.text_encoder, torch.float32)
    long = ["cat " * 78, "a" * 1_000_000, "\U0001f600" * 100_000]
    with peak_memory() as taken, pytest.warns(LatentDiffusionWarning, match="only the first 75 are used") as warned:
        states.fill(["a cat", *long], most=10**9)
        assert taken() < 400e6
    assert len(warned) == 3
    assert "3 captions have more than 75 tokens and are cut" in caplog.text
    assert states(long).context.isfinite().all()


def test_d19_the_same_picture_twice_is_counted(folder, caplog):
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "again.txt").write_text("another caption")
    data = read(folder)
    assert (
        len(data) == 5
        and "1 pictures are there more than once" in caplog.text
        and "'0.png', 'again.png'" in caplog.text
    )
    rows = [{"file_name": "1.png", "text": text} for text in ("a", "a", "b")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    caplog.clear()
    assert len(read(folder)) == 3 and "2 pictures are there more than once" in caplog.text


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["device", "loop", "folder", "pipe", "socket"])
def test_d23_what_is_no_file_is_refused_at_once(folder, kind, monkeypatch):
    import socket

    path = folder / "odd.png"
    (folder / "odd.txt").write_text("odd")
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to("odd.png")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(folder)  # the path of a socket is at most 107 bytes
        socket.socket(socket.AF_UNIX).bind("odd.png")
    else:
        path.mkdir()
    (folder / "metadata.jsonl").write_text('{"file_name": "odd.png", "text": "a"}\n')
    with pytest.raises(DataError, match=r"odd\.png") as caught:
        read(folder)
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match=r"odd\.png"):
        load_image(path)


NAMES = ("a b.png", "\U0001f600.png", "new\nline.png", "\x1b[31mred.png", "-rf.png", "n" * 251 + ".png", "\udcff.png")


def test_d24_strange_names_work_and_are_escaped_in_messages(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(encoded(seed=number))
        (tmp_path / name).with_suffix(".txt").write_text(f"picture {number}")
    assert {texts[0][0] for texts in read(tmp_path).captions} == {f"picture {k}" for k in range(len(NAMES))}
    for name in NAMES:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="7 of 7") as caught:
        read(tmp_path)
    assert all(letter.isprintable() or letter == "\udcff" for letter in str(caught.value))


def test_d25_what_may_not_be_read_is_named_and_never_dropped(folder):
    if os.geteuid() == 0:  # root may read everything
        os.chmod(folder, 0o755)
        for parent in folder.parents:
            if parent != parent.parent and parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o005:
                os.chmod(parent, parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        os.seteuid(0) if os.getuid() == 0 else None
        os.chmod(folder / "2.png", 0)
        os.seteuid(65534) if os.getuid() == 0 else None
        with pytest.raises(DataError, match=r"1 of 4 pictures .*2\.png'?: cannot be read: Permission denied"):
            read(folder)
        os.seteuid(0) if os.getuid() == 0 else None
        (folder / "deep").mkdir()
        os.chmod(folder / "deep", 0)
        os.seteuid(65534) if os.getuid() == 0 else None
        with pytest.raises(DataError, match=r"deep'?: cannot be listed: Permission denied"):
            read(folder)
    finally:
        os.seteuid(os.getuid())
        os.chmod(folder / "deep", 0o755) if (folder / "deep").exists() else None


@pytest.mark.parametrize("change", ["gone", "cut", "replaced"])
def test_d26_a_picture_that_changes_under_the_run_is_named(folder, change):
    data = read(folder, cache_bytes=0)
    for file in folder.glob("*.png"):
        whole = file.read_bytes()
        file.unlink()
        if change != "gone":
            file.write_bytes(whole[:100] if change == "cut" else b"%PDF-1.7")
    with pytest.raises(DataError, match=r"\d\.png") as caught:
        list(batches(data, [[0, 1]], workers=2))
    assert caught.value.exit_code == 3


def test_d27_sets_of_nothing_and_of_less_than_a_batch(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has 0 pictures"):
        read(tmp_path / "empty")
    rows = [{"file_name": f"{k}.png", "text": "a", "split": "train"} for k in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"is left: 4 rows, 0 after split in \['val'\]"):
        read(folder, where={"split": "val"})
    with pytest.raises(ConfigError, match="no row of"):
        read(folder, where={"splt": "val"})
    data = read(folder)
    (batch,) = batches(data, [range(10)], workers=2)
    assert len(batch) == 10 and sorted(set(batch.row)) == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_d28_archives_that_are_cut_doubled_or_short_of_a_member(folder, tmp_path):
    target = tmp_path / "set.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.write(folder / "0.png", "0.png")
        archive.write(folder / "1.png", "0.png")
    with pytest.raises(DataError, match=r"set\.zip.*'0\.png' appears twice"):
        read(target)
    with zipfile.ZipFile(target, "w") as archive:
        archive.write(folder / "0.png", "0.png")
        archive.writestr("metadata.jsonl", '{"file_name": "1.png", "text": "a"}')
    with pytest.raises(DataError, match=r"1 of 1 rows name pictures that do not exist: '1\.png'"):
        read_rows(open_files(target), "set.zip")
    with pytest.raises(DataError, match="no such member"):
        open_files(target).read("1.png")
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"set\.zip"):
        read(target)


class Stuck:
    """Calls of a library that give nothing, as of a network disk whose server is gone, until the test is over."""

    def __init__(self, monkeypatch) -> None:
        self.comes_back, self._monkeypatch = threading.Event(), monkeypatch

    def hold(self, owner, name, when=lambda *_: True) -> None:
        """Hold the calls of `owner.name` whose arguments are `when`."""
        call = getattr(owner, name)

        def stuck(*args, **more):
            if when(*map(str, args)):
                self.comes_back.wait(5)
            return call(*args, **more)

        self._monkeypatch.setattr(owner, name, stuck)


@pytest.fixture
def stuck(monkeypatch):
    """Return a `Stuck`; afterwards the threads that were left behind must be such that the process could end."""
    held = Stuck(monkeypatch)
    yield held
    left = [thread for thread in threading.enumerate() if thread.name == "read"]
    held.comes_back.set()
    assert left and all(thread.daemon for thread in left)
    for thread in left:
        thread.join(10)


WAIT = {"size": 16, "on_bad": "skip", "max_bad": 1, "read_timeout": 0.2}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("layout", ["folder", "zip"])
@pytest.mark.parametrize("where", ["before training", "in training", "doctor"])
def test_d29_a_read_that_gives_nothing_ends_the_run(folder, tmp_path, stuck, layout, where):
    path = folder if layout == "folder" else as_zip(folder, tmp_path / "set.zip")
    settings = DataConfig(path=str(path), **WAIT)
    data = ImageFolder(settings.model_copy(update={"check": "none"}), seed=7) if where == "in training" else None
    owner, name = (Path, "read_bytes") if layout == "folder" else (zipfile.ZipFile, "open")
    stuck.hold(owner, name, lambda *args: any(arg.endswith("2.png") for arg in args))
    which = "2" if layout == "folder" else r"\d"  # an archive is read by one thread at a time: another may be named
    with pytest.raises(DataError, match=rf"{which}\.png': nothing was read for 0\.2 s; .*read_timeout") as caught:
        if data is not None:
            list(batches(data, ([k] for k in range(4)), workers=2))
        else:
            ImageFolder(settings, seed=7) if where == "before training" else examine(settings, seed=7)
    assert caught.value.exit_code == 3


def as_zip(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return path


def as_tar(folder, path):
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return path


def as_rows(folder) -> list[dict]:
    return [{"image": {"bytes": (folder / f"{k}.png").read_bytes(), "path": None}, "text": "a"} for k in range(4)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "what",
    ["a folder", "a caption", "a table", "a zip", "a tar", "row of a tar", "parquet", "row group", "arrow rows",
     "things to compose"],
)  # fmt: skip
def test_d29_every_read_of_the_data_ends(folder, tmp_path, stuck, what):
    path, more, place = folder, {}, "set"
    if what == "a folder":
        stuck.hold(os, "scandir")
    elif what == "a caption":
        stuck.hold(Path, "read_bytes", lambda file: file.endswith("2.txt"))
        place = "2.txt"
    elif what == "a table":
        (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}')
        stuck.hold(Path, "read_bytes", lambda file: file.endswith("jsonl"))
        place = "metadata.jsonl"
    elif what == "a zip":
        path = as_zip(folder, tmp_path / "set.zip")
        stuck.hold(zipfile, "ZipFile")
    elif "tar" in what:
        path = as_tar(folder, tmp_path / "set.tar")
        more = {"check": "none", "on_bad": "error"} if what == "row of a tar" else {}
    elif what in ("parquet", "row group"):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "set.parquet"
        parquet.write_table(arrow.Table.from_pylist(as_rows(folder)), path)
        stuck.hold(*((parquet, "ParquetFile") if what == "parquet" else (parquet.ParquetFile, "read_row_group")))
    elif what == "arrow rows":
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        datasets.Dataset.from_list(as_rows(folder), features=features).save_to_disk(path := tmp_path / "set")
        stuck.hold(datasets.Dataset, "__getitem__")
    elif what == "things to compose":
        table = [json.dumps({"file_name": f"{k}.png", "text": "a cat", "name": "cat"}) for k in range(4)]
        (folder / "metadata.jsonl").write_text("\n".join(table))
        more = {"check": "none", "on_bad": "error", "composed": {"rows": 8, "shares": {"colour": 1}}}
        stuck.hold(Path, "read_bytes", lambda file: file.endswith(".png"))
        place = ".png"
    if what == "a tar":
        stuck.hold(os, "pread")
    with pytest.raises(DataError, match=rf"{place}.*: nothing was read for 0\.2 s; .* data\.read_timeout"):
        data = ImageFolder(DataConfig(path=str(path), **WAIT | more), seed=7)
        if what == "row of a tar":
            stuck.hold(os, "pread")
        data.first_caption(0)


@pytest.mark.parametrize("file", ["2.png", "metadata.jsonl"])
def test_d29_an_evaluation_ends_too(folder, stuck, monkeypatch, file):
    rows = [json.dumps({"file_name": f"{k}.png", "text": "a"}) for k in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(files, "READ_TIMEOUT", 0.2)
    stuck.hold(Path, "read_bytes", lambda path: path.endswith(file))
    with pytest.raises(DataError, match=f"{file}'?: nothing was read for 0.2 s"):
        pictures = read_pictures(folder)
        pictures.load(pictures.rows, 16)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", [MemoryError("no room"), OSError(5, "Input/output error"), SystemExit(9)])
def test_d30_a_worker_that_dies_ends_the_batch_and_leaves_nothing(folder, monkeypatch, fault):
    data = read(folder)
    before = threading.active_count(), sorted(os.listdir("/dev/shm"))

    def dies(self, number, *, pixels=True):
        raise fault

    monkeypatch.setattr(ImageFolder, "sample", dies)
    with pytest.raises(type(fault)):
        list(batches(data, ([k] for k in range(100)), workers=2))
    for thread in threading.enumerate():
        if thread.name.startswith("data"):
            thread.join(10)
    assert (threading.active_count(), sorted(os.listdir("/dev/shm"))) == before


@pytest.mark.parametrize("flip", [False, True])
def test_d31_latents_that_are_not_finite_are_named(folder, tiny_pipeline, monkeypatch, flip):
    data = read(folder, flip=flip)
    latents = Latents(tiny_pipeline.engine.plain().components.autoencoder, data, seed=0)
    encode = Latents._encode

    def broken(self, images):
        made = encode(self, images)
        made[2, 0, 0, 0, 0] = float("nan")
        return made

    monkeypatch.setattr(Latents, "_encode", broken)
    with pytest.raises(DataError, match=r"NaN or infinite for 1 of 4 pictures: '2\.png'; leave them out") as caught:
        latents.fill(10**9)
    assert caught.value.exit_code == 3 and not latents.cached


def test_d31_the_digest_of_a_set_changes_with_a_picture_a_bit_and_a_caption(folder):
    seen = {read(folder).digest}
    pixels = np.asarray(Image.open(folder / "1.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(folder / "1.png")
    seen.add(read(folder).digest)
    (folder / "2.txt").write_text("another")
    seen.add(read(folder).digest)
    assert len(seen) == 3


def kinds() -> dict[str, bytes]:
    """Return files of every kind that the rows above try, by name."""
    whole, adobe, deep = encoded("PNG", size=(64, 64)), io.BytesIO(), io.BytesIO()
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(adobe, "JPEG")
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(deep, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "whole": whole, "cut png": whole[:2000], "cut jpeg": encoded("JPEG", size=(64, 64))[:900], "empty": b"",
        "page": b"<html></html>", "bad sum": whole[:60] + b"\0" + whole[61:], "bomb": png(65535, 65535, 8, 2),
        "too large": png(13_000, 13_000, 1, 0), "cmyk": adobe.getvalue(), "deep": deep.getvalue(),
        "palette": encoded("BMP", size=(64, 64)), "turned": encoded("JPEG", size=(64, 64), exif=turned),
        "profile": encoded("PNG", size=(64, 64), icc_profile=b"broken"), "eps": b"%!PS-Adobe-3.0 EPSF-3.0",
        "psd": b"8BPS\0\1" + bytes(40), "tiff": b"II*\0" + bytes(64), "gif": encoded("GIF", size=(64, 64)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", kinds())
def test_i07_one_verdict_in_python_on_the_command_line_and_in_training(tiny_pipeline, here, monkeypatch, capsys, kind):
    monkeypatch.setattr("latent_diffusion.cli.picture_files.load_pipeline", lambda *_, **__: tiny_pipeline)
    Path("set").mkdir()
    for name in ("a.png", "set/a.png"):
        Path(name).write_bytes(kinds()[kind])
    Path("set/a.txt").write_text("a cat")
    Image.new("L", (64, 64), 255).save("m.png")
    words, pictures = {}, {}
    try:
        pictures["python"] = load_image("a.png")
    except DataError as error:
        words["python"] = str(error)
    try:
        pictures["training"] = ImageFolder(DataConfig(path="set", size=64), seed=0).image(0)
    except DataError as error:
        words["training"] = str(error)
    for role in (["-i", "a.png", "--mask", "m.png"], ["-i", "m.png", "--mask", "a.png"]):
        code = main(["inpaint", "a cat", *role, "--steps", "1"])
        told = capsys.readouterr().err
        assert code == (3 if words else 0), (kind, told)
        words |= {role[1]: told} if code else {}
    assert len(words) in (0, 4) and not {"python", "training"} & set(words) & set(pictures)
    reasons = {text.rpartition("a.png'")[2].split(";")[0].strip() for text in words.values()}
    assert len(reasons) <= 1
    if pictures:
        assert np.array_equal(np.asarray(pictures["python"]), pictures["training"].permute(1, 2, 0).numpy())
