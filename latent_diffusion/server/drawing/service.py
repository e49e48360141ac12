"""What every API of the server uses: take a request, queue it, wait for it, stop it when its client hangs up."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request as HttpRequest
from PIL import Image
from starlette.concurrency import run_in_threadpool

from latent_diffusion.server.drawing.job import Job
from latent_diffusion.server.drawing.queue import Queue
from latent_diffusion.server.drawing.shelf import Shelf
from latent_diffusion.server.drawing.worker import Drawer, steps_of
from latent_diffusion.server.limits import ServeSettings
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.request import Request, read_request

__all__ = ["Service"]


class Service:
    """The model, the queue and the settings of a server."""

    def __init__(self, settings: ServeSettings, loading: Mapping[str, Any] | None = None) -> None:
        """Load the model; errors as for `Shelf`.

        A thread of its own loads it. OpenMP keeps the helpers of every thread that ever computed, and where all of
        them are more than the processors, none waits actively: drawing beside a main thread that had loaded took 1.5
        times as long. The helpers of a thread end with it.
        """
        self.settings = settings
        with ThreadPoolExecutor(1) as loader:
            self.shelf = loader.submit(Shelf, settings, loading).result()
        self.queue = Queue(Drawer(self.shelf, settings).draw, settings.queue)

    async def submit(
        self, given: Mapping[str, Any], image: Image.Image | None = None, mask: Image.Image | None = None
    ) -> Job:
        """Check a request and append it to the queue.

        Args:
            given: fields of the native request, see `read_request`.
            image: the picture, where `given` does not have it.
            mask: the mask, likewise.

        Raises:
            Refusal, ConfigError, ValidationError: a request that cannot be drawn, or a full queue.
        """
        with self.queue.coming():
            request = await run_in_threadpool(self._checked, given, image, mask)
            job = Job(request, asyncio.get_running_loop())
            self.queue.submit(job)
        return job

    def _checked(self, given: Mapping[str, Any], image: Image.Image | None, mask: Image.Image | None) -> Request:
        request = read_request(given, image, mask)
        if request.model is None or self.shelf.find(request.model) == self.shelf.name:
            steps_of(self.shelf.pipe, request)  # of another model: when it is loaded
        return request

    async def finished(self, job: Job, http: HttpRequest) -> Job:
        """Wait until a job is finished; if the client hangs up before, cancel it.

        Raises:
            Refusal: what became of the job, where it has no pictures.
        """
        done, gone = asyncio.ensure_future(job.wait()), asyncio.ensure_future(_hung_up(http))
        try:
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            done.cancel()
            gone.cancel()
            if not job.finished:
                self.queue.cancel(job)
        return check(job)


def check(job: Job) -> Job:
    """Return a job that has its pictures.

    Raises:
        Refusal: it failed, or was cancelled.
    """
    if job.failure is not None:
        raise job.failure
    if job.status == "cancelled":
        raise Refusal(409, "the request was cancelled", None, x_should_retry="false")
    return job


async def _hung_up(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        continue
