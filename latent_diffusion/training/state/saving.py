"""The content of a trainer's checkpoints, when they are saved, and whether a run may continue from one."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from latent_diffusion.config import RunConfig
from latent_diffusion.data.places.hub import on_hub
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.runtime.cpu.training_kernels import PLAIN, TrainingKernels
from latent_diffusion.training.fsdp import fill, gathered, on_first
from latent_diffusion.training.optimizer import described_optimizer
from latent_diffusion.training.state.run_folder import RunFolder
from latent_diffusion.training.state.training_state import TrainingState, save_state
from latent_diffusion.version import VERSION

if TYPE_CHECKING:
    from latent_diffusion.training.trainer import Trainer

__all__ = ["Saver", "averaged", "collect", "describe_run", "refuse_drift", "restore", "shareable", "state_bytes"]

logger = logging.getLogger(__name__)

_FREE = {
    "output", "passes", "accumulation", "checkpoint", "log_every", "sample", "evaluate", "trackers",
    "gradient_checkpointing", "fast", "threads", "resume", "allow_drift",
}  # fmt: skip
"""Keys that may change between the parts of one run: they do not change what is computed (but for rounding)."""

_FREE_IN_SECTIONS = {"memory.base_on_host", "memory.drop_encoders", "data.read_timeout", "data.download"}
"""The same, of single sections."""

_PLACES = {"path", "init", "start", "vae", "text_encoder", "folder", "quarantine"}
"""Settings that name a file or folder of this machine."""


class Stateful(Protocol):
    """An observer whose state belongs to a checkpoint."""

    def state(self) -> dict[str, Any]:
        """Return it, as JSON."""
        ...


class Saver:
    """Writes checkpoints when they are due (all processes' observer, since each may hold a part; the first writes)."""

    def __init__(
        self, run: RunConfig, folder: RunFolder, observers: Mapping[str, Stateful], described: Mapping[str, Any]
    ):
        self._run, self._folder, self._observers, self._described = run, folder, observers, described

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to save between backward and update."""

    def after_update(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Save after every `checkpoint.every` updates, after the last, and when the run is asked to stop."""
        done = trainer.done
        if done % self._run.checkpoint.every == 0 or done == trainer.last or trainer.stopped:
            self.save(trainer)

    def save(self, trainer: "Trainer") -> None:
        """Write a checkpoint now."""
        first = trainer.accelerator.is_main_process
        tensors = on_first(collect(trainer), first=first)
        if not first:
            return
        values = {**self._described, **{name: observer.state() for name, observer in self._observers.items()}}
        save_state(self._folder.checkpoints, trainer.done, tensors, values, keep=self._run.checkpoint.keep)
        self._folder.tell(state="running", step=trainer.done, saved=trainer.done)


@contextmanager
def averaged(trainer: "Trainer") -> Iterator[None]:
    """Let the objective's modules hold what is for use: the optimizer's average, then the moving average, if kept."""
    optimizers = trainer.optimizers.values()
    for optimizer in optimizers:
        optimizer.mode(training=False)
    try:
        with trainer.ema.in_place() if trainer.ema is not None else nullcontext(), gathered(trainer.players.values()):
            yield
    finally:
        for optimizer in optimizers:
            optimizer.mode(training=True)


def collect(trainer: "Trainer") -> dict[str, dict[str, Tensor]]:
    """Return everything that must come back: weights, the optimizer's state of each and of its groups, averages."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, player in trainer.players.items():
        groups[name] = {key: value.detach() for key, value in player.state_dict().items()}
        optimizer = trainer.optimizers[name]
        groups[f"{name}.optimizer"] = {
            f"{parameter_name}.{key}": _tensor(value)
            for parameter_name, parameter in trainer.trainable[name].items()
            for key, value in optimizer.state_of(parameter).items()
        } | {place: _tensor(value) for place, value in optimizer.counted().items()}
    groups["ema"] = trainer.ema.tensors() if trainer.ema is not None else {}
    return groups


def state_bytes(trainer: "Trainer") -> int:
    """Return about how large a checkpoint will be: weights, two moments of the trained ones, averages."""
    total = 0
    for name, player in trainer.players.items():
        total += sum(t.numel() * t.element_size() for t in player.state_dict().values())
        total += 2 * sum(p.numel() * p.element_size() for p in trainer.trainable[name].values())
    if trainer.ema is not None:
        total += sum(t.numel() * t.element_size() for t in trainer.ema.tensors().values())
    return total


@torch.no_grad()
def restore(trainer: "Trainer", state: TrainingState) -> None:
    """Put a checkpoint back, bit for bit.

    Raises:
        CheckpointError: names or shapes differ from this configuration's.
    """
    for name, player in trainer.players.items():
        weights = player.state_dict()
        saved = _matching(state, name, {key: value.shape for key, value in weights.items()})
        for key, value in weights.items():
            fill(value, saved[key])
        moments = state.tensors(f"{name}.optimizer")
        if moments:
            _restore_optimizer(trainer, name, state, moments)
    if trainer.ema is not None:
        live = trainer.ema.tensors()
        trainer.ema.load(_matching(state, "ema", {key: value.shape for key, value in live.items()}))
    trainer.done = state.step


def _restore_optimizer(trainer: "Trainer", name: str, state: TrainingState, moments: Mapping[str, Tensor]) -> None:
    """Put back the state of every weight and the numbers of every group.

    Raises:
        CheckpointError: a weight without state, or a moment of another shape.
    """
    optimizer, left = trainer.optimizers[name], dict(moments)
    groups = [place for place in left if place.startswith("group") and place.count(".") == 1]
    optimizer.count_on({place: left.pop(place).item() for place in groups})
    if not left:  # the player has not moved yet
        return
    states: dict[str, dict[str, Tensor]] = {}
    for place, saved in left.items():
        weight, _, key = place.rpartition(".")
        states.setdefault(weight, {})[key] = saved
    for parameter_name, parameter in trainer.trainable[name].items():
        mine = states.get(parameter_name, {})
        wrong = [k for k, saved in mine.items() if k.startswith("exp_avg") and saved.shape != parameter.shape]
        if not mine or wrong:
            lacking = wrong[0] if wrong else "state"
            raise CheckpointError(f"{state.folder}: {name}.optimizer.safetensors has no {lacking} of {parameter_name}")
        for key, saved in mine.items():
            optimizer.state_of(parameter)[key] = _placed(saved, parameter, fused=optimizer.fused(parameter))


def _tensor(value: Any) -> Tensor:
    """Return a number of Python as a tensor of 64 bits, and a tensor as it is."""
    if isinstance(value, Tensor):
        return value.detach()
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _placed(saved: Tensor, parameter: Tensor, *, fused: bool) -> Any:
    """Return one value of a weight's state where its optimizer keeps it.

    Counts of steps are numbers of Python or tensors; a fused optimizer has the latter beside the weights, others on the
    CPU. A moment has the memory layout of its weight, also where the weight is one number (CLIP's temperature).
    """
    moment = saved.shape == parameter.shape and saved.dtype == torch.promote_types(parameter.dtype, torch.float32)
    if moment and (saved.ndim or saved.dtype == torch.float64):
        return fill(torch.zeros_like(parameter, dtype=saved.dtype), saved)
    if saved.ndim == 0 and saved.dtype in (torch.int64, torch.float64):
        return saved.item()
    if saved.ndim == 0:
        return saved.to(parameter.device if fused else "cpu")
    return saved.to(parameter.device)


def _matching(state: TrainingState, name: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    saved = state.tensors(name)
    found = {key: value.shape for key, value in saved.items()}
    if found != dict(shapes):
        differing = sorted(key for key in {*found, *shapes} if found.get(key) != shapes.get(key))
        first = differing[0]
        raise CheckpointError(
            f"{state.folder}: {name}.safetensors does not fit this configuration: {len(differing)} tensors differ, "
            f"first {first}: saved {found.get(first, 'absent')}, expected {shapes.get(first, 'absent')}"
        )
    return saved


def describe_run(
    run: RunConfig,
    fingerprint: Mapping[str, str],
    processes: int,
    threads: int,
    kernels: TrainingKernels = PLAIN,
) -> dict[str, Any]:
    """Return the description of its run in a checkpoint, as JSON."""
    import accelerate

    versions = {"latent_diffusion": VERSION, "torch": torch.__version__}
    return {
        "config": run.model_dump(mode="json") | {"optimizer": described_optimizer(run)},
        "fingerprint": dict(fingerprint),
        "processes": processes,
        "threads": threads,
        "kernels": asdict(kernels),
        "versions": {**versions, "accelerate": accelerate.__version__},
    }


def shareable(trainer: "Trainer", described: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's folder records of its run: `describe_run` without names of folders of this machine."""
    values = json.loads(json.dumps(described))
    values["config"].pop("output")
    return {"step": trainer.done, "averaged": trainer.ema is not None, **_without_folders(values)}


def _without_folders(value: Any, key: str = "") -> Any:
    """Return settings in which a file or folder is only its name."""
    if isinstance(value, dict):  # the `start` of a word is a word
        return {name: inner if name == "words" else _without_folders(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and key in _PLACES and not on_hub(value) else value


def refuse_drift(state: TrainingState, described: Mapping[str, Any], run: RunConfig) -> None:
    """Refuse to continue a checkpoint as another run: `key: saved -> now` for each difference that matters.

    Longer training at a constant learning rate is the same run, and so is another number of processes. Fewer steps than
    were made are named in a warning: a checkpoint is not taken back.

    Raises:
        ConfigError: what differs, unless `allow_drift` is set.
    """
    before = _flat({k: v for k, v in state.values["config"].items() if k not in _FREE})
    before.setdefault("optimizer.name", "adamw")  # the only one that older checkpoints can have
    now = _flat({k: v for k, v in described["config"].items() if k not in _FREE})
    for free in _FREE_IN_SECTIONS:
        before.pop(free, None)
        now.pop(free, None)
    if run.decay == "constant":
        before.pop("steps", None)
        now.pop("steps", None)
        if run.steps is not None and state.step > run.steps:
            told = "steps: %d, but the run has made %d updates; its model is that of step %d"
            logger.warning(told, run.steps, state.step, state.step)
    digests = described["fingerprint"]
    for place, digest in state.values["fingerprint"].items():
        before[place] = digest  # where a path has a digest, the digest counts: data may be moved
        now[place] = digests.get(place, "absent")  # what the checkpoint has no digest of is compared as a path
    lines = [
        _difference(key, before.get(key, "absent"), now.get(key, "absent"), key in state.values["fingerprint"])
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if not lines:
        return
    if run.allow_drift:
        logger.warning("continuing %s although it differs: %s", state.folder, "; ".join(lines))
        return
    raise ConfigError(
        f"{state.folder} was made by another configuration: {'; '.join(lines)}. Put it back, choose another output, "
        f"or set allow_drift=true to continue all the same"
    )


def _difference(key: str, before: Any, now: Any, content: bool) -> str:
    """Return one difference in words; of `content` there are only digests, which mean nothing to a reader."""
    if content and "absent" not in (before, now):
        what = "a picture, a caption or the choice of pictures" if key == "data.path" else "its content"
        return f"{key}: {what} has changed"
    return f"{key}: {before} -> {now}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
