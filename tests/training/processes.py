"""Trainings in processes of their own, started in a tenth of a second, and the faults that may befall them.

A fork server has torch and accelerate imported and nothing computed; each training is a fork of it.
"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import toy

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.registry import names
from latent_diffusion.training import run as runs
from latent_diffusion.training.adapters import adapter_files
from latent_diffusion.training.monitoring import log
from latent_diffusion.training.state import signals
from latent_diffusion.training.updates import updates

_context = multiprocessing.get_context("forkserver")
# torch imports its compiler with the first optimizer: several seconds that each fork would pay again, as for the others
_context.set_forkserver_preload(
    ["torch", "torch._dynamo", "torch.utils.tensorboard", "accelerate", "open_clip", "toy", "peft"]
    + ["diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"]  # with it finished adapters are opened again
    + [f"latent_diffusion.training.objectives.{name}" for name in names("latent_diffusion.training.objectives")]
)
_STREAMS: dict[BaseProcess, list[Path]] = {}  # where each process and those that share its run write their errors


def start(
    output: Path,
    *overrides: str,
    run: Callable = toy.run,
    fault: tuple[str, int] | None = None,
    rank: int | None = None,
    processes: int = 1,
    port: int = 0,
) -> BaseProcess:
    """Start one training process; `fault` is the name of a point of `FAULTS` and how often it is passed unharmed."""
    process = _context.Process(target=_child, args=(output, overrides, run, fault, rank, processes, port))
    process.start()
    _STREAMS[process] = [Path(f"{output}.err{other}") for other in range(processes)]
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for a process; return its exit code, negative for a signal."""
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGUSR1)  # prints where each thread is
        process.join(1)
        process.kill()
        process.join()
        told = [f"{stream}:\n{stream.read_text()[-4000:]}" for stream in _STREAMS[process] if stream.exists()]
        raise AssertionError("\n".join([f"the training did not end in {seconds} s", *told]))
    return process.exitcode


def train(output: Path, *overrides: str, **options) -> int:
    """Run one training process to its end."""
    return finish(start(output, *overrides, **options))


def train_together(output: Path, *overrides: str, processes: int = 2, run: Callable = toy.run) -> list[int]:
    """Run one training shared by several processes (gloo on loopback); return their exit codes."""
    port = free_port()
    ranks = [start(output, *overrides, run=run, rank=r, processes=processes, port=port) for r in range(processes)]
    return [finish(rank) for rank in ranks]


def free_port() -> int:
    """Return a port of loopback that nobody listens on, below those that connections are given.

    Among those a process that waits for the port may be given it as its own end and so be connected to itself, and
    another test's connection may take it first.
    """
    while True:
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", random.SystemRandom().randrange(12_000, 32_000)))
            return free.getsockname()[1]


def state_of(output: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of the newest checkpoint, by file and name."""
    folder = max((output / "checkpoints").glob("step-*"))
    return {f"{f.name}/{name}": t for f in folder.glob("*.safetensors") for name, t in read_tensors(f).items()}


def assert_equal_states(one: Path, other: Path) -> None:
    """Assert that the last checkpoints of two runs are equal bit for bit."""
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def losses_of(output: Path) -> list[dict]:
    """Return the lines of the log without what a clock wrote."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    clock = ("time", "images_per_second")
    return [{k: v for k, v in line.items() if k not in clock and not k.startswith("time/")} for line in lines]


def last_step(output: Path) -> int:
    """Return the step of the last whole line of a log that is being written, 0 without one."""
    try:
        return json.loads((output / "log.jsonl").read_text().rpartition("\n")[0].splitlines()[-1])["step"]
    except (OSError, IndexError):
        return 0


def _child(output, overrides, run, fault, rank, processes, port) -> None:
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    if rank is not None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    stream = os.open(f"{output}.err{rank or 0}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 2)
    faulthandler.register(signal.SIGUSR1)
    if fault is not None:
        name, after = fault
        FAULTS[name](after)
    sys.exit(run(output, *overrides))


def _kill(*_args, **_options) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _instead(owner: object, name: str, after: int, before: Callable = _kill, *, late: bool = False) -> None:
    """Let `owner.name` work `after` times, then do `before` instead (or, `late`, right after it)."""
    real, calls = getattr(owner, name), [0]

    def wrapped(*args, **options):
        calls[0] += 1
        if calls[0] <= after:
            return real(*args, **options)
        if late:
            real(*args, **options)
        return before(*args, **options)

    setattr(owner, name, wrapped)


def _cut_file(path: Path, *_args, **_options) -> None:
    """Be killed in the middle of a file."""
    Path(path).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    _kill()


def _disk_full(path: Path, *_args) -> None:
    Path(path).write_bytes(b"partial")
    raise OSError(28, "No space left on device", str(path))


def _no_memory(*_args, **_options) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _long_update(after: int) -> None:
    signals._SAME_PRESS = 0.0
    _instead(toy.Maker, "forward", after, lambda *_args: time.sleep(60))


def _fail(*_args, **_options) -> None:
    raise ValueError("a fault of one process")


class _Full:
    """A file on a full disk."""

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        pass


def _full_log_of(start: Callable) -> Callable:
    def full(self: log.RunLog, done: int) -> None:
        start(self, done)
        self._file = _Full()

    return full


def _in_rename_of(prefix: str, after: int, *, late: bool) -> None:
    """Be killed at the rename of a folder whose name begins with `prefix`."""
    real, calls = Path.rename, [0]

    def rename(self: Path, target: Path) -> Path:
        if not self.name.startswith(prefix):
            return real(self, target)
        calls[0] += 1
        if calls[0] > after:
            if late:
                real(self, target)
            _kill()
        return real(self, target)

    Path.rename = rename


def _at(name: str, before: Callable = _kill, *, late: bool = False) -> Callable[[int], None]:
    def plant(after: int) -> None:
        from latent_diffusion.training.state import training_state

        _instead(training_state, name, after, before, late=late)

    return plant


KILLED_WITHIN_A_SAVE: dict[str, Callable[[int], None]] = {
    "before anything is written": _at("_refuse_non_finite"),
    "before a tensor file": _at("write_tensors"),
    "within a tensor file": _at("write_tensors", _cut_file),
    "after a tensor file": _at("write_tensors", late=True),
    "before a JSON file": _at("write_json"),
    "before publishing": _at("publish"),
    "before the rename": lambda after: _in_rename_of(".tmp-step-", after, late=False),
    "after the rename": lambda after: _in_rename_of(".tmp-step-", after, late=True),
    "before pruning": _at("_prune"),
    "within pruning": lambda after: _in_rename_of("step-", after, late=True),
}
FAULTS: dict[str, Callable[[int], None]] = {
    **KILLED_WITHIN_A_SAVE,
    "disk full": _at("write_tensors", _disk_full),
    "out of memory in forward": lambda after: _instead(toy.Maker, "forward", after, _no_memory),
    "out of memory in backward": lambda after: _instead(torch.Tensor, "backward", after, _no_memory),
    "out of memory in update": lambda after: _instead(updates.Updates, "finish", after, _no_memory),
    "out of memory in save": _at("write_tensors", _no_memory),
    "one process fails": lambda after: _instead(toy.Maker, "forward", after, _fail),
    "killed in an evaluation": lambda after: _instead(toy.ToyObjective, "evaluate", after),
    "within an adapter's file": lambda after: _instead(adapter_files, "write_factors", after, _cut_file),
    "before the result has its name": lambda after: _in_rename_of(".tmp-model", after, late=False),
    "killed before the result": lambda after: _instead(runs, "write_result", after),
    "killed in a preview": lambda after: _instead(toy.ToyObjective, "draw", after),
    "log disk full": lambda after: _instead(log.RunLog, "start", after, _full_log_of(log.RunLog.start)),
    "a long update, and no echo of signals": lambda after: _long_update(after),
}

with contextlib.suppress(ValueError):
    sys.stdout.reconfigure(line_buffering=True)
