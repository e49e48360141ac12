"""The score's view: every prediction is a score, Tweedie's formula leads back, and Langevin's steps follow it.

The score of a level is the gradient of its log-density with respect to x. Tweedie's formula ties it to the best
estimate of the clean latent:

    grad_x log q(x) = (alpha E[x0 | x] - x) / sigma^2,        E[x0 | x] = (x + sigma^2 grad_x log q(x)) / alpha

Langevin's dynamics walk within one level and leave its law as it is, up to the size of the step:

    x <- x + step * score + sqrt(2 step) noise

Reference: Song & Ermon 2019, arXiv:1907.05600, algorithm 1; Song et al. 2021, arXiv:2011.13456, algorithms 3 and 5;
Efron 2011, "Tweedie's formula and selection bias"; Ho et al. 2020, arXiv:2006.11239, section 3.2.
"""

from torch import Tensor

from latent_diffusion.diffusion.level import Coefficient, Level
from latent_diffusion.diffusion.path import Draw
from latent_diffusion.diffusion.prediction import Prediction

__all__ = ["LARGEST_SNR", "MOST_CORRECTIONS", "langevin_step", "score", "score_of_output", "tweedie"]

LARGEST_SNR = 1.0
"""Of a step within a level; from sqrt(2) on they diverge where there is noise alone."""
MOST_CORRECTIONS = 1000
"""Steps within a level."""


def score(x: Tensor, x0: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """Return the score at x (B, C, h, w) that an estimate x0 stands for: (alpha x0 - x) / sigma^2.

    Equal to -noise / sigma for the predicted noise; defined at every level but the clean one.
    """
    return (alpha * x0 - x) / sigma**2


def tweedie(x: Tensor, score: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """Return the x0 (B, C, h, w) that a score at x stands for; undefined where alpha is 0."""
    return (x + sigma**2 * score) / alpha


def score_of_output(
    prediction: Prediction,
    output: Tensor,
    x: Tensor,
    alpha: Coefficient,
    sigma: Coefficient,
    previous: tuple[Coefficient, Coefficient] | None = None,
) -> Tensor:
    """Return the score (B, C, h, w) that a network's `output` at x stands for, whatever it predicts.

    `previous` is (alpha, sigma) one training step earlier; only the prediction `mean` reads it.
    """
    return score(x, prediction.x0(output, x, alpha, sigma, previous), alpha, sigma)


def langevin_step(x: Tensor, x0: Tensor, level: Level, snr: float, draw: Draw) -> Tensor:
    """Return x (B, C, h, w) after one step of Langevin's dynamics at `level`, of size (snr sigma)^2.

    That is the size of arXiv:2011.13456, algorithm 5, with the lengths of score and noise in place of those of one
    batch: sqrt(d) / sigma and sqrt(d). So a picture does not depend on the others of its batch.
    """
    step = (snr * level.sigma) ** 2
    return x + step * score(x, x0, level.alpha, level.sigma) + (2.0 * step) ** 0.5 * draw(x.shape[1:]).to(x)
