"""Detection and tables at the true sizes of every family, on the meta device: no weight is made."""

from pathlib import Path

import pytest
import torch

from latent_diffusion.checkpoint.files.checkpoint_file import CheckpointFile
from latent_diffusion.checkpoint.files.weights import Stored, Weights, check_fit
from latent_diffusion.checkpoint.folder.open_clip_names import to_open_clip
from latent_diffusion.checkpoint.folder.text_folder import bare
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.checkpoint.single.autoencoder_file import compvis_autoencoder
from latent_diffusion.checkpoint.single.compvis_names import autoencoder_names, unet_names
from latent_diffusion.checkpoint.single.detect import SD2_BIAS, detect, families_of_files
from latent_diffusion.checkpoint.single.layout import AUTOENCODER, UNET, layout
from latent_diffusion.checkpoint.single.single_file import _text, _unet, plan_single_file
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet as Network

FAMILIES = families_of_files()
COUNTS = {"sd1": 1130, "sdxl": 2513}
"""Tensors of the published files without those that we pass over (position_ids; with SDXL also logit_scale)."""


def found_as(family):
    """Return the family that tensors of this one are taken for: another where only a name tells the two apart."""
    like = getattr(FAMILIES[family], "LOOKS_LIKE", None)
    predictions = {FAMILIES[name].SCHEDULER["prediction_type"] for name in (family, like or family)}
    return family if like is None or len(predictions) == 2 else like


@pytest.fixture(scope="module")
def true_file():
    """A function from a family to (its networks on meta, the tensors of its published file)."""
    made = {}

    def make(family):
        if family not in made:
            values, tokenizer = FAMILIES[family], clip_vocabulary("<|endoftext|>")
            with torch.device("meta"):
                unet, vae = Network(values.UNET), AutoencoderKL(values.AUTOENCODER)
                texts = [config.build(tokenizer) for config in values.TEXT]
                names = unet_names(values.UNET, unet.state_dict())
                tensors = {UNET + names[n]: t for n, t in unet.state_dict().items()}
                names = autoencoder_names(values.AUTOENCODER, vae.state_dict())
                for name, tensor in vae.state_dict().items():
                    inner = ".attentions." in name and tensor.dim() == 2
                    tensors[AUTOENCODER + names[name]] = tensor[:, :, None, None] if inner else tensor
                places = layout(
                    len(texts),
                    projection=values.TEXT[-1].projection is not None,
                    open_clip=values.TEXT[-1].activation == "gelu",
                )
                for model, place in zip(texts, places, strict=True):
                    state = {bare(name): tensor for name, tensor in model.state_dict().items()}
                    inside = (
                        to_open_clip(state) if place.open_clip else {f"text_model.{n}": t for n, t in state.items()}
                    )
                    tensors |= {place.prefix + name: tensor for name, tensor in inside.items()}
            made[family] = (unet, vae, texts, places), {name: Stored.of(tensor) for name, tensor in tensors.items()}
        networks, tensors = made[family]
        return networks, dict(tensors)

    return make


def as_published(family, tensors):
    """Add what detection reads the values of."""
    if SD2_BIAS in tensors:
        spread = 0.12 if FAMILIES[family].SCHEDULER["prediction_type"] == "v_prediction" else 0.05
        bias = torch.linspace(-1, 1, tensors[SD2_BIAS].shape[0])
        tensors[SD2_BIAS] = Stored.of(bias / bias.std(correction=0) * spread)
    return tensors


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl_refiner"])
def test_tables_are_diffusers(family, true_file):
    """diffusers' own converter gives every tensor the name that our table gave it back."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    from latent_diffusion.checkpoint.folder.network_config import autoencoder_values, unet_values

    (unet, vae, _, _), _ = true_file(family)
    names = unet_names(unet.config, unet.state_dict())
    file = {UNET + names[name]: tensor for name, tensor in unet.state_dict().items()}
    back = convert_ldm_unet_checkpoint(file, unet_values(unet.config))
    assert back.keys() == names.keys() and all(back[name] is file[UNET + names[name]] for name in back)
    names = autoencoder_names(vae.config, vae.state_dict())
    file = {AUTOENCODER + names[name]: tensor for name, tensor in vae.state_dict().items()}
    assert convert_ldm_vae_checkpoint(file, autoencoder_values(vae.config)).keys() == names.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_and_fits(family, true_file):
    (unet, vae, texts, places), tensors = true_file(family)
    file = CheckpointFile(Path("x.safetensors"), as_published(family, tensors))
    assert len(tensors) == COUNTS.get(family, len(tensors))
    told = plan_single_file(file).notes[0]
    assert told == f"family: {found_as(family)}, read from the tensors", (
        "LOOKS_LIKE = ... names the family it looks like"
    )
    plan = plan_single_file(file, None if found_as(family) == family else family)
    assert plan.unet == FAMILIES[family].UNET and plan.autoencoder == FAMILIES[family].AUTOENCODER
    assert plan.scheduler == FAMILIES[family].SCHEDULER
    for network, found in (
        (unet, _unet(file, unet, False)),
        (vae, compvis_autoencoder(file.tensors, AUTOENCODER, vae)),
    ):
        check_fit(Weights(file.source, found), {n: tuple(t.shape) for n, t in network.state_dict().items()})
    for model, place in zip(texts, places, strict=True):
        wanted = {bare(n): tuple(t.shape) for n, t in model.state_dict().items()}
        found = {bare(name): stored for name, stored in _text(file, model, place).items()}
        check_fit(Weights(file.source, found), wanted)


@pytest.mark.parametrize(
    ("markers", "metadata", "step", "family", "prediction", "zero"),
    [
        ((), {}, None, "sd1", None, False),
        (("v_pred",), {}, None, "sd1", "v_prediction", False),
        (("v_pred", "ztsnr"), {}, None, "sdxl", "v_prediction", True),
        ((), {"modelspec.prediction_type": "v"}, None, "sdxl", "v_prediction", False),
        ((), {"modelspec.prediction_type": "epsilon"}, None, "sd2_v", "epsilon", False),
        ((), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, "sd2", "v_prediction", False),
        ((), {}, 875_000, "sd2_v", "epsilon", False),
        ((), {}, 140_000, "sd2", "v_prediction", False),
        ((), {}, None, "sd2_v", "v_prediction", False),
        ((), {}, None, "sd2", "epsilon", False),
        ((), {}, None, "sd2_inpaint", None, False),
    ],
)
def test_prediction_type(markers, metadata, step, family, prediction, zero, true_file):
    _, tensors = true_file(family)
    tensors = as_published(family, tensors) | {name: Stored.of(torch.zeros(0)) for name in markers}
    found = detect(Weights(Path("x"), tensors), metadata, step)
    assert (found.prediction_type, found.zero_terminal_snr) == (prediction, zero)
    if family.startswith("sd2") and "inpaint" not in family:
        assert found.family == ("sd2_v" if prediction == "v_prediction" else "sd2")


def test_a_marked_law_reaches_the_scheduler(true_file):
    _, tensors = true_file("sd1")
    tensors |= {name: Stored.of(torch.zeros(0)) for name in ("v_pred", "ztsnr")}
    plan = plan_single_file(CheckpointFile(Path("x.safetensors"), tensors))
    assert plan.scheduler["_class_name"] == "DDIMScheduler" and plan.scheduler["rescale_betas_zero_snr"] is True
    assert plan.scheduler["prediction_type"] == "v_prediction" and plan.scheduler["timestep_spacing"] == "trailing"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("lora_unet_down.lora_up.weight",), "it looks like a LoRA"),
        (("down_blocks.0.resnets.0.conv1.weight",), "a U-Net in diffusers' names"),
        (("model.diffusion_model.joint_blocks.0.x",), "Stable Diffusion 3"),
        (("double_blocks.0.x",), "Flux"),
        (("emb_params",), "textual inversion"),
        (("whatever",), "it has no model.diffusion_model.input_blocks.0.0.weight"),
    ],
)
def test_what_is_no_model_is_named(names, words):
    tensors = {name: Stored.of(torch.zeros(1)) for name in names}
    with pytest.raises(CheckpointError, match=words):
        detect(Weights(Path("x"), tensors), {})


@pytest.mark.parametrize("channels", [5, 8])
def test_channels_of_families_we_do_not_have(channels, true_file):
    _, tensors = true_file("sd1")
    name = f"{UNET}input_blocks.0.0.weight"
    tensors[name] = Stored.of(torch.empty(320, channels, 3, 3, device="meta"))
    with pytest.raises(CheckpointError, match=f"{channels} input channels"):
        detect(Weights(Path("x"), tensors), {})


def test_edm_laws_are_named(true_file):
    _, tensors = true_file("sdxl")
    with pytest.raises(CheckpointError, match=r"marker edm_vpred\.sigma_max"):
        detect(Weights(Path("x"), tensors | {"edm_vpred.sigma_max": Stored.of(torch.zeros(()))}), {})
