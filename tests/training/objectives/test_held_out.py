"""Held-out figures and sample pictures of every objective, on one process and on two."""

import json

import pytest
import real
from PIL import Image, ImageChops
from processes import losses_of, train, train_together

from latent_diffusion.errors import DataError
from latent_diffusion.registry import find, names
from latent_diffusion.training.objectives.reflow import CoupledSettings
from latent_diffusion.training.run import build_objective


def printed(output) -> str:
    return (output.parent / f"{output.name}.err0").read_text()


def figures(output, name) -> dict[int, float]:
    return {line["step"]: line[name] for line in losses_of(output) if name in line}


def step_of(folder) -> int:
    return json.loads((folder / "training.json").read_text())["step"]


def files_of(folder) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


PACKAGE = "latent_diffusion.training.objectives"
KINDS = {name: find(PACKAGE, name).settings_type for name in names(PACKAGE)}
MEASURED = [
    name for name, kind in KINDS.items() if "validation" in kind.model_fields and not issubclass(kind, CoupledSettings)
]


@pytest.mark.parametrize("name", MEASURED)
def test_every_objective_measures_held_out_pictures_alike_on_one_and_two_processes(
    tiny_objective, pictures, tmp_path, name
):
    held_out = 0.5 if name == "lora" else {"split": ["train", "val"]}
    sheet = {"every": 4, "prompts": ["a red disc", "a blue disc", "a disc"], "steps": 2}
    sheet = {key: value for key, value in sheet.items() if key in find(PACKAGE, name).sample}
    run = {
        "output": "unused", "objective": {**tiny_objective(name), "validation": held_out},
        "steps": 4, "batch_size": 2, "precision": "float64", "threads": 1,  # in float32, rounding grows in a GAN
        "optimizer": {"learning_rate": 1e-3}, "evaluate": {"every": 2},
        "data": {"path": str(pictures), "size": 32, "captions": ["text"], "where": {"split": "train"}},
        "sample": sheet,
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run))
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, str(file), run=real.run) == 0
    assert train_together(two, str(file), run=real.run) == [0, 0]
    needle = "validation_psnr" if name == "autoencoder" else "validation_loss"
    assert list(figures(one, needle)) == [2, 4]
    assert figures(two, needle) == pytest.approx(figures(one, needle), rel=1e-9)
    last = {"contact.png"}  # the sheet of the finished run
    assert step_of(one / "best") in (2, 4) and files_of(one / "best") - last == files_of(one / "model") - last
    if name in ("unet", "lora"):
        assert all(list(figures(one, f"validation_loss_{band}")) == [2, 4] for band in range(4))
        for file in ("step-00000004-0.png", "contact.png"):
            with Image.open(one / "samples" / file) as alone, Image.open(two / "samples" / file) as shared:
                difference = ImageChops.difference(alone, shared).getextrema()
                assert alone.getextrema() != ((255, 255),) * 3 and max(high for _, high in difference) <= 2
        assert "copy test: 0 of 3 sample pictures" in printed(one) and figures(one, "copies") == {4: 0.0}


def test_held_out_pictures_of_a_class_that_no_training_picture_has_are_refused_at_the_start(make_run, tiny_objective):
    objective = {**tiny_objective("classifier"), "fields": ["text"], "validation": {"split": "val"}}
    with pytest.raises(
        DataError, match=r"held-out pictures have text 'a black disc', .*; those have a blue disc, a gr"
    ):
        build_objective(make_run(objective, {"captions": []}))
