"""The samplers of k-diffusion, PNDM, UniPC, DEIS, SA-Solver, LCM and TCD against diffusers' over 20 steps: 1e-5.

The denoiser is a smooth function of x and t, or the exact one of Gaussian data. diffusers keeps most of these samplers'
latents as x / alpha; both sides start from the same latent here, which their pipelines scale by hand.
"""

import math
import sys
import types
from importlib.machinery import ModuleSpec
from itertools import pairwise

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.level import CLEAN_TIME
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import prediction_named
from latent_diffusion.diffusion.spacing import at_times, levels
from latent_diffusion.registry import find
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

STEPS = 20
SEEDS = (1, 2)
SHAPE = (4, 8, 8)
BOUND = 1e-5
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SPREAD = 0.6


class Curved:
    """A smooth function of x and t."""

    def project(self, cond):
        return None

    def __call__(self, x, t, projected=None):
        return 0.7 * torch.tanh(x.roll(1, -1) + 0.5 * x) + torch.sin(t / 200)[:, None, None, None]


def sampler_named(name, **fields):
    return find("latent_diffusion.samplers", name)(**fields)


def ours(sampler, prediction="epsilon", spacing="leading", schedule=None, visited=None, **options):
    schedule = schedule or ScaledLinearSchedule()
    noise = NoiseSource(SEEDS)
    denoise = Denoiser(Curved(), schedule, prediction_named(prediction)).bind(Conditioning(torch.zeros(2, 1, 1)))
    if visited is None:
        habits = {"intervals": sampler.intervals, "fractional": sampler.fractional}
        visited = levels(schedule, spacing, STEPS, **{**habits, **options})
    *_, last = sampler(denoise, noise.draw(SHAPE), visited, noise)
    return last.x


def theirs(scheduler, exploding, draws=False, set_up=None, **step_options):
    """Run diffusers' scheduler on our network; `exploding`: its latents are x / alpha."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = torch.cat([torch.randn(1, *SHAPE, generator=generator) for generator in generators])
    (set_up or (lambda s: s.set_timesteps(STEPS)))(scheduler)
    if exploding:
        x = x * math.hypot(1.0, scheduler.sigmas[0].item())
    for t in scheduler.timesteps:
        output = Curved()(scheduler.scale_model_input(x, t), torch.full((2,), float(t)))
        x = scheduler.step(output, t, x, **step_options, **({"generator": generators} if draws else {}))[0]
    return x


def compare(got, wanted):
    assert got.isfinite().all() and wanted.isfinite().all()
    error = ((got - wanted).norm() / wanted.norm()).item()
    assert error <= BOUND, error


K_DIFFUSION = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing,offset", [("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("name", list(K_DIFFUSION))
def test_k_diffusion_samplers(name, spacing, offset, prediction):
    import diffusers

    scheduler = getattr(diffusers, K_DIFFUSION[name])(
        prediction_type=prediction, timestep_spacing=spacing, steps_offset=offset, **SD
    )
    got = ours(sampler_named(name), prediction, spacing, steps_offset=offset)
    compare(got, theirs(scheduler, exploding=True, draws="ancestral" in name))


@pytest.mark.parametrize("flag,spacing", [("karras", "karras"), ("exponential", "exponential"), ("beta", "beta_sigma")])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_k_diffusion_samplers_with_spacings_of_sigma(name, flag, spacing):
    """From the whole range, which diffusers takes with linspace only."""
    import diffusers

    options = {f"use_{flag}_sigmas": True, "timestep_spacing": "linspace", **SD}
    scheduler = getattr(diffusers, K_DIFFUSION[name])(**options)
    compare(ours(sampler_named(name), spacing=spacing), theirs(scheduler, exploding=True))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "flag,spacing,offset", [("", "leading", 1), ("", "trailing", 0), ("karras", "karras", 0), ("beta", "beta_sigma", 0)]
)
def test_lms(flag, spacing, offset, prediction):
    """Before the last step, which in ours ends on x0. diffusers integrates numerically, to 1e-4 of each weight."""
    from diffusers import LMSDiscreteScheduler

    how = {f"use_{flag}_sigmas": True, "timestep_spacing": "linspace"} if flag else {"timestep_spacing": spacing}
    scheduler = LMSDiscreteScheduler(prediction_type=prediction, steps_offset=offset, **how, **SD)
    sampler = sampler_named("lms")
    visited = levels(ScaledLinearSchedule(), spacing, STEPS, steps_offset=offset, fractional=True)[:-1]
    got = ours(sampler, prediction, visited=visited) / visited[-1].alpha

    def all_but_the_last(scheduler):
        scheduler.set_timesteps(STEPS)
        scheduler.timesteps = scheduler.timesteps[:-1]

    compare(got, theirs(scheduler, exploding=True, set_up=all_but_the_last))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing,offset", [("leading", 1), ("trailing", 0)])
def test_dpmpp_sde(spacing, offset, prediction, monkeypatch):
    """With the Brownian tree of torchsde replaced by our two increments a step."""
    stub = types.ModuleType("torchsde")
    stub.__spec__ = ModuleSpec("torchsde", None)
    stub.BrownianInterval = stub.BrownianTree = object
    monkeypatch.setitem(sys.modules, "torchsde", stub)
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    scheduler = DPMSolverSDEScheduler(prediction_type=prediction, timestep_spacing=spacing, steps_offset=offset, **SD)
    noise = NoiseSource(SEEDS)
    noise.draw(SHAPE)  # the initial one
    middle = {}

    def brownian(r_start, r_end):
        fresh = noise.draw(SHAPE)
        if middle.get("start") == r_start:  # the second of a step: from r_start beyond the middle
            share = (r_start - middle["end"]) / (r_start - r_end)
            return share**0.5 * middle["drawn"] + (1 - share) ** 0.5 * fresh
        middle.update(start=r_start, end=r_end, drawn=fresh)
        return fresh

    def set_up(scheduler):
        scheduler.set_timesteps(STEPS)
        scheduler.noise_sampler = lambda start, end: brownian(float(start), float(end))

    got = ours(sampler_named("dpmpp_sde"), prediction, spacing, steps_offset=offset)
    compare(got, theirs(scheduler, exploding=True, set_up=set_up))


MULTISTEP = {
    "unipc": ("UniPCMultistepScheduler", {}, {}),
    "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}, {"solver_order": 3}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing,offset", [("leading", 1), ("linspace", 0), ("trailing", 0), ("karras", 0)])
@pytest.mark.parametrize("name", list(MULTISTEP))
def test_multistep_samplers(name, spacing, offset, prediction):
    import diffusers

    kind, theirs_fields, our_fields = MULTISTEP[name]
    how = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    how |= {"final_sigmas_type": "zero"}
    scheduler = getattr(diffusers, kind)(prediction_type=prediction, steps_offset=offset, **how, **theirs_fields, **SD)
    got = ours(sampler_named(name.split("-")[0], **our_fields), prediction, spacing, steps_offset=offset)
    compare(got, theirs(scheduler, exploding=False, draws=name.endswith("sde")))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing,offset", [("leading", 1), ("linspace", 0), ("trailing", 0)])
def test_dpmpp_3m_sde(spacing, offset, prediction):
    """With the sign of diffusers' last 1/2 repaired: its weight of the curvature must vanish for small steps."""
    from diffusers import DPMSolverMultistepScheduler

    class Repaired(DPMSolverMultistepScheduler):
        def multistep_dpm_solver_third_order_update(self, model_output_list, *args, sample=None, noise=None):
            x = super().multistep_dpm_solver_third_order_update(model_output_list, sample=sample, noise=noise)
            alphas, sigmas = zip(
                *(self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index + k]) for k in (1, 0, -1, -2)), strict=True
            )
            places = [torch.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]
            h, h_0, h_1 = (a - b for a, b in pairwise(places))
            m0, m1, m2 = model_output_list[::-1]
            return x + alphas[0] * ((m0 - m1) * h / h_0 - (m1 - m2) * h / h_1) * h / (h_0 + h_1)

    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "timestep_spacing": spacing}
    scheduler = Repaired(prediction_type=prediction, steps_offset=offset, **options, **SD)
    got = ours(sampler_named("dpmpp_3m_sde"), prediction, spacing, steps_offset=offset)
    compare(got, theirs(scheduler, exploding=False, draws=True))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing,offset", [("leading", 1), ("linspace", 0), ("trailing", 0)])
def test_deis(spacing, offset, prediction):
    """diffusers' ends at time 0."""
    from diffusers import DEISMultistepScheduler

    scheduler = DEISMultistepScheduler(prediction_type=prediction, timestep_spacing=spacing, steps_offset=offset, **SD)
    got = ours(sampler_named("deis"), prediction, spacing, steps_offset=offset, final="first")
    compare(got, theirs(scheduler, exploding=False))


@pytest.mark.parametrize("spacing,offset", [("leading", 1), ("linspace", 0), ("trailing", 0)])
def test_sa_solver(spacing, offset):
    from diffusers import SASolverScheduler

    scheduler = SASolverScheduler(timestep_spacing=spacing, steps_offset=offset, **SD)
    got = ours(sampler_named("sa_solver"), spacing=spacing, steps_offset=offset, final="first")
    compare(got, theirs(scheduler, exploding=False, draws=True))


@pytest.mark.parametrize("spacing,offset", [("leading", 1), ("trailing", 0)])
def test_pndm(spacing, offset):
    """As in Stable Diffusion's folders: noise prediction, no Runge-Kutta warm-up, ending at time 0.

    diffusers combines velocities of different levels as if they were noise; ours is the paper's method for both.
    """
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler(skip_prk_steps=True, timestep_spacing=spacing, steps_offset=offset, **SD)
    got = ours(sampler_named("pndm"), spacing=spacing, steps_offset=offset, final="first")
    compare(got, theirs(scheduler, exploding=False))


def test_pndm_of_one_step():
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler(skip_prk_steps=True, timestep_spacing="leading", steps_offset=1, **SD)
    visited = levels(ScaledLinearSchedule(), "leading", 1, steps_offset=1, final="first")
    got = ours(sampler_named("pndm"), visited=visited)
    compare(got, theirs(scheduler, exploding=False, set_up=lambda s: s.set_timesteps(1)))


@pytest.mark.parametrize("steps", [4, 8])
def test_lcm(steps):
    """At LCM's own times. Our x0 leaves out boundary factors of 1 - 3e-6 and less (t >= 19)."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(clip_sample=False, **SD)
    scheduler.set_timesteps(steps)
    schedule = ScaledLinearSchedule()
    visited = [*at_times(schedule, scheduler.timesteps.tolist()), schedule.level(CLEAN_TIME, steps)]
    got = ours(sampler_named("lcm"), visited=visited)
    compare(got, theirs(scheduler, exploding=False, draws=True, set_up=lambda s: s.set_timesteps(steps)))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(eta):
    """At TCD's own times; diffusers ends at time 0."""
    from diffusers import TCDScheduler

    scheduler = TCDScheduler(clip_sample=False, **SD)
    scheduler.set_timesteps(8)
    schedule = ScaledLinearSchedule()
    visited = [*at_times(schedule, scheduler.timesteps.tolist()), schedule.level(0, 8)]
    got = ours(sampler_named("tcd", eta=eta), visited=visited)
    compare(got, theirs(scheduler, exploding=False, draws=True, set_up=lambda s: s.set_timesteps(8), eta=eta))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_rectified_flow(name, shift):
    """diffusers' flow-matching schedulers at the same sigmas; they move x by its velocity."""
    import diffusers

    kind = {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}[name]
    schedule = RectifiedFlow(shift=shift)
    visited = levels(schedule, "trailing", STEPS)
    scheduler = getattr(diffusers, kind)(shift=shift)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = torch.cat([torch.randn(1, *SHAPE, generator=generator) for generator in generators])
    sigmas = torch.tensor([level.sigma for level in visited])
    if name == "heun":
        repeated = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        scheduler.sigmas, scheduler.timesteps = repeated, 1000 * repeated[:-1]
        scheduler.set_begin_index(0)
        scheduler.prev_derivative = scheduler.dt = None
    else:
        unshifted = sigmas[:-1] / (shift - (shift - 1) * sigmas[:-1])
        scheduler.set_timesteps(sigmas=unshifted.tolist())
    for t in scheduler.timesteps:
        x = scheduler.step(Curved()(x, torch.full((2,), float(t))), t, x)[0]
    compare(ours(sampler_named(name), "flow_prediction", schedule=schedule, visited=visited), x)
