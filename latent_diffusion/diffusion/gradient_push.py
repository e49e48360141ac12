"""The push of a guidance that follows the gradient of log p(y | x): y is a class, a caption, or anything else.

    noise estimate = noise(prompt) - sigma * scale * grad_x log p(y | x)
    so          x0 = x0(prompt) + scale * sigma^2 / alpha * grad_x log p(y | x)

Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2.
"""

import torch
from torch import Tensor

from latent_diffusion.diffusion.guidance import GuidanceContext, LogProb, Stage, StageOrder, StepState

__all__ = ["LARGEST_PUSH", "gradient_of", "push_along"]

LARGEST_PUSH = 1000.0  # scale of any such guidance


def push_along(log_prob: LogProb, scale: float, context: GuidanceContext) -> Stage:
    """Return algorithm 2's correction; log p(y | x) counts but for a constant in x.

    A level without any picture in it (alpha 0, zero terminal SNR) is left alone: x has no information there.
    """

    def apply(now: StepState) -> Tensor:
        t = torch.full((now.x.shape[0],), now.level.t, dtype=torch.float32, device=now.x.device)
        t = torch.as_tensor(context.denoiser.schedule.network_time(t))  # the network's time
        push = scale * now.level.sigma**2 / now.level.alpha
        return now.guided + push * gradient_of(log_prob, now.x, t)

    return Stage(StageOrder.PUSH, apply, active=lambda level: level.alpha > 0.0)


def gradient_of(log_prob: LogProb, x: Tensor, t: Tensor) -> Tensor:
    """Return grad_x log p(y | x) (B, C, h, w); images do not mix, so the gradient of the sum is each one's own."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(x, t).sum(), x)
    return gradient
