"""What a U-Net reads beside the noisy latents and the time, for a batch of pictures and captions.

By the family of the model:

    every family   text states; the states of "" for a dropped caption, or zeros where the model is guided against zeros
    SDXL           the pooled text, and the sizes of each picture (Podell et al. 2023, arXiv:2307.01952, section 2.2)
    inpainting     a drawn mask and the latents of the masked picture (Rombach et al. 2022, arXiv:2112.10752, 4.5)
    a partner      the latents of another picture; its player supplies them (`coupled.py`)

The masks have keys, as all draws of a run.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.inpainting.masks import max_pool
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.training.losses.drawn_masks import DrawnMasks
from latent_diffusion.training.networks.frozen_states import LiveTextStates, TextStates

__all__ = ["Conditions", "Scene", "whole_picture", "without_text"]


class Conditions:
    """The condition of every sample of a batch, as the model's family has it."""

    def __init__(self, parts: Components, texts: TextStates | LiveTextStates, masks: DrawnMasks | None = None) -> None:
        """Take the model, what encodes its captions and, for an inpainting U-Net, the masks."""
        self.parts, self.texts, self.masks = parts, texts, masks

    def __call__(self, batch: Batch) -> Conditioning:
        """Return the condition of B samples on the U-Net's device; text states have their graph if they are trained."""
        parts, device = self.parts, self.parts.unet.conv_in.weight.device
        cond = self.texts(batch.captions).to(device)
        if parts.zeros_for_empty_prompt:
            cond = without_text(cond, [not caption for caption in batch.captions])
        return replace(
            cond,
            size_ids=batch.size_ids.to(device) if parts.size_count else None,
            concat=None if self.masks is None else self._masked(batch, self.masks),
        )

    def _masked(self, batch: Batch, masks: DrawnMasks) -> Tensor:
        """Return mask and masked picture (B, 1 + C, h, w) of the pictures of `batch`."""
        images = batch.images.to(next(self.parts.autoencoder.parameters()))
        return masked_channels(images, masks(batch), self.parts.autoencoder)

    def uncached(self) -> "Conditions":
        """Return the same for other pictures: the cache has no text states of theirs, and all masks are drawn."""
        masks = None if self.masks is None else DrawnMasks(self.masks.settings, self.masks.seed)
        return Conditions(self.parts, self.texts.uncached(), masks)

    def groups(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the places of the captions that go through the network together: those of equally many tokens."""
        return self.texts.rows.groups(captions)


@torch.no_grad()
def masked_channels(images: Tensor, masks: Tensor, autoencoder: AutoencoderKL) -> Tensor:
    """Return the channels that an inpainting U-Net reads after the noisy latents, (B, 1 + C, h, w).

    Args:
        images: (B, 3, H, W) in [-1, 1].
        masks: (B, 1, H, W), 1 where the picture is repainted.
        autoencoder: encodes the pictures with mid-grey there.
    """
    with torch.autocast(images.device.type, enabled=False):
        latents = autoencoder.to_latents(images * (1 - masks.to(images)))
    pooled = [torch.from_numpy(max_pool(mask.numpy(), *latents.shape[-2:])) for mask in masks[:, 0].cpu()]
    return torch.cat([torch.stack(pooled)[:, None].to(latents), latents], dim=1)


def without_text(cond: Conditioning, rows: Sequence[bool] | None = None) -> Conditioning:
    """Return `cond` with zeros for the text states of the chosen rows, (B,), or of all."""
    chosen = torch.tensor([True] * len(cond) if rows is None else rows, device=cond.context.device)

    def zeroed(states: Tensor | None) -> Tensor | None:
        return None if states is None else torch.where(chosen.view(-1, *[1] * (states.ndim - 1)), 0.0, states)

    return replace(cond, context=zeroed(cond.context), pooled=zeroed(cond.pooled))


def whole_picture(parts: Components, cond: Conditioning, size: int, scene: "Scene | None" = None) -> Conditioning:
    """Return `cond` with what the model reads to draw a picture of size x size px that is not cropped.

    An inpainting U-Net repaints the hole of `scene`, or without it the whole picture. A partner is mid-grey.
    """
    like = parts.unet.conv_in.weight
    sizes, concat = None, None
    if parts.size_count:
        sizes = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32, device=like.device)
    if parts.for_inpainting:
        seen = scene or Scene(torch.zeros(3, size, size), torch.ones(1, size, size))
        image = seen.image[None].to(next(parts.autoencoder.parameters()))
        concat = masked_channels(image, seen.hole[None], parts.autoencoder).float()
    if parts.reads_partner:
        grey = torch.zeros(1, 3, size, size).to(next(parts.autoencoder.parameters()))
        concat = parts.autoencoder.to_latents(grey).float()
    return replace(cond, size_ids=sizes, concat=concat)


class Scene(NamedTuple):
    """A picture (3, H, W) in [-1, 1] and its hole (1, H, W), 1 where it is repainted."""

    image: Tensor
    hole: Tensor
