"""The one process that trains or examines data beside the server: started, found again, stopped.

The server itself never computes an update: a crash, a full memory or a stop of the training ends that process alone.
A training process has a session of its own, so Ctrl-C in the server's terminal reaches the server only, which then
stops the training by SIGTERM: it saves a checkpoint and ends. Where the server is killed, the training goes on; the
next server finds it by the lock of its run folder.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.train_folder import TrainFolder
from latent_diffusion.training.state.run_folder import holder

__all__ = ["START", "Process"]

START = "$ "
"""What the line that opens each start in a process's output begins with."""
PATIENCE = 120.0  # seconds in which a process that was asked to stop saves and ends


class Process:
    """At most one child process of the server, with the name of what it does."""

    def __init__(self, folder: TrainFolder) -> None:
        self._folder = folder
        self._child: subprocess.Popen | None = None
        self._lock = threading.Lock()
        self.name = ""  # of the run; "" = an examination
        self.stopping = False

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code of the child that ended last."""
        return None if self._child is None else self._child.poll()

    def trains(self, name: str) -> bool:
        """Whether a process of this or of an earlier server trains the run."""
        return (self.alive and self.name == name) or holder(self._folder.runs / name) is not None

    def busy(self) -> str | None:
        """Return what is being done, as a sentence; None where nothing is."""
        if self.alive:
            return f"the run {self.name!r} is being trained" if self.name else "data are being examined"
        for path in sorted(self._folder.runs.glob("*/.lock")):
            if holder(path.parent) is not None:
                return f"the run {path.parent.name!r} is being trained"
        return None

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        output: Path,
        config: Path,
        text: str | None = None,
        old: Iterable[Path] = (),
    ) -> None:
        """Start `python -m ARGUMENTS`.

        Args:
            name: of the run; "" for an examination.
            arguments: of the interpreter.
            output: file that what is printed is appended to.
            config: configuration, which is written first where `text` is given.
            text: of the configuration; only that of a run of which nothing was trained is replaced.
            old: files that are removed first.

        Raises:
            Refusal: another process is at work, or there is such a run.
        """
        with self._lock:  # two requests may come at once
            if (busy := self.busy()) is not None:
                raise Refusal(409, f"{busy}; one at a time: wait for its end, or stop it")
            for file in old:
                file.unlink(missing_ok=True)
            try:
                if text is not None:
                    never_ran = output.exists() and not (self._folder.runs / name / "status.json").exists()
                    with config.open("w" if never_ran else "x", encoding="utf-8") as file:
                        file.write(text)
                with output.open("a", encoding="utf-8") as printed:
                    printed.write(f"{START}python -m {' '.join(arguments)}\n")
                    printed.flush()
                    self._child = subprocess.Popen(
                        [sys.executable, "-m", *arguments], stdin=subprocess.DEVNULL, stdout=printed,
                        stderr=subprocess.STDOUT, start_new_session=True,
                    )  # fmt: skip
            except FileExistsError:
                raise Refusal(409, f"there is a run {name!r} already; choose another name, or resume it") from None
            self.name, self.stopping = name, False

    def stop(self, name: str) -> bool:
        """Ask the process of a run (or "", an examination) to save and end; return whether there was one."""
        running = holder(self._folder.runs / name) if name else None
        own = self.alive and self.name == name
        if running is not None:
            with suppress(ProcessLookupError):
                os.kill(running, signal.SIGTERM)
        elif own and self._child is not None:  # nothing to save yet: the launcher and all that it started end
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGTERM)
        self.stopping = self.stopping or own
        return running is not None or own

    def close(self) -> None:
        """Ask the child to save and end, and wait for that."""
        if self._child is None or not self.alive:
            return
        self.stop(self.name)
        try:
            self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
