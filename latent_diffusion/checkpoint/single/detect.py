"""Identification of a single file from the names and shapes of its tensors and from the markers that tools write.

The family follows from the first convolution and the width of the text states. The prediction type follows, in this
order, from markers among the tensors (`v_pred`, `ztsnr`, `edm_...`), from the `modelspec` fields of the header, for
SD 2 from the training step or the spread of one bias, and else is the family's.
Reference for the markers: generation tools' own practice; github.com/Stability-AI/ModelSpec for the header.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

from latent_diffusion.checkpoint.files.weights import Weights
from latent_diffusion.checkpoint.single.layout import UNET, averaged_name
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.families import FAMILIES
from latent_diffusion.models.unet import UNetConfig
from latent_diffusion.registry import names, nearest

__all__ = ["Detected", "detect", "families_of_files", "family_values", "looks_like"]

FIRST = f"{UNET}input_blocks.0.0.weight"
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # ModelSpec's words
SD2_BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_SPREAD = 0.09  # above it SD 2 was trained to predict v
SD2_BASE_STEP = 875_000  # the training step of SD 2's 512 px model, which predicts the noise
LIKE = {
    "lora_unet_": "a LoRA; load it onto a model with load_lora_weights or --lora",
    "unet.": "a LoRA or a model in diffusers' names; LoRAs load with --lora, models as folders",
    "down_blocks.": "a U-Net in diffusers' names; it belongs into the unet/ of a model folder",
    "encoder.": "an autoencoder alone",
    "control_model.": "a ControlNet",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3, which is not supported",
    "model.diffusion_model.double_blocks.": "Flux, which is not supported",
    "double_blocks.": "Flux, which is not supported",
    "emb_params": "a textual inversion; load it with load_textual_inversion or --embedding",
}
"""How names begin of files that are no Stable Diffusion model, and what those are."""


@dataclass(frozen=True)
class Detected:
    """The identified family, prediction type and schedule of a single file."""

    family: str
    prediction_type: str | None  # None = the family's
    zero_terminal_snr: bool
    notes: tuple[str, ...]  # what was read from what, for people


def families_of_files() -> dict[str, ModuleType]:
    """Return the families that single files can be of, by name: those with text towers."""
    found = {name: importlib.import_module(f"{FAMILIES}.{name}") for name in names(FAMILIES)}
    return {name: values for name, values in found.items() if hasattr(values, "TEXT")}


def family_values(name: str) -> ModuleType:
    """Return the values of a family.

    Raises:
        ConfigError: there is none of that name.
    """
    known = families_of_files()
    if name not in known:
        raise ConfigError(f"unknown family {name!r}; there are {', '.join(known)}{nearest(name, known)}")
    return known[name]


def detect(
    weights: Weights, metadata: Mapping[str, str], step: int | None = None, family: str | None = None
) -> Detected:
    """Return what a file is.

    Args:
        weights: every tensor of the file, under the file's names.
        metadata: of the header.
        step: training step stored in an old `.ckpt`.
        family: the family given by the user.

    Raises:
        CheckpointError: no Stable Diffusion model, one of a family or noise law that we do not have.
        ConfigError: `family` is unknown.
    """
    chosen = family or _family(weights)
    values = family_values(chosen)
    origin = "as asked for" if family else "read from the tensors"
    prediction, why, zero = _prediction(weights, metadata, step, values.UNET)
    if family is None and prediction not in (None, values.SCHEDULER["prediction_type"]):
        chosen = _variant(chosen, prediction)
    notes = [f"family: {chosen}, {origin}"]
    if prediction is not None:
        notes.append(f"prediction: {prediction}, {why}")
    if zero:
        notes.append("noise schedule: zero terminal SNR, marker ztsnr")
    return Detected(chosen, prediction, zero, tuple(notes))


def looks_like(names: Iterable[str]) -> str | None:
    """Return what a file with these names is if it is no Stable Diffusion model, or None."""
    known = list(names)
    return next((what for start, what in LIKE.items() if any(name.startswith(start) for name in known)), None)


def _family(weights: Weights) -> str:
    """Return the family whose U-Net begins like the file's."""
    source, tensors = weights.source, weights.tensors
    first = tensors.get(FIRST, tensors.get(averaged_name("input_blocks.0.0.weight")))
    if first is None or len(first.shape) != 4:
        like = looks_like(tensors)
        hint = f"; it looks like {like}" if like else ""
        raise CheckpointError(f"{source}: not a Stable Diffusion model: it has no {FIRST}{hint}")
    width, channels = first.shape[:2]
    widths = (s.shape[-1] for name, s in tensors.items() if name.endswith(("attn2.to_k.weight", "attn2to_kweight")))
    context = next(widths, 0)
    found = (channels, width, context)
    known: dict[tuple[int, int, int], str] = {}
    for name, values in families_of_files().items():
        if not hasattr(values, "LOOKS_LIKE"):
            known.setdefault(_signature(values.UNET), name)
    if found not in known:
        raise CheckpointError(
            f"{source}: no known family has a U-Net with {channels} input channels, {width} channels at its first "
            f"level and text states of {context}; known are {', '.join(known.values())}; "
            "give family=... (--family) if it is one of them"
        )
    return known[found]


def _variant(family: str, prediction: str | None) -> str:
    """Return the family of the same sizes that predicts this, or `family` where there is none."""
    for name, values in families_of_files().items():
        if getattr(values, "LOOKS_LIKE", None) == family and values.SCHEDULER["prediction_type"] == prediction:
            return name
    return family


def _signature(config: UNetConfig) -> tuple[int, int, int]:
    return config.in_channels, config.block_out_channels[0], config.cross_attention_dim


def _prediction(
    weights: Weights, metadata: Mapping[str, str], step: int | None, config: UNetConfig
) -> tuple[str | None, str, bool]:
    """Return prediction type, its source, and whether the last level has no signal."""
    tensors = weights.tensors
    if any(name in tensors for name in EDM):
        marker = next(name for name in EDM if name in tensors)
        raise CheckpointError(
            f"{weights.source}: marker {marker}: trained on the continuous noise levels of EDM, a schedule that is not "
            "supported"
        )
    zero = "ztsnr" in tensors
    if "v_pred" in tensors:
        return "v_prediction", "marker v_pred", zero
    if (word := metadata.get("modelspec.prediction_type")) in PREDICTIONS:
        return PREDICTIONS[word], "modelspec.prediction_type of the header", zero
    if metadata.get("modelspec.architecture", "").startswith("stable-diffusion-v2-768-v"):
        return "v_prediction", "modelspec.architecture of the header", zero
    if _signature(config) == _signature(family_values("sd2").UNET):
        if step is not None:
            kind = "epsilon" if step == SD2_BASE_STEP else "v_prediction"
            return kind, f"training step {step}", zero
        if SD2_BIAS in tensors:
            spread = tensors[SD2_BIAS].fetch().float().std(correction=0).item()
            kind = "v_prediction" if spread > SD2_SPREAD else "epsilon"
            return kind, f"spread {spread:.3f} of the last norm1.bias, v above {SD2_SPREAD}", zero
    return None, "", zero
