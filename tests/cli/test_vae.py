"""An autoencoder of the caller's choice: in place of the model's own, or for a single file that has none."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.files.checkpoint_file import open_checkpoint
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_autoencoder
from latent_diffusion.checkpoint.single.compvis_names import autoencoder_names
from latent_diffusion.cli.main import main
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.provenance.picture_file import read_texts

DRAW = ["--steps", "1", "--seed", "7", "--device", "cpu", "--height", "32", "--width", "32", "--no-fast"]


@pytest.fixture(scope="module")
def forms(tiny_family, tmp_path_factory):
    """A folder with an autoencoder of the tiny model's sizes, whose pictures are others, in every form of file."""
    here = tmp_path_factory.mktemp("forms")
    other = copy.deepcopy(load_folder(tiny_family("sd1")).autoencoder)
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(0.2)
    save_autoencoder(other, here / "vae-folder")
    state = other.state_dict()
    write_tensors(here / "diffusers.safetensors", state)
    names = autoencoder_names(other.config, state)
    compvis = {names[name]: tensor for name, tensor in state.items()}
    write_tensors(here / "compvis.safetensors", compvis | {"loss.logvar": torch.zeros(1)})
    torch.save({"state_dict": compvis}, here / "compvis.vae.pt")
    write_tensors(here / "prefixed.safetensors", {f"first_stage_model.{name}": t for name, t in compvis.items()})
    return here


@pytest.fixture
def model(tiny_family, forms, here):
    """A tiny model's folder; the other autoencoder's files are in the working folder."""
    shutil.copytree(forms, here, dirs_exist_ok=True)
    return tiny_family("sd1")


@pytest.fixture(scope="module")
def own(tiny_family):
    """The tiny model with its own autoencoder."""
    return LatentDiffusionPipeline.from_pretrained(tiny_family("sd1"), device="cpu", fast=False)


@pytest.mark.parametrize(
    "vae", ["vae-folder", "diffusers.safetensors", "compvis.safetensors", "compvis.vae.pt", "prefixed.safetensors"]
)
def test_it_decodes_the_same_latents_in_every_form(own, model, here, vae):
    swapped = LatentDiffusionPipeline.from_pretrained(model, device="cpu", fast=False, vae=vae)
    draw = {"seed": 7, "num_inference_steps": 1, "height": 32, "width": 32, "output_type": "latent"}
    latents, again = (pipe("a cat", **draw).images for pipe in (own, swapped))
    assert isinstance(latents, torch.Tensor) and isinstance(again, torch.Tensor)
    assert torch.equal(latents, again)
    decoded = [pipe.components.autoencoder.to_images(latents) for pipe in (own, swapped)]
    torch.testing.assert_close(decoded[1], decoded[0] + 0.2)


def test_the_command_line_records_it_and_regenerate_takes_it_again(model, here, capsys):
    draw = [option for option in DRAW if option != "--no-fast"]  # `regenerate` chooses its kernels itself
    assert main(["generate", "a cat", "--model", str(model), *draw, "-o", "own.png"]) == 0
    command = ["generate", "a cat", "--model", str(model), *draw, "--vae", "compvis.safetensors", "-o", "a.png"]
    assert main(command) == 0
    assert Image.open("own.png").tobytes() != Image.open("a.png").tobytes()
    text, record = read_texts(here / "a.png")
    assert text is not None and record is not None
    assert record.vae == "compvis.safetensors"
    assert record.vae_hash is not None
    assert f"VAE hash: {record.vae_hash[:10]}, VAE: compvis.safetensors" in text
    plain = read_texts(here / "own.png")[1]
    assert plain is not None and "vae" not in json.loads(plain.to_json())
    capsys.readouterr()
    again = ["regenerate", "a.png", "--model", str(model)]
    assert main([*again, "--vae", "compvis.safetensors", "-o", "b.png"]) == 0
    assert "bit for bit" in capsys.readouterr().err
    assert main([*again, "-o", "c.png"]) == 0
    said = capsys.readouterr().err
    assert "not honoured: the autoencoder 'compvis.safetensors'" in said
    assert "give --vae" in said
    assert "vae was 'compvis.safetensors', now None" in said


def test_a_single_file_without_one_is_given_one(model, here, capsys):
    assert main(["convert", str(model), "whole.safetensors"]) == 0

    tensors, metadata = read_tensors(here / "whole.safetensors"), open_checkpoint(here / "whole.safetensors").metadata
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}
    write_tensors(here / "without.safetensors", rest, metadata)
    capsys.readouterr()
    assert main(["generate", "a cat", "--model", "without.safetensors", *DRAW, "-o", "a.png"]) == 4
    assert "give an autoencoder with vae=... (--vae)" in capsys.readouterr().err
    for name, source in (("a.png", "without.safetensors"), ("b.png", str(model))):
        assert main(["generate", "a cat", "--model", source, *DRAW, "--vae", "whole.safetensors", "-o", name]) == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    assert main(["convert", "without.safetensors", "made", "--vae", "vae-folder"]) == 0
    assert (here / "made" / "vae" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("vae", "code", "why"),
    [
        ("nowhere", 4, "there is no such file or folder"),
        ("other-channels", 2, "latents of 8 channels and"),
        ("other-factor", 2, "px a cell, the model's have"),
        ("other-channels.safetensors", 2, "latents of 8 channels and"),
        ("other-factor.safetensors", 2, "px a cell, the model's have"),
        ("unet.safetensors", 4, "holds no autoencoder"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(model, here, capsys, vae, code, why):

    config = load_folder(model).autoencoder.config
    levels = config.block_out_channels
    for name, changed in (
        ("other-channels", replace(config, latent_channels=8)),
        ("other-factor", replace(config, block_out_channels=(*levels, levels[-1]))),
    ):
        other = AutoencoderKL(changed)
        save_autoencoder(other, here / name)
        write_tensors(here / f"{name}.safetensors", other.state_dict())
    write_tensors(here / "unet.safetensors", {"down_blocks.0.x": torch.zeros(1)})
    assert main(["generate", "a cat", "--model", str(model), *DRAW, "--vae", vae, "-o", "a.png"]) == code
    said = capsys.readouterr().err
    assert why in said
    assert vae in said
    assert not (here / "a.png").exists()


def test_another_scale_is_warned_of(model, here):

    config = load_folder(model).autoencoder.config
    save_autoencoder(AutoencoderKL(replace(config, scaling_factor=0.5)), here / "scaled")
    with pytest.warns(UserWarning, match="its scaling_factor is 0.5, that of the model's own"):
        pipe = LatentDiffusionPipeline.from_pretrained(model, device="cpu", vae="scaled")
    assert pipe.components.autoencoder.config.scaling_factor == 0.5
