"""The native API: jobs and their pictures."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.events import EventStreams, view
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.request import DrawFields

__all__ = ["job_routes"]

LISTED = 100  # jobs


def job_routes(service: Service, streams: EventStreams) -> APIRouter:
    """Return the routes under /jobs."""
    router = APIRouter(prefix="/jobs", tags=["jobs"])

    @router.post("", status_code=202)
    async def begin(fields: DrawFields) -> dict[str, Any]:
        """Queue a request and return its job at once; the fields are the options of the Python methods."""
        job = await service.submit(fields.model_dump(exclude_unset=True))
        return view(service, job)

    @router.get("")
    async def every() -> list[dict[str, Any]]:
        """Return the newest jobs, the newest first."""
        return [view(service, job) for job in service.queue.newest(LISTED)]

    @router.get("/{key}")
    async def one(key: str) -> dict[str, Any]:
        """Return a job: its status, step, time left and finished pictures."""
        return view(service, service.queue.find(key))

    @router.get("/{key}/events", response_class=StreamingResponse)
    async def events(key: str, preview: bool = False) -> StreamingResponse:
        """Stream each change of a job as a server-sent event, with the unfinished picture as JPEG where asked for."""
        stream = streams.open(service.queue.find(key), preview=preview)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @router.get("/{key}/pictures/{number}", response_class=Response)
    async def picture(key: str, number: int) -> Response:
        """Return a finished picture as PNG, with its parameters inside."""
        found = service.queue.find(key).pictures
        if not 0 <= number < len(found):
            raise Refusal(404, f"the job has {len(found)} pictures, counted from 0; there is no picture {number}")
        return Response(found[number].png, media_type="image/png")

    @router.post("/{key}/stop")
    async def stop(key: str) -> dict[str, Any]:
        """Stop a job after the present step and keep its pictures as they are then; one that waits is dropped."""
        job = service.queue.find(key)
        if service.queue.place(job):
            service.queue.cancel(job)
        job.change(stopping=True)
        return view(service, job)

    @router.delete("/{key}")
    async def cancel(key: str) -> dict[str, Any]:
        """Drop a job and its unfinished pictures, within a step."""
        job = service.queue.find(key)
        service.queue.cancel(job)
        return view(service, job)

    return router
