"""Features of pictures from EfficientNet-Lite0, from which every figure of the evaluation is computed.

Pictures of any size are brought to 128x128 px (bicubic, antialiased) first, so pictures of a 64 px model and of a
128 px data set are compared on one footing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_diffusion.models.efficientnet_lite import EfficientNetLite0

__all__ = ["SIZE", "Features", "extract", "resize"]

SIZE = 128
"""Side in px at which pictures are judged."""
STYLE_STAGES = 3
LAYOUT_STAGE = 4


@dataclass(frozen=True)
class Features:
    """Features of N pictures, float32, on the CPU.

    Shapes: `texture` (N, 160) mean and standard deviation over the pixels of each channel of stages 0-2;
    `layout` (N, 448) stage 4 averaged over the four quarters of the picture; `content` (N, 320) mean of stage 6;
    `head` (N, 1280) mean of the head.
    """

    texture: Tensor
    layout: Tensor
    content: Tensor
    head: Tensor

    def __len__(self) -> int:
        return self.head.shape[0]

    def __getitem__(self, rows: Tensor | list[int] | slice) -> "Features":
        return Features(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def cat(parts: Iterable["Features"]) -> "Features":
        """Join along N; at least one part."""
        parts = list(parts)
        return Features(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Features)))


def resize(images: Tensor, size: int) -> Tensor:
    """Return images (B, 3, H, W) in [-1, 1] as (B, 3, size, size), bicubic with antialiasing, clipped to [-1, 1]."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


@torch.inference_mode()
def extract(model: EfficientNetLite0, images: Tensor, batch_size: int = 32) -> Features:
    """Return the features of images (N, 3, H, W) in [-1, 1], N >= 1; pictures do not influence each other."""
    return Features.cat(_extract(model, batch) for batch in images.split(batch_size))


def _extract(model: EfficientNetLite0, images: Tensor) -> Features:
    device = next(model.parameters()).device
    small = resize(images.float(), SIZE).to(device, memory_format=torch.channels_last)
    maps = model.stages(small)
    moments = [torch.cat([m.mean(dim=(2, 3)), m.std(dim=(2, 3))], dim=1) for m in maps[:STYLE_STAGES]]
    return Features(
        texture=torch.cat(moments, dim=1).cpu(),
        layout=F.adaptive_avg_pool2d(maps[LAYOUT_STAGE], 2).flatten(1).cpu(),
        content=maps[-1].mean(dim=(2, 3)).cpu(),
        head=model.head(maps[-1]).mean(dim=(2, 3)).cpu(),
    )
