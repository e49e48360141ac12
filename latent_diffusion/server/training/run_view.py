"""What is shown of a run, read from its files: they outlive the server, and the trainer alone writes them."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_diffusion.config import RunConfig, read_config
from latent_diffusion.errors import ConfigError
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.train_folder import TrainFolder
from latent_diffusion.server.training.process import START, Process

__all__ = ["BANDS", "Curve", "Runs", "last_error", "tail"]

BANDS = 4  # parts of the noise levels, the cleanest first; `HeldOutLoss` has as many
SAMPLE = re.compile(r"step-(\d{1,12})-(\d{1,4})\.png")
MAX_FILE = 2**20  # bytes of a JSON file that are read
MAX_TAIL = 2**16  # bytes of a process's output that are read
MAX_LOG = 2**23  # bytes of the newest lines of a log that are read
MAX_POINTS = 1000  # of a curve
MAX_RUNS = 50  # runs that are listed
MAX_SAMPLES = 400  # sample pictures that are listed
MOST = 1e300  # a figure that is shown
LINES = 40  # of the output that are shown
ENDED = ("finished", "interrupted", "diverged", "failed")


class Runs:
    """The runs of a folder."""

    def __init__(self, folder: TrainFolder, process: Process) -> None:
        self._folder, self._process = folder, process

    def names(self) -> list[str]:
        """Return the names of all runs, the newest first."""
        found = [(path.stat().st_mtime, path.stem) for path in self._folder.runs.glob("*.yaml") if path.is_file()]
        names = [name for _, name in sorted(found, reverse=True)[:MAX_RUNS]]
        return [name for name in names if self._folder.inside("runs", f"{name}.yaml") is not None]

    def file(self, name: str, *parts: str) -> Path:
        """Return a file of a run.

        Raises:
            Refusal: there is no such run or file.
        """
        if self._folder.inside("runs", f"{name}.yaml") is None:
            raise Refusal(404, f"there is no run {name!r:.60}")
        path = self._folder.inside("runs", *(parts if parts[0].startswith(f"{name}.") else (name, *parts)))
        if path is None or not path.is_file():
            raise Refusal(404, f"the run {name!r} has no file {'/'.join(parts)!r:.80}")
        return path

    def every(self) -> list[dict[str, Any]]:
        """Return the name, state and progress of all runs, the newest first."""
        found = []
        for name in self.names():
            try:
                view = self.view(name)
            except (Refusal, ConfigError) as error:
                view = {"name": name, "state": "unreadable", "step": 0, "steps": 0, "message": str(error)}
            found.append({key: view[key] for key in ("name", "state", "step", "steps", "message")})
        return found

    def view(self, name: str, curve: "Curve | None" = None) -> dict[str, Any]:
        """Return what the API has of a run; its points are in `curve`, where one is given that has read them.

        Raises:
            Refusal: there is no such run.
            ConfigError: its configuration was changed and cannot be read.
        """
        run = self.configuration(name)
        status = _object(self._folder.inside("runs", name, "status.json"))
        output = tail(self._folder.inside("runs", f"{name}.log"))
        if curve is None:
            curve = self.curve(name)
            curve.read()
        state, message = self._state(name, status, output)
        last = max((point["step"] for point in curve.points), default=0)
        saved = status.get("step")
        step = max(last, saved if isinstance(saved, int) else 0)
        speed = next((point["rate"] for point in reversed(curve.points) if point.get("rate")), None)
        left = (run.updates - step) * run.batch_size / speed if speed and state == "training" else None
        return {
            "name": name,
            "state": state,
            "step": step,
            "steps": run.updates,
            "seconds_left": None if left is None else round(left, 1),
            "message": message,
            "plan": [line for line in output if line.startswith(("plan: ", "expected end: "))],
            "output": output[-LINES:],
            "samples": self._samples(name),
            "result": self._result(name, run),
            **_facts(run, self._folder.root),
        }

    def configuration(self, name: str) -> RunConfig:
        """Return the configuration of a run; errors as for `view`."""
        path = self.file(name, f"{name}.yaml")
        if path.stat().st_size > MAX_FILE:
            raise Refusal(
                400, f"the configuration of {name!r} has {path.stat().st_size} bytes; at most {MAX_FILE} are read"
            )
        run = read_config(path)
        if run.steps is None:
            raise Refusal(400, f"the configuration of {name!r} gives passes; the page reads runs that give steps")
        return run

    def curve(self, name: str) -> "Curve":
        """Return the curve of a run, of which nothing is read yet."""
        return Curve(lambda: self._folder.inside("runs", name, "log.jsonl"))

    def _state(self, name: str, status: dict[str, Any], output: list[str]) -> tuple[str, str | None]:
        """Return the state of a run and the line of what went wrong."""
        written, message = status.get("state"), status.get("message")
        if self._process.trains(name):
            own = self._process.name == name
            if own and self._process.stopping:
                return "stopping", None
            return ("training" if written == "running" else "starting"), None
        error = last_error(output)
        if written == "finished" or (written in ("diverged", "failed") and message):
            return str(written), message
        if error is not None:  # before the run folder was taken
            return "failed", error
        if written in ENDED:
            return str(written), message
        if written == "running":
            return "killed", "the process ended without a word; resume continues from its last checkpoint"
        return ("interrupted" if self._process.stopping and self._process.name == name else "failed"), None

    def _samples(self, name: str) -> list[dict[str, Any]]:
        """Return the sample pictures in the order of their updates."""
        folder = self._folder.inside("runs", name, "samples")
        found = sorted(path.name for path in folder.glob("step-*.png")) if folder else []
        matches = [match for match in map(SAMPLE.fullmatch, found) if match]
        return [
            {"step": int(match[1]), "number": int(match[2]), "url": f"/training/runs/{name}/samples/{match[0]}"}
            for match in matches[-MAX_SAMPLES:]
        ]

    def _result(self, name: str, run: RunConfig) -> str | None:
        """Return "lora" or "model" where the run's result can be drawn with."""
        adapter = run.objective["name"] == "lora"
        file = (f"{name}.safetensors",) if adapter else ("model_index.json",)
        there = self._folder.inside("runs", name, "model", *file) is not None
        return ("lora" if adapter else "model") if there else None


@dataclass
class Curve:
    """The points of a run's log; `read` takes what was written since the last call."""

    find: Callable[[], Path | None]
    place: int = 0
    anew: bool = True  # whether the points since the last call are all there are

    def __post_init__(self) -> None:
        self.points: list[dict[str, Any]] = []
        self._before = b""

    def read(self) -> list[dict[str, Any]]:
        """Return the new points; `anew` is set where earlier ones no longer hold: a resumed run drops later lines."""
        path = self.find()
        if path is None or not path.is_file():
            return []
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self.place - len(self._before), 0))
            self.anew = self.place == 0 or size < self.place or file.read(len(self._before)) != self._before
            if self.anew:
                self.place, self.points = max(0, size - MAX_LOG), []
            file.seek(self.place)
            data = file.read(MAX_LOG)
        whole = data[: data.rfind(b"\n") + 1]
        self.place += len(whole)
        self._before = whole[-200:] or self._before
        fresh = [point for line in whole.splitlines() if (point := _point(line)) is not None]
        if self.anew and len(fresh) > MAX_POINTS:
            fresh = _thinned(fresh)
        self.points += fresh
        return fresh


def tail(path: Path | None) -> list[str]:
    """Return the lines that a process printed since its last start."""
    if path is None or not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - MAX_TAIL))
        lines = file.read(MAX_TAIL).decode("utf-8", "replace").splitlines()
    starts = [k for k, line in enumerate(lines) if line.startswith(START)]
    return [line for line in lines[starts[-1] if starts else 0 :] if line.strip()]


def last_error(lines: Iterable[str]) -> str | None:
    """Return the error line of a process of this package, without its first word."""
    found = [line for line in lines if line.startswith("error: ")]
    return found[-1].removeprefix("error: ")[:1000] if found else None


def _point(line: bytes) -> dict[str, Any] | None:
    """Return the figures of a line that a chart shows; None for a damaged line."""
    try:
        values = json.loads(line)
        step = int(values["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):  # the last: of an infinite step
        return None
    point: dict[str, Any] = {"step": step}
    for name, value in values.items():
        if not _is_figure(value):
            continue
        if name.endswith("/loss"):
            point["loss"] = value
        elif name == "images_per_second":
            point["rate"] = value
    bands = [values.get(f"validation_loss_{k}") for k in range(BANDS)]
    if all(map(_is_figure, bands)):
        point["bands"] = bands
    return point


def _is_figure(value: object) -> bool:
    """Return whether a value is a number that JSON has: neither NaN nor infinite, nor beyond a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _thinned(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return evenly spread points: those of held-out pictures are fewer and thinned for themselves."""
    parts = [[point for point in points if ("bands" in point) is held] for held in (False, True)]
    kept = [part[:: -(-len(part) // (MAX_POINTS // 2)) or 1] + part[-1:] for part in parts]
    return sorted((point for part in kept for point in part), key=lambda point: point["step"])


def _object(path: Path | None) -> dict[str, Any]:
    """Return a JSON object; {} where there is none, or one that is damaged or too large."""
    try:
        if path is None or not path.is_file() or path.stat().st_size > MAX_FILE:
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _facts(run: RunConfig, root: Path) -> dict[str, Any]:
    """Return what a run trains on: data, model and objective."""
    path, model = Path(str(run.data.get("path"))), Path(str(run.objective.get("init")))
    held = run.objective.get("validation")
    names = held.get("file_name") if isinstance(held, dict) else None
    return {
        "data": path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name,
        "objective": run.objective["name"],
        "model": model.name,
        "size": run.data.get("size"),
        "held_out": len(names) if isinstance(names, list) else 0,
    }
