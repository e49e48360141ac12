"""Meanings of a network's output, and the exact conversions between them.

Given x = alpha * x0 + sigma * noise, the targets

    epsilon    noise                                     Ho et al. 2020, arXiv:2006.11239, section 3.2
    x0         x0
    v          alpha * noise - sigma * x0                Salimans & Ho 2022, arXiv:2202.00512, section 4, appendix D
    flow       noise - x0                                Liu et al. 2023, arXiv:2209.03003, eq. 1
    mean       E[x_{t-1} | x_t, x0]                      arXiv:2006.11239, eq. 7 and 8

are linear in x0 once x is known, so each converts into every other. Coefficients are host floats or tensors that
broadcast against (B, C, h, w); the arithmetic is done in the dtype of the tensors, so pass float32 or better.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from latent_diffusion.diffusion.level import Coefficient
from latent_diffusion.diffusion.posterior import PosteriorCoefficients, posterior, posterior_mean
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["EPSILON", "FLOW", "MEAN", "X0", "Prediction", "V", "check_prediction", "prediction_named"]

Noise = tuple[Coefficient, Coefficient]
"""(alpha, sigma) of a level."""


class Prediction(Protocol):
    """One meaning of the network's output.

    `previous` is (alpha, sigma) one training step earlier (less noisy); only `MEAN` reads it.
    """

    name: ClassVar[str]

    def target(
        self, x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient, previous: Noise | None = None
    ) -> Tensor:
        """Return what the network should output for x = alpha * x0 + sigma * noise. All tensors (B, C, h, w)."""
        ...

    def x0(
        self, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient, previous: Noise | None = None
    ) -> Tensor:
        """Return the x0 that the network's output at x stands for."""
        ...

    def output(
        self, x0: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient, previous: Noise | None = None
    ) -> Tensor:
        """Return the network output that stands for x0 at x: inverse of `x0`."""
        ...

    def gain(self, alpha: Coefficient, sigma: Coefficient, previous: Noise | None = None) -> Coefficient:
        """Return |d output / d x0| at fixed x: an x0 error of 1 is an output error of `gain`."""
        ...


@dataclass(frozen=True)
class _Epsilon:
    """The noise (arXiv:2006.11239, eq. 11). Undefined where alpha is 0."""

    name: ClassVar[str] = "epsilon"

    def target(self, x0, noise, alpha, sigma, previous=None) -> Tensor:
        return noise

    def x0(self, output, x, alpha, sigma, previous=None) -> Tensor:
        return (x - sigma * output) / alpha  # arXiv:2006.11239, eq. 15

    def output(self, x0, x, alpha, sigma, previous=None) -> Tensor:
        return (x - alpha * x0) / sigma

    def gain(self, alpha, sigma, previous=None) -> Coefficient:
        return alpha / sigma


@dataclass(frozen=True)
class _X0:
    """The clean latent itself."""

    name: ClassVar[str] = "sample"

    def target(self, x0, noise, alpha, sigma, previous=None) -> Tensor:
        return x0

    def x0(self, output, x, alpha, sigma, previous=None) -> Tensor:
        return output

    def output(self, x0, x, alpha, sigma, previous=None) -> Tensor:
        return x0

    def gain(self, alpha, sigma, previous=None) -> Coefficient:
        return alpha * 0.0 + 1.0  # a one of alpha's kind: float or tensor


@dataclass(frozen=True)
class _V:
    """The velocity of arXiv:2202.00512, where alpha^2 + sigma^2 = 1; the same on any law. Undefined only when clean."""

    name: ClassVar[str] = "v_prediction"

    def target(self, x0, noise, alpha, sigma, previous=None) -> Tensor:
        return alpha * noise - sigma * x0

    def x0(self, output, x, alpha, sigma, previous=None) -> Tensor:
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)

    def output(self, x0, x, alpha, sigma, previous=None) -> Tensor:
        return (alpha * x - (alpha**2 + sigma**2) * x0) / sigma

    def gain(self, alpha, sigma, previous=None) -> Coefficient:
        return (alpha**2 + sigma**2) / sigma


@dataclass(frozen=True)
class _Flow:
    """The direction from picture to noise (arXiv:2209.03003, eq. 1). Defined at every level but the clean one."""

    name: ClassVar[str] = "flow_prediction"

    def target(self, x0, noise, alpha, sigma, previous=None) -> Tensor:
        return noise - x0

    def x0(self, output, x, alpha, sigma, previous=None) -> Tensor:
        return (x - sigma * output) / (alpha + sigma)

    def output(self, x0, x, alpha, sigma, previous=None) -> Tensor:
        return (x - (alpha + sigma) * x0) / sigma

    def gain(self, alpha, sigma, previous=None) -> Coefficient:
        return (alpha + sigma) / sigma


@dataclass(frozen=True)
class _Mean:
    """The posterior mean of x_{t-1} (arXiv:2006.11239, eq. 7)."""

    name: ClassVar[str] = "mean"

    def target(self, x0, noise, alpha, sigma, previous=None) -> Tensor:
        return posterior_mean(alpha * x0 + sigma * noise, x0, _step(alpha, sigma, previous))

    def x0(self, output, x, alpha, sigma, previous=None) -> Tensor:
        step = _step(alpha, sigma, previous)
        return (output - step.of_x * x) / step.of_x0

    def output(self, x0, x, alpha, sigma, previous=None) -> Tensor:
        return posterior_mean(x, x0, _step(alpha, sigma, previous))

    def gain(self, alpha, sigma, previous=None) -> Coefficient:
        return _step(alpha, sigma, previous).of_x0


def _step(alpha: Coefficient, sigma: Coefficient, previous: Noise | None) -> PosteriorCoefficients:
    assert previous is not None, "the posterior mean needs (alpha, sigma) of the previous training step"
    return posterior(alpha, sigma, *previous)


EPSILON = _Epsilon()
X0 = _X0()
V = _V()
FLOW = _Flow()
MEAN = _Mean()

_ALL: dict[str, Prediction] = {p.name: p for p in (EPSILON, V, X0, FLOW, MEAN)}


def prediction_named(name: str) -> Prediction:
    """Return the prediction called `name`: diffusers' "epsilon", "v_prediction", "sample", "flow_prediction"; "mean".

    Raises:
        ConfigError: no prediction has that name.
    """
    if name not in _ALL:
        raise ConfigError(f"unknown prediction {name!r}; there are {', '.join(_ALL)}{nearest(name, _ALL)}")
    return _ALL[name]


def check_prediction(prediction: Prediction, last_alpha: float | Tensor) -> None:
    """Refuse to predict noise from pure noise: at alpha = 0 the output says nothing about x0.

    Reference: Lin et al. 2023, arXiv:2305.08891, section 3.2.

    Raises:
        ConfigError: epsilon prediction with a schedule whose last level has no signal.
    """
    if prediction == EPSILON and not torch.as_tensor(last_alpha).ne(0).all():
        raise ConfigError(
            "epsilon prediction cannot be used with zero terminal SNR (alpha is 0), as of rectified flows; "
            "use v_prediction, sample or flow_prediction"
        )
