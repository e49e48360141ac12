"""Every flag of diffusers' schedulers: followed to 1e-5 from a common latent, or named in what the folder's user reads.

    python tests/parity/test_scheduler_flags.py

writes the table of docs/samplers.md, which a test compares. The scheduler is built by diffusers; ours is what the
pipeline makes of its `scheduler_config.json`. Both run 10 steps, or 4 for consistency models, on one smooth network.
"""

import inspect
import json
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from latent_diffusion.checkpoint.folder.default_sampler import default_sampler
from latent_diffusion.checkpoint.folder.diffusers_schedulers import KNOWN, SCHEDULERS
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import CheckpointError
from latent_diffusion.pipeline.call.sampling_path import SamplingPath

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parent.parent.parent / "docs" / "samplers.md"
START, END = "<!-- scheduler flags -->", "<!-- end of scheduler flags -->"
SEEDS = (1, 2)
SHAPE = (4, 8, 8)
BOUND = 1e-5
LAW = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ONE_STEP = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler", "PNDMScheduler")  # x, not x / alpha
MULTISTEP = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler")
DRAWING = ("DDPMScheduler", "LCMScheduler", "TCDScheduler", "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler",
           "KDPM2AncestralDiscreteScheduler", "SASolverScheduler", "DDIMScheduler")  # fmt: skip

GRID = [{}, {"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"}]  # fmt: skip
SIGMAS = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
RANGED = [*SIGMAS, {"use_karras_sigmas": True, "timestep_spacing": "leading"}]
V = {"prediction_type": "v_prediction"}
X0 = {"prediction_type": "sample"}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
THRESHOLDING = {"thresholding": True}
CASES = {
    "DDIMScheduler": [*GRID, V, X0, ZERO, {"set_alpha_to_one": False}, {"clip_sample": True}, THRESHOLDING],
    "DDPMScheduler": [*GRID, V, X0, ZERO, {"variance_type": "fixed_large"}, {"clip_sample": True}, THRESHOLDING],
    "PNDMScheduler": [{}, *({"skip_prk_steps": True, **more} for more in (*GRID, V, {"set_alpha_to_one": True}))],
    "LCMScheduler": [{}, V, {"timestep_spacing": "trailing", "steps_offset": 1}, {"set_alpha_to_one": False}, ZERO,
                     {"original_inference_steps": 100}, {"timestep_scaling": 5.0}, THRESHOLDING],
    "TCDScheduler": [{}, V, {"timestep_spacing": "trailing", "steps_offset": 1}, {"set_alpha_to_one": False},
                     {"original_inference_steps": 100}, {"timestep_scaling": 5.0}, THRESHOLDING],
    "EulerDiscreteScheduler": [*GRID, V, ZERO, *RANGED, {"final_sigmas_type": "sigma_min"},
                               {"interpolation_type": "log_linear"}, {"timestep_type": "continuous", **V},
                               {"sigma_min": 0.1, "sigma_max": 10.0},
                               {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}],
    "EulerAncestralDiscreteScheduler": [*GRID, V, ZERO],
    "HeunDiscreteScheduler": [*GRID, V, *RANGED, {"clip_sample": True}],
    "KDPM2DiscreteScheduler": [*GRID, V, *RANGED],
    "KDPM2AncestralDiscreteScheduler": [*GRID, V, *RANGED],
    "LMSDiscreteScheduler": [*GRID, V, *RANGED],
    "DPMSolverMultistepScheduler": [
        *GRID, V, X0, ZERO, *SIGMAS, THRESHOLDING, {"solver_order": 1}, {"solver_order": 3}, {"solver_type": "heun"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, {"algorithm_type": "sde-dpmsolver++", **SIGMAS[0]},
        {"lower_order_final": False}, {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"euler_at_final": True}, {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "solver_order": 3}, {"use_lu_lambdas": True}, {"final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -2.0}, {"variance_type": "fixed_small"}, {"use_flow_sigmas": True, "flow_shift": 3.0,
                                                                         "prediction_type": "flow_prediction"}],
    "UniPCMultistepScheduler": [
        *GRID, V, X0, ZERO, *SIGMAS, THRESHOLDING, {"solver_order": 1}, {"solver_order": 3}, {"predict_x0": False},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, {"disable_corrector": [0, 1]},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, {"final_sigmas_type": "sigma_min"},
        {"sigma_min": 0.1, "sigma_max": 10.0, **SIGMAS[0]},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}],
    "DEISMultistepScheduler": [*GRID, V, X0, *SIGMAS, THRESHOLDING, {"solver_order": 1}, {"solver_order": 3},
                               {"lower_order_final": False}],
    "SASolverScheduler": [*GRID, V, *SIGMAS, THRESHOLDING, {"predictor_order": 1}, {"corrector_order": 1},
                          {"lower_order_final": False}, {"algorithm_type": "noise_prediction"}],
    "FlowMatchEulerDiscreteScheduler": [{}, {"shift": 3.0}, *SIGMAS, {"invert_sigmas": True}, {"shift_terminal": 0.1},
                                        {"stochastic_sampling": True}, {"use_dynamic_shifting": True}],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}],
    "FlowMatchLCMScheduler": [{}, {"shift": 3.0}, SIGMAS[0], {"scale_factors": [0.5]}],
}  # fmt: skip
EVERY = [(kind, flags) for kind, cases in CASES.items() for flags in cases]


class Smooth:
    """A function of x and t, the same for both."""

    def project(self, cond):
        return None

    def __call__(self, x, t, projected=None):
        return 0.7 * torch.tanh(x.roll(1, -1) + 0.5 * x) + torch.sin(t / 200)[:, None, None, None]


def steps_of(kind):
    return 4 if "LCM" in kind or "TCD" in kind else 10


def scheduler_of(kind, flags):
    import diffusers

    law = {} if kind.startswith("FlowMatch") else LAW
    unclipped = {"clip_sample": False} if kind in ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler") else {}
    return getattr(diffusers, kind)(**{**law, **unclipped, **flags})


def file_of(scheduler):
    """The scheduler_config.json that diffusers writes, read back."""
    return json.loads(scheduler.to_json_string())


def theirs(kind, scheduler):
    """As diffusers' pipelines do, except that they switch `clip_sample` off."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = torch.cat([torch.randn(1, *SHAPE, generator=generator) for generator in generators])
    if getattr(scheduler.config, "clip_sample", False):
        scheduler.register_to_config(clip_sample=False)
    scheduler.set_timesteps(steps_of(kind))
    if kind not in ONE_STEP + MULTISTEP and not kind.startswith("FlowMatch"):
        x = x * math.hypot(1.0, scheduler.sigmas[0].item())
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    takes = inspect.signature(scheduler.step).parameters
    options = {"generator": generators} if "generator" in takes and kind in DRAWING + MULTISTEP else {}
    for t in scheduler.timesteps:
        output = Smooth()(scaled(x, t), torch.full((len(SEEDS),), float(t)))
        x = scheduler.step(output, t, x, **options)[0]
    return x


def ours(config):
    """Return the final latent and the warnings of the configuration."""
    schedule, prediction = read_schedule(config)
    default = default_sampler(config)
    components = SimpleNamespace(scheduler_config=config, schedule=schedule, size_count=0, name="model")
    path = SamplingPath.read(components, {}, default.sampler, default.spacing)
    visited = path.levels(components, steps_of(config["_class_name"]))
    noise = NoiseSource(SEEDS)
    denoise = Denoiser(Smooth(), schedule, prediction).bind(Conditioning(torch.zeros(len(SEEDS), 1, 1)))
    *_, last = path.build_sampler()(denoise, noise.draw(SHAPE), visited, noise)
    return last.x, default


@cache
def found(kind, told):
    return measured(kind, json.loads(told))


def outcome(kind, flags):
    return found(kind, json.dumps(flags))


def measured(kind, flags):
    """Return (error or None, text of the table): "followed", or the warning."""
    scheduler = scheduler_of(kind, flags)
    config = file_of(scheduler)
    try:
        x, default = ours(config)
    except CheckpointError as error:
        return None, f"refused: {error}"
    try:
        wanted = theirs(kind, scheduler)
        error = ((x - wanted).norm() / wanted.norm()).item()
    except (TypeError, ValueError, AttributeError) as problem:
        return None, f"warned: {'; '.join(default.unfollowed)}" if default.unfollowed else f"diffusers: {problem}"
    error = error if math.isfinite(error) else math.inf
    if default.unfollowed:
        return error, f"warned: {'; '.join(default.unfollowed)}"
    return error, "followed"


def table():
    """The table of docs/samplers.md."""
    rows = ["| class | fields | here |", "|---|---|---|"]
    for kind, flags in EVERY:
        _, text = outcome(kind, flags)
        told = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in flags.items()) or "defaults"
        rows.append(f"| {kind.removesuffix('Scheduler')} | {told} | {text} |")
    return "\n".join(rows)


@pytest.mark.parametrize("kind,flags", EVERY, ids=lambda part: part if isinstance(part, str) else json.dumps(part))
def test_a_flag_is_followed_or_named(kind, flags):
    error, text = outcome(kind, flags)
    if text == "followed":
        assert error is not None and error <= BOUND, error


def test_what_is_named_has_an_effect():
    """A warning for nothing teaches people to pass over warnings: at most those of `harmless` name a field in vain."""
    harmless = {"timestep_scaling", "variance_type", "euler_at_final"}
    vain = [
        (kind, flags)
        for kind, flags in EVERY
        for error, text in [outcome(kind, flags)]
        if text.startswith("warned") and error is not None and error <= BOUND and not harmless & set(flags)
    ]
    assert [kind for kind, _ in vain if kind != "LMSDiscreteScheduler"] == []


@pytest.mark.parametrize("kind", list(SCHEDULERS))
def test_every_field_of_the_class_is_known(kind):
    """And has the default that stands in the table."""
    import diffusers

    if not hasattr(diffusers, kind) or "dummy" in getattr(diffusers, kind).__module__:
        pytest.skip(f"this diffusers has no {kind}")
    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    unknown = {name for name in defaults if name not in KNOWN}
    assert not unknown, f"fields that nobody looked at: {sorted(unknown)}"
    wrong = {name: value for name, value in SCHEDULERS[kind].items() if defaults.get(name) != value}
    assert not wrong


def test_every_class_is_tried():
    assert set(CASES) == set(SCHEDULERS) - {"DPMSolverSDEScheduler"}  # needs torchsde; see test_more_samplers.py


def test_the_table_of_the_page_is_what_was_found():
    page = PAGE.read_text()
    assert page[page.index(START) + len(START) : page.index(END)].strip() == table()


if __name__ == "__main__":
    page = PAGE.read_text()
    before, after = page[: page.index(START) + len(START)], page[page.index(END) :]
    PAGE.write_text(f"{before}\n{table()}\n{after}")
