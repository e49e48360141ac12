"""Conversion to a diffusers pipeline that shares the weights."""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.network_config import autoencoder_values, unet_values
from latent_diffusion.checkpoint.folder.pipeline_index import pipeline_class
from latent_diffusion.checkpoint.folder.scheduler_config import write_schedule
from latent_diffusion.checkpoint.folder.text_folder import text_config
from latent_diffusion.checkpoint.folder.tokenizer_folder import transformers_tokenizer
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.text_encoder import TextEncoder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["to_diffusers"]


def to_diffusers(components: Components) -> "DiffusionPipeline":
    """Return diffusers' pipeline for this model, on the same weights: a change in one is a change in the other.

    It is a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`, the inpainting one of either for a U-Net with 9
    input channels, or `StableDiffusionXLImg2ImgPipeline` for SDXL's refiner. Its `components` feed any other pipeline
    of diffusers that takes the same parts and more, such as ControlNet's.

    Raises:
        CheckpointError: the folder's default sampler is no scheduler of the installed diffusers.
    """
    import diffusers

    with torch.device("meta"):  # no memory: the weights come from ours
        unet = diffusers.UNet2DConditionModel.from_config(unet_values(components.unet.config))
        vae = diffusers.AutoencoderKL.from_config(autoencoder_values(components.autoencoder.config))
    parts = {
        "unet": _sharing(unet, components.unet),
        "vae": _sharing(vae, components.autoencoder),
        "scheduler": _scheduler(components),
        "requires_safety_checker": False,
        "force_zeros_for_empty_prompt": components.zeros_for_empty_prompt,
        "requires_aesthetics_score": components.size_count == 5,
        "add_watermarker": False,
    }
    for tower in components.text_encoder.towers:
        ending = "_2" if tower.pooled_width else ""
        parts |= {
            f"text_encoder{ending}": _text_model(tower),
            f"tokenizer{ending}": transformers_tokenizer(tower.tokenizer),
        }
    kind: Any = getattr(diffusers, pipeline_class(components))
    wanted = inspect.signature(kind).parameters
    absent = [name for name, parameter in wanted.items() if parameter.default is parameter.empty and name not in parts]
    return kind(**{name: part for name, part in parts.items() if name in wanted}, **dict.fromkeys(absent))


def _text_model(tower: TextEncoder) -> Any:
    """Return transformers' text model on the tensors of a tower."""
    import transformers

    config = transformers.CLIPTextConfig(**text_config(tower))
    kind: Any = transformers.CLIPTextModelWithProjection if tower.pooled_width else transformers.CLIPTextModel
    with torch.device("meta"):
        theirs = kind(config)
    for part in theirs.modules():  # the one buffer that is in no file
        if hasattr(part, "position_ids"):
            part.position_ids = torch.arange(tower.context_length, device=tower.device)[None]
    if not tower.pooled_width:  # the first releases of transformers 5 have one level more
        _sharing(getattr(theirs, "text_model", theirs), tower.model)
        return theirs.eval()
    return _sharing(theirs, tower.model)


def _scheduler(components: Components) -> Any:
    """Return the scheduler of the folder's default sampler."""
    import diffusers

    config = write_schedule(components.schedule, components.prediction, components.scheduler_config)
    kind: Any = getattr(diffusers, str(config["_class_name"]), None)
    if not hasattr(kind, "from_config") or diffusers.SchedulerMixin not in kind.__mro__:
        raise CheckpointError(f"diffusers {diffusers.__version__} has no scheduler {config['_class_name']!r}")
    return kind.from_config(config)


def _sharing(theirs: Any, ours: nn.Module) -> Any:
    """Give their network our tensors; the names are the same."""
    theirs.load_state_dict(dict(ours.named_parameters()), assign=True)
    return theirs.eval()
