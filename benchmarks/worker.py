"""One tool in a process of its own: its memory is its own, and what it sets for a process touches no other."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case
from benchmarks.model import open_model
from benchmarks.plan import AbsentError, Plan, Ready
from benchmarks.quiet import own_cpu_seconds
from latent_diffusion.checkpoint.files.weights import dtype_name
from latent_diffusion.errors import ResourceError
from latent_diffusion.registry import find

__all__ = ["Facts", "Turn", "Worker", "case_of"]

CASES = "benchmarks.cases"
GIB = 2**30
QUIET = {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}  # nothing is looked up or told
SETTLE = 0.05  # seconds after a turn, in which the computing threads that wait for more go to sleep


@dataclass(frozen=True)
class Facts:
    """How a tool got ready."""

    dtype: str
    seconds: Mapping[str, float]  # load, prepare, ...
    peak_gib: float  # most memory of the process until it was ready


@dataclass(frozen=True)
class Turn:
    """One call."""

    seconds: float
    cpu_seconds: float
    switches: int


def case_of(plan: Plan) -> Case:
    """Return the case that `plan` names, with its model.

    Raises:
        ConfigError: no such case.
        CheckpointError: no such model.
    """
    kind: Any = find(CASES, plan.case.replace("-", "_"))
    return kind(plan, open_model(plan.model))


class Worker:
    """The parent's end."""

    def __init__(self, plan: Plan, tool: str) -> None:
        """Start the process and wait until the tool is ready.

        Raises:
            AbsentError: the tool is not here, cannot do the case, or failed.
        """
        spawn = torch.multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, plan, tool), daemon=True)
        self.process.start()
        theirs.close()
        self.facts: Facts = self._answer()

    def warm_up(self) -> Turn:
        """Let the tool do its work for the first time, or a short form of it."""
        return self._turn("warm up")

    def turn(self) -> Turn:
        """Let the tool do its work once."""
        return self._turn("turn")

    def _turn(self, what: str) -> Turn:
        turn: Turn = self._ask(what)
        time.sleep(SETTLE)
        return turn

    def result(self) -> dict[str, Tensor]:
        """Return what the last call made, float32 on the CPU."""
        return {name: torch.from_numpy(values) for name, values in self._ask("result").items()}

    def peak_gib(self) -> float:
        """Return the most memory that the calls so far took."""
        return self._ask("memory")

    def split(self) -> dict[str, float]:
        """Return where the seconds of all calls went, by name."""
        return self._ask("split")

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _ask(self, what: str) -> Any:
        self.connection.send(what)
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(timeout=10)
            killed = self.process.exitcode == -9
            reason = "its process was killed: out of memory?" if killed else "its process ended"
            kind, value = "absent", f"{reason} (exit code {self.process.exitcode})"
        if kind == "absent":
            self.close()
            raise AbsentError(value)
        return value


def serve(connection: Connection, plan: Plan, tool: str) -> None:
    """Run in the child: make the tool ready, then do what is asked until nobody asks."""
    os.environ.update(QUIET)
    try:
        ready = case_of(plan).build(tool)
        facts = Facts(dtype_name(ready.dtype), ready.seconds, _peak_gib(plan.device))
        connection.send(("ready", facts))
        _reset_peak(plan.device)
        _obey(connection, plan.device, ready)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except AbsentError as absent:
        connection.send(("absent", str(absent)))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        connection.send(("absent", f"failed: {type(error).__name__}: {reason}"))


def _obey(connection: Connection, device: str, ready: Ready) -> None:
    made: Mapping[str, Tensor] = {}
    while True:
        match connection.recv():
            case ("warm up" | "turn") as what:
                work = ready.warm_up if what == "warm up" and ready.warm_up else ready.call
                (cpu, switches), start = own_cpu_seconds(), time.perf_counter()
                made = work()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds, after = time.perf_counter() - start, own_cpu_seconds()
                connection.send(("turn", Turn(seconds, after[0] - cpu, after[1] - switches)))
            case "result":
                connection.send(("result", {name: values.float().cpu().numpy() for name, values in made.items()}))
            case "memory":
                connection.send(("memory", _peak_gib(device)))
            case "split":
                connection.send(("split", dict(ready.split)))
            case other:
                raise ResourceError(f"benchmark worker: unknown word {other!r}")


def _peak_gib(device: str) -> float:
    """Return the most memory so far: of the process (VmHWM), or on a GPU what torch held of its memory."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved() / GIB
    lines = Path("/proc/self/status")
    if not lines.exists():
        return float("nan")
    return next(int(line.split()[1]) * 1024 / GIB for line in lines.read_text().splitlines() if "VmHWM" in line)


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
