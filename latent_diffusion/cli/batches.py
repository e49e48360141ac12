"""Draw any number of pictures, as many at a time as fit into memory, and write each batch as soon as it is done.

A picture depends on its own seed alone, so it is the same in any batch.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from latent_diffusion.cli.options.drawing import Drawing

if TYPE_CHECKING:
    from latent_diffusion.diffusion.level import Step
    from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline, Output

__all__ = ["draw_pictures"]


def draw_pictures(
    drawing: Drawing,
    prompts: Sequence[str],
    *,
    label: str,
    method: "Callable[[LatentDiffusionPipeline], Callable[..., Output]]",
    steps: Callable[[int], int] = lambda steps: steps,
    keeps_pixels: bool = False,
    area: float = 1.0,
) -> None:
    """Load the model, draw every picture, write it and print its path.

    Args:
        drawing: the options of the command line.
        prompts: each is drawn `drawing.num_images` times.
        label: what the progress bar says.
        method: from the pipeline to its drawing method, with the command's own arguments bound.
        steps: from the steps asked for to those run.
        keeps_pixels: whether pixels of an input are promised to stay, which a lossy file ends.
        area: how many times the pixels of height times width are drawn at once.
    """
    from latent_diffusion.cli.live_preview import check_preview
    from latent_diffusion.cli.output import names_a_file, plan_files
    from latent_diffusion.cli.picture_files import seed_or_draw, warn_if_lossy, write_pictures
    from latent_diffusion.cli.progress import progress

    texts = [prompt for prompt in prompts for _ in range(drawing.num_images)]
    seed = seed_or_draw(drawing.seed, len(texts))
    files = plan_files(drawing.output, seed, len(texts))
    if keeps_pixels:
        warn_if_lossy(files)
    if drawing.preview:
        check_preview(drawing.preview)
    pipe, refiner = _pipelines(drawing)
    draw, at_once = method(pipe), drawing.batch_size or _fitting(pipe, drawing, area)
    run = steps(drawing.steps or pipe.defaults.num_inference_steps)
    with ExitStack() as stack:
        show = _preview(pipe, drawing, stack)
        for first in range(0, len(texts), at_once):
            some = slice(first, first + at_once)
            of = f" {first + 1}-{min(first + at_once, len(texts))} of {len(texts)}" if at_once < len(texts) else ""
            with progress(label + of, run) as move:
                on_step = _both(move, show)
                out = draw(
                    texts[some], **_options(drawing, seed, first, len(texts[some])), refiner=refiner, on_step=on_step
                )
            write_pictures(out, files[some], named=names_a_file(drawing.output))


def _pipelines(drawing: Drawing) -> "tuple[LatentDiffusionPipeline, LatentDiffusionPipeline | None]":
    """Return the model that draws, and the refiner where there is one."""
    from latent_diffusion.cli.picture_files import load_pipeline

    how = drawing.machine() | drawing.reading()
    pipe = load_pipeline(drawing.model, drawing.device, drawing.dtype, drawing.lora, drawing.embedding, how)
    if not drawing.refiner:
        return pipe, None
    return pipe, load_pipeline(drawing.refiner, drawing.device, drawing.dtype, machine=drawing.machine())


def _options(drawing: Drawing, seed: int, first: int, count: int) -> dict[str, Any]:
    """Return the options of `count` pictures, the first of which is picture `first` of the run."""
    options = drawing.options() | {"num_images_per_prompt": 1, "seed": _counted(seed, first, count)}
    if drawing.variation_strength:  # then one seed is that of all pictures, and only the other counts up
        options["seed"] = [seed] * count
        if drawing.variation_seed is not None:
            options["variation_seed"] = _counted(drawing.variation_seed, first, count)
    return options


def _counted(seed: int, first: int, count: int) -> list[int]:
    return list(range(seed + first, seed + first + count))


def _fitting(pipe: "LatentDiffusionPipeline", drawing: Drawing, area: float) -> int:
    """Return how many pictures of this size fit into the free memory together."""
    from latent_diffusion.runtime.memory import pictures_at_once, sampling_bytes

    parts = pipe.components
    pixels = (drawing.height or pipe.defaults.height) * (drawing.width or pipe.defaults.width)
    try:
        cells = int(pixels * area) // parts.autoencoder.factor**2
    except (OverflowError, ValueError):  # no size that there is, or no number: the pipeline refuses it by name
        return 1
    return pictures_at_once(sampling_bytes(parts.unet.config, cells), pipe.device)


def _preview(pipe: "LatentDiffusionPipeline", drawing: Drawing, stack: ExitStack) -> "Callable[[Step], None] | None":
    if drawing.preview is None:
        return None
    from latent_diffusion.cli.live_preview import preview_file

    return stack.enter_context(preview_file(drawing.preview, pipe.preview(drawing.preview_kind, drawing.preview_model)))


def _both(*actions: "Callable[[Step], None] | None") -> "Callable[[Step], None] | None":
    """Return a function that does each that is not None, or None where all are."""
    wanted = [action for action in actions if action is not None]

    def act(step: "Step") -> None:
        for action in wanted:
            action(step)

    return act if wanted else None
