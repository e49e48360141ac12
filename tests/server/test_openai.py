"""`/v1/images` with OpenAI's own client."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from .conftest import wait_for

openai = pytest.importorskip("openai", reason="the client openai is not installed")

SHORT = {"seed": 7, "steps": 2}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


def opened(item) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def file_of(picture: Image.Image, form: str = "PNG") -> tuple[str, bytes]:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return f"picture.{form.lower()}", buffer.getvalue()


def noise(size=(32, 32)) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


def hole(size=(32, 32)) -> Image.Image:
    """A mask whose left half is transparent."""
    mask = Image.new("RGBA", size, (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    return mask


def test_generations(client, server):
    drawn = client.images.generate(
        prompt="a red disc", n=2, size="32x32", model="dall-e-3", quality="low", style="vivid", extra_body=SHORT
    )
    assert [opened(item).size for item in drawn.data] == [(32, 32)] * 2
    assert [item.seed for item in drawn.data] == [7, 8] and drawn.size == "32x32"
    assert any("dall-e-3" in line for line in drawn.ignored) and any("style" in line for line in drawn.ignored)
    assert drawn.usage.input_tokens == drawn.usage.total_tokens > 0
    again = client.images.generate(prompt="a red disc", size="32x32", extra_body={"seed": 8, "steps": 2})
    np.testing.assert_array_equal(np.asarray(opened(again.data[0])), np.asarray(opened(drawn.data[1])))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_formats_and_addresses(client, server, form):
    drawn = client.images.generate(
        prompt="x", size="32x32", output_format=form, output_compression=50, response_format="url", extra_body=SHORT
    )
    answer = server.call("GET", drawn.data[0].url.removeprefix(server.url))
    assert answer.headers["content-type"] == f"image/{form}"
    assert Image.open(io.BytesIO(answer.content)).format == form.upper()


def test_quality_chooses_the_steps(client, server):
    steps = []
    for quality in ("low", "medium", "high"):
        drawn = client.images.generate(prompt="x", size="32x32", quality=quality, extra_body={"seed": 1})
        text = opened(drawn.data[0]).info["parameters"]
        steps.append(int(text.partition("Steps: ")[2].partition(",")[0]))
    own = server.service.shelf.pipe.defaults.num_inference_steps
    assert steps == [round(own / 2), own, round(own * 1.5)]


def test_an_edit_repaints_what_is_transparent_and_keeps_the_rest(client):
    old = noise((40, 32))
    drawn = client.images.edit(image=file_of(old), mask=file_of(hole(old.size)), prompt="a disc", extra_body=SHORT)
    new = opened(drawn.data[0]).convert("RGB")
    differs = (np.asarray(new) != np.asarray(old)).any(-1)
    assert new.size == old.size and differs[:, :20].any() and not differs[:, 20:].any()
    white = Image.new("L", old.size, 0)
    white.paste(255, (0, 0, 20, 32))
    by_white = client.images.edit(
        image=file_of(old), mask=file_of(white), prompt="a disc", extra_body=SHORT | {"mask_mode": "luminance"}
    )
    np.testing.assert_array_equal(np.asarray(opened(by_white.data[0]).convert("RGB")), np.asarray(new))


def test_an_edit_without_a_mask_and_a_variation_redraw(client):
    old = noise()
    near, far = (
        opened(
            client.images.edit(image=[file_of(old)], prompt="x", size="32x32", extra_body=extra).data[0]  # pyright: ignore
        )
        for extra in ({"steps": 4, "seed": 3, "strength": 0.25}, {"steps": 4, "seed": 3, "strength": 1.0})
    )
    distance = [np.abs(np.asarray(new).astype(int) - np.asarray(old)).mean() for new in (near, far)]
    assert distance[0] < distance[1]
    assert len(client.images.create_variation(image=file_of(old), n=2, size="256x256", extra_body=SHORT).data) == 2


def test_a_stream_has_partial_pictures_and_then_the_whole(client):
    stream = client.images.generate(
        prompt="a disc", size="32x32", stream=True, partial_images=2, n=1, extra_body={"steps": 8, "seed": 3}
    )
    events = list(stream)
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds[-1] == "completed" and set(kinds[:-1]) <= {"partial_image"} and len(kinds) <= 3
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(kinds) - 1))
    assert all(opened(event).size == (32, 32) for event in events)
    whole = client.images.generate(prompt="a disc", size="32x32", extra_body={"steps": 8, "seed": 3})
    assert events[-1].b64_json == whole.data[0].b64_json
    edited = client.images.edit(image=file_of(noise()), prompt="x", stream=True, extra_body=SHORT)
    assert list(edited)[-1].type == "image_edit.completed"


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_cancels(client, server, stream):
    import requests

    body = {"prompt": "x", "size": "64x64", "steps": 200, "stream": stream, "partial_images": 1}
    with pytest.raises(requests.exceptions.RequestException):  # nothing comes in time
        requests.post(f"{server.url}/v1/images/generations", json=body, timeout=0.3).json()
    wait_for(lambda: server.service.queue.length == 0, 20)
    assert server.service.queue.newest(1)[0].status == "cancelled"


@pytest.mark.parametrize(
    "param, fields",
    [
        ("n", {"n": 11}),
        ("size", {"size": "big"}),
        ("background", {"background": "transparent"}),
        ("output_format", {"output_format": "gif"}),
        ("quality", {"quality": "best"}),
        ("partial_images", {"partial_images": 9}),
        ("seed", {"extra_body": {"seed": -1}}),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(client, param, fields):
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(prompt="x", **fields)
    assert raised.value.param == param and raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "param, files",
    [
        ("image", {"image": [file_of(noise()), file_of(noise())]}),
        ("image", {"image": ("x.png", b"no picture")}),
        ("mask", {"image": file_of(noise()), "mask": file_of(hole((16, 16)))}),
        ("mask", {"image": file_of(noise()), "mask": file_of(noise())}),
    ],
)
def test_a_wrong_picture_is_a_400_that_names_it(client, param, files):
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.edit(prompt="x", **files)
    assert raised.value.param == param


def test_models(client, server):
    names = [model.id for model in client.models.list()]
    assert "second" in names and client.models.retrieve("second").id == "second"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("none")
    assert raised.value.code == "model_not_found"
    assert server.call("POST", "/v1/images/edits", data="x").status_code == 400
