"""The rest of the native API: what the server offers, the tokens of a prompt, the parameters of a picture, history."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from latent_diffusion.checks import MAX_SEED, SIZE_STEP
from latent_diffusion.diffusion.spacing import SPACINGS
from latent_diffusion.options.option import declared
from latent_diffusion.pipeline.regenerate import plan_of_found, plan_of_record
from latent_diffusion.provenance.foreign import read_found
from latent_diffusion.provenance.picture_file import texts_of
from latent_diffusion.provenance.record import Record
from latent_diffusion.registry import names
from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.limits import MAX_IMAGES, MAX_INPUT_PIXELS, MAX_PIXELS, MAX_STEPS
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.request import TASKS, DrawFields
from latent_diffusion.version import VERSION

__all__ = ["about_routes", "fields_of_picture"]

MAX_HISTORY = 500  # files that are listed


class Text(BaseModel):
    """A prompt to count the tokens of."""

    prompt: str = Field(max_length=10_000)


def about_routes(service: Service) -> APIRouter:
    """Return the routes /about, /tokens, /parameters and /history."""
    router = APIRouter(tags=["about"])

    @router.get("/about")
    def about() -> dict[str, Any]:
        """Return the model in use, its defaults, what can be chosen, and the limits of a request."""
        shelf = service.shelf
        return {
            "version": VERSION,
            "model": shelf.name,
            "models": list(shelf.models()),
            "loras": shelf.loras(),
            "defaults": vars(shelf.pipe.defaults),
            "inpainting_model": shelf.pipe.components.for_inpainting,
            "samplers": names("latent_diffusion.samplers"),
            "spacings": list(SPACINGS),
            "tasks": {name: [option.name for option in declared(kind)] for name, kind in TASKS.items()},
            "history": service.settings.output is not None,
            "limits": {
                "images": MAX_IMAGES, "steps": MAX_STEPS, "pixels": MAX_PIXELS, "input_pixels": MAX_INPUT_PIXELS,
                "size_step": SIZE_STEP, "seed": MAX_SEED, "queue": service.settings.queue,
            },
        }  # fmt: skip

    @router.post("/tokens")
    def tokens(text: Text) -> dict[str, Any]:
        """Return how many tokens the model reads of a prompt, and how many fit into one chunk."""
        report = service.shelf.pipe.tokens(text.prompt)
        terms = report.lines[0][1] if report.lines else ()
        return {
            "tokens": max((sum(map(len, term.towers[0])) for term in terms), default=0),
            "chunks": max((term.chunks for term in terms), default=0),
            "room": report.room,
            "read_as": report.read_as,
        }

    @router.post("/parameters", openapi_extra={"requestBody": {"content": {"image/*": {}}, "required": True}})
    async def parameters(request: HttpRequest) -> dict[str, Any]:
        """Return the request that draws the sent picture again, read from the texts inside it."""
        return await run_in_threadpool(fields_of_picture, await request.body())

    @router.get("/history")
    def history() -> list[str]:
        """Return the names of the pictures in the output folder, the newest first."""
        folder = service.settings.output
        if folder is None or not folder.is_dir():
            return []
        found = [(path.stat().st_mtime, path.name) for path in folder.glob("*.png") if path.is_file()]
        return [name for _, name in sorted(found, reverse=True)[:MAX_HISTORY]]

    @router.get("/history/{name}", response_class=FileResponse)
    def of_history(name: str) -> FileResponse:
        """Return a picture of the output folder."""
        if service.settings.output is None or name not in history():
            raise Refusal(404, f"no picture {name!r:.80} in the output folder")
        return FileResponse(service.settings.output / name, media_type="image/png")

    return router


def fields_of_picture(data: bytes) -> dict[str, Any]:
    """Return the fields of the native request that the texts in a picture describe, and what they leave open.

    Raises:
        DataError: no picture, or one without such texts.
    """
    texts = texts_of(data, "picture")
    if texts.record is not None:
        plan = plan_of_record(Record.from_json(texts.record))
    elif (found := read_found(texts.chunks, texts.parameters)) is not None:
        plan = plan_of_found(found)
    else:
        raise Refusal(400, "the picture has no text about how it was made", "picture")
    fields: dict[str, Any] = {"task": plan.method if plan.method in TASKS else "text_to_image", "prompt": plan.prompt}
    left_out = list(plan.missing)
    for name, value in plan.arguments.items():
        if name == "seed":
            fields["seed"] = value[0] if isinstance(value, list | tuple) else value
        elif name in DrawFields.model_fields:
            fields[name] = value[0] if name == "variation_seed" and isinstance(value, list | tuple) else value
        else:
            left_out.append(f"{name}: {value!r:.60}")
    for adapter in plan.adapters:
        left_out.append(f"{adapter.kind} {adapter.name}")
    model = {"model": plan.model, "model_hash": plan.model_hash}
    return {"fields": fields, **model, "left_out": left_out, "tool": plan.tool, "text": texts.parameters or ""}
