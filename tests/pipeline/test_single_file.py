"""A single file through the pipeline: the same pictures, whatever the model lies in."""

import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.errors import CheckpointError, ConfigError


def draw(pipe, **more):
    return pipe("a red apple!", seed=3, num_inference_steps=2, height=32, width=32, output_type="pt", **more).images


@pytest.mark.parametrize("family", ["sd1", "sd2_v", "sdxl"])
def test_the_same_picture_from_folder_and_file(family, tiny_family, tmp_path):
    first = LatentDiffusionPipeline.from_pretrained(tiny_family(family), device="cpu")
    first.save_single_file(tmp_path / "a.safetensors")
    second = LatentDiffusionPipeline.from_pretrained(tmp_path / "a.safetensors", device="cpu")
    assert torch.equal(draw(first), draw(second))
    assert second.components.name == "a"


def test_bundled_model_as_a_file(tmp_path):
    first = LatentDiffusionPipeline.from_pretrained("emoji", device="cpu")
    first.save_single_file(tmp_path / "emoji.safetensors")
    second = LatentDiffusionPipeline.from_pretrained(tmp_path / "emoji.safetensors", device="cpu")
    # which names and styles a model knows is beside a folder, not in a file
    arguments = {"seed": 3, "num_inference_steps": 1, "output_type": "pt", "rewrite": False}
    assert torch.equal(first("a red apple", **arguments).images, second("a red apple", **arguments).images)
    assert first.defaults == second.defaults


def test_weights_arrive_in_the_dtype_asked_for(tiny_family, tmp_path):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_family("sd1"), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in pipe.components.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in pipe.components.text_encoder.parameters()} == {torch.float32}
    assert any("float32 -> bfloat16" in note for note in pipe.components.notes)


def test_what_only_a_file_can_be_told(tiny_family):
    with pytest.raises(ConfigError, match="family='sd2' is for single files"):
        LatentDiffusionPipeline.from_pretrained(tiny_family("sd1"), family="sd2")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        LatentDiffusionPipeline.from_pretrained("nowhere.safetensors")
