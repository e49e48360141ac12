"""How many steps another tool runs of which path, where it starts in the middle: image to image and hires.

    here, diffusers   int(steps x strength) steps, the end of a path of `steps`
    ComfyUI           `steps` steps, the end of a path of int(steps / denoise): comfy/samplers.py, KSampler.set_steps
    A1111, img2img    int(strength x steps) + 1 steps, the end of a path of `steps`
    A1111, hires      `steps` steps, the end of a path of int(steps / strength)

A1111's strength counts at most 0.999 there: modules/sd_samplers_common.py, setup_img2img_steps, and
modules/sd_samplers_kdiffusion.py, sample_img2img; its "Denoising strength" of image to image stands for the shorter
path unless the setting "With img2img, do exactly the amount of steps" is on, which its text does not hold.
"""

import math

__all__ = ["COMFY", "late_start", "share_of"]

COMFY = ("ComfyUI", "SwarmUI")
MOST = 1000  # levels of the models


def late_start(tool: str, steps: int, strength: float, *, second: bool) -> tuple[int, float]:
    """Return the number of steps and the strength that start here where `tool` does.

    Args:
        tool: that made the picture; others than ComfyUI, SwarmUI and A1111 start as we do.
        steps: as the picture has it.
        strength: the same, above 0.
        second: whether it is the second pass of hires.
    """
    if tool in COMFY:
        path, run = (steps if strength > 0.9999 else int(steps / strength)), steps
    elif tool == "A1111":
        strength = min(strength, 0.999)
        path = int(steps / strength) if second else steps
        run = steps if second else int(strength * steps) + 1
    else:
        return steps, strength
    if path > MOST:  # that many levels there are not
        path, run = MOST, max(1, round(run * MOST / path))
    return path, share_of(run, path)


def share_of(run: int, path: int) -> float:
    """Return the strength that runs the last `run` of `path` steps."""
    share = run / path
    while int(path * share) < run:
        share = math.nextafter(share, 1.0)  # floating point must not lose the last step
    return share
