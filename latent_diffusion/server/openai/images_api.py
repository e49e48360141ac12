"""The routes of `/v1/images` and `/v1/models`."""

import time
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.encoded import from_bytes
from latent_diffusion.server.openai.answers import encoded, events, whole
from latent_diffusion.server.openai.fields import Fields, native
from latent_diffusion.server.refusals import Refusal

__all__ = ["openai_routes"]

STRENGTH = 0.75  # of an edit without a mask, and of a variation
MAX_FIELDS = 100
MAX_TEXT = 2**17  # bytes of a text field
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
FORM = {
    "requestBody": {
        "content": {"multipart/form-data": {"schema": {
            "type": "object",
            "properties": {
                "image": {"type": "string", "format": "binary"}, "mask": {"type": "string", "format": "binary"},
                "prompt": {"type": "string"}, "n": {"type": "integer"}, "size": {"type": "string"},
            },
        }}},
        "required": True,
    }
}  # fmt: skip
"""Form of `/edits` and `/variations` in the OpenAPI."""


def openai_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    started = int(time.time())

    async def draw(
        http: HttpRequest, fields: Fields, task: str, kind: str, more: dict[str, Any], *pictures: Image.Image | None
    ) -> Any:
        values, ignored = native(fields, service.shelf, task=task)
        job = await service.submit({**more, **values}, *pictures)
        if fields.stream:
            return StreamingResponse(events(service, job, fields, kind), media_type="text/event-stream")
        await service.finished(job, http)
        return await whole(service, job, fields, ignored, str(http.base_url))

    @router.post("/images/generations", response_model=None)
    async def generations(fields: Fields, http: HttpRequest) -> Any:
        """Draw pictures from text."""
        return await draw(http, fields, "text_to_image", "image_generation", {})

    @router.post("/images/edits", response_model=None, openapi_extra=FORM)
    async def edits(http: HttpRequest) -> Any:
        """Repaint the transparent part of a mask, or, without a mask, redraw the picture with `strength`."""
        fields, files = await _form(http)
        image = await _only(files, "image")
        mask = await _only(files, "mask") if "mask" in files else None
        if mask is None:
            return await draw(http, fields, "image_to_image", "image_edit", {"strength": STRENGTH}, image)
        channel = _mask_channel(image, mask, fields.mask_mode)
        return await draw(http, fields, "inpaint", "image_edit", {"mask_channel": channel}, image, mask)

    @router.post("/images/variations", response_model=None, openapi_extra=FORM)
    async def variations(http: HttpRequest) -> Any:
        """Redraw a picture without a prompt."""
        fields, files = await _form(http)
        image = await _only(files, "image")
        return await draw(http, fields, "image_to_image", "image_edit", {"strength": STRENGTH}, image)

    @router.get("/images/files/{key}/{number}.{form}", response_class=Response)
    async def file(key: str, number: int, form: str, compression: int | None = None) -> Response:
        """Return a finished picture; its address was the answer to `response_format` "url"."""
        job = service.queue.find(key)
        if form not in FORMATS or not 0 <= number < len(job.pictures) or not 0 <= (compression or 0) <= 100:
            raise Refusal(404, "there is no such picture")
        data = await run_in_threadpool(encoded, job.pictures[number], FORMATS[form], compression)
        return Response(data, media_type=f"image/{form}")

    @router.get("/models")
    def models() -> dict[str, Any]:
        """Return the models that can be drawn with."""
        return {"object": "list", "data": [_model(name, started) for name in service.shelf.models()]}

    @router.get("/models/{name}")
    def model(name: str) -> dict[str, Any]:
        """Return one model."""
        return _model(service.shelf.find(name), started)

    return router


def _model(name: str, started: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": started, "owned_by": "latent_diffusion"}


async def _form(http: HttpRequest) -> tuple[Fields, dict[str, list[bytes]]]:
    """Return the text fields and the files of a multipart form.

    Raises:
        Refusal: no such form.
    """
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(400, "the body must be multipart/form-data, with the picture as a file named image")
    texts: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    async with http.form(max_files=MAX_FIELDS, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT) as form:
        for name, value in form.multi_items():
            plain = name.removesuffix("[]")
            if isinstance(value, UploadFile):
                files.setdefault(plain, []).append(await value.read())
            else:
                texts[plain] = value
    for name in ("markup",):
        if name in texts or name in files:
            raise Refusal(400, f"{name} cannot be followed; leave it out", name)
    return Fields.model_validate(texts), files


async def _only(files: dict[str, list[bytes]], name: str) -> Image.Image:
    """Return the one picture of a name.

    Raises:
        Refusal: none, several, or one that cannot be read.
    """
    found = files.get(name, [])
    if len(found) != 1:
        raise Refusal(400, f"{name}: {len(found)} files; send one picture", name)
    return await run_in_threadpool(from_bytes, found[0], name)


def _mask_channel(image: Image.Image, mask: Image.Image, mode: str) -> str:
    """Return the channel in which a mask says what is repainted.

    Raises:
        Refusal: a mask of another size, or without transparency.
    """
    if mask.size != image.size:
        sizes = f"{mask.width}x{mask.height} px but the picture {image.width}x{image.height} px"
        raise Refusal(400, f"the mask is {sizes}; send it at the picture's size", "mask")
    if mode == "luminance":
        return "grey"
    if mask.mode != "RGBA":
        raise Refusal(
            400, "the mask has no transparency; what is transparent is repainted, or send mask_mode=luminance", "mask"
        )
    return "alpha"
