"""All that a GPU has to show, by worth, inside a budget of minutes; what an earlier run finished is not run again.

    python -m benchmarks.gpu FOLDER [--minutes 9]
    python -m benchmarks.gpu FOLDER --rehearsal         # on a CPU with the tiny model: every part to its end

Each part is a process with a limit of its own. FOLDER receives its output, PART.log, and its figures, PART.json. A part
that fails or runs past its limit is named, and the next begins; run the command again for those that are missing.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import command

__all__ = ["PARTS", "Part", "gpu", "main"]

ROOT = Path(__file__).parents[1]
LEAST = 20.0  # seconds that a part needs to begin


@dataclass(frozen=True)
class Part:
    """One command: Python's arguments, and the most seconds it may take."""

    name: str
    arguments: tuple[str, ...]
    limit: float

    def command(self, folder: Path, rehearsal: bool) -> list[str]:
        """Return the whole command; in a rehearsal with the tiny model on a CPU, one timed call each."""
        words = list(self.arguments)
        if words[:2] == ["-m", "benchmarks"]:
            place = ["--device", "cpu" if rehearsal else "cuda", "--json", str(folder / f"{self.name}.partial")]
            words += [*place, "--model", "tiny", "--size", "32", "--repeats", "1"] if rehearsal else place
            if rehearsal and "compile" in words:  # minutes on a processor, and nothing of a GPU's
                del words[words.index("compile") - 1 : words.index("compile") + 1]
        return [sys.executable, *words]


def _bench(name: str, limit: float, *words: str) -> Part:
    return Part(name, ("-m", "benchmarks", *words), limit)


HALF = ("--dtype", "bfloat16")
PEERS = ("--peer", "diffusers", "--peer", "compile")
PARTS = (
    Part("correct", ("-m", "pytest", "-q", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "tests"), 90),
    _bench("sd1-step", 90, "unet-step", "vae-decode", *HALF, *PEERS),  # their results against float32 too
    _bench("sd1-batch", 75, "unet-step", "--batch", "8", *HALF, *PEERS),
    _bench("sdxl-step", 90, "unet-step", "--model", "sdxl", *HALF, *PEERS),
    _bench("train", 60, "train-step", "lora-step", *HALF, "--peer", "diffusers"),
    _bench("kernels", 45, "kernels", *HALF, "--peer", "ours-plain"),
    _bench("whole", 90, "generate", "--steps", "50", *HALF, "--peer", "diffusers"),
    _bench("changes", 60, "new-size", "new-adapter", *HALF, "--peer", "diffusers"),
    _bench("first", 60, "first-picture", *HALF, "--peer", "diffusers"),
    Part("memory", ("scripts/measure_training_memory.py", "sd1", "512", "plain", "everything", "--timeout", "60"), 120),
)
"""By worth: what comes first is measured even if the budget ends early."""

REHEARSED = {
    "correct": ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/runtime/test_cuda_without_a_gpu.py"),
    "memory": ("scripts/measure_training_memory.py", "tiny", "64", "plain", "--timeout", "600"),
}
"""What a machine without a GPU runs in place of a part's arguments."""


def start(command: Sequence[str], log: Path, limit: float) -> int | None:
    """Run a command from the repository's root with its output in `log`; None if it ran past `limit` seconds."""
    with log.open("wb") as out:
        child = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:  # its own children too
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def measure(
    folder: Path,
    seconds: float,
    rehearsal: bool = False,
    clock: Callable[[], float] = time.monotonic,
    begin: Callable[[Sequence[str], Path, float], int | None] = start,
) -> dict[str, str]:
    """Run the parts that have no result yet until `seconds` are used up; return what became of each."""
    folder.mkdir(parents=True, exist_ok=True)
    end, became = clock() + seconds, dict[str, str]()
    for part in PARTS:
        done = folder / f"{part.name}.done"
        if done.exists():
            became[part.name] = "done before"
            continue
        left = end - clock()
        if left < LEAST:
            became[part.name] = "no time left"
            continue
        partial = folder / f"{part.name}.partial"
        partial.unlink(missing_ok=True)  # of a run that was stopped
        if rehearsal:  # a processor takes its time
            part = Part(part.name, REHEARSED.get(part.name, part.arguments), seconds)
        begun, log = clock(), folder / f"{part.name}.log"
        code = begin(part.command(folder.absolute(), rehearsal), log, min(part.limit, left))
        if partial.exists():  # a part that did not end keeps the rows that it has
            partial.replace(partial.with_suffix(".json"))
        took = f"{clock() - begun:.0f} s"
        became[part.name] = f"past its limit, {took}" if code is None else f"exit code {code}, {took}" if code else took
        if code == 0:
            done.touch()
        typer.echo(f"{part.name}: {became[part.name]}")
    return became


def gpu(
    folder: Annotated[Path, typer.Argument(help="For results and logs; an earlier run's is continued.")],
    minutes: Annotated[float, typer.Option(help="Budget of this run.")] = 9.0,
    rehearsal: Annotated[bool, typer.Option("--rehearsal", help="Run the parts on a CPU with the tiny model.")] = False,
) -> int:
    """Measure what docs/benchmarks-gpu.md leaves open, the most important first.

    Exit code 1 if a part has no result.
    """
    became = measure(folder, 60 * minutes, rehearsal)
    missing = [name for name in became if not (folder / f"{name}.done").exists()]
    typer.echo(f"missing: {', '.join(missing)}; run the command again" if missing else "every part has its result")
    typer.echo(f"tables: python -m benchmarks.page {folder} --page docs/benchmarks-gpu.md")
    return 1 if missing else 0


main = command(gpu, "python -m benchmarks.gpu")

if __name__ == "__main__":
    sys.exit(main(None))
