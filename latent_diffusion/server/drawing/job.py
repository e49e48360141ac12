"""One request on its way: waiting, drawing, done; what the worker writes and the routes read."""

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from latent_diffusion.provenance.record import Record

__all__ = ["Cancelled", "Job", "Picture"]


class Cancelled(Exception):
    """Raised inside the sampler's loop when nobody waits for its pictures any more."""


@dataclass(frozen=True)
class Picture:
    """A finished picture."""

    png: bytes
    seed: int
    record: "Record"
    text: str  # A1111's text about it
    size: tuple[int, int]  # width, height in px
    file: str | None = None  # name in the output folder
    changed_outside: int | None = None  # pixels outside the mask that differ from the input's; None = no mask


class Job:
    """A request in the queue. The worker's thread moves it on; the event loop waits for its changes."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.id = secrets.token_hex(8)
        self.request = request
        self.status = "waiting"  # "drawing", "done", "failed", "cancelled"
        self.step = 0
        self.steps = 0
        self.latest: Tensor | None = None  # (B, C, h, w) estimate of x0 of its pictures that are being drawn
        self.pictures: list[Picture] = []
        self.notes: list[str] = []
        self.failure: Refusal | None = None
        self.stopping = False  # finish with what is there
        self.skipping = False  # finish the pictures that are being drawn with what is there
        self.started = 0.0
        self.version = 0
        self._loop = loop
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._watchers = 0  # that wait for the next change

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("done", "failed", "cancelled")

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0 to 1."""
        return 1.0 if self.status == "done" else min(self.step / self.steps, 1.0) if self.steps else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimate by the steps so far; None before the first."""
        if self.status != "drawing" or not self.step:
            return None
        return (time.monotonic() - self.started) / self.step * (self.steps - self.step)

    def change(self, **values: Any) -> None:
        """Set attributes and wake all who wait for that; called from any thread.

        Where nobody watches, the event loop is woken by the end alone: a batch of 32 jobs changes 32 times a step.
        """
        for name, value in values.items():
            setattr(self, name, value)
        self.version += 1
        if not (self._watchers or self.finished):
            return
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the server has stopped, so nobody waits
            return

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self.finished:
            self._ended.set()

    async def next_change(self, seen: int) -> int:
        """Wait until the version differs from `seen`, and return it."""
        self._watchers += 1  # before the version is looked at, so that no change lies between
        try:
            changed = self._changed
            if self.version == seen:
                await changed.wait()
        finally:
            self._watchers -= 1
        return self.version

    async def wait(self) -> None:
        """Wait until the job is finished."""
        await self._ended.wait()
