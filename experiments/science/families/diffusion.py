"""Diffusion: the product's own U-Net, noise law, loss, sampler and likelihoods, on folded pictures without a prompt.

    minimise E[ |v - v(x_t, t)|^2 ],     x_t = alpha_t x + sigma_t noise,     v = alpha_t noise - sigma_t x

The bound is that of arXiv:2006.11239, eq. 5, from times spread evenly over the noise levels; the likelihood follows the
probability-flow ODE (arXiv:2011.13456, eq. 39).

Reference: Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672 (cosine law); Salimans & Ho 2022,
arXiv:2202.00512 (v).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.science.families.blocks import GROUPS, fold, unfold
from experiments.science.families.family import Draws, Family, bits, drawn_in_batches
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.bound import bound_one_sample
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.likelihood import hutchinson, negative_log_likelihood, path_to_noise
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import V
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.models.unet import UNet, UNetConfig
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M
from latent_diffusion.schedules.cosine import CosineSchedule

__all__ = ["CONTEXT", "Diffusion", "empty", "even_times"]

WIDTHS = (32, 48, 72)
CONTEXT = 8  # channels of the one empty text state
STEPS = 20  # of the sampler
SINGLE = 40  # noise levels whose terms of the bound are all taken
STRATA = 24  # equal parts of the other levels, of each of which one term stands for all


class Diffusion(Family):
    """Predicts v at 1,000 levels of the cosine law."""

    draws_of_bits = 1  # of 64 terms

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        flat = (False,) * len(widths)
        self.unet = UNet(
            UNetConfig(16, tuple(widths), 1, flat, (1,) * len(widths), CONTEXT, 12, 12, norm_num_groups=GROUPS)
        )
        self.schedule = CosineSchedule()
        self.objective = DiffusionLoss(self.schedule, V)

    def denoiser(self) -> Denoiser:
        """Return the network as an estimator of the clean picture."""
        return Denoiser(self.unet, self.schedule, V)

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the mean square error of v; the times of a batch are spread evenly."""
        x0 = fold(x)
        projected = self.unet.project(empty(len(x0)))
        t = even_times(x0, draws, self.schedule.num_train_timesteps)
        return self.objective(lambda x, t: self.unet(x, t, projected), x0, t, draws.normal("noise", x0)).mean()

    def sample(self, count: int, seed: int, steps: int = STEPS) -> Tensor:
        """Return pictures by DPM-Solver++(2M) in `steps` network evaluations."""
        visited = levels(self.schedule, "trailing", steps, intervals=True)

        def draw(noise: NoiseSource) -> Tensor:
            denoise = self.denoiser().bind(empty(len(noise)))
            *_, last = DPMpp2M()(denoise, noise.draw((12, 16, 16)), visited, noise)
            return unfold(last.x)

        return drawn_in_batches(count, seed, draw)

    def bits_per_dimension(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the variational bound: its first terms, which weigh most, one by one, the others by random times."""
        x0, steps = fold(x), self.schedule.num_train_timesteps
        denoise = self.denoiser().bind_times(empty(len(x0)))
        offset = draws.uniform("bound time", x.new_zeros(len(x)))
        rest = (steps - SINGLE) / STRATA
        places = [(torch.full((len(x),), t), 1.0) for t in range(SINGLE)]
        places += [((SINGLE + (k + offset) * rest).long(), rest) for k in range(STRATA)]
        total = torch.zeros(len(x))
        for number, (t, terms) in enumerate(places):
            noise = draws.normal(f"bound noise {number}", x0)
            estimate = bound_one_sample(denoise, self.schedule, x0, t, lambda noise=noise: noise)
            total = total + terms / steps * estimate
        return bits(total)

    def bits_by_ode(self, x: Tensor, draws: Draws, steps: int = 25) -> Tensor:
        """Return bits a number (B,) by the probability-flow ODE, one random probe of its divergence."""
        x0 = fold(x)
        denoise, noise = self.denoiser().bind(empty(len(x0))), draws.normal("ode noise", x0)
        probe = hutchinson([draws.normal("probe", x0).sign()])
        return bits(negative_log_likelihood(denoise, path_to_noise(self.schedule, steps), x0, noise, probe))


def even_times(x: Tensor, draws: Draws, steps: int) -> Tensor:
    """Return times (B,), one in each of B equal parts of 0 .. steps - 1, each uniform over all over the updates."""
    offset = draws.uniform("time", x.new_zeros(1))
    places = (torch.arange(len(x)) / len(x) + offset) % 1
    return (places * steps).long()


def empty(count: int) -> Conditioning:
    """Return the condition of a model without prompts: one text state of zeros."""
    return Conditioning(torch.zeros(count, 1, CONTEXT))
