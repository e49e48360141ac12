"""Noise levels of other tools where a sampler or a schedule of the same name visits others here.

    one level more      A1111's DPM2, DPM2 a and DPM++ 3M SDE, ComfyUI's dpm_2, dpm_2_ancestral, uni_pc and uni_pc_bh2
                        divide into steps + 1 and leave out the level before the last
    other endings       A1111's Align Your Steps and KL Optimal visit the least level
    other numbers       ddim_uniform has a whole stride: 31 times for 30 steps

Source: A1111, modules/sd_samplers_kdiffusion.py and modules/sd_schedulers.py; ComfyUI, comfy/samplers.py,
`calculate_sigmas` and `ddim_scheduler`.
"""

from collections.abc import Mapping
from typing import Any

from latent_diffusion.diffusion.time_spacing import ddim_uniform_times
from latent_diffusion.provenance.late_start import COMFY

__all__ = ["schedule_of", "times_of"]

ONE_MORE = {
    "A1111": ("dpm2", "dpm2_ancestral", "dpmpp_3m_sde"),
    **dict.fromkeys(COMFY, ("dpm2", "dpm2_ancestral", "unipc")),
}
ENDINGS = {"align your steps": "ays_a1111", "kl optimal": "kl_optimal_a1111"}
STRIDE = "ddim_uniform"


def schedule_of(tool: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say which levels `tool` visits, besides the sampler; `values` has its names."""
    sampler, spacing = str(values.get("sampler", "")), str(values.get("spacing", ""))
    found: dict[str, Any] = {}
    if sampler in ONE_MORE.get(tool, ()):
        found["discard_next_to_last"] = True
    if tool == "A1111" and spacing.lower() in ENDINGS:
        found["spacing"] = ENDINGS[spacing.lower()]
    if tool == "A1111" and spacing == "DDIM":
        found["spacing"] = STRIDE
    return found


def times_of(values: Mapping[str, Any], total: int) -> tuple[float, ...] | None:
    """Return the times of another tool's spacing where their number is not that of the steps; else None."""
    steps, more = values.get("num_inference_steps"), bool(values.get("discard_next_to_last"))
    if values.get("spacing") != STRIDE or not isinstance(steps, int) or not 1 <= steps < total:
        return None
    times = ddim_uniform_times(steps + more, total)
    return None if len(times) == steps + more else tuple(float(t) for t in times[: len(times) - more])
