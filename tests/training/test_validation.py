"""Held-out figures during a run: the best weights are kept, patience ends a run, and a kill changes none of it."""

import json
import signal

import pytest
from PIL import Image
from processes import losses_of, train, train_together

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.training.monitoring.contact_sheet import contact_sheet

WILD = ("objective.held_out=true", "decay=constant", "optimizer.learning_rate=1.0", "evaluate.every=2")
"""The held-out figure falls and rises: the best of six is the fifth."""
WORSE = (*WILD, "optimizer.learning_rate=0.3", "evaluate.patience=2")
"""The first figure is not reached again by the second and third."""


def printed(output) -> str:
    return (output.parent / f"{output.name}.err0").read_text()


def figures(output, name="held_out") -> dict[int, float]:
    return {line["step"]: line[name] for line in losses_of(output) if name in line}


def bytes_of(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def step_of(folder) -> int:
    return json.loads((folder / "training.json").read_text())["step"]


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    output = tmp_path_factory.mktemp("wild") / "run"
    assert train(output, *WILD) == 0
    return output


def test_the_best_weights_are_kept_beside_the_last(wild, tmp_path):
    found = figures(wild)
    assert list(found) == [2, 4, 6, 8, 10, 12] and min(found, key=found.__getitem__) == 10
    assert step_of(wild / "best") == 10 and step_of(wild / "model") == 12
    until = tmp_path / "until"
    assert train(until, *WILD, "steps=10") == 0
    best, last = (read_tensors(folder / "toy.safetensors") for folder in (wild / "best", until / "model"))
    assert best.keys() == last.keys() and all(best[name].equal(last[name]) for name in best)


def test_best_and_patience_survive_kills(wild, tmp_path):
    killed = tmp_path / "run"
    for _ in range(3):  # in the evaluations of steps 6, 8 and 12; the last checkpoints are 3, 6 and 9
        assert train(killed, *WILD, fault=("killed in an evaluation", 2)) == -signal.SIGKILL
    assert train(killed, *WILD) == 0
    assert bytes_of(killed / "best") == bytes_of(wild / "best")
    assert losses_of(killed) == losses_of(wild)


def test_patience_ends_the_run_and_more_patience_goes_on(tmp_path):
    output, killed = tmp_path / "run", tmp_path / "again" / "run"
    killed.parent.mkdir()
    assert train(output, *WORSE) == 0
    assert list(figures(output)) == [2, 4, 6] and step_of(output / "model") == 6 and step_of(output / "best") == 2
    assert "the run ends after step 6 of 12" in printed(output)
    assert json.loads((output / "status.json").read_text())["state"] == "finished"
    assert train(killed, *WORSE, fault=("killed before the result", 0)) == -signal.SIGKILL
    assert train(killed, *WORSE) == 0
    assert bytes_of(killed / "model") == bytes_of(output / "model") and figures(killed) == figures(output)
    before = (output / "model" / "training.json").stat().st_mtime_ns
    assert train(output, *WORSE) == 0
    assert (output / "model" / "training.json").stat().st_mtime_ns == before
    assert "is finished: 6 steps" in printed(output)
    assert train(output, *WORSE, "evaluate.patience=3") == 0
    assert step_of(output / "model") == 12


def test_a_run_without_held_out_pictures_is_refused(tmp_path):
    assert train(tmp_path / "run", "evaluate.every=2") == 2
    assert "objective 'toy' has no held-out pictures; set objective.validation" in printed(tmp_path / "run")


def test_processes_share_figures_and_pictures(wild, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = (*WILD, "precision=float64", "sample.every=6")
    assert train(one, *options) == 0
    assert train_together(two, *options) == [0, 0]
    assert figures(two) == pytest.approx(figures(one), rel=1e-9)
    for step in (6, 12):
        for index, colour in enumerate(((255, 0, 0), (0, 128, 0), (0, 0, 255))):
            with Image.open(two / "samples" / f"step-{step:08d}-{index}.png") as picture:
                assert picture.getpixel((0, 0)) == colour


def test_a_process_whose_evaluation_fails_holds_up_nobody(tmp_path):
    output = tmp_path / "run"
    assert train_together(output, *WILD, "objective.evaluation_fails_in=1") == [0, 0]
    assert (
        "no figures of held-out pictures after step 2: RuntimeError: in another process: RuntimeError: no figures"
        in (printed(output))
    )
    assert step_of(output / "model") == 12 and not (output / "best").exists()


def test_the_contact_sheet_has_a_row_for_every_checkpoint(tmp_path):
    assert contact_sheet(tmp_path) is None
    for step in (10, 20, 30):
        Image.new("RGB", (64, 32), (step, 0, 0)).save(tmp_path / f"step-{step:08d}-0.png")
    sheet = contact_sheet(tmp_path)
    assert sheet is not None and sheet.height == 3 * 32
    assert [sheet.getpixel((sheet.width - 2, 16 + 32 * k)) for k in range(3)] == [(10, 0, 0), (20, 0, 0), (30, 0, 0)]


def test_copies_of_training_pictures_are_found(pictures, monkeypatch):
    import numpy as np

    from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
    from latent_diffusion.training import copy_test
    from latent_diffusion.training.copy_test import find_copies

    data = ImageFolder(DataConfig(path=str(pictures), size=32), 0)
    copy = Image.fromarray(np.clip(data.image(3).permute(1, 2, 0).numpy().astype(int) + 2, 0, 255).astype(np.uint8))
    other = Image.effect_noise((32, 32), 90).convert("RGB")
    found = find_copies([other, copy], data)
    assert found is not None and found.count == 1 and found.names[1] == "3.png"
    assert found.distances[1] < 2.1 < found.limit < found.distances[0]
    assert "copy test: 1 of 2" in found.line() and "sample 2 to '3.png'" in found.line()
    assert found.line().endswith("grey levels")
    monkeypatch.setattr(copy_test, "SEARCHED", -(-len(data) // 3))  # every third: 0, 3, ...
    seen: list[int] = []
    monkeypatch.setattr(data, "square", lambda row, own=data.square: seen.append(row) or own(row))
    found = find_copies([other, copy], data)
    assert found is not None and found.names[1] == "3.png" and set(seen[: found.searched]) == {*range(0, len(data), 3)}
    assert f"(of {found.searched} of {len(data)} training pictures)" in found.line()


def test_the_best_weights_are_read_back_as_the_result_is(tmp_path, monkeypatch):
    import toy

    from latent_diffusion.training import run

    read: list[str] = []
    monkeypatch.setattr(run, "find", run.find)  # which `toy.run` exchanges
    monkeypatch.setattr(toy.ToyObjective, "verify", lambda self, folder: read.append(folder.name.rpartition("-")[2]))
    assert toy.run(tmp_path / "run", *WORSE) == 0
    assert read == ["best", "model"]
