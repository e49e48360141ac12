"""The worker's part: from jobs of one shape to their pictures, so many at once as fit into memory."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latent_diffusion.diffusion.level import Step
from latent_diffusion.errors import ResourceError
from latent_diffusion.inpainting.masks import grow, load_mask
from latent_diffusion.options.option import checked
from latent_diffusion.options.tasks import HiresOptions, RepaintingOptions
from latent_diffusion.pipeline.call.settings import steps_after_strength
from latent_diffusion.pipeline.engine.output import Output
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.provenance.infotext import write_infotext
from latent_diffusion.provenance.picture_file import encode_picture, write_bytes
from latent_diffusion.runtime.memory import pictures_at_once, sampling_bytes
from latent_diffusion.server.drawing.job import Cancelled, Job, Picture
from latent_diffusion.server.drawing.shelf import Shelf
from latent_diffusion.server.limits import ServeSettings
from latent_diffusion.server.notes import collected
from latent_diffusion.server.request import TASKS, Request

__all__ = ["Drawer", "check_output", "steps_of"]


@dataclass(frozen=True)
class _Row:
    """One picture of a batch."""

    job: Job
    number: int  # of the picture in its job


class Drawer:
    """Draws jobs with the models of a shelf."""

    def __init__(self, shelf: Shelf, settings: ServeSettings) -> None:
        self.shelf = shelf
        self._settings = settings

    def draw(self, jobs: Sequence[Job]) -> None:
        """Draw jobs whose requests have one shape, and move each on to "done".

        Raises:
            LatentDiffusionError, Refusal: a request that cannot be drawn, of one of the jobs.
        """
        jobs = [job for job in jobs if not job.finished]
        if not jobs:
            return
        first = jobs[0].request
        with collected() as notes:
            pipe = self.shelf.take(first.model)
            steps, at_once = steps_of(pipe, first), self._fitting(pipe, first)
            rows = [_Row(job, number) for job in jobs for number in range(job.request.num_images)]
            chunks = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
            for job in jobs:
                own = sum(any(row.job is job for row in chunk) for chunk in chunks)
                job.change(status="drawing", steps=steps * own, step=0, pictures=[], started=time.monotonic())
            for chunk in chunks:
                self._draw_rows(pipe, [row for row in chunk if not (row.job.finished or row.job.stopping)])
                self._end(jobs, rows, notes)

    def _end(self, jobs: Sequence[Job], rows: Sequence[_Row], notes: Sequence[str]) -> None:
        """Finish the jobs that have all their pictures, or were stopped and have one."""
        for job in jobs:
            if not job.finished and (len(job.pictures) == job.request.num_images or job.stopping):
                job.change(status="done", latest=None, notes=[*job.notes, *notes])

    def _draw_rows(self, pipe: LatentDiffusionPipeline, rows: Sequence[_Row]) -> None:
        if not rows:
            return
        jobs = list(dict.fromkeys(row.job for row in rows))
        before = {job: job.step for job in jobs}
        counts = [sum(row.job is job for row in rows) for job in jobs]  # the rows of a job lie side by side

        def on_step(step: Step) -> bool | None:
            for job, latest in zip(jobs, step.x0.clone().split(counts), strict=True):
                if not job.finished:
                    job.change(step=before[job] + step.index + 1, latest=latest)
            left = [job for job in jobs if not job.finished]
            if not left:
                raise Cancelled
            return False if all(job.stopping or job.skipping for job in left) else None

        request = jobs[0].request
        own = [row.job.request.arguments(row.number) for row in rows]
        columns: dict[str, Any] = {name: [values[name] for values in own] for name in own[0]}
        folder = self._settings.lora_folder
        options = {**request.options, "on_step": on_step, **({} if folder is None else {"lora_folder": folder})}
        pictures = {"image": request.image, "mask_image": request.mask}
        given = {name: picture for name, picture in pictures.items() if picture is not None}
        try:
            out: Output = _method(pipe, request.task)(columns.pop("prompt"), **given, **columns, **options)
        except Cancelled:
            return
        for row, picture in zip(rows, self._finished(out, request), strict=True):
            if not row.job.finished:
                row.job.change(pictures=[*row.job.pictures, picture], skipping=False)

    def _finished(self, out: Output, request: Request) -> list[Picture]:
        """Return the drawn pictures as PNG, written into the output folder where there is one."""
        kept = _kept_pixels(request)
        pictures = []
        for image, record, seed in zip(out.images, out.records, out.seeds, strict=True):
            assert isinstance(image, Image.Image), 'output_type "pil" gives pictures'
            png = encode_picture(image, "PNG", record)
            changed = None if kept is None else _changed(image, *kept)
            name = self._write(png, seed)
            pictures.append(Picture(png, seed, record, write_infotext(record), image.size, name, changed))
        return pictures

    def _write(self, png: bytes, seed: int) -> str | None:
        """Write a picture into the output folder under a new name, and return the name."""
        if self._settings.output is None:
            return None
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
        for name in (f"{stem}.png", f"{stem}-{secrets.token_hex(4)}.png"):
            try:
                write_bytes(png, self._settings.output / name)
                return name
            except ResourceError as error:
                if not isinstance(error.__cause__, FileExistsError):
                    raise
        return None

    def _fitting(self, pipe: LatentDiffusionPipeline, request: Request) -> int:
        """Return how many pictures of the request's size fit into the free memory together."""
        parts, options = pipe.components, request.options
        pixels = options.get("height", pipe.defaults.height) * options.get("width", pipe.defaults.width)
        if request.task == "hires":
            pixels *= checked(HiresOptions)(**request.options).scale ** 2
        cells = int(pixels) // parts.autoencoder.factor**2
        return pictures_at_once(sampling_bytes(parts.unet.config, cells), pipe.device)


def _method(pipe: LatentDiffusionPipeline, task: str) -> Any:
    return pipe if task == "text_to_image" else getattr(pipe, task)


def steps_of(pipe: LatentDiffusionPipeline, request: Request) -> int:
    """Return how many steps the sampler takes for each picture, both passes counted.

    Raises:
        ConfigError: options that the model cannot follow; nothing is drawn to find that out.
    """
    options: Any = checked(TASKS[request.task])(**request.options)
    own = {name: value for name, value in request.options.items() if name in TASKS["text_to_image"].__annotations__}
    steps = pipe.engine.settings(own).num_inference_steps  # pyright: ignore[reportArgumentType]
    if request.task == "text_to_image":
        return steps
    if request.task == "hires":
        return steps + steps_after_strength(options.hires_steps or steps, options.hires_strength)
    run = steps if options.exact_steps else steps_after_strength(steps, options.strength)
    return max(run, 1) * (1 + getattr(options, "resample", 0))


def _kept_pixels(request: Request) -> tuple[np.ndarray, np.ndarray, tuple[int, int]] | None:
    """Return the picture's pixels (H, W, 3), where they must stay (H, W), and their place in the result."""
    if request.task not in ("inpaint", "outpaint") or request.image is None:
        return None
    pixels = np.asarray(request.image.convert("RGB"))
    if request.task == "outpaint":
        return pixels, np.ones(pixels.shape[:2], bool), (request.options.get("left", 0), request.options.get("top", 0))
    own = {name: value for name, value in request.options.items() if name in RepaintingOptions.__annotations__}
    how = checked(RepaintingOptions)(**own)
    mask = load_mask(
        request.image if request.mask is None else request.mask,
        request.image.size,
        how.mask_mode,
        how.mask_channel,
        invert=how.mask_invert,
    )
    return pixels, grow(mask, how.mask_grow) == 0, (0, 0)


def _changed(image: Image.Image, pixels: np.ndarray, stay: np.ndarray, place: tuple[int, int]) -> int:
    """Return how many of the pixels that must stay differ in `image`."""
    left, top = place
    height, width = stay.shape
    now = np.asarray(image.convert("RGB"))[top : top + height, left : left + width]
    return int(((now != pixels).any(-1) & stay).sum())


def check_output(folder: Path | None) -> None:
    """Make the output folder and write a file into it, so that a wrong one is found before anything is drawn.

    Raises:
        ResourceError: it cannot be written.
    """
    if folder is None:
        return
    probe = folder / f".partial-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"--output {str(folder)!r} cannot be written: {error.strerror or error}") from error
