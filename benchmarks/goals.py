"""The ratios this package is committed to: how many times faster than a peer, by case, whatever the machine's speed."""

from dataclasses import dataclass

from benchmarks.plan import Plan

__all__ = ["SLACK", "Goal", "goal_of"]

SLACK = 0.05  # share of a goal that a quiet run may fall short of


@dataclass(frozen=True)
class Goal:
    """Our speed over that of `peer`, at least."""

    case: str
    model: str
    device: str
    dtype: str
    peer: str
    ratio: float

    def missed(self, found: float) -> bool:
        """Whether `found` is too far below."""
        return found < self.ratio * (1 - SLACK)


GOALS = (
    Goal("unet-step", "sd1", "cpu", "float32", "diffusers", 1.9),
    Goal("unet-step", "sd1", "cpu", "bfloat16", "diffusers-best", 1.5),
    Goal("unet-step", "sd1", "cpu", "float32", "openvino", 1.0),
    Goal("unet-step", "sd1", "cpu", "bfloat16", "openvino", 1.0),
    Goal("vae-decode", "sd1", "cpu", "float32", "diffusers", 1.75),
    Goal("vae-decode", "sd1", "cpu", "bfloat16", "diffusers-best", 1.3),
    Goal("generate", "sd1", "cpu", "auto", "diffusers", 3.5),
    Goal("train-step", "small", "cpu", "float32", "diffusers", 1.5),
    Goal("unet-step", "sd1", "cuda", "bfloat16", "diffusers", 2.5),
    Goal("unet-step", "sd1", "cuda", "bfloat16", "compile", 1.15),
    Goal("unet-step", "sdxl", "cuda", "bfloat16", "diffusers", 1.4),
)
STEPS = 20  # of a picture


def goal_of(plan: Plan, peer: str) -> Goal | None:
    """Return the goal for this work; None where there is none, or the work is of another size than it is for."""
    if plan.size is not None or plan.batch not in (None, 1) or (plan.case == "generate" and plan.steps != STEPS):
        return None
    wanted = (plan.case, plan.model, plan.device, plan.dtype, peer)
    return next((g for g in GOALS if (g.case, g.model, g.device, g.dtype, g.peer) == wanted), None)
