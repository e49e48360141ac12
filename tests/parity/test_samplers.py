"""Samplers against diffusers' schedulers over 20 steps: relative error at most 1e-5, epsilon and v, every spacing.

What remains is float32: diffusers keeps its tables and its coefficients in it, we keep ours in float64.
"""

from itertools import pairwise

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import prediction_named
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.samplers.ddpm import DDPM
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

STEPS = 20
SEEDS = (1, 2, 3, 4)
SHAPE = (4, 8, 8)
BOUND = 1e-5
SCHEDULES = {
    "linear": (LinearSchedule(), {"beta_schedule": "linear"}),
    "scaled_linear": (
        ScaledLinearSchedule(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
}
SPACINGS = [("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)]

each_schedule = pytest.mark.parametrize("name", list(SCHEDULES))
each_prediction = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
each_spacing = pytest.mark.parametrize("spacing,offset", SPACINGS)


class Network:
    """A smooth function of x and t, the same for both."""

    def project(self, cond):
        return None

    def __call__(self, x, t, projected):
        return 0.7 * torch.tanh(x.roll(1, -1) + 0.5 * x) + torch.sin(t / 200)[:, None, None, None]


def ours(sampler, schedule, prediction, spacing, **options):
    noise = NoiseSource(SEEDS)
    denoiser = Denoiser(Network(), schedule, prediction_named(prediction))
    denoise = denoiser.bind(Conditioning(torch.zeros(len(SEEDS), 1, 1)))
    visited = levels(schedule, spacing, STEPS, intervals=sampler.intervals, **options)
    *_, last = sampler(denoise, noise.draw(SHAPE), visited, noise)
    return last.x, [level.t for level in visited[:-1]]


def theirs(scheduler, **step_options):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = torch.cat([torch.randn(1, *SHAPE, generator=generator) for generator in generators])
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        output = Network()(x, torch.full((len(SEEDS),), float(t)), None)
        x = scheduler.step(output, t, x, **step_options, **({"generator": generators} if draws(scheduler) else {}))[0]
    return x, scheduler.timesteps.tolist()


def draws(scheduler):
    return type(scheduler).__name__ != "DPMSolverMultistepScheduler"


def compare(got, wanted):
    assert got[1] == wanted[1], "the times differ"
    assert got[0].isfinite().all() and wanted[0].isfinite().all()
    error = ((got[0] - wanted[0]).norm() / wanted[0].norm()).item()
    assert error <= BOUND, error


def config(name, prediction, spacing, offset=0):
    return {
        **SCHEDULES[name][1],
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "steps_offset": offset,
    }


@each_schedule
@each_prediction
@each_spacing
def test_ddpm(name, prediction, spacing, offset):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(clip_sample=False, **config(name, prediction, spacing, offset))
    compare(ours(DDPM(), SCHEDULES[name][0], prediction, spacing, steps_offset=offset), theirs(scheduler))


@each_prediction
@each_spacing
def test_a_step_of_ddpm_with_learned_variance(prediction, spacing, offset):
    """Each step but the last from the same x, relative error 1e-6; diffusers reads our table, its own is float32."""
    from diffusers import DDPMScheduler

    class Wide(Network):
        def __call__(self, x, t, projected):
            return torch.cat([super().__call__(x, t, projected), 1.3 * torch.sin(x)], dim=1)

    schedule, shape = SCHEDULES["scaled_linear"][0], (len(SEEDS), *SHAPE)
    scheduler = DDPMScheduler(
        clip_sample=False, variance_type="learned_range", **config("scaled_linear", prediction, spacing, offset)
    )
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod)
    scheduler.set_timesteps(STEPS)
    denoiser = Denoiser(Wide(), schedule, prediction_named(prediction), learned_variance=True)
    denoise = denoiser.bind(Conditioning(torch.zeros(len(SEEDS), 1, 1)))
    visited = levels(schedule, spacing, STEPS, steps_offset=offset)
    assert [level.t for level in visited[:-1]] == scheduler.timesteps.tolist()
    for level, after in pairwise(visited[:-1]):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(int(level.t)))
        (step,) = DDPM()(denoise, x, [level, after], NoiseSource(SEEDS))
        output = Wide()(x, torch.full((len(SEEDS),), level.t), None)
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        wanted = scheduler.step(output, int(level.t), x, generator=generators)[0]
        assert ((step.x - wanted).norm() / wanted.norm()).item() <= 1e-6, level.t


def ddim_scheduler(**options):
    """diffusers' DDIM; with linspace its step is told where the next one starts.

    Its `step` always goes down T // steps times, also on the linspace grid, whose points lie (T - 1) / (steps - 1)
    apart: the next step then reads the wrong level. On that grid we compare with the step repaired.
    """
    from diffusers import DDIMScheduler

    class Repaired(DDIMScheduler):
        def step(self, model_output, timestep, sample, **step_options):
            later = self.timesteps[self.timesteps < timestep]
            gap = int(timestep - later[0]) if len(later) else int(timestep) + 1
            steps, self.num_inference_steps = self.num_inference_steps, 1
            self.register_to_config(num_train_timesteps=gap)  # step goes down num_train_timesteps // 1
            result = super().step(model_output, timestep, sample, **step_options)
            self.num_inference_steps = steps
            self.register_to_config(num_train_timesteps=1000)
            return result

    kind = Repaired if options["timestep_spacing"] == "linspace" else DDIMScheduler
    return kind(clip_sample=False, **options)


@each_schedule
@each_prediction
@each_spacing
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(name, prediction, spacing, offset, eta):
    scheduler = ddim_scheduler(**config(name, prediction, spacing, offset))
    got = ours(DDIM(eta), SCHEDULES[name][0], prediction, spacing, steps_offset=offset)
    compare(got, theirs(scheduler, eta=eta))


@each_prediction
@each_spacing
def test_ddim_set_alpha_to_one_false(prediction, spacing, offset):
    options = config("scaled_linear", prediction, spacing, offset)
    got = ours(DDIM(), ScaledLinearSchedule(), prediction, spacing, steps_offset=offset, final="first")
    compare(got, theirs(ddim_scheduler(set_alpha_to_one=False, **options)))


def test_ddim_zero_terminal_snr():
    options = config("scaled_linear", "v_prediction", "trailing")
    schedule = ScaledLinearSchedule(zero_terminal_snr=True)
    got = ours(DDIM(), schedule, "v_prediction", "trailing")
    compare(got, theirs(ddim_scheduler(rescale_betas_zero_snr=True, **options)))


@each_schedule
@each_prediction
@each_spacing
def test_dpmpp_2m(name, prediction, spacing, offset):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**config(name, prediction, spacing, offset))
    compare(ours(DPMpp2M(), SCHEDULES[name][0], prediction, spacing, steps_offset=offset), theirs(scheduler))


@each_schedule
@each_prediction
def test_dpmpp_2m_karras(name, prediction):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True, **config(name, prediction, "leading"))
    compare(ours(DPMpp2M(), SCHEDULES[name][0], prediction, "karras"), theirs(scheduler))


@pytest.mark.parametrize("spacing", ["leading", "karras"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpmpp_2m_final_sigma_min(prediction, spacing):
    from diffusers import DPMSolverMultistepScheduler

    options = config("scaled_linear", prediction, "leading", 1)
    scheduler = DPMSolverMultistepScheduler(
        final_sigmas_type="sigma_min", use_karras_sigmas=spacing == "karras", **options
    )
    got = ours(DPMpp2M(), ScaledLinearSchedule(), prediction, spacing, steps_offset=1, final="first")
    compare(got, theirs(scheduler))
