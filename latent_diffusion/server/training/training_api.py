"""The routes under /training: what can be trained on, an examination of the data, runs and their events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from latent_diffusion.server.events import ALIVE, EventStreams
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.training.recipe import TrainFields, recipes
from latent_diffusion.server.training.run_view import SAMPLE
from latent_diffusion.server.training.training import WITHOUT, Training

__all__ = ["training_routes"]

POLL = 1.0  # seconds between two looks at the files of a run
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"


def training_routes(training: Training, streams: EventStreams) -> APIRouter:
    """Return the routes under /training."""
    router = APIRouter(prefix="/training", tags=["training"])

    @router.get("")
    def offers() -> dict[str, Any]:
        """Return the folders of pictures, the recipes with their values, the runs, and what is being done."""
        if not training.there:
            return {"available": False, "why": WITHOUT, "sources": [], "recipes": {}, "runs": [], "busy": None}
        sources, busy = training.folder.sources(), training.process.busy()
        runs = training.runs.every()
        return {"available": True, "why": None, "sources": sources, "recipes": recipes(), "runs": runs, "busy": busy}

    _add_checks(router, training)
    _add_runs(router, training, streams)
    _add_actions(router, training)
    return router


def _add_checks(router: APIRouter, training: Training) -> None:
    @router.post("/check", status_code=202)
    def examine(fields: TrainFields) -> dict[str, Any]:
        """Examine the pictures and captions of a run, and measure a few updates, in a process of its own."""
        training.examine(fields)
        return training.check()

    @router.get("/check")
    def check() -> dict[str, Any]:
        """Return the state and the lines of the last examination."""
        return training.check()

    @router.get("/check/report", response_class=HTMLResponse)
    def report() -> HTMLResponse:
        """Return the report of the last examination as one page."""
        if not training.check()["report"]:
            raise Refusal(404, "there is no report; examine the data first")
        text = (training.checks / "report.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"content-security-policy": REPORT_POLICY, "cache-control": "no-store"})

    @router.delete("/check")
    def drop() -> dict[str, Any]:
        """End the examination that is being made."""
        if training.there:
            training.process.stop("")
        return training.check()


def _add_runs(router: APIRouter, training: Training, streams: EventStreams) -> None:
    @router.get("/runs/{name}")
    def one(name: str) -> dict[str, Any]:
        """Return a run: its state, progress, expected end, output and sample pictures."""
        return training.runs.view(name)

    @router.get("/runs/{name}/events", response_class=StreamingResponse)
    async def events(name: str) -> StreamingResponse:
        """Stream the run after each change, with the new points of its curves, until its process ends."""
        await run_in_threadpool(training.runs.view, name)  # a run that is not there is refused before the stream begins
        stream = streams.counted(_events(training, name))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @router.get("/runs/{name}/samples/{file}", response_class=FileResponse)
    def sample(name: str, file: str) -> FileResponse:
        """Return a sheet of sample pictures as PNG."""
        if not SAMPLE.fullmatch(file):
            raise Refusal(404, f"{file!r:.80} is no name of sample pictures")
        return FileResponse(training.runs.file(name, "samples", file), media_type="image/png")


def _add_actions(router: APIRouter, training: Training) -> None:
    @router.post("/runs", status_code=202)
    def begin(fields: TrainFields) -> dict[str, Any]:
        """Start a run in a process of its own; one is trained at a time."""
        training.begin(fields)
        return training.runs.view(fields.name)

    @router.post("/runs/{name}/stop")
    def stop(name: str) -> dict[str, Any]:
        """Ask the process of a run to save a checkpoint and end."""
        training.runs.view(name)  # or a refusal
        training.process.stop(name)
        return training.runs.view(name)

    @router.post("/runs/{name}/resume", status_code=202)
    def resume(name: str) -> dict[str, Any]:
        """Start a run again from its newest checkpoint."""
        training.runs.view(name)  # or a refusal
        training.resume(name)
        return training.runs.view(name)

    @router.post("/runs/{name}/use")
    def use(name: str) -> dict[str, str | None]:
        """Make the result of a run usable, and return the model and the LoRA to draw with."""
        training.runs.view(name)  # or a refusal
        return training.use(name)


async def _events(training: Training, name: str) -> AsyncIterator[str]:
    """Yield the run now and after each change, until nothing trains it."""
    curve = training.runs.curve(name)
    seen, since = "", time.monotonic()
    while True:
        points = await run_in_threadpool(curve.read)
        view = await run_in_threadpool(training.runs.view, name, curve)
        text = json.dumps(view)
        if text != seen or points:
            event = view | {"points": points, "anew": curve.anew}
            yield f"event: {view['state']}\ndata: {json.dumps(event)}\n\n"
            seen, since = text, time.monotonic()
        if view["state"] not in ("starting", "training", "stopping"):
            return
        if time.monotonic() - since > ALIVE:
            yield ": alive\n\n"
            since = time.monotonic()
        await asyncio.sleep(POLL)
