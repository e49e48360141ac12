"""CLIP: an image tower and a text tower that meet in one space.

`TwoTowers` is what is trained: open-clip's model. `CLIP` is what is used: the same weights in transformers' modules, so
that the text tower is the very text encoder that a diffusion model reads. `checkpoint/folder/clip_folder.py` goes from
one to the other. Reference: Radford et al. 2021, "Learning transferable visual models from natural language
supervision", arXiv:2103.00020.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.models.text_encoder import TextEncoder

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

__all__ = ["CLIP", "CLIPConfig", "TowerConfig", "TwoTowers"]

LARGEST_SCALE = 100.0
"""Upper bound of the logit scale (Radford et al. 2021, section 2.5)."""


TEXTS_AT_ONCE = 32
"""Texts computed together; short captions among long ones would cost as much as the longest."""


@dataclass(frozen=True)
class TowerConfig:
    """Size of one transformer.

    Attributes:
        width: channels.
        layers: number of blocks.
        heads: attention heads.
        mlp_ratio: width of a block's hidden layer over `width`.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class CLIPConfig:
    """Everything that decides the shapes of both towers.

    Attributes:
        text: the text tower.
        vision: the image tower, a ViT.
        vocab_size: rows of the token embedding; the end token has the largest id.
        embed_dim: channels of the common space.
        image_size: side of the image tower's input, px.
        patch_size: side of a patch, px.
        context_length: tokens of a text, begin and end included.
        quick_gelu: x * sigmoid(1.702 x) as in OpenAI's models instead of the exact GELU.
        image_mean: what is subtracted from each channel of a picture in [0, 1].
        image_std: what it is divided by then; with .5 and .5 the image tower reads [-1, 1].
    """

    text: TowerConfig
    vision: TowerConfig
    vocab_size: int
    embed_dim: int = 256
    image_size: int = 64
    patch_size: int = 8
    context_length: int = 77
    quick_gelu: bool = False
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def hidden_act(self) -> str:
        """The activation's name in transformers' configs."""
        return "quick_gelu" if self.quick_gelu else "gelu"


class TwoTowers(nn.Module):
    """open-clip's `CustomTextCLIP`, with texts of like length computed together and no further than the longest.

    Padding comes after the end token and the mask is causal, so the cut changes no feature and no gradient.
    """

    def __init__(self, config: CLIPConfig) -> None:
        """Build with open-clip's initial weights, drawn from torch's global generator."""
        super().__init__()
        from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

        text, vision = config.text, config.vision
        self.config = config
        self.model = CustomTextCLIP(
            embed_dim=config.embed_dim,
            vision_cfg=CLIPVisionCfg(
                image_size=config.image_size,
                patch_size=config.patch_size,
                width=vision.width,
                layers=vision.layers,
                head_width=vision.width // vision.heads,
                mlp_ratio=vision.mlp_ratio,
            ),
            text_cfg=CLIPTextCfg(
                context_length=config.context_length,
                vocab_size=config.vocab_size,
                width=text.width,
                layers=text.layers,
                heads=text.heads,
                mlp_ratio=text.mlp_ratio,
                eos_id=config.vocab_size - 1,
                pool_type="eos",
            ),
            quick_gelu=config.quick_gelu,
        )

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature of the similarities, (), at most `LARGEST_SCALE`."""
        return self.model.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()

    def encode_text(self, ids: Tensor) -> Tensor:
        """Return features (B, E), not normalised, of token ids (B, L)."""
        ends = (ids == self.config.vocab_size - 1).int().argmax(dim=1)
        order = ends.argsort(stable=True)
        parts = [self._end_features(ids[rows], ends[rows]) for rows in order.split(TEXTS_AT_ONCE)]
        return torch.cat(parts)[order.argsort()]

    def _end_features(self, ids: Tensor, ends: Tensor) -> Tensor:
        tower: Any = self.model.text
        length = int(ends.max()) + 1
        x = tower.token_embedding(ids[:, :length]) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = x[torch.arange(len(ids), device=ids.device), ends]
        return tower.ln_final(x) @ tower.text_projection

    def encode_image(self, images: Tensor) -> Tensor:
        """Return features (B, E), not normalised, of images (B, 3, S, S) in [-1, 1]."""
        return self.model.visual(normalised(images, self.config.image_mean, self.config.image_std))  # pyright: ignore[reportReturnType]

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return image and text features (B, E) of unit length."""
        return F.normalize(self.encode_image(images), dim=1), F.normalize(self.encode_text(ids), dim=1)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1] with the mean and deviation that an image tower reads."""
    if {*mean, *std} == {0.5}:
        return images
    shift, scale = (images.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return ((images + 1) / 2 - shift) / scale


class CLIP(nn.Module):
    """A trained CLIP for scores and retrieval: text encoder, transformers' image tower, both projections.

    Attributes:
        text_encoder: the text tower with its tokenizer.
        vision: the image tower with its projection.
        text_projection: text state of the end token -> common space.
        logit_scale: inverse temperature it was trained to, ().
        image_mean: as in `CLIPConfig`.
        image_std: as in `CLIPConfig`.
    """

    logit_scale: Tensor
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __init__(self, text_encoder: TextEncoder, vision: "CLIPVisionModelWithProjection") -> None:
        """Take the towers; the text projection starts at random values."""
        super().__init__()
        self.text_encoder = text_encoder
        self.vision = vision
        self.text_projection = nn.Linear(text_encoder.width, vision.config.projection_dim, bias=False)
        self.register_buffer("logit_scale", torch.ones(()))

    @property
    def image_size(self) -> int:
        """Side of the image tower's input, px."""
        return int(self.vision.config.image_size)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return unit features (B, E) of images (B, 3, H, W) in [-1, 1]; another size is scaled to the tower's."""
        like = self.text_projection.weight
        images = images.to(like.device, like.dtype)
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        images = normalised(images, self.image_mean, self.image_std)
        return F.normalize(self.vision(pixel_values=images).image_embeds, dim=1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (B, E) of B texts."""
        encoder, like = self.text_encoder, self.text_projection.weight
        ids = encoder.tokenize(list(texts))
        ends = ids.eq(encoder.end_id).int().argmax(dim=1)
        states = encoder.encode(ids)[torch.arange(len(ids)), ends]
        return F.normalize(self.text_projection(states.to(like.dtype)), dim=1)
