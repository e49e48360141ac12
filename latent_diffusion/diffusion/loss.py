"""The training loss: the error of the network's output, weighed by the noise level.

    L = w(t) * mean over C, h, w of d(network(x_t, t) - target)

The distance d is the square (Ho et al. 2020, arXiv:2006.11239, eq. 14), or the pseudo-Huber distance
2 c (sqrt(e^2 + c^2) - c), which is e^2 for small errors e and 2 c |e| for large ones (Charbonnier et al. 1997; Song &
Dhariwal 2023, arXiv:2310.14189, section 3.3). `WEIGHTS` has the weights w.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.prediction import Prediction, check_prediction
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["WEIGHTINGS", "DiffusionLoss", "Noised", "mean_over"]

WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma),
    "soft_min_snr": lambda snr, gamma: snr * gamma / (snr + gamma),
    "p2": lambda snr, gamma, k: snr / (k + snr) ** gamma,
    "debiased": lambda snr: snr.sqrt(),
}
"""Weights of the squared error of x0, by the signal-to-noise ratio alpha^2 / sigma^2.

    min_snr        Hang et al. 2023, arXiv:2303.09556, section 3.4
    soft_min_snr   Crowson et al. 2024, arXiv:2401.11605, section 3.3
    p2             Choi et al. 2022, arXiv:2204.00227, eq. (8): 1 / (k + SNR)^gamma for the error of the noise
    debiased       Yu et al. 2023, arXiv:2310.08442, eq. (13): 1 / sqrt(SNR) for the error of the noise
"""

WEIGHTINGS = ("simple", *WEIGHTS, "bound")
"""`simple` weighs the network's output by 1, whatever it predicts; `bound` is the weight of the variational bound
(arXiv:2006.11239, eq. 12), per dimension and in nats; the others are those of `WEIGHTS`."""

DEFAULTS = {"min_snr": {"gamma": 5.0}, "soft_min_snr": {"gamma": 5.0}, "p2": {"gamma": 1.0, "k": 1.0}}
"""Numbers of a weight that the caller leaves out: those of its paper."""

LARGEST_SNR = 1e30
"""Stands for an infinite signal-to-noise ratio, so that no weight is infinity divided by infinity."""


class Noised(NamedTuple):
    """What a network is trained on: x (B, C, h, w), its time (B,) float32 and the target of its output, as x."""

    x: Tensor
    time: Tensor
    target: Tensor


@dataclass(frozen=True)
class DiffusionLoss:
    """Loss per image; the caller draws t and the noise.

    Attributes:
        schedule: the noise law.
        prediction: what the network's output means.
        weighting: one of `WEIGHTINGS`.
        gamma: of `min_snr`, `soft_min_snr` (5) and `p2` (1); None = these.
        k: of `p2` (1); None = this.
        huber: c of the pseudo-Huber distance, in units of the network's output; None = the square.

    Raises:
        ConfigError: an unknown weighting, a number that it has no use for, or a prediction without meaning on the law.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    weighting: str = "simple"
    gamma: float | None = None
    k: float | None = None
    huber: float | None = None

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule.level(self.schedule.num_train_timesteps - 1).alpha)
        if self.weighting not in WEIGHTINGS:
            known = ", ".join(WEIGHTINGS)
            raise ConfigError(f"unknown weighting {self.weighting!r}{nearest(self.weighting, WEIGHTINGS)}; use {known}")
        for name in ("gamma", "k", "huber"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; use a number above 0")
            if value is not None and name != "huber" and name not in DEFAULTS.get(self.weighting, {}):
                raise ConfigError(f"weighting {self.weighting!r} has no {name}; leave it out")
        if self.huber is not None and self.weighting == "bound":
            raise ConfigError("the variational bound is a squared error; leave huber out, or use another weighting")

    def __call__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        perturbed: Tensor | None = None,
    ) -> Tensor:
        """Return the losses (B,), in float32 or x0's dtype where that is wider.

        Args:
            network: (x (B, C, h, w), t (B,) float32) -> output (B, C, h, w).
            x0: clean latents (B, C, h, w).
            t: integer times (B,), 0 .. T - 1.
            noise: standard normal, shaped as x0; the target is made of it.
            perturbed: noise of the network's input where that differs from the target's (Ning et al. 2023,
                arXiv:2301.11706, eq. 5); shaped as x0.
        """
        noised = self.noised(x0, t, noise, perturbed)
        return self.compared(network(noised.x, noised.time), noised.target, t)

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor, perturbed: Tensor | None = None) -> Noised:
        """Return the network's input and its target; arguments as above."""
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))
        noise = noise.to(x0)
        alpha, sigma, before = at_times(self.schedule, t, x0)
        x = add_noise(x0, noise if perturbed is None else perturbed.to(x0), alpha, sigma)
        target = self.prediction.target(x0, noise, alpha, sigma, before)
        return Noised(x, self.schedule.network_time(t).float(), target)

    def compared(self, output: Tensor, target: Tensor, t: Tensor, area: Tensor | None = None) -> Tensor:
        """Return the losses (B,) of outputs.

        Args:
            output: of the network, (B, C, h, w).
            target: the same shape, float32 or wider.
            t: integer times (B,).
            area: weights of the cells, as in `mean_over`.
        """
        distance = self._distance(output.to(target.dtype) - target)
        weight = self.weight(t).to(target)
        return mean_over(distance, area) * weight

    def _distance(self, error: Tensor) -> Tensor:
        if self.huber is None:
            return error.square()
        c = self.huber
        return 2.0 * c * ((error.square() + c * c).sqrt() - c)

    def weight(self, t: Tensor) -> Tensor:
        """Return the weights (B,), float64, of integer times t (B,), 0 .. T - 1."""
        if self.weighting == "simple":
            return torch.ones(t.shape, dtype=torch.float64, device=t.device)
        alpha, sigma = self.schedule.alpha_sigma(t)
        before = self.schedule.alpha_sigma(t - 1)
        gain = torch.as_tensor(self.prediction.gain(alpha, sigma, before))
        snr = ((alpha / sigma) ** 2).clamp(max=LARGEST_SNR)
        if self.weighting == "bound":
            # Half the fall of the SNR over the step (arXiv:2107.00630, section 4). Step 0 falls from infinite SNR:
            # there a Gaussian decoder of variance sigma^2 stands in, as in `bound.py`.
            fall = torch.where(t == 0, 1.0 / sigma**2, (before[0] / before[1]) ** 2 - snr)
            return 0.5 * fall / gain**2
        numbers = DEFAULTS.get(self.weighting, {})
        given = {name: value for name in numbers if (value := getattr(self, name)) is not None}
        return WEIGHTS[self.weighting](snr, **(numbers | given)) / gain**2


def mean_over(values: Tensor, area: Tensor | None) -> Tensor:
    """Return the mean of values (B, C, h, w) over each picture, (B,).

    `area` (B, 1, h, w) weighs the cells by 0 or more; None = all alike. The mean of a picture without any weight is 0.
    """
    if area is None:
        return values.flatten(1).mean(1)
    area = area.to(values)
    cells = area.flatten(1).sum(1) * values.shape[1]
    return (area * values).flatten(1).sum(1) / torch.where(cells > 0, cells, 1)
