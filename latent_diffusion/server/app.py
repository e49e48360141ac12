"""The application: guards around the routes, errors as one line, and the page."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from latent_diffusion.server import notes, refusals
from latent_diffusion.server.a1111.sdapi import a1111_routes
from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.drawing.worker import check_output
from latent_diffusion.server.events import EventStreams
from latent_diffusion.server.guard import Guard
from latent_diffusion.server.limits import ServeSettings
from latent_diffusion.server.native.about_api import about_routes
from latent_diffusion.server.native.jobs_api import job_routes
from latent_diffusion.server.openai.images_api import openai_routes
from latent_diffusion.server.train_folder import with_own_folders
from latent_diffusion.server.training.training import Training
from latent_diffusion.server.training.training_api import training_routes
from latent_diffusion.version import VERSION

__all__ = ["build_app"]

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Content security policy of the page: no request to another machine, no inline script."""


def build_app(settings: ServeSettings, loading: Mapping[str, Any] | None = None) -> FastAPI:
    """Load the model and return the application; `app.state.service` is what its routes work with.

    Args:
        settings: how the server is started.
        loading: options of `from_pretrained`, for every model.

    Raises:
        LatentDiffusionError: a model, a device or a folder that cannot be had.
    """
    check_output(settings.output)
    settings = with_own_folders(settings)
    service = Service(settings, loading)
    training = Training(service, on_cpu=str((loading or {}).get("device", "")) == "cpu")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        notes.install()
        service.queue.start()
        yield
        service.queue.close()
        await run_in_threadpool(training.close)

    app = FastAPI(
        title="latent_diffusion", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Draw, repaint and extend pictures, and train. Errors are 4xx with one line.",
    )  # fmt: skip
    app.state.service, app.state.training = service, training
    refusals.install(app)
    streams = EventStreams(service)
    app.include_router(job_routes(service, streams))
    app.include_router(training_routes(training, streams))
    app.include_router(about_routes(service))
    app.include_router(a1111_routes(service))
    app.include_router(openai_routes(service))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return _static("index.html")

    @app.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return _static("docs.html")

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Guard, settings=settings)
    return app


def _static(name: str) -> FileResponse:
    headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
    return FileResponse(PAGE / name, headers=headers)
