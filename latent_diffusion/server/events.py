"""What the native API tells of a job: its state, and each change of it as a server-sent event."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from latent_diffusion.server.drawing.job import Job
from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.drawing.unfinished import unfinished_jpeg
from latent_diffusion.server.encoded import to_base64
from latent_diffusion.server.limits import MAX_EVENTS
from latent_diffusion.server.refusals import Refusal

__all__ = ["ALIVE", "EventStreams", "view"]

ALIVE = 15.0  # seconds after which a stream without news sends an empty line


def view(service: Service, job: Job) -> dict[str, Any]:
    """Return what the API tells of a job."""
    left = job.seconds_left
    return {
        "id": job.id,
        "task": job.request.task,
        "status": job.status,
        "place": service.queue.place(job),
        "step": job.step,
        "steps": job.steps,
        "progress": round(job.progress, 4),
        "seconds_left": None if left is None else round(left, 2),
        "error": None if job.failure is None else job.failure.detail,
        "notes": job.notes,
        "pictures": [
            {
                "url": f"/jobs/{job.id}/pictures/{number}",
                "seed": picture.seed,
                "width": picture.size[0],
                "height": picture.size[1],
                "text": picture.text,
                "file": picture.file,
                "changed_outside": picture.changed_outside,
            }
            for number, picture in enumerate(job.pictures)
        ],
    }


class EventStreams:
    """The streams of events that are open, counted."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._count = 0

    def open(self, job: Job, *, preview: bool) -> AsyncIterator[str]:
        """Return the stream of a job's events; errors as for `counted`."""
        return self.counted(_events(self._service, job, preview=preview))

    def counted(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        """Return a stream that counts as open until it ends.

        Raises:
            Refusal: as many are open as may be.
        """
        if self._count >= MAX_EVENTS:
            raise Refusal(429, f"{self._count} streams of events are open; at most {MAX_EVENTS}", retry_after="5")
        return self._counted(events)

    async def _counted(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        self._count += 1
        try:
            async for event in events:
                yield event
        finally:
            self._count -= 1


async def _events(service: Service, job: Job, *, preview: bool) -> AsyncIterator[str]:
    """Yield the state of a job now and after each change, until it is finished."""
    seen = job.version
    while True:
        values = view(service, job)
        if preview and not job.finished and (jpeg := await unfinished_jpeg(service.shelf, job)):
            values["preview"] = f"data:image/jpeg;base64,{to_base64(jpeg)}"
        yield f"event: {values['status']}\ndata: {json.dumps(values)}\n\n"
        if values["status"] in ("done", "failed", "cancelled"):
            return
        while job.version == seen:
            try:
                await asyncio.wait_for(job.next_change(seen), ALIVE)
            except TimeoutError:
                yield ": alive\n\n"
        seen = job.version
