"""What the pictures of a job look like so far, as a small JPEG or as PIL pictures."""

import io

from PIL import Image
from starlette.concurrency import run_in_threadpool

from latent_diffusion.server.drawing.job import Job
from latent_diffusion.server.drawing.shelf import Shelf

__all__ = ["unfinished_jpeg", "unfinished_pictures"]

MOST = 4  # pictures of a job that are shown, side by side
SIDE = 768  # px, the longest side of what is shown
QUALITY = 85


async def unfinished_pictures(shelf: Shelf, job: Job) -> list[Image.Image]:
    """Return the estimates of a job's pictures that are being drawn; [] before the first step and after the last."""
    latest = job.latest
    return [] if latest is None else await run_in_threadpool(lambda: shelf.preview()(latest[:MOST]))


async def unfinished_jpeg(shelf: Shelf, job: Job) -> bytes | None:
    """Return the estimates side by side as JPEG; None where there are none."""
    pictures = await unfinished_pictures(shelf, job)
    return await run_in_threadpool(_sheet, pictures) if pictures else None


def _sheet(pictures: list[Image.Image]) -> bytes:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (width * k, 0))
    sheet.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
