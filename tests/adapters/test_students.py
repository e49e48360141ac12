"""A distilled student drawn at times that it was not trained at: a warning, for models and adapters."""

import json
import warnings
from dataclasses import replace

import pytest
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.writing import write_lora
from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
from latent_diffusion.checkpoint.folder.trained_times import TrainedTimes
from latent_diffusion.cli.main import main
from latent_diffusion.errors import CheckpointError, LatentDiffusionWarning
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

USAGE = "sampler LCM, spacing lcm, 4 steps, guidance scale 1"
FOUR = TrainedTimes("lcm", 4, USAGE)
AS_TRAINED = {"sampler": "lcm", "spacing": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def student(tiny_components, tmp_path_factory):
    """A folder that draws in four steps by default and was trained at their times."""
    folder = tmp_path_factory.mktemp("student") / "four"
    config = {k: v for k, v in tiny_components.scheduler_config.items() if not k.startswith("timestep")}
    config |= {"_class_name": "LCMScheduler", "_num_inference_steps": 4, "_guidance_scale": 1.0, **FOUR.in_model()}
    save_folder(replace(tiny_components, scheduler_config=config), folder)
    return folder


@pytest.fixture(scope="module")
def file(random_lora, tmp_path_factory):
    """The same as an adapter."""
    path = tmp_path_factory.mktemp("adapters") / "quick.safetensors"
    write_lora(path, random_lora(0, parts=["unet"]), metadata=FOUR.in_header())
    return path


def opened(folder) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", fast=False)


def warned(draw, **options) -> list[str]:
    """The warnings of one call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        draw(**{"seed": 0, **options})
    return [str(each.message) for each in found if issubclass(each.category, LatentDiffusionWarning)]


def test_a_model_warns_at_other_times_and_tells_its_own(student):
    pipe = opened(student)

    def redraw(**options):
        return pipe.image_to_image("a disc", image=Image.new("RGB", (32, 32)), **options)

    def draw(**options):
        return pipe("a disc", **options)

    at_its_own = ({}, {"num_inference_steps": 2}, {"timesteps": [999.0, 499.0]}, {"sampler": "ddim", "spacing": "lcm"})
    assert not any(warned(draw, **options) for options in at_its_own)
    assert warned(draw, num_inference_steps=5) == [
        "four was trained at the times of 4 steps of lcm spacing alone, and 4 of 5 steps of this call are at others "
        f"(799, 599, 399, 199); draw with {USAGE}"
    ]
    (one,) = warned(draw, timesteps=[700.0])
    assert "1 of 1 step of this call are at others (700)" in one
    assert warned(draw, spacing="trailing")
    assert not warned(redraw, strength=0.5) and warned(redraw, strength=0.5, exact_steps=True)


def test_an_adapter_warns_wherever_it_is_drawn_with(tiny_folder, file, tmp_path):
    pipe = opened(tiny_folder)

    def draw(text="a disc", **options):
        return pipe(text, **{"num_inference_steps": 3, **options})

    asked = {"text": "a disc <lora:quick:1>", "lora_folder": file.parent}
    assert not warned(draw) and not warned(draw, **asked, **AS_TRAINED)
    (told,) = warned(draw, **asked)
    assert told.startswith("tiny with quick was trained at the times of 4 steps of lcm spacing alone")
    assert told.endswith(f"; draw with {USAGE}")
    assert pipe.load_lora_weights(file).trained == FOUR
    assert warned(draw) == [told] and not warned(draw, **AS_TRAINED)
    pipe.set_adapters("quick", {"unet": 0.0})
    assert not warned(draw)
    pipe.set_adapters("quick", 0.5)
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "fused")
    fused = opened(tmp_path / "fused")
    assert warned(lambda **options: fused("a disc", num_inference_steps=3, **options))


def test_an_adapter_of_another_rank_is_a_student_still(tiny_folder, tiny_components, file, tmp_path):
    small = tmp_path / "small.safetensors"
    assert main(["adapter", "resize", str(file), "--rank", "1", "--output", str(small), "-m", str(tiny_folder)]) == 0
    assert read_lora(small, tiny_components).report.trained == FOUR


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_trained_spacing", "trailin", r"_trained_spacing is 'trailin' \(did you mean 'trailing'\?\); use one of"),
        ("_trained_spacing", ["lcm"], "_trained_spacing is"),
        ("_trained_spacing", "karras", "_trained_spacing is 'karras'"),
        ("_trained_steps", 0, "_trained_steps is 0, a number from 1 to 1000 was expected"),
        ("_trained_steps", 2.5, "_trained_steps is 2.5, a number from 1 to 1000"),
        ("_trained_steps", None, "_trained_steps is None, a number from 1 to 1000"),
    ],
)
def test_times_that_cannot_be_are_refused(student, name, value, message):
    file = student / "scheduler" / "scheduler_config.json"
    kept = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(kept) | {name: value}))
        with pytest.raises(CheckpointError, match=message):
            opened(student)
    finally:
        file.write_text(kept)


@pytest.mark.parametrize("law", [ScaledLinearSchedule(), RectifiedFlow()])
def test_a_time_that_is_rounded_to_a_trained_one_is_no_other(law):
    trained = TrainedTimes("trailing", 8, "")
    visited = [law.level(t) for t in (999.0, 874.4, 873.6, 500.0, -1.0)]
    assert trained.others(law, visited) == [500.0]
