"""`/sdapi/v1` with real clients, and with the requests of programs that are no Python package."""

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from .conftest import wait_for

SHORT = {"steps": 2, "width": 32, "height": 32, "seed": 7}


def picture(size=(32, 32)) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def half(size=(32, 32), alpha: bool = False) -> Image.Image:
    """A mask whose left half is repainted: white, or opaque."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask if not alpha else Image.merge("RGBA", [Image.new("L", size, 0)] * 3 + [mask])


def differs(drawn: Image.Image, old: Image.Image) -> np.ndarray:
    return (np.asarray(drawn.convert("RGB")) != np.asarray(old.convert("RGB"))).any(-1)


def post(server, route: str, **body) -> tuple[list[Image.Image], dict]:
    answer = server.call("POST", f"/sdapi/v1/{route}", json=SHORT | body)
    assert answer.status_code == 200, answer.text
    values = answer.json()
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in values["images"]]
    return images, json.loads(values["info"])


def test_webuiapi(server):
    webuiapi = pytest.importorskip("webuiapi", reason="the client webuiapi is not installed")
    api = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="Euler a", steps=2)
    small = {"width": 32, "height": 32}
    drawn = api.txt2img(prompt="a red disc", seed=5, batch_size=2, **small)
    assert len(drawn.images) == 2 and drawn.info["all_seeds"] == [5, 6] and drawn.info["sampler_name"] == "Euler a"
    assert "Steps: 2, Sampler: Euler a" in drawn.images[0].info["parameters"]
    larger = api.txt2img(
        prompt="a red disc", enable_hr=True, hr_scale=2, hr_upscaler=webuiapi.HiResUpscaler.Latent, **small
    )
    assert larger.image.size == (64, 64)
    old = picture()
    redrawn = api.img2img(images=[old], prompt="a disc", denoising_strength=0.5, **small)
    assert redrawn.image.size == (32, 32) and redrawn.info["denoising_strength"] == 0.5
    repainted = api.img2img(images=[old], mask_image=half(), prompt="a disc", inpainting_fill=1, **small)
    changed = differs(repainted.image, old)
    assert changed[:, :16].any() and not changed[:, 16:].any()
    assert "a red disc" in api.png_info(drawn.images[0]).info
    assert api.get_progress()["progress"] == 0.0
    api.util_wait_for_ready(check_interval=0.05)
    for name in (
        "options", "cmd_flags", "samplers", "sd_vae", "upscalers", "latent_upscale_modes", "loras", "sd_models",
        "hypernetworks", "face_restorers", "realesrgan_models", "prompt_styles", "scripts", "embeddings", "memory",
        "schedulers",
    ):  # fmt: skip
        assert getattr(api, f"get_{name}")() is not None, name
    assert "Euler a" in api.util_get_sampler_names() and "karras" in api.util_get_scheduler_names()
    api.util_set_model("second")
    assert api.util_get_current_model() == "second"
    assert api.txt2img(prompt="a disc", **small).info["sd_model_name"] == "tiny"
    api.set_options({"sd_model_checkpoint": server.service.settings.model.rpartition("/")[2]})
    api.interrupt(), api.skip(), api.refresh_checkpoints()


def test_sd_backend_client(server):
    pytest.importorskip("sd_backend_client", reason="the client sd-backend-client is not installed")
    from sd_backend_client.api.a1111_webservice import A1111Webservice
    from sd_backend_client.api.webui.diffusion_request_body import DiffusionRequestBody

    client = A1111Webservice(server.url)
    capable = client.get_capabilities()
    assert capable.scheduler and not capable.controlnet
    for name in ("checkpoints", "vaes", "loras", "samplers", "schedulers", "upscalers", "hypernetworks"):
        getattr(client, f"list_{name}")()
    body = DiffusionRequestBody(prompt="a disc", width=32, height=32, steps=2, seed=9)
    drawn = client.txt2img(body)
    assert len(drawn["images"]) == 1 and drawn["info"].all_seeds == [9]
    old = picture()
    body = DiffusionRequestBody(prompt="a disc", width=32, height=32, steps=4, init_images=[old], mask=half())
    repainted = client.submit_inpaint(body).wait()
    assert not differs(repainted.images[0] if hasattr(repainted, "images") else repainted["images"][0], old)[
        :, 16:
    ].any()
    client.interrupt()


def test_the_requests_of_sillytavern(server):
    """The routes of its src/endpoints/stable-diffusion.js, in their order: ping, lists, another model, a picture."""
    get = lambda route: server.call("GET", f"/sdapi/v1/{route}", headers={"authorization": "Basic "})  # noqa: E731
    options = get("options").json()
    assert "forge_preset" not in options
    titles = [model["title"] for model in get("sd-models").json()]
    assert options["sd_model_checkpoint"] in titles
    assert get("sd-vae").json() == [] and get("sd-modules").status_code == 404
    assert [upscaler["name"] for upscaler in get("upscalers").json()] == ["None", "Lanczos"]
    assert all(mode["name"].startswith("Latent") for mode in get("latent-upscale-modes").json())
    chosen = server.call("POST", "/sdapi/v1/options", json={"sd_model_checkpoint": "second"})
    assert chosen.status_code == 200 and chosen.json() is None
    state = get("progress").json()
    assert state["progress"] == 0 and state["state"]["job_count"] == 0
    body = {
        "prompt": "a disc", "negative_prompt": "blue", "sampler_name": "DPM++ 2M", "scheduler": "karras", "steps": 2,
        "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False, "enable_hr": False, "save_images": True,
        "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False, "seed": -1, "clip_skip": 1,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True, "hr_upscaler": "Latent", "hr_scale": 2, "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
    }  # fmt: skip
    images, info = post(server, "txt2img", **body)
    assert images[0].size == (64, 64) and info["clip_skip"] == 2 and info["sampler_name"] == "DPM++ 2M"
    assert "Schedule type: Karras" in info["infotexts"][0]
    assert "save_images" in info["extra_generation_params"]["Ignored"]
    server.call("POST", "/sdapi/v1/options", json={**options})


def test_the_requests_of_open_webui(server):
    """Those of its routers/images.py: read and send back all options, then draw; it splits pictures at a comma."""
    headers = {"authorization": ""}
    options = server.call("GET", "/sdapi/v1/options", headers=headers).json()
    assert server.call("POST", "/sdapi/v1/options", headers=headers, json=options).status_code == 200
    body = {"prompt": "a disc", "batch_size": 1, "width": 32, "height": 32, "steps": 2, "negative_prompt": "x"}
    answer = server.call("POST", "/sdapi/v1/txt2img", json=body, headers=headers).json()
    first = answer["images"][0].partition(",")
    assert Image.open(io.BytesIO(base64.b64decode(first[2] or first[0]))).format == "PNG"
    assert isinstance(answer["info"], str)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("invert", [0, 1])
def test_both_kinds_of_mask(server, alpha, invert):
    old = picture((40, 32))
    body = {"init_images": [encoded(old)], "mask": encoded(half(old.size, alpha)), "inpainting_mask_invert": invert}
    (drawn,), info = post(server, "img2img", **body, mask_blur=0, denoising_strength=1.0)
    changed = differs(drawn, old)
    inside, outside = (changed[:, :20], changed[:, 20:])[:: -1 if invert else 1]
    assert drawn.size == old.size and inside.any() and not outside.any()
    assert info["extra_generation_params"]["Pixels changed outside the mask"] == 0


def test_the_whole_picture_is_resized_as_a1111_does(server):
    old = picture((64, 64))
    body = {"init_images": [encoded(old)], "mask": encoded(half(old.size)), "inpaint_full_res": False}
    (drawn,), _ = post(server, "img2img", **body)
    assert drawn.size == (32, 32)
    kept = old.resize((32, 32), Image.Resampling.LANCZOS)
    assert not differs(drawn, kept)[:, 17:].any()


@pytest.mark.parametrize(
    "one, other",
    [
        ({"seed": 1}, {"seed": 2}),
        ({"steps": 2}, {"steps": 3}),
        ({"prompt": "a disc", "cfg_scale": 2}, {"prompt": "a disc", "cfg_scale": 9}),
        ({"negative_prompt": ""}, {"negative_prompt": "red"}),
        ({"sampler_name": "Euler"}, {"sampler_name": "Heun"}),
        ({"sampler_index": "Euler"}, {"sampler_index": "Heun"}),
        ({"scheduler": "automatic", "steps": 4}, {"scheduler": "Karras", "steps": 4}),
        ({"subseed": 1, "subseed_strength": 0.0}, {"subseed": 1, "subseed_strength": 0.4}),
        ({"sampler_name": "DDIM", "eta": 0.0}, {"sampler_name": "DDIM", "eta": 0.9}),
        ({"override_settings": {}}, {"override_settings": {"CLIP_stop_at_last_layers": 2}}),
        ({"enable_hr": True}, {"enable_hr": True, "hr_upscaler": "Lanczos"}),
        ({"enable_hr": True}, {"enable_hr": True, "denoising_strength": 1.0}),
        ({"enable_hr": True, "hr_scale": 1.5}, {"enable_hr": True, "hr_resize_x": 64}),
        ({"prompt": "a disc"}, {"infotext": "a cat\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 7, Size: 32x32"}),
    ],
)
def test_a_field_changes_the_picture(server, one, other):
    (before,), _ = post(server, "txt2img", **one)
    (after,), info = post(server, "txt2img", **other)
    assert before.size != after.size or differs(before, after).any()
    assert "Ignored" not in info["extra_generation_params"]


def test_what_changes_no_picture_is_named(server):
    body = {
        "restore_faces": True, "tiling": True, "styles": ["x"], "s_churn": 3.0, "no_such_field": 1, "eta": 1.0,
        "sampler_name": "DPM++ 2M", "override_settings": {"eta_noise_seed_delta": 31337}, "refiner_checkpoint": "x",
        "seed_resize_from_h": 64,
    }  # fmt: skip
    _, info = post(server, "txt2img", **body)
    named = info["extra_generation_params"]["Ignored"]
    for name in (*(set(body) - {"sampler_name", "override_settings"}), "eta_noise_seed_delta"):
        assert name in named, name


@pytest.mark.parametrize(
    "status, route, body",
    [
        (404, "txt2img", {"sampler_name": "No such"}),
        (404, "txt2img", {"scheduler": "No such"}),
        (404, "txt2img", {"override_settings": {"sd_model_checkpoint": "../x"}}),
        (422, "txt2img", {"script_name": "x/y/z plot"}),
        (422, "txt2img", {"alwayson_scripts": {"ADetailer": {"args": [True]}}}),
        (422, "txt2img", {"steps": "many"}),
        (422, "txt2img", {"batch_size": 40, "n_iter": 40}),
        (400, "txt2img", {"width": 100}),
        (422, "img2img", {}),
        (400, "img2img", {"init_images": ["%%%"]}),
        (400, "img2img", {"init_images": ["http://127.0.0.1/x.png"]}),
        (400, "png-info", {"image": "aGVsbG8="}),
        (400, "options", {"CLIP_stop_at_last_layers": "x"}),
        (404, "options", {"sd_model_checkpoint": "x"}),
        (501, "extra-single-image", {"image": ""}),
        (501, "interrogate", {}),
    ],
)
def test_a_mistake_is_answered_with_its_status_and_one_line(server, status, route, body):
    answer = server.call("POST", f"/sdapi/v1/{route}", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "detail", "body", "errors"} and "\n" not in answer.json()["detail"]


def test_interrupt_answers_with_what_is_there_and_progress_shows_it(server):
    answers = []
    body = {"steps": 200, "width": 64, "height": 64, "batch_size": 1}
    thread = threading.Thread(target=lambda: answers.append(post(server, "txt2img", **body)))
    thread.start()
    progress = lambda: server.call("GET", "/sdapi/v1/progress").json()  # noqa: E731
    wait_for(lambda: progress()["state"]["sampling_step"] > 1)
    state = progress()
    assert 0 < state["progress"] < 1 and state["state"]["job_count"] == 1 and state["current_image"]
    server.call("POST", "/sdapi/v1/interrupt")
    thread.join(60)
    ((images, info),) = answers
    assert len(images) == 1 and info["all_seeds"] == [7]


def test_a_client_that_hangs_up_frees_the_machine(server):
    import requests

    body = SHORT | {"steps": 200, "width": 64, "height": 64}
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=0.3)
    wait_for(lambda: server.service.queue.length == 0, 20)
    newest = server.service.queue.newest(1)[0]
    assert newest.status == "cancelled" and newest.step < 200
