"""Models as single files: round trips with folders, diffusers both ways, detection, the moving average, strangers."""


import pytest
import torch

from latent_diffusion.checkpoint.diffusers_folder import load_folder, save_folder
from latent_diffusion.checkpoint.safetensors_file import read_tensors
from latent_diffusion.checkpoint.single_file import load_single_file, save_single_file

FAMILIES = ("sd1", "sd1_inpaint", "sd2", "sd2_v", "sd2_inpaint", "sdxl", "sdxl_inpaint", "sdxl_refiner")


def parts(components):
    towers = components.text_encoder.towers
    return [components.unet, components.autoencoder, *(tower.model for tower in towers)]


def assert_same(first, second):
    for one, two in zip(parts(first), parts(second), strict=True):
        ours, theirs = one.state_dict(), two.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert first.unet.config == second.unet.config and first.autoencoder.config == second.autoencoder.config
    assert first.schedule == second.schedule and first.prediction.name == second.prediction.name
    assert dict(first.scheduler_config) == dict(second.scheduler_config)
    assert first.zeros_for_empty_prompt == second.zeros_for_empty_prompt
    for one, two in zip(first.text_encoder.towers, second.text_encoder.towers, strict=True):
        assert one.penultimate == two.penultimate
        assert one.tokenize(["a red apple, 1!", ""]).tolist() == two.tokenize(["a red apple, 1!", ""]).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_to_file_to_folder(family, tiny_family, tmp_path):
    first = load_folder(tiny_family(family))
    save_single_file(first, tmp_path / "a.safetensors")
    second = load_single_file(tmp_path / "a.safetensors")
    assert_same(first, second)
    save_folder(second, tmp_path / "again")
    for file in sorted(tiny_family(family).rglob("*")):
        if file.is_file():
            other = tmp_path / "again" / file.relative_to(tiny_family(family))
            if file.suffix == ".safetensors":
                mine, its = read_tensors(file), read_tensors(other)
                assert mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)
            else:
                assert file.read_bytes() == other.read_bytes(), file.name
