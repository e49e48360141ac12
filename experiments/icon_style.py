"""Is a picture in the style of the blue outline icons? Seven measures of its pixels, and a Gaussian for each style.

The icons have black strokes of one width, flat blue areas or none, and a white ground. The rule of `evaluate` looks at
moments of a network's first stages, which change with the softness of the edges: it accepts .92 of the held-out icons,
.60 of their copies by the model's own autoencoder and .14 of drawings that look right, and takes the others for
`fluent-3d`. So these measures are of colours and widths, and the rule is fitted on copies by the autoencoder too.

    white      share of white pixels
    black      share of dark pixels
    blue       share of blue pixels
    other      mean distance of the pixels to mixtures of black, white and the icons' blue (logarithm)
    stroke     share of the dark pixels left after 1 and after 2 px are taken off their edges: thin lines vanish
    solid      ... after 3 px: the icons' strokes vanish, black areas stay (logarithm)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_diffusion.evaluation.features import resize

__all__ = ["IconStyle", "measures"]

SIZE = 64
BLUE = (47 / 255, 136 / 255, 1.0)
FLOOR = 0.02
"""Added to the distance and the share before their logarithms: what a drawing cannot be blamed for."""
SPREAD = 0.1
"""Least standard deviation of a measure within a style."""


def measures(images: Tensor) -> Tensor:
    """Return the seven measures (N, 7) of images (N, 3, H, W) in [-1, 1]."""
    rgb = (resize(images.float(), SIZE) + 1) / 2
    red, green, blue = rgb.unbind(1)
    white = rgb.amin(1) > 0.85
    is_blue = (blue > 0.6) & (blue - red > 0.35) & (green > red) & (blue > green)
    dark = (rgb.amax(1) < 0.5).float()
    black = _share(dark)
    left = [_share(_eroded(dark, px)) / black.clamp(min=1 / SIZE**2) for px in (1, 2, 3)]
    other = (_distance(rgb) + FLOOR).log()
    columns = [_share(white.float()), black, _share(is_blue.float()), other, left[0], left[1], (left[2] + FLOOR).log()]
    return torch.stack(columns, 1)


def _share(mask: Tensor) -> Tensor:
    return mask.mean((1, 2))


def _eroded(mask: Tensor, px: int) -> Tensor:
    return 1 - F.max_pool2d(1 - mask[:, None], 2 * px + 1, stride=1, padding=px)[:, 0]


def _distance(rgb: Tensor) -> Tensor:
    """Return the mean distance of the pixels to mixtures of black, white and blue, (N,)."""
    basis = torch.tensor([[1.0, 1.0, 1.0], BLUE])  # of the plane through black
    x = rgb.permute(0, 2, 3, 1)
    weights = (x @ torch.linalg.pinv(basis)).clamp(0, 1)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return _share((x - weights @ basis).norm(dim=-1))


class _Gaussian:
    def __init__(self, x: Tensor) -> None:
        covariance = torch.cov(x.T) + SPREAD**2 * torch.eye(x.shape[1])
        self.mean, self.inverse, self.logdet = x.mean(0), torch.linalg.inv(covariance), torch.logdet(covariance)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the log density (N,) of x (N, D), but for a constant."""
        return -0.5 * (((x - self.mean) @ self.inverse * (x - self.mean)).sum(1) + self.logdet)


class IconStyle:
    """The rule: the style of the greatest density, all alike beforehand, is that of the icons.

    Args:
        icons: pictures of the style, (N, 3, H, W) in [-1, 1].
        others: pictures of each other style, likewise.
    """

    def __init__(self, icons: Tensor, others: Sequence[Tensor]) -> None:
        self.styles = [_Gaussian(measures(images)) for images in (icons, *others)]

    def __call__(self, images: Tensor) -> Tensor:
        """Return whether each picture (N, 3, H, W) is in the style, (N,) bool."""
        x = measures(images)
        return torch.stack([style(x) for style in self.styles], 1).argmax(1) == 0
