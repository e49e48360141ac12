"""Training over HTTP: what may be named, one process at a time, and runs that are read from their files."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import requests

from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.train_folder import TrainFolder
from latent_diffusion.server.training.process import Process
from latent_diffusion.server.training.run_view import Curve
from tests.server.conftest import RUN, wait_for

SLEEP = ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)")


def test_the_recipes_are_those_of_the_wheel_and_of_the_schema():
    import hatch_build
    from latent_diffusion.server.training.recipe import RECIPES, TrainFields

    assert list(hatch_build.RECIPES) == [f"{name}.yaml" for name in RECIPES]
    assert TrainFields.model_json_schema()["properties"]["recipe"]["enum"] == list(RECIPES)


def test_what_can_be_trained_on_is_listed(server):
    offers = server.call("GET", "/training").json()
    names = {source["name"]: source["pictures"] for source in offers["sources"]}
    assert names == {"discs": 6, "bare": 1, "empty.zip": None} and offers["busy"] is None
    assert "leaves" not in [run["name"] for run in offers["runs"]]  # a link that leads out
    assert set(offers["recipes"]) == {"lora", "finetune", "inpaint"}
    assert offers["recipes"]["lora"]["steps"] == 1000 and offers["recipes"]["lora"]["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "../secret"}, "no folder or .zip"),
        ({"data": "/etc"}, "no folder or .zip"),
        ({"data": "out"}, "no folder or .zip"),  # a link to a folder outside
        ({"data": "discs/../../secret"}, "no folder or .zip"),
        ({"data": "runs"}, "no folder or .zip"),
        ({"data": "."}, "no folder or .zip"),
        ({"data": "discs/0.png"}, "no folder or .zip"),
        ({"data": "x" * 400}, "no folder or .zip"),
        ({"data": "dis\ncs"}, "no folder or .zip"),
        ({"data": "bare"}, "no row of"),  # no captions
        ({"data": "nothing"}, "0 pictures"),
        ({"data": "empty.zip"}, "zip"),
        ({"name": "../x"}, "name: "),
        ({"name": "a/b"}, "name: "),
        ({"name": ""}, "name: "),
        ({"recipe": "../../etc/passwd"}, "recipe: "),
        ({"model": "/etc/passwd"}, "no model"),
        ({"steps": 0}, "steps: "),
        ({"steps": True}, "steps: "),
        ({"steps": "4"}, "steps: "),
        ({"batch_size": 10**9}, "batch_size: "),
        ({"learning_rate": 0}, "learning_rate: "),
        ({"size": 20}, "not a multiple of 8"),
        ({"held_out": 4}, "leave at least half"),
        ({"seed": -1}, "seed: "),
        ({"prompts": ["a\nb"]}, "prompts"),
        ({"prompts": ["a"] * 100}, "prompts"),
        ({"prompts": [""]}, "prompts"),
        ({"caption": "x" * 10_000}, "caption"),
        ({"data": "discs\0"}, "no folder or .zip"),
        ({"data": "discs/\ud800"}, "data: "),
        ({"data": "discs/" + "../discs/" * 50}, "no folder or .zip"),
        ({"data": "out/0.png"}, "no folder or .zip"),
        ({"data": None}, "data: "),
        ({"data": {"path": "/etc"}}, "data: "),
        ({"name": "run\0"}, "name: "),
        ({"name": "run\n"}, "name: "),
        ({"name": "\ud800"}, "name: "),
        ({"recipe": "lora_sdxl"}, "recipe: "),
        ({"recipe": ["lora"]}, "recipe: "),
        ({"recipe": "lora.yaml"}, "recipe: "),
        ({"model": "tiny\0"}, "no model"),
        ({"model": "../" * 60}, "no model"),
        ({"steps": 10**400}, "steps: "),
        ({"steps": 1e300}, "steps: "),
        ({"batch_size": -1}, "batch_size: "),
        ({"learning_rate": 10**400}, "learning_rate: "),
        ({"size": 2**63}, "size: "),
        ({"held_out": 2**31}, "held_out: "),
        ({"seed": 2**64}, "seed: "),
        ({"caption": "a\0b"}, "caption"),
        ({"prompts": ["\u2028"]}, "prompts"),
        ({"prompts": {"0": "a"}}, "prompts"),
        ({"output": "/tmp/x"}, "output"),
        ({"objective.init": "/etc"}, "objective.init"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(server, change, words):
    for path in ("/training/runs", "/training/check"):
        refused = server.call("POST", path, json={**RUN, "name": "refused", **change})
        assert 400 <= refused.status_code < 500, refused.text
        error = refused.json()["error"]
        assert words in error and "\n" not in error and len(error) < 1500
    assert server.call("GET", "/training").json()["busy"] is None


def test_numbers_that_are_none_are_refused(server):
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000):
        body = json.dumps({**RUN, "name": "refused"})[:-1] + f', "learning_rate": {number}}}'
        for path in ("/training/runs", "/training/check"):
            refused = server.call("POST", path, data=body, headers={"content-type": "application/json"})
            assert 400 <= refused.status_code < 500 and refused.json()["error"].count("\n") == 0, refused.text


def test_what_is_not_running_is_stopped_without_harm(server, trained):
    before = server.call("GET", f"/training/runs/{trained}").json()
    for _ in range(2):
        assert server.call("POST", f"/training/runs/{trained}/stop").json() == before
        assert server.call("DELETE", "/training/check").json()["state"] in ("none", "done")
    assert server.call("GET", f"/training/runs/{trained}").json()["state"] == "finished"


def test_of_starts_and_examinations_at_once_one_goes_on(server, trained, tmp_path, monkeypatch):
    """In place of the training a process that sleeps is started, which `stop` ends."""
    from latent_diffusion.server.training import training

    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(training, "TRAIN", ("sleeps",))
    answers = []

    def begin(name: str) -> None:
        answers.append(server.call("POST", "/training/runs", json={**RUN, "name": name}))

    threads = [threading.Thread(target=begin, args=(f"at-once-{k}",)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = server.training.folder.runs
    try:
        assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409]
        name = next(answer.json()["name"] for answer in answers if answer.status_code == 202)
        assert server.call("POST", "/training/check", json={**RUN, "name": "x"}).status_code == 409
        assert server.call("POST", f"/training/runs/{trained}/stop").status_code == 200  # not the one that runs
        assert f"'{name}' is being trained" in server.call("GET", "/training").json()["busy"]
        assert [path.stem for path in runs.glob("at-once-*.yaml")] == [name]
        assert server.call("POST", f"/training/runs/{name}/stop").status_code == 200
        wait_for(lambda: server.call("GET", "/training").json()["busy"] is None)
    finally:
        for path in runs.glob("at-once-*"):
            path.unlink()


def test_a_huge_body_and_a_server_without_a_folder_are_refused(server, start, tiny_folder):
    from latent_diffusion.server.limits import ServeSettings

    refused = server.call("POST", "/training/runs", json={**RUN, "data": "x" * 10**6})
    assert refused.status_code == 422 and len(refused.json()["error"]) < 300
    bare = start(ServeSettings(model=str(tiny_folder)))
    offers = bare.call("GET", "/training").json()
    assert not offers["available"] and "--train-folder" in offers["why"]
    for method, path in (
        ("POST", "/training/runs"), ("POST", "/training/check"), ("GET", "/training/runs/x"),
        ("GET", "/training/runs/x/events"), ("POST", "/training/runs/x/stop"), ("POST", "/training/runs/x/use"),
        ("GET", "/training/runs/x/samples/step-00000001-0.png"), ("GET", "/training/check/report"),
    ):  # fmt: skip
        assert bare.call(method, path, json=RUN if method == "POST" else None).status_code == 404
    assert bare.call("GET", "/training/check").json()["state"] == "none"
    assert bare.call("DELETE", "/training/check").status_code == 200


def test_a_finished_run_is_read_from_its_files(server, trained):
    run = server.call("GET", f"/training/runs/{trained}").json()
    assert (run["state"], run["step"], run["steps"], run["result"]) == ("finished", 4, 4, "lora")
    assert (run["data"], run["held_out"], run["size"]) == ("discs", 2, 16)
    assert [sample["step"] for sample in run["samples"]] == [1, 2, 3, 4]
    picture = server.call("GET", run["samples"][-1]["url"])
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    stream = server.call("GET", f"/training/runs/{trained}/events").text
    assert stream.startswith("event: finished\n") and stream.count("event: ") == 1
    points = json.loads(stream.split("data: ", 1)[1])["points"]
    assert [point["step"] for point in points if "loss" in point] == [1, 2, 3, 4]
    assert [len(point["bands"]) for point in points if "bands" in point] == [4] * 4
    again = server.call("POST", f"/training/runs/{trained}/resume")
    assert again.status_code == 409 and "finished" in again.json()["error"]
    assert server.call("POST", "/training/runs", json=RUN).status_code == 409  # the name is taken


def test_the_result_of_a_run_can_be_drawn_with(server, trained):
    use = server.call("POST", f"/training/runs/{trained}/use").json()
    assert use == {"model": server.service.shelf.name, "lora": trained}
    assert server.call("POST", f"/training/runs/{trained}/use").json() == use
    assert trained in server.call("GET", "/about").json()["loras"]
    copy = server.service.settings.lora_folder / f"{trained}.safetensors"
    kept = copy.read_bytes()
    copy.write_bytes(b"another")
    refused = server.call("POST", f"/training/runs/{trained}/use")
    assert refused.status_code == 409 and copy.read_bytes() == b"another"
    copy.write_bytes(kept)
    drawn = [
        server.picture(server.draw(prompt=f"a red disc{tag}", seed=3, num_inference_steps=2))
        for tag in ("", f" <lora:{trained}:5>")
    ]
    assert drawn[0] != drawn[1]


def test_a_whole_model_that_a_run_made_is_one_of_the_models(server, tiny_folder):
    from latent_diffusion.server.training.recipe import TrainFields, configuration, written

    folder, before = server.training.folder, server.service.shelf.name
    fields = TrainFields(**{**RUN, "name": "whole", "recipe": "finetune"})
    run = configuration(server.service, folder, fields, folder.runs / "whole")
    assert run.warmup == 0 and run.log_every == 1 and run.objective["validation"] == run.data["where_not"]
    (folder.runs / "whole.yaml").write_text(written(run, "whole"), encoding="utf-8")
    shutil.copytree(tiny_folder, folder.runs / "whole" / "model")
    try:
        assert server.call("POST", "/training/runs/whole/use").json() == {"model": "runs/whole", "lora": None}
        assert "runs/whole" in server.call("GET", "/about").json()["models"]
        assert server.draw(prompt="x", num_inference_steps=1, model="runs/whole")["status"] == "done"
        assert server.draw(prompt="x", num_inference_steps=1, model=before)["status"] == "done"
    finally:
        shutil.rmtree(folder.runs / "whole")
        (folder.runs / "whole.yaml").unlink()


@pytest.mark.parametrize("name", ["nobody", "%2e%2e%2fsecret", "x" * 300, "..%2Fdiscs", "leaves"])
def test_runs_and_samples_elsewhere_are_not_there(server, trained, name):
    for path in ("", "/events", "/samples/step-00000001-0.png"):
        assert server.call("GET", f"/training/runs/{name}{path}").status_code == 404
    for verb in ("stop", "resume", "use"):
        assert server.call("POST", f"/training/runs/{name}/{verb}").status_code == 404
    for file in ("contact.png", "..%2flog.jsonl", "step-1-0.png", "step-00000001-0.png%00"):
        assert server.call("GET", f"/training/runs/{trained}/samples/{file}").status_code == 404


def test_damaged_files_of_a_run_do_not_end_the_list(server, trained):
    runs = server.training.folder.runs
    (runs / "odd.yaml").write_text("[1, 2")
    (runs / "huge.yaml").write_text("# " + "x" * 2**21)
    folder = runs / "halfway"
    folder.mkdir()
    (runs / "halfway.yaml").write_text((runs / "discs.yaml").read_text())
    (folder / "status.json").write_text('{"state": "running", "step": "many"}')
    odd = '{"step": 1, "images_per_second": NaN, "unet/loss": -Infinity, "validation_loss_0": 1e999}\n'
    odd += '{"step": 1, "images_per_second": 1' + "0" * 400 + '}\n{"step": Infinity}\n{"step": "\\ud800"}\n'
    (folder / "log.jsonl").write_text(odd + '{"step": 1, "unet/loss": 0.5}\n[]\n{"step": {}}\n{"step": 2, "unet/lo')
    try:
        found = {run["name"]: run for run in server.call("GET", "/training").json()["runs"]}
        assert found["odd"]["state"] == found["huge"]["state"] == "unreadable"
        assert "YAML" in found["odd"]["message"] and "bytes" in found["huge"]["message"]
        assert found["halfway"]["state"] == "killed" and found["halfway"]["step"] == 1
        assert found["discs"]["state"] == "finished"
        assert server.call("GET", "/training/runs/odd").status_code == 400
        assert server.call("GET", "/training/runs/halfway").status_code == 200
        (event,) = [
            line for line in server.call("GET", "/training/runs/halfway/events").text.splitlines() if "{" in line
        ]
        assert "NaN" not in event and "Infinity" not in event and "e999" not in event
    finally:
        for name in ("odd", "huge", "halfway"):
            (runs / f"{name}.yaml").unlink()


def test_a_curve_is_read_on_and_starts_anew_when_lines_were_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": k, "unet/loss": 1 / k, "images_per_second": 2.0}) + "\n" for k in range(1, 6)]
    curve = Curve(lambda: log)
    assert curve.read() == []
    log.write_text("".join(lines[:2]) + lines[2][:5])
    assert [point["step"] for point in curve.read()] == [1, 2] and curve.anew
    log.write_text("".join(lines[:4]))
    assert [point["step"] for point in curve.read()] == [3, 4] and not curve.anew
    assert curve.read() == [] and [point["step"] for point in curve.points] == [1, 2, 3, 4]
    log.write_text("".join([*lines[:1], lines[1].replace("0.5", "0.6"), *lines[2:]]) * 1)
    assert [point["step"] for point in curve.read()] == [5]  # a later line than those read
    log.write_text("".join(lines[:2]))
    assert [point["step"] for point in curve.read()] == [1, 2] and curve.anew
    log.write_text("".join(lines) * 1000)
    many = Curve(lambda: log)
    assert len(many.read()) <= 1100


@pytest.fixture
def process(tmp_path):
    (tmp_path / "runs").mkdir()
    made = Process(TrainFolder(tmp_path))
    yield made
    made.close()


def test_of_starts_at_once_one_goes_on(process, tmp_path):
    runs, refused = tmp_path / "runs", []

    def start(name: str) -> None:
        try:
            process.start(name, SLEEP, runs / f"{name}.log", runs / f"{name}.yaml", "text")
        except Refusal as error:
            refused.append(error)

    threads = [threading.Thread(target=start, args=(f"run-{k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7 and {error.status_code for error in refused} == {409}
    assert all("is being trained; one at a time" in error.detail for error in refused)
    assert [path.stem for path in runs.glob("*.yaml")] == [process.name]
    assert process.trains(process.name) and process.stop(process.name) and process.stopping
    wait_for(lambda: process.busy() is None)
    assert not process.stop(process.name)


def test_a_training_that_outlived_its_server_is_found_and_stopped(process, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from latent_diffusion.training.state.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "runs" / "older")], env=dict(os.environ))
    try:
        wait_for(lambda: process.trains("older"))
        assert process.busy() == "the run 'older' is being trained"
        with pytest.raises(Refusal, match="older"):
            process.start("new", SLEEP, tmp_path / "new.log", tmp_path / "new.yaml", "text")
        assert process.stop("older")
        child.wait(30)
        wait_for(lambda: process.busy() is None)
    finally:
        child.kill()


@pytest.mark.slow
def test_train_stop_resume_and_end_the_server(start, tiny_folder, discs, tmp_path):
    """Training is stopped and resumed by requests, and saves and ends when the server does; a new server reads on."""
    from latent_diffusion.server.limits import ServeSettings

    (tmp_path / "discs").symlink_to(tmp_path / "own")
    (tmp_path / "own").mkdir()
    for file in discs.iterdir():
        (tmp_path / "own" / file.name).write_bytes(file.read_bytes())
    settings = ServeSettings(model=str(tiny_folder), train_folder=tmp_path)
    running = start(settings)
    fields = {**RUN, "name": "long", "data": "own", "steps": 100_000, "held_out": 0}

    def state(server) -> dict:
        return server.call("GET", "/training/runs/long").json()

    assert running.call("POST", "/training/runs", json=fields).status_code == 202
    for path in ("/training/runs", "/training/check", "/training/runs/long/resume"):
        refused = running.call("POST", path, json={**fields, "name": "other"})
        assert refused.status_code == 409 and "'long' is being trained" in refused.json()["error"]
    assert running.call("POST", "/training/runs/long/use").status_code == 409
    wait_for(lambda: state(running)["seconds_left"], 300)
    assert state(running)["state"] == "training" and state(running)["plan"]
    stream = requests.get(f"{running.url}/training/runs/long/events", stream=True, timeout=60)
    running.call("POST", "/training/runs/long/stop")
    assert "event: interrupted" in stream.text  # it ends with the process
    stopped = state(running)
    assert stopped["state"] == "interrupted" and stopped["step"] > 0 and stopped["result"] is None
    assert running.call("POST", "/training/runs/long/resume").status_code == 202
    wait_for(lambda: state(running)["step"] > stopped["step"], 300)
    before = time.monotonic()
    running.close()
    assert time.monotonic() - before < 60
    again = start(settings)
    assert state(again)["state"] == "interrupted" and state(again)["step"] > stopped["step"]
    assert again.call("GET", "/training").json()["busy"] is None
