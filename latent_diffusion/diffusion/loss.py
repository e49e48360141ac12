"""The training loss: mean squared error of the network's output, weighed by the noise level.

    L = w(t) * mean over C, h, w of |network(x_t, t) - target|^2

"simple" is w = 1 (Ho et al. 2020, arXiv:2006.11239, eq. 14); "min_snr" is min(SNR, gamma) in x0 space
(Hang et al. 2023, arXiv:2303.09556, section 3.4); "bound" is the weight of the variational bound
(arXiv:2006.11239, eq. 12), per dimension and in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.prediction import Prediction, check_prediction
from latent_diffusion.errors import ConfigError

__all__ = ["DiffusionLoss", "Weighting"]

Weighting = Literal["simple", "min_snr", "bound"]


@dataclass(frozen=True)
class DiffusionLoss:
    """Loss per image; the caller draws t and the noise."""

    schedule: NoiseSchedule
    prediction: Prediction
    weighting: Weighting = "simple"
    gamma: float = 5.0  # where min_snr clips the SNR; the paper's value

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule.level(self.schedule.num_train_timesteps - 1).alpha)
        if self.weighting not in ("simple", "min_snr", "bound"):
            raise ConfigError(f"unknown weighting {self.weighting!r}; there are simple, min_snr, bound")

    def __call__(self, network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the losses (B,), in float32 or x0's dtype where that is wider.

        Args:
            network: (x (B, C, h, w), t (B,) float32) -> output (B, C, h, w).
            x0: clean latents (B, C, h, w).
            t: integer times (B,), 0 .. T - 1.
            noise: standard normal, shaped as x0.
        """
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
        noise = noise.to(x0)
        alpha, sigma, before = at_times(self.schedule, t, x0)
        output = network(add_noise(x0, noise, alpha, sigma), self.schedule.told(t).float()).to(x0.dtype)
        target = self.prediction.target(x0, noise, alpha, sigma, before)
        return (output - target).square().flatten(1).mean(1) * self._weight(t).to(x0)

    def _weight(self, t: Tensor) -> Tensor:
        """Weights (B,), float64."""
        if self.weighting == "simple":
            return torch.ones(t.shape, dtype=torch.float64, device=t.device)
        alpha, sigma = self.schedule.alpha_sigma(t)
        before = self.schedule.alpha_sigma(t - 1)
        gain = torch.as_tensor(self.prediction.gain(alpha, sigma, before))
        snr = (alpha / sigma) ** 2
        if self.weighting == "min_snr":
            return snr.clamp(max=self.gamma) / gain**2
        # Half the fall of the SNR over the step (arXiv:2107.00630, section 4). Step 0 falls from infinite SNR: there
        # a Gaussian decoder of variance sigma^2 stands in, as in `bound.py`.
        snr_before = (before[0] / before[1]) ** 2
        fall = torch.where(t == 0, 1.0 / sigma**2, snr_before - snr)
        return 0.5 * fall / gain**2
