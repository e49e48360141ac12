"""The exit door: our parts as a ready diffusers pipeline that shares their weights."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.network_config import autoencoder_values, unet_values
from latent_diffusion.checkpoint.scheduler_config import write_schedule
from latent_diffusion.errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["to_diffusers"]


def to_diffusers(components: Components) -> "StableDiffusionPipeline":
    """Return a `StableDiffusionPipeline` on the same weights: nothing is copied, a change in one is one in the other.

    Raises:
        CheckpointError: the folder's default sampler is no scheduler of the installed diffusers.
    """
    import diffusers

    config = write_schedule(components.schedule, components.prediction, components.scheduler_config)
    kind: Any = getattr(diffusers, str(config["_class_name"]), None)
    if not hasattr(kind, "from_config") or diffusers.SchedulerMixin not in kind.__mro__:
        raise CheckpointError(f"diffusers {diffusers.__version__} has no scheduler {config['_class_name']!r}")
    with torch.device("meta"):  # no memory: the weights come from ours
        unet = diffusers.UNet2DConditionModel.from_config(unet_values(components.unet.config))
        vae = diffusers.AutoencoderKL.from_config(autoencoder_values(components.autoencoder.config))
    absent: Any = None  # optional parts, which diffusers declares as if they were not
    return diffusers.StableDiffusionPipeline(
        vae=_sharing(vae, components.autoencoder),
        text_encoder=components.text_encoder.model,
        tokenizer=components.text_encoder.tokenizer,
        unet=_sharing(unet, components.unet),
        scheduler=kind.from_config(config),
        safety_checker=absent,
        feature_extractor=absent,
        requires_safety_checker=False,
    )


def _sharing(theirs: Any, ours: nn.Module) -> Any:
    """Give their network our tensors; the names are the same."""
    theirs.load_state_dict(dict(ours.named_parameters()), assign=True)
    return theirs.eval()
