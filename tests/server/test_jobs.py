"""The native API against a real server: what it draws, in which order, and how it is stopped."""

import asyncio
import base64
import io
import json
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.provenance.picture_file import texts_of
from latent_diffusion.provenance.record import Record

from .conftest import wait_for

SHORT = {"num_inference_steps": 2, "seed": 3}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def base64_of(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Held:
    """Holds the drawing thread after the first step of the next job until it is released."""

    def __init__(self, monkeypatch) -> None:
        self.reached, self._go_on = threading.Event(), threading.Event()
        from latent_diffusion.server.drawing.job import Job

        change = Job.change

        def held(job, **values) -> None:
            change(job, **values)
            if values.get("step"):
                self.reached.set()
                self._go_on.wait(30)

        monkeypatch.setattr(Job, "change", held)

    def release(self) -> None:
        self._go_on.set()

    def hold(self) -> None:
        self._go_on.clear()
        self.reached.clear()


@pytest.fixture
def held(monkeypatch):
    hold = Held(monkeypatch)
    yield hold
    hold.release()


def test_draws_what_the_pipeline_draws_and_writes_it(server, tiny_pipeline):
    job = server.draw(prompt="a red disc", num_images=2, guidance_scale=3.0, sampler="DPM++ 2M Karras", **SHORT)
    assert job["status"] == "done" and job["step"] == job["steps"] == 2
    assert [picture["seed"] for picture in job["pictures"]] == [3, 4]
    out = tiny_pipeline("a red disc", num_images_per_prompt=2, guidance_scale=3.0, sampler="DPM++ 2M Karras", **SHORT)
    for number, image in enumerate(out.images):
        png = server.picture(job, number)
        np.testing.assert_array_equal(pixels(png), np.asarray(image).astype(int))
        record = Record.from_json(texts_of(png, "picture").record or "")
        assert (record.sampler, record.spacing, record.seed) == ("dpmpp_2m", "karras", 3 + number)
        name = job["pictures"][number]["file"]
        assert server.call("GET", f"/history/{name}").content == png
        assert name in server.call("GET", "/history").json()


def test_events_show_every_state_and_the_unfinished_picture(server):
    key = server.call("POST", "/jobs", json={"prompt": "a disc", "num_inference_steps": 6}).json()["id"]
    text = server.call("GET", f"/jobs/{key}/events?preview=true").text
    states = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert states[-1]["status"] == "done" and states[-1]["progress"] == 1.0
    assert [state["step"] for state in states] == sorted(state["step"] for state in states)
    shown = [state["preview"] for state in states if "preview" in state]
    assert shown and shown[0].startswith("data:image/jpeg;base64,")


def test_a_picture_gives_back_the_fields_that_draw_it_again(server):
    job = server.draw(prompt="a (red:1.2) disc", negative_prompt="blue", variation_strength=0.3, eta=0.5, **SHORT)
    png = server.picture(job)
    found = server.call("POST", "/parameters", data=png).json()
    assert not found["left_out"] and found["fields"]["negative_prompt"] == "blue"
    again = server.draw(**found["fields"])
    np.testing.assert_array_equal(pixels(server.picture(again)), pixels(png))


@pytest.mark.parametrize("task", ["inpaint", "outpaint"])
def test_pixels_outside_the_mask_stay(server, task):
    picture = Image.effect_noise((40, 48), 90).convert("RGB")
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (8, 8, 30, 20))
    own = {"mask": base64_of(mask)} if task == "inpaint" else {"right": 16, "top": 8}
    job = server.draw(task=task, prompt="a disc", image="data:image/png;base64," + base64_of(picture), **own, **SHORT)
    assert job["status"] == "done", job
    drawn, old = pixels(server.picture(job)), np.asarray(picture).astype(int)
    assert job["pictures"][0]["changed_outside"] == 0
    if task == "inpaint":
        differs = (drawn != old).any(-1)
        assert differs.any() and not differs[np.asarray(mask) < 128].any()
    else:
        assert drawn.shape == (56, 56, 3)
        np.testing.assert_array_equal(drawn[8:, :40], old)


def test_requests_of_one_shape_are_drawn_together_and_equal_those_alone(server, held, monkeypatch):
    """The first job is held, so that the others wait; those of its shape then go through the network as one batch."""
    pipe = server.service.shelf.pipe
    sizes = []
    forward = type(pipe.components.unet).forward
    alone = {}
    held.release()
    prompts = [
        (f"a {colour} disc" + ", very round" * 30 * (k == 2), k) for k, colour in enumerate(("red", "blue", "black"))
    ]
    for prompt, seed in prompts:
        alone[seed] = pixels(server.picture(server.draw(prompt=prompt, seed=seed, num_inference_steps=3)))

    def counted(unet, x, *rest, **more):
        sizes.append(len(x))
        return forward(unet, x, *rest, **more)

    monkeypatch.setattr(type(pipe.components.unet), "forward", counted)
    held.hold()
    first = server.call("POST", "/jobs", json={"prompt": "a cat", "num_inference_steps": 1}).json()["id"]
    assert held.reached.wait(30)
    keys = [
        server.call("POST", "/jobs", json={"prompt": prompt, "seed": seed, "num_inference_steps": 3}).json()["id"]
        for prompt, seed in prompts
    ]
    other = server.call("POST", "/jobs", json={"prompt": "a cat", "num_inference_steps": 4}).json()["id"]
    assert [server.call("GET", f"/jobs/{key}").json()["place"] for key in (first, *keys, other)] == [0, 1, 2, 3, 4]
    sizes.clear()
    held.release()
    for key, (_, seed) in zip(keys, prompts, strict=True):
        job = server.finish(key)
        assert job["pictures"][0]["seed"] == seed
        assert abs(pixels(server.picture(job)) - alone[seed]).max() <= 1  # 1e-4 before it is rounded to 8 bit
    server.finish(other)
    assert len(sizes) < 3 * 3 + 4 * 2  # one run each would take 3 steps x 3 jobs, and more with the long prompt


def test_stop_keeps_the_picture_as_it_is(server, held):
    key = server.call("POST", "/jobs", json={"prompt": "a disc", "num_inference_steps": 50}).json()["id"]
    assert held.reached.wait(30)
    server.call("POST", f"/jobs/{key}/stop")
    held.release()
    job = server.finish(key)
    assert job["status"] == "done"
    record = Record.from_json(texts_of(server.picture(job), "picture").record or "")
    assert record.stopped_after is not None and record.stopped_after <= 2


def test_cancel_ends_within_a_step_and_the_next_one_is_drawn(server, held):
    key = server.call("POST", "/jobs", json={"prompt": "a disc", "num_inference_steps": 50}).json()["id"]
    waiting = server.call("POST", "/jobs", json={"prompt": "a disc", "num_inference_steps": 49}).json()["id"]
    after = server.call("POST", "/jobs", json={"prompt": "a disc", **SHORT}).json()["id"]
    assert held.reached.wait(30)
    assert server.call("DELETE", f"/jobs/{waiting}").json()["status"] == "cancelled"
    assert server.call("DELETE", f"/jobs/{key}").json()["status"] == "cancelled"
    step = server.call("GET", f"/jobs/{key}").json()["step"]
    held.release()
    assert server.finish(after)["status"] == "done"
    cancelled = server.call("GET", f"/jobs/{key}").json()
    assert cancelled["step"] <= step + 1 and not cancelled["pictures"]


def test_sixty_four_at_once_are_drawn_in_their_order_with_their_seeds(server, held):
    keys = [
        server.call("POST", "/jobs", json={"num_inference_steps": 1 + k % 2, "seed": k}).json()["id"] for k in range(64)
    ]
    assert held.reached.wait(30)
    held.release()
    for k, key in enumerate(keys):
        assert [picture["seed"] for picture in server.finish(key)["pictures"]] == [k]


def test_a_full_queue_refuses_with_a_time_to_wait(server, held, monkeypatch):
    monkeypatch.setattr(server.service.queue, "_most", 1)
    keys = [server.call("POST", "/jobs", json={"num_inference_steps": 5}).json()["id"]]
    assert held.reached.wait(30)
    keys.append(server.call("POST", "/jobs", json={"num_inference_steps": 6}).json()["id"])
    refused = server.call("POST", "/jobs", json={"num_inference_steps": 7})
    assert refused.status_code == 429 and refused.headers["retry-after"]
    for key in keys:
        server.call("DELETE", f"/jobs/{key}")


def test_one_wrong_request_does_not_fail_those_beside_it(server, held):
    """A prompt that names no adapter is found only when it is drawn."""
    first = server.call("POST", "/jobs", json={"num_inference_steps": 2, "prompt": "x"}).json()["id"]
    assert held.reached.wait(30)
    keys = [
        server.call("POST", "/jobs", json={"num_inference_steps": 3, "prompt": prompt, "seed": 1}).json()["id"]
        for prompt in ("a disc", "a disc <lora:none:1>", "a cat")
    ]
    held.release()
    jobs = [server.finish(key) for key in (first, *keys)]
    assert [job["status"] for job in jobs] == ["done", "done", "failed", "done"]
    assert "none" in jobs[2]["error"]


def test_the_model_changes_by_name_alone(server):
    job = server.draw(model="second", prompt="a disc", **SHORT)
    assert job["status"] == "done" and server.call("GET", "/about").json()["model"] == "second"
    refused = server.call("POST", "/jobs", json={"model": "../second"})
    assert refused.status_code == 404 and "there are" in refused.json()["error"]
    first = server.service.settings.model.rpartition("/")[2]
    assert server.draw(model=first, **SHORT)["status"] == "done"


def test_warnings_are_part_of_the_answer(server):
    black = Image.new("L", (32, 32), 0)
    job = server.draw(
        task="inpaint", image=base64_of(Image.new("RGB", (32, 32), "red")), mask=base64_of(black), **SHORT
    )
    assert job["status"] == "done" and "nothing to repaint" in job["notes"][0]


def test_the_count_of_tokens(server):
    found = server.call("POST", "/tokens", json={"prompt": "a red disc"}).json()
    assert found["tokens"] >= 3 and found["room"] == 75 and found["chunks"] == 1


def test_a_stream_that_is_left_does_not_keep_its_place(server):
    import requests

    key = server.draw(**SHORT)["id"]
    for _ in range(70):  # more than may be open at once
        requests.get(f"{server.url}/jobs/{key}/events", stream=True, timeout=30).close()
    wait_for(lambda: server.call("GET", f"/jobs/{key}/events").status_code == 200)


def test_requests_that_are_checked_together_are_drawn_together(monkeypatch):
    from latent_diffusion.server.drawing import queue as module

    monkeypatch.setattr(module, "GATHERED", 30.0)
    sizes, drawn = [], threading.Event()

    def draw(jobs) -> None:
        sizes.append(len(jobs))
        for job in jobs:
            job.finished = True
        if sum(sizes) == 3:
            drawn.set()

    def job(name: str, shape: str | None = "same") -> Any:
        return SimpleNamespace(id=name, request=SimpleNamespace(shape=shape), finished=False, pictures=[])

    queue = module.Queue(draw, most=10)
    queue.start()
    try:
        with queue.coming():
            queue.submit(job("a"))
            time.sleep(0.1)  # in which the worker would take the first alone
            assert not sizes
            queue.submit(job("b"))
        wait_for(lambda: sizes == [2])
        with queue.coming():  # a request that is drawn alone waits for nobody
            queue.submit(job("c", None))
            assert drawn.wait(10) and sizes == [2, 1]
    finally:
        queue.close()


def test_steps_that_nobody_watches_wake_nobody():
    from latent_diffusion.server.drawing.job import Job

    async def check() -> None:
        loop = asyncio.get_running_loop()
        calls = []
        wake = loop.call_soon_threadsafe
        counted = SimpleNamespace(call_soon_threadsafe=lambda what: (calls.append(what), wake(what)))
        job = Job(cast(Any, None), cast(Any, counted))
        ended = asyncio.ensure_future(job.wait())
        await asyncio.sleep(0)
        for step in range(10):
            job.change(step=step)
        assert not calls
        watched = asyncio.ensure_future(job.next_change(job.version))
        await asyncio.sleep(0)
        job.change(step=11)
        assert await asyncio.wait_for(watched, 10) == job.version == 11 and not ended.done()
        assert await job.next_change(3) == 11  # what changed before is not waited for
        job.change(status="done")
        await asyncio.wait_for(ended, 10)
        await asyncio.wait_for(job.wait(), 10)
        assert len(calls) == 2

    asyncio.run(check())
