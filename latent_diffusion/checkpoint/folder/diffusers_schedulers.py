"""The scheduler classes of diffusers (0.42.1): which fields each reads, and its default for each of them.

Pure data. A field of a `scheduler_config.json` that its class does not read has no effect in diffusers, and none here.
`UNREAD_HERE` lists fields that some classes read but that need no check of their own, with the reason.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["FIXED", "KNOWN", "NOTES", "SCHEDULERS"]

_LAW = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_STABLE_DIFFUSION = {**_LAW, "beta_start": 0.00085, "beta_end": 0.012}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False}
_K_DIFFUSION = {**_STABLE_DIFFUSION, **_LINSPACE, **_SIGMAS}
_CONSISTENCY = {
    **_STABLE_DIFFUSION,
    **_ZERO_SNR,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "thresholding": False,
    "timestep_scaling": 10.0,
}
_TRAJECTORY = {name: value for name, value in _CONSISTENCY.items() if name not in ("thresholding", "timestep_scaling")}
_FLOW_MATCH = {
    **_SIGMAS,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
}

SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": {**_LAW, **_ZERO_SNR, **_LEADING, "set_alpha_to_one": True, "thresholding": False},
    "DDPMScheduler": {**_LAW, **_ZERO_SNR, **_LEADING, "variance_type": "fixed_small", "thresholding": False},
    "PNDMScheduler": {**_LAW, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "LCMScheduler": _CONSISTENCY,
    "TCDScheduler": _TRAJECTORY,
    "EulerDiscreteScheduler": {
        **_LAW,
        **_ZERO_SNR,
        **_LINSPACE,
        **_SIGMAS,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_LAW, **_ZERO_SNR, **_LINSPACE},
    "HeunDiscreteScheduler": _K_DIFFUSION,
    "KDPM2DiscreteScheduler": _K_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _K_DIFFUSION,
    "DPMSolverSDEScheduler": _K_DIFFUSION,
    "LMSDiscreteScheduler": {**_LAW, **_LINSPACE, **_SIGMAS},
    "DPMSolverMultistepScheduler": {
        **_LAW,
        **_ZERO_SNR,
        **_LINSPACE,
        **_SIGMAS,
        **_FLOW,
        "solver_order": 2,
        "thresholding": False,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
    },
    "UniPCMultistepScheduler": {
        **_LAW,
        **_ZERO_SNR,
        **_LINSPACE,
        **_SIGMAS,
        **_FLOW,
        "solver_order": 2,
        "thresholding": False,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "DEISMultistepScheduler": {
        **_LAW,
        **_LINSPACE,
        **_SIGMAS,
        **_FLOW,
        "solver_order": 2,
        "thresholding": False,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
    },
    "SASolverScheduler": {
        **_LAW,
        **_LINSPACE,
        **_SIGMAS,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "predictor_order": 2,
        "corrector_order": 2,
        "tau_func": None,
        "thresholding": False,
        "algorithm_type": "data_prediction",
        "lower_order_final": True,
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
    },
    "FlowMatchEulerDiscreteScheduler": {**_FLOW_MATCH, "stochastic_sampling": False},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "FlowMatchLCMScheduler": {**_FLOW_MATCH, "scale_factors": None},
}
"""Class -> its fields and their defaults."""

FIXED: Mapping[str, Mapping[str, Any]] = {
    "LCMScheduler": {"timestep_spacing": "lcm"},
    "TCDScheduler": {"timestep_spacing": "lcm", "final_sigmas_type": "sigma_min"},
    "DEISMultistepScheduler": {"final_sigmas_type": "sigma_min"},
    "SASolverScheduler": {"final_sigmas_type": "sigma_min"},
}
"""Class -> what it does whatever the file contains, in the words of the other classes' fields."""

UNREAD_HERE: Mapping[str, str] = {
    "clip_sample": "latents are not bounded; diffusers' Stable Diffusion pipelines switch it off",
    "clip_sample_range": "only with clip_sample",
    "dynamic_thresholding_ratio": "only with thresholding",
    "sample_max_value": "only with thresholding",
    "time_shift_type": "only with use_dynamic_shifting, which is refused",
    "base_shift": "only with use_dynamic_shifting",
    "max_shift": "only with use_dynamic_shifting",
    "base_image_seq_len": "only with use_dynamic_shifting",
    "max_image_seq_len": "only with use_dynamic_shifting",
    "upscale_mode": "only with scale_factors",
    "noise_sampler_seed": "noise comes from each picture's own seed",
    "timestep_spacing": "LCMScheduler and TCDScheduler have the field and do not read it",
    "steps_offset": "LCMScheduler and TCDScheduler have the field and do not read it",
    "set_alpha_to_one": "LCMScheduler and TCDScheduler have the field; no step of theirs uses it",
}
"""Fields that need no check, and why."""

KNOWN = frozenset(field for fields in SCHEDULERS.values() for field in fields) | frozenset(UNREAD_HERE)
"""Every field that some class has."""

_LINSPACE_STEP = "each step goes to the next time of linspace, where diffusers goes down by T // steps"
_CUT_TIMES = "times are rounded, where diffusers cuts them off"
_PURE_NOISE = "the noisiest level has no signal at all, where diffusers keeps 2^-24 of its variance"
_ROUNDED = "times are not rounded, where diffusers rounds them"

NOTES: tuple[tuple[Mapping[str, Any], str], ...] = (
    (
        {"_class_name": "LMSDiscreteScheduler"},
        "the last step ends on the estimate of x0, where diffusers extrapolates past it",
    ),
    (
        {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"},
        "velocities become slopes one by one, where diffusers averages velocities of different levels",
    ),
    (
        {"_class_name": "PNDMScheduler", "set_alpha_to_one": True},
        "the last step ends on the estimate of x0, where diffusers combines it with earlier ones",
    ),
    ({"_class_name": "PNDMScheduler", "timestep_spacing": "linspace"}, _LINSPACE_STEP),
    ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, _LINSPACE_STEP),
    (
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "the weight of the curvature vanishes for small steps, where diffusers' does not",
    ),
    (
        {"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"},
        "the last latent is alpha x0 + sigma noise, where diffusers leaves it divided by alpha",
    ),
    ({"_class_name": "KDPM2DiscreteScheduler", "use_karras_sigmas": True}, _ROUNDED),
    ({"_class_name": "KDPM2AncestralDiscreteScheduler", "use_karras_sigmas": True}, _ROUNDED),
    *(
        ({"_class_name": kind, flag: True}, _CUT_TIMES)
        for kind in (
            "DPMSolverMultistepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
            "SASolverScheduler",
        )
        for flag in ("use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
    ),
    *(
        ({"_class_name": kind, "rescale_betas_zero_snr": True}, _PURE_NOISE)
        for kind in (
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "UniPCMultistepScheduler",
        )
    ),
)
"""Fields with their values -> how the sampler here differs from diffusers' on purpose."""
