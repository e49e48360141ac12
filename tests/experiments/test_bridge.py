"""The bridge beside diffusion that reads the partner: what is drawn from what, the sets of pictures, the errors."""

import statistics

import pytest
import torch

from experiments.science.bridge import Case, draw, error_of, left_out, pairs_of, versus
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.adapters.mask_channels import with_more_channels
from latent_diffusion.evaluation.pictures import Picture

CAPTIONS = ["a red disc", "a blue disc"]


@pytest.fixture
def icons():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def parts(tiny_folder):
    return LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", dtype="float32").components


def test_a_bridge_is_drawn_as_the_pipeline_draws_latents_and_has_no_seed(parts, icons, tiny_pipeline):
    case = Case("bridge", "ddim", "trailing", 3)
    made = draw(parts, case, icons, CAPTIONS, [0, 1])
    start = parts.autoencoder.to_latents(icons).detach()
    wanted = tiny_pipeline(
        CAPTIONS, latents=start, sampler="ddim", spacing="trailing", num_inference_steps=3, guidance_scale=1.0,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(made, wanted * 2 - 1, rtol=0, atol=1 / 127)  # the pipeline's are of 256 grey levels
    assert torch.equal(draw(parts, case, icons, CAPTIONS, [7, 8]), made)


def test_channels_are_drawn_of_noise_and_of_the_icon(parts, icons):
    wide = with_more_channels(parts, parts.autoencoder.config.latent_channels)
    case = Case("channels", "dpmpp_2m", "trailing", 3)
    plain = draw(parts, case, icons, CAPTIONS, [0, 1])
    torch.testing.assert_close(draw(wide, case, icons, CAPTIONS, [0, 1]), plain, rtol=1e-3, atol=1e-4)  # zero weights
    with torch.no_grad():
        wide.unet.conv_in.weight[:, 4:] = 1.0
    made = draw(wide, case, icons, CAPTIONS, [0, 1])
    assert not torch.allclose(made, plain, atol=1e-2)
    assert not torch.allclose(draw(wide, case, -icons, CAPTIONS, [0, 1]), made, atol=1e-2)
    assert not torch.allclose(draw(wide, case, icons, CAPTIONS, [2, 3]), made, atol=1e-2)


def test_pairs_are_sorted_by_what_was_trained_on():
    splits = {"a": ("train", "val"), "b": ("test_comp", "train"), "c": ("train", "train"), "d": ("train", "train")}
    rows = [
        Picture(f"{style}-{name}", "", style, name, "", split, table={"name": name})
        for name, both in splits.items()
        for style, split in zip(("fluent-mono", "fluent-3d"), both, strict=True)
    ]
    rows.append(Picture("alone", "", "fluent-3d", "e", "", "val", table={"name": "e"}))
    sets = pairs_of(rows, 1)
    assert {name: [(pair.icon.file, pair.render.file) for pair in pairs] for name, pairs in sets.items()} == {
        "new renders": [("fluent-mono-a", "fluent-3d-a")],
        "new icons": [("fluent-mono-b", "fluent-3d-b")],
        "trained": [("fluent-mono-c", "fluent-3d-c")],
    }
    assert len(pairs_of(rows, 5)["trained"]) == 2


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = error_of(left_out(20, lambda kept: float(values[kept].mean())))
    assert error == pytest.approx(statistics.stdev(values.tolist()) / 20**0.5)


def test_a_difference_has_the_error_of_pairs():
    one = {"psnr": [11.0, 21.0, 31.0], "kid": 5.0, "kid_left_out": [4.0, 6.0]}
    other = {"psnr": [10.0, 20.0, 30.0], "kid": 9.0, "kid_left_out": [8.0, 10.0]}
    assert versus(one, other) == "PSNR +1.00 ± 0.00 dB, KID -4.0 ± 0.0"
