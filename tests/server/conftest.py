"""A real server in a thread of this process, on the tiny model."""

import contextlib
import os
import shutil
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")


MODEL = os.environ.get("SERVER_TEST_MODEL", "")
RUN = {"name": "discs", "data": "discs", "recipe": "lora", "steps": 4, "batch_size": 2, "size": 16, "held_out": 2}
"""Fields of a small run on the pictures of discs."""


class Running:
    """A server that answers at `url`; `service` is what it works with."""

    def __init__(self, settings) -> None:
        import uvicorn

        from latent_diffusion.server.app import build_app
        from latent_diffusion.server.listening import listen

        self._open = contextlib.ExitStack()
        bound, url = self._open.enter_context(listen(settings.host, 0))
        self.url = url.rstrip("/")
        app = build_app(settings, {"device": "cpu"})
        self.service, self.training = app.state.service, app.state.training
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [bound]}, daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)
        self._open.close()

    def call(self, method: str, path: str, **options):
        import requests

        return requests.request(method, self.url + path, timeout=60, **options)

    def draw(self, **fields) -> dict:
        """Return a job that is finished."""
        begun = self.call("POST", "/jobs", json=fields)
        assert begun.status_code == 202, begun.text
        return self.finish(begun.json()["id"])

    def finish(self, key: str) -> dict:
        wait_for(lambda: self.call("GET", f"/jobs/{key}").json()["status"] in ("done", "failed", "cancelled"))
        return self.call("GET", f"/jobs/{key}").json()

    def picture(self, job: dict, number: int = 0) -> bytes:
        return self.call("GET", job["pictures"][number]["url"]).content


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def discs(tmp_path_factory):
    """A folder of six pictures of discs with captions beside them."""
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("pictures") / "discs"
    folder.mkdir()
    for k, colour in enumerate(("red", "blue", "green", "yellow", "black", "purple")):
        picture = Image.new("RGB", (24, 24), "white")
        ImageDraw.Draw(picture).ellipse((3, 3, 12 + 2 * k, 20), fill=colour)
        picture.save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"a {colour} disc")
    return folder


@pytest.fixture(scope="session")
def train_folder(discs, tmp_path_factory):
    """Pictures to train on, and traps: links that lead out, a folder without captions, an empty one, an empty .zip."""
    folder = tmp_path_factory.mktemp("training")
    shutil.copytree(discs, folder / "discs")
    (folder / "runs").mkdir()
    secret = tmp_path_factory.mktemp("secret")
    shutil.copytree(discs, secret / "discs")
    (folder / "out").symlink_to(secret / "discs")
    (folder / "runs" / "leaves.yaml").symlink_to(secret / "discs" / "0.txt")
    (folder / "bare").mkdir()
    (folder / "nothing").mkdir()
    (folder / "empty.zip").write_bytes(b"PK\5\6" + bytes(18))
    shutil.copy(discs / "0.png", folder / "bare" / ".hidden.png")
    shutil.copy(discs / "0.png", folder / "bare" / "0.png")
    return folder


@pytest.fixture(scope="session")
def server(tiny_folder, train_folder, tmp_path_factory):
    """A server with a model folder that holds a second model, folders of LoRA and pictures, and an output folder.

    SERVER_TEST_MODEL=emoji runs the clients' tests on the bundled model.
    """
    from latent_diffusion.server.limits import ServeSettings

    models = tmp_path_factory.mktemp("more-models")
    (models / "second").symlink_to(tiny_folder)
    output = tmp_path_factory.mktemp("pictures-of-server")
    loras = tmp_path_factory.mktemp("loras")
    folders = {"model_folder": models, "lora_folder": loras, "train_folder": train_folder}
    running = Running(ServeSettings(model=MODEL or str(tiny_folder), output=output, queue=100, **folders))
    yield running
    running.close()


@pytest.fixture(scope="session")
def trained(server):
    """A finished run of the server's folder, trained in this process from the configuration that a request makes."""
    from latent_diffusion.server.training.recipe import TrainFields, configuration, written
    from latent_diffusion.train import main

    training = server.training
    fields = TrainFields(**RUN, prompts=["a red disc", "a blue disc"], model=None)
    run = configuration(server.service, training.folder, fields, training.folder.runs / "discs")
    assert run.sample is not None
    sample = run.sample.model_copy(update={"steps": 2})
    run = run.model_copy(update={"threads": 1, "trackers": [], "sample": sample})
    config = training.folder.runs / "discs.yaml"
    config.write_text(written(run, "discs"), encoding="utf-8")
    assert main([str(config)]) == 0
    return "discs"


@pytest.fixture
def start():
    """A function from settings to a running server of its own."""
    with contextlib.ExitStack() as stack:

        def begin(settings) -> Running:
            running = Running(settings)
            stack.callback(running.close)
            return running

        yield begin
