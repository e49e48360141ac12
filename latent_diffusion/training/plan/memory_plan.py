"""Whether a run fits into the memory there is; if not, the settings that cost least with which it does.

Settings are tried from the cheapest on, one more at a time; of those that fit together, what is not needed is left out.
"""

import importlib.util
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from latent_diffusion.config import MemoryConfig, RunConfig, parse_section
from latent_diffusion.data.opening import open_parts
from latent_diffusion.data.settings import DataConfig
from latent_diffusion.runtime.cpu.training_kernels import TrainingKernels
from latent_diffusion.runtime.memory import free_memory
from latent_diffusion.runtime.precision import bfloat16_is_fast
from latent_diffusion.training.objective import Objective
from latent_diffusion.training.plan.memory_need import MemoryNeed, memory_need, process_count

__all__ = ["MemoryPlan", "plan_memory"]

Change = tuple[str, dict[str, Any]]
"""A setting as it is typed, and the keys of the run that it changes."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs and what there is.

    Attributes:
        need: of the run as it is.
        free: bytes that it may take.
        run: the run, or its cheapest change that fits.
        changes: what was changed, as typed on the command line.
        least: the need of `run`.
    """

    need: MemoryNeed
    free: int
    run: RunConfig
    changes: tuple[str, ...]
    least: MemoryNeed

    @property
    def fits(self) -> bool:
        """Whether the run fits as it is."""
        return self.need.peak <= self.free

    @property
    def missing(self) -> int:
        """Bytes that are missing even with all changes; 0 = none."""
        return max(0, self.least.peak - self.free)

    def trouble(self) -> str:
        """Return what to do about a run that does not fit."""
        found = f"the run needs {_gib(self.need.peak)}, {_gib(self.free)} are free"
        with_all = f"with {' '.join(self.changes)} it needs {_gib(self.least.peak)}" if self.changes else ""
        if not self.missing:
            return f"{found}; {with_all}"
        even = f"even {with_all}, {_gib(self.missing)} are missing" if with_all else f"{_gib(self.missing)} are missing"
        return f"{found}; {even}; lower data.size, train an adapter (configs/lora.yaml), or use a larger machine"

    def lines(self) -> list[str]:
        """Return the prediction and, where the run does not fit, what to do."""
        free = f"{_gib(self.free)} are free"
        return [f"{self.need.line()}; {free}"] if self.fits else [self.need.line(), f"does not fit: {self.trouble()}"]


def plan_memory(
    kind: type[Objective], run: RunConfig, device: torch.device, kernels: TrainingKernels, pictures: int | None = None
) -> MemoryPlan | None:
    """Return the plan of a run; None for an objective whose need no formula is for.

    Args:
        kind: the run's objective.
        run: with its precision.
        device: where it trains.
        kernels: what it trains with.
        pictures: of the data; None: they are counted.

    Raises:
        ConfigError, DataError, CheckpointError: the run cannot be planned as it is.
    """
    section = {key: value for key, value in run.objective.items() if key != "name"}
    settings, data = (
        parse_section(kind.settings_type, section, "objective"),
        parse_section(kind.data_type, run.data, "data"),
    )
    if not isinstance(data, DataConfig) or not hasattr(settings, "latent_cache_bytes"):
        return None
    if pictures is None:
        pictures = sum(len(part.kept) for part in open_parts(data, run.seed))
    side = max(data.size, *(data.buckets.sizes if data.buckets is not None else []), 0)

    def need_of(changed: RunConfig) -> MemoryNeed | None:
        return memory_need(changed, settings, pictures, side, device, kernels)

    need = need_of(run)
    if need is None:
        return None
    free = free_memory(device)
    if device.type == "cpu":  # all processes of this machine share it, and what this one holds is in its need
        free = free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + psutil.Process().memory_info().rss
    if need.peak <= free:
        return MemoryPlan(need, free, run, (), need)
    allowed = kind.memory if _droppable(settings, data) else kind.memory - {"drop_encoders"}
    chosen = _cheapest(run, list(_changes(run, device, allowed)), need_of, free)
    changed = _with(run, chosen)
    least = need_of(changed)
    assert least is not None, "the run itself has one"
    return MemoryPlan(need, free, changed, tuple(words for words, _ in chosen), least)


def _changes(run: RunConfig, device: torch.device, allowed: Collection[str]) -> Iterator[Change]:
    """Yield what makes a run smaller, from what costs least; of `memory:` what is allowed."""
    given = run.memory or MemoryConfig()
    if "drop_encoders" in allowed and not given.drop_encoders:
        yield "memory.drop_encoders=true", {"memory.drop_encoders": True}
    for parts in range(run.accumulation + 1, run.batch_size + 1):
        if run.batch_size % (parts * process_count()) == 0:
            yield f"accumulation={parts}", {"accumulation": parts}
    if not run.gradient_checkpointing:
        yield "gradient_checkpointing=true", {"gradient_checkpointing": True}
    if run.precision == "float32" and bfloat16_is_fast(device):
        yield "precision=bfloat16", {"precision": "bfloat16"}
    if "base" in allowed and given.base is None and run.precision in ("float32", "bfloat16"):
        forms = ("bfloat16", "int8", "nf4") if run.precision == "float32" else ("int8", "nf4")
        for form in forms:
            yield f"memory.base={form}", {"memory.base": form}
    if str(run.optimizer.get("name", "adamw")) == "adamw":
        small = "adamw8bit" if device.type == "cuda" and importlib.util.find_spec("bitsandbytes") else "adafactor"
        shared = {key: run.optimizer[key] for key in ("learning_rate", "weight_decay") if key in run.optimizer}
        yield f"optimizer.name={small}", {"optimizer": {"name": small, **shared}}


def _droppable(settings: Any, data: DataConfig) -> bool:
    """Return whether no update needs text encoder or autoencoder, as far as the settings tell."""
    chosen = getattr(settings, "adapter", None) or settings.train
    crops = any(part.fit == "random_crop" for part in data.parts())
    return (
        chosen.parts == ["unet"] and not getattr(settings, "words", None) and settings.inpainting is None and not crops
    )


def _cheapest(
    run: RunConfig, changes: Sequence[Change], need_of: Callable[[RunConfig], MemoryNeed | None], free: int
) -> list[Change]:
    """Return the changes with which the run fits; all of them where it does not even so."""

    def fits(chosen: Sequence[Change]) -> bool:
        need = need_of(_with(run, chosen))
        return need is not None and need.peak <= free

    chosen: list[Change] = []
    for change in changes:
        chosen = [one for one in chosen if one[1].keys() != change[1].keys()] + [change]  # a larger accumulation
        if fits(chosen):
            break
    else:
        return chosen
    for change in chosen[:-1]:
        fewer = [one for one in chosen if one is not change]
        if fits(fewer):
            chosen = fewer
    return chosen


def _with(run: RunConfig, changes: Sequence[Change]) -> RunConfig:
    keys = {key: value for _, changed in changes for key, value in changed.items()}
    of_memory = {key.removeprefix("memory."): value for key, value in keys.items() if key.startswith("memory.")}
    own = {key: value for key, value in keys.items() if not key.startswith("memory.")}
    if of_memory:
        own["memory"] = (run.memory or MemoryConfig()).model_copy(update=of_memory)
    return run.model_copy(update=own)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
