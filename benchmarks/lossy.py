"""Ways to draw nearly the same picture faster: never in a table with exact ones, always with their distance from it."""

from typing import Any

__all__ = ["LOSSY", "call_options", "is_lossy"]

LOSSY = "lossy:"  # how such tools' names begin

MODES: dict[str, dict[str, Any]] = {
    "guidance-interval": {"guidance_interval": (0.2, 0.8)},
}
"""Options of the pipeline's call by name; every other name is an approximation, as "deepcache:interval=3"."""


def is_lossy(tool: str) -> bool:
    """Whether a tool is one of these."""
    return tool.startswith(LOSSY)


def call_options(tool: str) -> dict[str, Any]:
    """Return what our pipeline's call is told besides: nothing where the tool is exact."""
    if not is_lossy(tool):
        return {}
    mode = tool.removeprefix(LOSSY)
    return MODES.get(mode, {"approximate": mode})
