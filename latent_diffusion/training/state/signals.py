"""Stopping on request: SIGTERM and Ctrl-C save first, and so does the death of the launcher.

`accelerate launch` dies of a SIGTERM without telling its child, which would train on unheard. So a launched process
asks the kernel for a SIGTERM when its parent dies, and where the kernel cannot, looks for its parent at every update.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopSignals"]

_SAME_PRESS = 3.0
"""Seconds within which a second signal is the echo of the first: Ctrl-C reaches the whole group, and then the launcher
passes it on."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopSignals:
    """Turns signals into a flag that the loop reads; before `saving` there is nothing to save and they end it at once.

    Attributes:
        saving: True once a stop is worth a checkpoint.
    """

    def __init__(self) -> None:
        self.saving = False
        self._signal: int | None = None
        self._since = 0.0
        self._parent = os.getppid() if _launched() else None

    @property
    def asked(self) -> bool:
        """True once a stop is wanted."""
        if self._signal is None and self._parent is not None and os.getppid() != self._parent:
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, or when another process was asked; 130 after Ctrl-C."""
        return 128 + (self._signal or signal.SIGTERM)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals inside the `with`."""
        wanted = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._receive) for number in wanted}
        if self._parent is not None:
            _ask_for_sigterm_on_parents_death()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.saving:
            raise SystemExit(128 + number)
        if self._signal is None:
            self._signal, self._since = number, now
            os.write(2, b"stopping after this update; once more to stop at once, unsaved\n")  # print may be interrupted
        elif now - self._since > _SAME_PRESS:
            raise SystemExit(128 + number)


def _launched() -> bool:
    """Return whether `accelerate launch` or torchrun started this process (a shell's death does not concern it)."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def _ask_for_sigterm_on_parents_death() -> None:
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
