"""Measure the server: what HTTP adds to a call, what drawing many requests as batches gains, and how long it starts.

    python -m benchmarks.serving [--repeats 5] [--requests 64] [--only overhead|throughput|start]

The bundled model draws 64 px. The two sides of each ratio are measured in turn, so that both see the same machine:

    overhead     a request to /v1/images/generations, against the same call in this process with its PNG; 2 steps
    throughput   requests that arrive together, which are drawn as batches, against one after the other
    start        from the start of `serve` to its first picture, against `generate` of the same picture

A figure counts where others had at most a twentieth of the processors; the last column names what disturbed it.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.quiet import Meter

__all__ = ["main"]

PROMPT, SEED, SIDE = "a red apple", 7, 64
SHORT = 2  # steps of a call whose overhead is measured
COMMAND = (sys.executable, "-m", "latent_diffusion")
Seconds = list[float]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Start a server of its own on a free port, yield its URL, and stop it."""
    child = subprocess.Popen([*COMMAND, "serve", "--port", "0", "--queue", "1000"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child.stdout.readline().split()[0]
    finally:
        child.terminate()
        child.wait(60)


def ask(url: str, **fields: Any) -> dict[str, Any]:
    """Return the answer of the server to one request for a picture."""
    body = {"prompt": PROMPT, "size": f"{SIDE}x{SIDE}", "seed": SEED, **fields}
    request = urllib.request.Request(
        f"{url}v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def overhead(repeats: int) -> tuple[Seconds, Seconds]:
    """Return the seconds of requests, and of the same calls in this process."""
    from latent_diffusion import LatentDiffusionPipeline
    from latent_diffusion.provenance.picture_file import encode_picture

    pipe = LatentDiffusionPipeline.from_pretrained("emoji")

    def call() -> None:
        out = pipe(PROMPT, seed=SEED, num_inference_steps=SHORT, height=SIDE, width=SIDE)
        encode_picture(out.images[0], "PNG", out.records[0])  # pyright: ignore[reportArgumentType]

    with served() as url:
        request = lambda: ask(url, steps=SHORT)  # noqa: E731
        both = call, request
        for warm in both:
            warm()
            warm()
        pairs = [(seconds_of(request), seconds_of(call)) for _ in range(10 * repeats)]
    return [one for one, _ in pairs], [other for _, other in pairs]


def throughput(repeats: int, requests: int) -> tuple[Seconds, Seconds]:
    """Return the seconds of all requests one after the other, and of all at once."""
    alone: Seconds = []
    together: Seconds = []
    with served() as url, ThreadPoolExecutor(requests) as threads:
        ask(url)

        def at_once() -> None:
            list(threads.map(lambda k: ask(url, seed=k), range(requests)))

        at_once()  # the sizes of the batches are new
        for _ in range(repeats):
            alone.append(seconds_of(lambda: [ask(url, seed=k) for k in range(requests)]))
            together.append(seconds_of(at_once))
    return alone, together


def start(repeats: int) -> tuple[Seconds, Seconds]:
    """Return the seconds from the start of a server to its first picture, and of the command line."""

    def first() -> float:
        begun = time.perf_counter()
        with served() as url:
            ask(url)
            return time.perf_counter() - begun

    of_server: Seconds = []
    of_command: Seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(repeats + 1):  # the first fills the disk's cache
            command = [*COMMAND, "generate", PROMPT, "--seed", str(SEED), "--output", str(Path(folder) / f"{k}.png")]
            found = first(), seconds_of(lambda given=command: subprocess.run(given, check=True, capture_output=True))
            if k:
                of_server.append(found[0])
                of_command.append(found[1])
    return of_server, of_command


@contextlib.contextmanager
def disturbance() -> Iterator[list[str]]:
    """Yield a list that names afterwards what else was at work; processes that were started here and ended are ours."""
    import resource

    def ours() -> tuple[float, int]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used), sum(one.ru_nivcsw for one in used)

    found: list[str] = []
    meter, before = Meter(), ours()
    yield found
    after = ours()
    found.append(meter.stop(after[0] - before[0], after[1] - before[1]).disturbed or "nothing")


@dataclass(frozen=True)
class Figure:
    """One ratio or difference of two sides: how it is measured, and what it should be."""

    name: str
    measure: Callable[[], tuple[Seconds, Seconds]]
    of: Callable[[float, float], float]
    unit: str
    goal: str

    def row(self) -> str:
        """Measure, and return a row of the table: the figure of the medians, and that of the pairs."""
        with disturbance() as disturbed:
            sides = self.measure()
        one, other = (statistics.median(side) for side in sides)
        pairs = [self.of(a, b) for a, b in zip(*sides, strict=True)]
        found = f"{self.of(one, other):.3g}{self.unit}", f"{min(pairs):.3g} to {max(pairs):.3g}"
        return " | ".join((f"| {self.name}", f"{one:.4g}", f"{other:.4g}", *found, self.goal, f"{disturbed[0]} |"))


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of measurements.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the throughput.")] = 64,
    only: Annotated[list[str] | None, typer.Option(help="overhead, throughput or start. Repeatable.")] = None,
) -> None:
    """Measure what the server costs and gains, and print a table."""
    figures = (
        Figure("overhead of a request", lambda: overhead(repeats), lambda a, b: (a - b) * 1000, " ms", "at most 5 ms"),
        Figure(
            "throughput of batches", lambda: throughput(repeats, requests), lambda a, b: a / b, "x", "at least 2.5x"
        ),
        Figure("start to first picture", lambda: start(repeats), lambda a, b: a / b, "x", "at most 1.3x"),
    )
    print("| figure | first, s | second, s | of the medians | of the pairs | goal | disturbed by |\n|" + "---|" * 7)
    for figure in figures:
        if not only or figure.name.split()[0] in only:
            print(figure.row(), flush=True)


if __name__ == "__main__":
    typer.run(main)
