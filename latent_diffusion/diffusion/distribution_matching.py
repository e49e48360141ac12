"""Distribution matching: a student's pictures follow the law of its teacher's, seen through noise.

A student draws x0 in few steps. Both laws are noised to every level, x = alpha x0 + sigma noise, where their
densities overlap and their scores are known from estimates of x0:

    D = KL(q_student || q_teacher)  at one level
    grad of D with respect to x0  =  E[alpha (score_student - score_teacher)]
                                  =  E[(alpha / sigma)^2 (x0_fake(x) - x0_real(x))]

x0_real is the teacher's estimate. x0_fake is that of a second network, which is trained to denoise the student's
pictures. Both are best estimates of x0 where they are exact, so the gradient is 0 where the two laws are one. The
levels are weighed by

    (sigma / alpha)^2 / mean |x0 - x0_real|

which makes the gradients of all levels about equally large.

Reference: Yin et al. 2023, arXiv:2311.18828, eq. 3 to 8; Yin et al. 2024, arXiv:2405.14867, sections 4.2 and 4.4. The
weight of arXiv:2311.18828, eq. 8, has one more factor alpha, which is left out here.
"""

from torch import Tensor

__all__ = ["HIGH", "LOW", "matching_gradient", "matching_loss"]

LOW, HIGH = 0.02, 0.98
"""Shares of the times between which the laws are compared (arXiv:2311.18828, section 4.2)."""
SMALLEST = 1e-6  # distance of a student's picture from the teacher's estimate, below which it is not divided by


def matching_gradient(x0: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Return the weighted gradient of D with respect to each picture x0, (B, C, h, w).

    Args:
        x0: the student's pictures (B, C, h, w).
        fake: estimates of x0 at the noised pictures under the student's law, the same shape.
        real: the same under the teacher's law.
    """
    distance = (x0 - real).abs().flatten(1).mean(1).clamp(min=SMALLEST)
    return (fake - real) / distance.view(-1, *[1] * (x0.ndim - 1))


def matching_loss(x0: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Return losses (B,) whose gradient with respect to x0 is `matching_gradient` over the numbers of a picture.

    The value is half the mean square of that gradient; only x0 gets a gradient. Reference: arXiv:2405.14867, section 3.
    """
    goal = (x0 - matching_gradient(x0, fake, real)).detach()
    return 0.5 * (x0 - goal).square().flatten(1).mean(1)
