"""Output of a run: a progress bar or plain lines, `log.jsonl`, and trackers (TensorBoard).

A line of `log.jsonl` holds the means over the updates since the line before. The open sums are part of a checkpoint,
so the lines of a resumed run equal those of an uninterrupted one (but for time and speed).
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from latent_diffusion.config import RunConfig
from latent_diffusion.training.monitoring.trackers import Tracker, open_trackers
from latent_diffusion.training.optimizer import learning_rate

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

    from latent_diffusion.training.trainer import Trainer

__all__ = ["RunLog", "console", "start_logging"]

logger = logging.getLogger(__name__)
console = Console(stderr=True)
"""Where everything for people goes, so that lines and the bar do not tear each other."""


class _ToConsole(logging.Handler):
    """Prints messages above the progress bar, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        console.print(f"{warning}{record.getMessage()}", markup=False, highlight=False, soft_wrap=True)


def start_logging(level: int) -> None:
    """Send this package's messages from `level` on to the console."""
    ours = logging.getLogger("latent_diffusion")
    ours.handlers = [_ToConsole()]
    ours.setLevel(level)
    ours.propagate = False


class RunLog:
    """The log of the first process; `start` opens it at the update the run starts from."""

    def __init__(self, folder: Path, run: RunConfig):
        self._folder, self._run = folder, run
        self._sums: dict[str, float] = {}
        self._count = 0
        self._clock, self._timed = time.perf_counter(), 0  # start of the interval, updates in it,
        self._seconds: dict[str, float] = {}  # and where their time went
        self._file = self._bar = self._task = None
        self._trackers: list[Tracker] = []
        self._alive = False  # whether a line has shown that updates are made

    def start(self, done: int) -> None:
        """Open the files, dropping lines that were written after update `done` by a run that was killed later."""
        path = self._folder / "log.jsonl"
        _drop_lines_after(path, done)
        self._file = path.open("a", encoding="utf-8")
        self._trackers = open_trackers(self._folder, self._run, done)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[now]}"),
                console=console,
            )
            self._task = self._bar.add_task("training", total=self._run.updates, completed=done, now="")
            self._bar.start()
        self._start_interval()

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to log between backward and update."""

    def after_update(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Take the figures of the update just made."""
        self.update(trainer.done, figures, trainer.clock.take())

    def update(self, done: int, figures: Mapping[str, float], seconds_of: Mapping[str, float] | None = None) -> None:
        """Take the figures of the update that made it `done`, and its seconds by name; write a line when one is due."""
        for name, value in (seconds_of or {}).items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._timed += 1
        seconds = time.perf_counter() - self._clock
        speed = self._timed * self._run.batch_size / max(seconds, 1e-9)
        left = (self._run.updates - done) * seconds / self._timed
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, now=_short(figures, speed, left))
        if done % self._run.log_every and done != self._run.updates:
            if self._bar is None and not self._alive:
                self._print(done, figures, speed, left)
            return
        means = {name: total / self._count for name, total in self._sums.items()}
        rate = learning_rate(done - 1, self._run)
        more = {"samples": done * self._run.batch_size, "learning_rate": rate, "images_per_second": round(speed, 3)}
        shares = {f"time/{name}": round(spent / max(seconds, 1e-9), 4) for name, spent in self._seconds.items()}
        self._write(done, means, more | shares)
        if self._bar is None:
            self._print(done, means, speed, left)
        self._sums, self._count = {}, 0
        self._start_interval()

    def _print(self, done: int, figures: Mapping[str, float], speed: float, left: float) -> None:
        console.print(
            f"step {done}/{self._run.updates}  {_short(figures, speed, left)}", highlight=False, soft_wrap=True
        )
        self._alive = True

    def held_out(self, done: int, figures: Mapping[str, float]) -> None:
        """Write figures of held-out pictures after `done` updates, as a line of their own."""
        logger.info("step %d/%d  %s", done, self._run.updates, "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
        self._write(done, figures, {})

    def _start_interval(self) -> None:
        self._clock, self._timed, self._seconds = time.perf_counter(), 0, {}

    def _write(self, done: int, figures: Mapping[str, float], more: Mapping[str, float]) -> None:
        """Write one line of `log.jsonl`; curves of it all but the clock to the trackers."""
        line = {"step": done, **{k: v if math.isfinite(v) else None for k, v in {**figures, **more}.items()}}
        try:
            if self._file is not None:
                self._file.write(json.dumps(line | {"time": round(time.time(), 3)}, allow_nan=False) + "\n")
                self._file.flush()
        except OSError as fault:  # a full disk must not end the training; the next checkpoint decides
            logger.warning("the log can no longer be written (%s); training continues without it", fault)
            self._file = None
        self._pass_on(lambda tracker: tracker.figures(done, {**figures, **more}))

    def _pass_on(self, work: Callable[[Tracker], None]) -> None:
        """Call `work` with each tracker; one that fails is left out, since curves elsewhere must not end a training."""
        for tracker in list(self._trackers):
            try:
                work(tracker)
            except Exception as fault:  # a disk, a network, a service: each library has its own
                self._trackers.remove(tracker)
                reason = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
                logger.warning("%s fails (%s); training continues without it", type(tracker).__name__, reason)

    def pictures(self, done: int, images: "list[Image]") -> None:
        """Write sample pictures to `samples/step-00001000-0.png` and to the trackers."""
        folder = self._folder / "samples"
        folder.mkdir(exist_ok=True)
        for index, image in enumerate(images):
            image.save(folder / f"step-{done:08d}-{index}.png", pnginfo=_text_of(image, done))
        self._pass_on(lambda tracker: tracker.pictures(done, images))
        self._start_interval()

    def state(self) -> dict[str, Any]:
        """Return the open sums, for a checkpoint."""
        return {"sums": dict(self._sums), "count": self._count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue the sums of a checkpoint."""
        self._sums, self._count = dict(state["sums"]), int(state["count"])

    def close(self) -> None:
        """Close files and bar; may be called twice."""
        if self._file is not None:
            self._file.close()
        self._pass_on(lambda tracker: tracker.close())
        if self._bar is not None:
            self._bar.stop()
        self._file, self._trackers, self._bar = None, [], None


def _text_of(image: "Image", done: int) -> "PngInfo":
    """Return the text of a picture's file: after how many updates it was made, and what the objective noted."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for name, value in {"update": str(done), **image.info}.items():
        if isinstance(value, str):
            text.add_itxt(str(name), value)
    return text


def _short(figures: Mapping[str, float], speed: float, left: float) -> str:
    losses = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name.endswith("loss"))
    minutes, seconds = divmod(int(left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{losses}  {speed:.3g} images/s  {hours}:{minutes:02d}:{seconds:02d} left"


def _drop_lines_after(path: Path, done: int) -> None:
    """Rewrite the log without lines of later updates or a last line that was cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(".tmp-log.jsonl")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
