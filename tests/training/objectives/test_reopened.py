"""Before a run is finished, its files are opened again, here and by diffusers, and give what was trained."""

import json

import pytest
import torch

from latent_diffusion.checkpoint.files.safetensors_file import open_file, read_tensors, write_tensors
from latent_diffusion.errors import CheckpointError
from latent_diffusion.registry import names
from latent_diffusion.training.monitoring.result import write_result
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text"]}
BOTH = ["unet", "text_encoder"]


@pytest.fixture
def spoiled(monkeypatch):
    """A function that lets the largest tensor of a file with this name be written with another value."""

    def spoil(module: str, name: str, factor: float = 1.5) -> None:
        real = write_tensors

        def write(path, tensors, *more, **options):
            if path.name == name:
                largest = max(tensors, key=lambda key: float(tensors[key].abs().max()))
                tensors = {**tensors, largest: tensors[largest] * factor}
            real(path, tensors, *more, **options)

        monkeypatch.setattr(module, write)

    return spoil


@pytest.mark.parametrize(
    ("adapter", "by_diffusers"),
    [
        ({"rank": 2, "layers": "all", "parts": BOTH}, 2),
        ({"rank": 4, "alpha": 3, "rank_stabilised": True}, 2),
        ({"rank": 2, "dora": True}, 1),
        ({"form": "lokr", "rank": 2}, 0),
    ],
)
def test_adapters_are_read_back_by_both(tiny_folder, make_run, tmp_path, capsys, adapter, by_diffusers):
    objective = {"name": "lora", "init": str(tiny_folder), "adapter": adapter}
    run = make_run(objective, CAPTIONED, steps=4, optimizer={"learning_rate": 1e-2}, output=str(tmp_path / "style"))
    assert train(run) == 0
    printed = capsys.readouterr().err
    assert "No LoRA keys" not in printed and "Loading weights" not in printed, printed
    assert printed.count("read back by this package and by diffusers") == by_diffusers
    assert printed.count("gives the trained outputs") == len(list((tmp_path / "style" / "model").glob("*.safetensors")))
    assert printed.index("read back") < printed.index("finished")


@pytest.mark.parametrize("file", ["style.safetensors", "pytorch_lora_weights.safetensors"])
def test_an_adapter_that_is_not_what_was_trained_fails_and_stays(tiny_folder, make_run, tmp_path, spoiled, file):
    objective = {"name": "lora", "init": str(tiny_folder), "adapter": {"rank": 2}}
    run = make_run(objective, CAPTIONED, steps=4, optimizer={"learning_rate": 1e-2}, output=str(tmp_path / "style"))
    spoiled("latent_diffusion.adapters.writing.write_tensors", file)
    with pytest.raises(CheckpointError, match=r"differs from the trained one by .*the files are kept there") as caught:
        train(run)
    kept = tmp_path / "style" / "model-unverified" / file
    assert str(kept) in str(caught.value) and kept.is_file() and not (tmp_path / "style" / "model").exists()
    status = json.loads((tmp_path / "style" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)


def test_after_a_failure_the_run_writes_its_result_again(tiny_folder, make_run, tmp_path, monkeypatch, spoiled):
    objective = {"name": "lora", "init": str(tiny_folder), "adapter": {"rank": 2}}
    run = make_run(objective, CAPTIONED, steps=2, optimizer={"learning_rate": 1e-2}, output=str(tmp_path / "style"))
    spoiled("latent_diffusion.adapters.writing.write_tensors", "style.safetensors")
    with pytest.raises(CheckpointError):
        train(run)
    monkeypatch.undo()
    assert train(run) == 0
    assert (tmp_path / "style" / "model" / "style.safetensors").is_file()
    assert not (tmp_path / "style" / "model-unverified").exists()


def test_what_only_diffusers_misreads_is_found(tiny_folder, make_run, tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    monkeypatch.setattr(StableDiffusionPipeline, "load_lora_weights", lambda *_, **__: None)
    objective = {"name": "lora", "init": str(tiny_folder), "adapter": {"rank": 2}}
    run = make_run(objective, CAPTIONED, steps=4, optimizer={"learning_rate": 1e-2}, output=str(tmp_path / "style"))
    with pytest.raises(CheckpointError, match="read back by diffusers, the output of unet differs"):
        train(run)


ELSEWHERE = ("textual_inversion", "concepts")
"""Files of words are compared vector by vector when they are written; adapters of concepts are checked as `lora`'s."""
OPENED_WHOLE = [name for name in names("latent_diffusion.training.objectives") if name not in ELSEWHERE]


@pytest.mark.parametrize("name", OPENED_WHOLE)
def test_every_objective_opens_what_it_wrote(tiny_objective, make_run, tmp_path, name):
    captions = {"captions": []} if name == "autoencoder" else CAPTIONED
    run = make_run(tiny_objective(name), captions, steps=3, optimizer={"learning_rate": 1e-2})
    if name == "plane":  # its points are drawn, not read
        run = run.model_copy(update={"data": {}})
    torch.manual_seed(0)
    trainer = Trainer(build_objective(run), run, build_accelerator())
    trainer.fit()
    target = tmp_path / "model"
    write_result(trainer, target, {"config": run.model_dump(mode="json")})
    for file in target.rglob("*.safetensors"):
        if "clip" in file.parts:
            continue
        header = open_file(file)[1]
        tensors = read_tensors(file)
        largest = max(tensors, key=lambda key: float(tensors[key].float().abs().sum()))
        write_tensors(file, {**tensors, largest: tensors[largest] * 3}, header)
        with pytest.raises(CheckpointError, match="differs from the trained one"):
            trainer.objective.verify(target)
        write_tensors(file, tensors, header)
    trainer.objective.verify(target)
