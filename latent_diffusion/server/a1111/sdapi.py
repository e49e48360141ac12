"""The routes of `/sdapi/v1`."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from latent_diffusion.provenance.foreign import read_found
from latent_diffusion.provenance.infotext import read_infotext
from latent_diffusion.provenance.picture_file import texts_of
from latent_diffusion.server.a1111 import lists
from latent_diffusion.server.a1111.info import answer_of
from latent_diffusion.server.a1111.payload import ImageToImage, TextToImage
from latent_diffusion.server.a1111.settings import Settings
from latent_diffusion.server.a1111.translation import translate
from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.drawing.unfinished import unfinished_jpeg
from latent_diffusion.server.encoded import from_base64, to_base64
from latent_diffusion.server.refusals import Refusal

__all__ = ["a1111_routes"]

MISSING = ("extra-single-image", "extra-batch-images", "interrogate")
NOTHING_TO_DO = ("refresh-checkpoints", "refresh-loras", "refresh-vae", "unload-checkpoint", "reload-checkpoint")


class PictureBody(BaseModel):
    """Body of `/png-info`."""

    image: str


def a1111_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
    settings = Settings(service.shelf)
    _drawing(router, service, settings)
    _lists(router, service)

    @router.get("/options")
    def options() -> dict[str, Any]:
        """Return the settings, of which the model and the clip skip change pictures."""
        return settings.values()

    @router.post("/options")
    def set_options(values: dict[str, Any]) -> None:
        """Change settings; those that are not known are left out."""
        settings.change(values)

    @router.post("/png-info")
    def png_info(body: PictureBody) -> dict[str, Any]:
        """Return the texts inside a picture."""
        texts = texts_of(from_base64(body.image, "image"), "image")
        info = read_infotext(texts.parameters) if texts.parameters else None
        fields = {"Prompt": info.prompt, "Negative prompt": info.negative_prompt, **info.fields} if info else {}
        tool = None if texts.parameters else read_found(texts.chunks, None)
        items = {name: text for name, text in texts.chunks.items() if name != "parameters"}
        return {"info": texts.parameters or (tool.prompt if tool else ""), "items": items, "parameters": fields}

    return router


def _drawing(router: APIRouter, service: Service, settings: Settings) -> None:
    """Add the routes that draw, and those that watch and stop it."""

    async def draw(body: TextToImage, http: HttpRequest) -> dict[str, Any]:
        chosen = settings.with_overrides(body.override_settings)
        defaults = service.shelf.pipe.defaults
        drawn = await run_in_threadpool(translate, body, chosen, defaults)
        job = await service.submit(drawn.fields, drawn.image, drawn.mask)
        if not body.override_settings_restore_afterwards:
            settings.change(body.override_settings)
        return answer_of(await service.finished(job, http), body, drawn)

    @router.post("/txt2img")
    async def txt2img(body: TextToImage, http: HttpRequest) -> dict[str, Any]:
        """Draw pictures from text, and answer when they are finished."""
        return await draw(body, http)

    @router.post("/img2img")
    async def img2img(body: ImageToImage, http: HttpRequest) -> dict[str, Any]:
        """Redraw a picture, or repaint the white part of a mask; the rest of it stays bit for bit."""
        return await draw(body, http)

    @router.get("/progress")
    async def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """Return how far the pictures that are being drawn are; progress and job_count are 0 where nothing is."""
        jobs = service.queue.current
        job = jobs[0] if jobs else None
        shown = None if job is None or skip_current_image else await unfinished_jpeg(service.shelf, job)
        return {
            "progress": job.progress if job else 0.0,
            "eta_relative": (job.seconds_left if job else None) or 0.0,
            "state": {
                "skipped": bool(job and job.skipping),
                "interrupted": bool(job and job.stopping),
                "stopping_generation": bool(job and job.stopping),
                "job": job.id if job else "",
                "job_count": service.queue.length,
                "job_timestamp": "0",
                "job_no": 0,
                "sampling_step": job.step if job else 0,
                "sampling_steps": job.steps if job else 0,
            },
            "current_image": None if shown is None else to_base64(shown),
            "textinfo": None,
        }

    @router.post("/interrupt")
    def interrupt() -> dict[str, Any]:
        """Stop the pictures that are being drawn after the present step; their request is answered with them."""
        for job in service.queue.current:
            job.change(stopping=True)
        return {}

    @router.post("/skip")
    def skip() -> None:
        """Stop the pictures that are being drawn, and go on with the others of their request."""
        for job in service.queue.current:
            job.change(skipping=True)


def _lists(router: APIRouter, service: Service) -> None:
    """Add what can be chosen; the routes of what does not exist here are empty, do nothing, or answer 501."""
    shelf = service.shelf
    answers: dict[str, Any] = {
        "sd-models": lambda: lists.models(shelf),
        "samplers": lists.samplers,
        "schedulers": lists.schedulers,
        "loras": lambda: lists.loras(shelf),
        "upscalers": lists.upscalers,
        "latent-upscale-modes": lambda: [{"name": name} for name in lists.LATENT_MODES],
        "embeddings": lambda: {"loaded": {}, "skipped": {}},
        "scripts": lambda: {"txt2img": [], "img2img": []},
        "script-info": _nothing,
        "cmd-flags": lambda: {},
        "memory": lists.memory,
        **dict.fromkeys(lists.EMPTY, _nothing),
    }
    for name, answer in answers.items():
        router.add_api_route(f"/{name}", answer, methods=["GET"], name=name, response_model=None)
    for name in NOTHING_TO_DO:
        router.add_api_route(f"/{name}", lambda: None, methods=["POST"], name=name, response_model=None)
    for name in MISSING:
        router.add_api_route(f"/{name}", _missing, methods=["POST"], name=name, response_model=None, status_code=501)


def _nothing() -> list[Any]:
    return []


def _missing() -> None:
    raise Refusal(501, "there is no upscaler and no describer of pictures here")
