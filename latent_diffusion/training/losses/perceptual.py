"""Distance of two pictures in the eyes of a trained classifier.

    d(a, b) = sum over stages of mean over channels, pixels of ((f(a) - f(b)) / std)^2

with f the first four stages of EfficientNet-Lite0 and std each channel's standard deviation on the training pictures.
It falls with blur, JPEG and shift, and is nearly blind to brightness: never use it without a pixel term.
Reference: Johnson et al. 2016, arXiv:1603.08155; Zhang et al. 2018, arXiv:1801.03924 (normalised channels).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from latent_diffusion.models.efficientnet_lite import EfficientNetLite0

__all__ = ["PerceptualLoss"]

STAGES = 4
MIN_STD = 1e-3  # a channel that never moves on the data must not decide alone


class PerceptualLoss(nn.Module):
    """Frozen classifier and the spread of its channels; call `measure` once before use."""

    def __init__(self, network: EfficientNetLite0) -> None:
        """Keep the part of `network` that is needed."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.spread: list[Tensor] = []

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor]) -> None:
        """Take each channel's standard deviation over batches of images (B, 3, H, W) in [-1, 1]."""
        sums: list[Tensor] = []
        squares: list[Tensor] = []
        counts: list[int] = []
        for batch in images:
            features = [f.double() for f in self.network.stages(batch, STAGES)]
            if not sums:
                sums = [f.new_zeros(f.shape[1]) for f in features]
                squares = [f.new_zeros(f.shape[1]) for f in features]
                counts = [0] * STAGES
            for stage, f in enumerate(features):
                sums[stage] += f.sum((0, 2, 3))
                squares[stage] += f.square().sum((0, 2, 3))
                counts[stage] += f.numel() // f.shape[1]
        variances = [q / n - (s / n).square() for s, q, n in zip(sums, squares, counts)]
        like = next(self.network.parameters())
        self.spread = [v.clamp(min=0).sqrt().clamp(min=MIN_STD).to(like).view(1, -1, 1, 1) for v in variances]

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Return the distance of each pair of images (B, 3, H, W) in [-1, 1]: (B,). Gradients flow to `made` only."""
        # Not in bfloat16: depthwise convolutions have no fast kernel for it on CPUs (measured 25 times slower).
        with torch.autocast(made.device.type, enabled=False):
            with torch.no_grad():
                targets = self.network.stages(real, STAGES)
            features = self.network.stages(made.to(real.dtype), STAGES)
            distances = [((f - g) / s).square().flatten(1).mean(1) for f, g, s in zip(features, targets, self.spread)]
        return torch.stack(distances).sum(0)
