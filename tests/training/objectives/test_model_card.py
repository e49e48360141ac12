"""The card in the folder of a result: its data, settings, figures and samples; the same after a kill."""

import json
import signal
from types import SimpleNamespace

import real
import yaml
from processes import train

from latent_diffusion.training.monitoring.model_card import LICENCE_LINE
from latent_diffusion.training.state.saving import shareable


def test_a_card_has_data_settings_figures_and_samples_and_no_folder_of_the_machine(
    tiny_objective, pictures, tiny_folder, tmp_path
):
    run = {
        "output": "unused", "objective": {**tiny_objective("lora"), "validation": {"split": "val"}},
        "passes": 2, "batch_size": 2, "threads": 1, "evaluate": {"every": 4}, "optimizer": {"learning_rate": 1e-3},
        "data": {"path": str(pictures), "size": 32, "captions": ["text"], "where": {"split": "train"}},
        "sample": {"every": 4, "prompts": ["a red disc", "a blue disc"], "steps": 2}, "checkpoint": {"every": 2},
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run))
    output, killed = tmp_path / "one" / "style", tmp_path / "two" / "style"
    for folder in (output, killed):
        folder.parent.mkdir()
    assert train(output, str(file), run=real.run) == 0
    card = (output / "model" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (
        header == {"library_name": "diffusers", "tags": ["text-to-image", "diffusers", "lora"]} and LICENCE_LINE in card
    )
    assert "# style\n" in card and "from `tiny`" in card and "4 updates of 2, 2 passes through the data" in card
    for row in ("| where.split | train |", "| objective.adapter.rank | 2 |", "| optimizer.learning_rate | 0.001 |"):
        assert row in card
    assert (
        "| loss of held-out pictures | " in card
        and "band 4 of 4" in card
        and "copies of training pictures | 0 |" in card
    )
    assert "| modelspec.architecture | " in card and "![](contact.png)" in card
    assert (output / "model" / "contact.png").is_file()
    assert str(tmp_path) not in card and str(pictures) not in card and str(tiny_folder) not in card
    assert train(killed, str(file), run=real.run, fault=("within a tensor file", 1)) == -signal.SIGKILL
    assert train(killed, str(file), run=real.run) == 0
    for kept in (output / "model").iterdir():
        assert (killed / "model" / kept.name).read_bytes() == kept.read_bytes(), kept.name


def test_a_record_has_names_of_files_without_their_folders():
    places = {"path": "/home/a/cats", "cache": {"folder": "/home/a/cache"}, "quarantine": "/home/a/bad.txt"}
    data = places | {"sources": [{"path": "/home/a/dogs", "size": 64}]}
    objective = {"init": "/home/a/sd.safetensors", "parts": {"vae": "/home/a/vae"}, "adapter": {"start": "/home/a/b"}}
    words = [{"token": "sks", "start": "cat/dog"}]
    config = {"output": "/home/a/run", "data": data, "objective": objective | {"words": words}}
    record = shareable(SimpleNamespace(done=3, ema=None), {"config": config})
    assert "/home" not in json.dumps(record) and "output" not in record["config"]
    assert record["config"]["data"]["sources"] == [{"path": "dogs", "size": 64}]
    assert record["config"]["objective"]["words"] == words
