"""An autoencoder in place of the one that a model has: in its folder, within a whole model, or a file of its own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from latent_diffusion.checkpoint.files.checkpoint_file import CheckpointFile, open_checkpoint
from latent_diffusion.checkpoint.files.weights import Stored, Weights
from latent_diffusion.checkpoint.folder.network_config import read_autoencoder_config
from latent_diffusion.checkpoint.folder.network_weights import renamed, weights_file, weights_of
from latent_diffusion.checkpoint.folder.pipeline_index import INDEX
from latent_diffusion.checkpoint.folder.plan import ModelPlan, OtherAutoencoder
from latent_diffusion.checkpoint.single.compvis_names import autoencoder_names
from latent_diffusion.checkpoint.single.detect import looks_like
from latent_diffusion.checkpoint.single.layout import AUTOENCODER
from latent_diffusion.checkpoint.single.single_header import plan_of
from latent_diffusion.errors import CheckpointError, ConfigError, warn
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL

__all__ = ["compvis_autoencoder", "with_autoencoder"]

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
OF_TRAINING = ("loss.", "model_ema.")


def with_autoencoder(plan: ModelPlan, place: Path) -> ModelPlan:
    """Return the plan of the same model with the autoencoder in `place`.

    Args:
        plan: of the model. A file of tensors alone has no sizes and no scale; it takes the model's.
        place: the folder of an autoencoder or of a model, a CompVis, A1111 or diffusers file of an autoencoder, or the
            single file of a model.

    Raises:
        CheckpointError: there is no autoencoder there, or a file is damaged.
        ConfigError: its latents are of another kind than those that the U-Net was trained on.
    """
    if not place.exists():
        raise CheckpointError(f"vae {str(place)!r}: there is no such file or folder")
    if place.is_dir():
        folder = place / "vae" if (place / INDEX).is_file() else place
        config, file = read_autoencoder_config(folder / "config.json"), weights_file(folder)
        other = OtherAutoencoder(folder.resolve().name if folder == place else place.resolve().name, file, _whole(file))
    else:
        opened = open_checkpoint(place)
        tensors, prefix = _tensors(opened)
        header = plan_of(opened.metadata, place)
        config = header.autoencoder if header is not None else plan.autoencoder
        _compare(plan.autoencoder, (_latent_channels(tensors, prefix, place), 2 ** (_levels(tensors) - 1)), place)
        other = OtherAutoencoder(
            place.name, place, lambda network: Weights(place, compvis_autoencoder(tensors, prefix, network))
        )
    _compare(plan.autoencoder, (config.latent_channels, _factor(config)), place)
    if (theirs := config.scaling_factor) != (ours := plan.autoencoder.scaling_factor):
        warn(
            f"vae {str(place)!r}: its scaling_factor is {theirs:g}, that of the model's own autoencoder {ours:g}; an "
            "autoencoder made for another kind of model gives wrong pictures"
        )
    changed = replace(plan, autoencoder=config, other_autoencoder=other)
    return changed.noting(f"autoencoder: {other.name}, as asked for")


def compvis_autoencoder(tensors: Mapping[str, Stored], prefix: str, network: AutoencoderKL) -> dict[str, Stored]:
    """Return an autoencoder's tensors under this package's names; unknown ones stay, so that the check can name them.

    Args:
        tensors: of a file, in CompVis's names after `prefix`, or in diffusers' names.
        prefix: what the names of an autoencoder begin with there.
        network: the autoencoder that they are for. Its attention has linear layers, that of CompVis 1x1 convolutions.
    """
    state = network.state_dict()
    names = {prefix + there: here for here, there in autoencoder_names(network.config, state).items()}
    passed_over = tuple(prefix + part for part in OF_TRAINING)
    found = {
        names.get(name, name.removeprefix(prefix) if name.removeprefix(prefix) in state else name): stored
        for name, stored in tensors.items()
        if name.startswith(prefix) and not name.startswith(passed_over)
    }
    for name, stored in found.items():
        if name in state and state[name].dim() == 2 and stored.shape[2:] == (1, 1):
            found[name] = stored.viewed(stored.shape[:2], lambda tensor: tensor[:, :, 0, 0])
    return found


def _whole(file: Path):
    return lambda network: weights_of(file)


def _tensors(file: CheckpointFile) -> tuple[Mapping[str, Stored], str]:
    """Return the tensors of a file and what the names of its autoencoder begin with.

    Raises:
        CheckpointError: it holds none.
    """
    if any(name.startswith(AUTOENCODER) for name in file.tensors):
        return file.tensors, AUTOENCODER
    tensors = renamed(file.tensors)
    if not any(name.startswith("decoder.") for name in tensors):
        like = looks_like(tensors)
        raise CheckpointError(f"vae {str(file.source)!r}: holds no autoencoder{f'; it looks like {like}' * bool(like)}")
    return tensors, ""


def _latent_channels(tensors: Mapping[str, Stored], prefix: str, place: Path) -> int:
    first = tensors.get(f"{prefix}decoder.conv_in.weight")
    if first is None or len(first.shape) != 4:
        raise CheckpointError(f"vae {str(place)!r}: has no decoder.conv_in.weight of 4 dimensions; it is no whole one")
    return first.shape[1]


def _levels(names: Mapping[str, Stored]) -> int:
    """Return the number of sizes that a decoder works at, each twice the one before."""
    found = set()
    for name in names:
        _, mark, rest = name.rpartition("decoder.")
        parts = rest.split(".")
        if mark and parts[0] in ("up", "up_blocks") and len(parts) > 1:
            found.add(parts[1])
    return max(len(found), 1)


def _factor(config: AutoencoderConfig) -> int:
    return 2 ** (len(config.block_out_channels) - 1)


def _compare(own: AutoencoderConfig, theirs: tuple[int, int], place: Path) -> None:
    """Refuse latents of another shape than the model's.

    Raises:
        ConfigError: other latent channels, or another number of px a cell.
    """
    ours = own.latent_channels, _factor(own)
    if theirs != ours:
        raise ConfigError(
            f"vae {str(place)!r} makes latents of {theirs[0]} channels and {theirs[1]} px a cell, the model's have "
            f"{ours[0]} and {ours[1]}; give an autoencoder that was made for this kind of model"
        )
