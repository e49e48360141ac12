"""The answers of `/v1/images/*`: one JSON object, or events with partial pictures."""

import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool

from latent_diffusion.provenance.picture_file import encode_picture
from latent_diffusion.server.drawing.job import Job, Picture
from latent_diffusion.server.drawing.service import Service, check
from latent_diffusion.server.drawing.unfinished import unfinished_pictures
from latent_diffusion.server.encoded import to_base64
from latent_diffusion.server.openai.fields import Fields
from latent_diffusion.server.refusals import Refusal

__all__ = ["encoded", "events", "whole"]


def encoded(picture: Picture, form: str, compression: int | None) -> bytes:
    """Return a finished picture in a format, with its record inside; `compression` is the quality, 0 to 100."""
    if form == "PNG":
        return picture.png
    image = Image.open(io.BytesIO(picture.png))
    image.load()
    return encode_picture(image, form, picture.record, compression)


async def whole(service: Service, job: Job, fields: Fields, ignored: list[str], base: str) -> dict[str, Any]:
    """Return the JSON body for a finished job; `base` is the address of the server, for pictures by address."""
    data = []
    for number, picture in enumerate(job.pictures):
        if fields.response_format == "url":
            query = "" if fields.output_compression is None else f"?compression={fields.output_compression}"
            item = {"url": f"{base}v1/images/files/{job.id}/{number}.{fields.form.lower()}{query}"}
        else:
            picture_bytes = await run_in_threadpool(encoded, picture, fields.form, fields.output_compression)
            item = {"b64_json": to_base64(picture_bytes)}
        data.append(item | {"seed": picture.seed, "revised_prompt": picture.record.read_as or picture.record.prompt})
    about = _about(job, fields) | {name: lines for name, lines in (("ignored", ignored), ("notes", job.notes)) if lines}
    return {"created": int(time.time()), "data": data, **about, "usage": await _usage(service, job)}


async def events(service: Service, job: Job, fields: Fields, kind: str) -> AsyncIterator[str]:
    """Yield partial pictures at equal distances, then each finished one; leaving the stream cancels the job.

    Args:
        service: the server's.
        job: queued.
        fields: of the request.
        kind: "image_generation" or "image_edit".
    """
    shown, wanted, seen = 0, fields.partial_images or 0, job.version
    try:
        while not job.finished:
            due = job.steps and job.step >= job.steps * (shown + 1) / (wanted + 1)
            if shown < wanted and due and (pictures := await unfinished_pictures(service.shelf, job)):
                data = await run_in_threadpool(
                    encode_picture, pictures[0], fields.form, None, fields.output_compression
                )
                partial = {"b64_json": to_base64(data), "partial_image_index": shown, "created_at": int(time.time())}
                yield _event(f"{kind}.partial_image", partial | _about(job, fields))
                shown += 1
                continue
            seen = await job.next_change(seen)
        try:
            check(job)
        except Refusal as refusal:
            yield _event("error", {"error": {"message": refusal.detail, "type": "invalid_request_error", "code": None}})
            return
        for picture in job.pictures:
            data = await run_in_threadpool(encoded, picture, fields.form, fields.output_compression)
            done = {"b64_json": to_base64(data), "created_at": int(time.time()), "seed": picture.seed}
            usage = {"usage": await _usage(service, job)}
            yield _event(f"{kind}.completed", done | _about(job, fields) | usage)
    finally:
        service.queue.cancel(job)


def _event(kind: str, values: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"


def _about(job: Job, fields: Fields) -> dict[str, Any]:
    """Return what every answer tells of its pictures; the size only where they are finished."""
    size = "x".join(map(str, job.pictures[0].size)) if job.pictures else fields.size or "auto"
    return {
        "size": size, "quality": fields.quality or "auto", "background": "opaque",
        "output_format": fields.output_format or "png",
    }  # fmt: skip


async def _usage(service: Service, job: Job) -> dict[str, Any]:
    report = await run_in_threadpool(service.shelf.pipe.tokens, job.request.prompt)
    tokens = sum(sum(map(len, term.towers[0])) for _, terms in report.lines[:1] for term in terms)
    details = {"text_tokens": tokens, "image_tokens": 0}
    return {"input_tokens": tokens, "input_tokens_details": details, "output_tokens": 0, "total_tokens": tokens}
