"""Draw any number of pictures, as many at a time as fit into memory, and write each batch as soon as it is done.

A picture depends on its own seed alone, so it is the same in any batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_diffusion.cli.arguments import given_of
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import LoadOptions, MachineOptions
from latent_diffusion.options.option import checked

if TYPE_CHECKING:
    from latent_diffusion.diffusion.level import Step
    from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline, Output

__all__ = ["batches", "steps_run"]

MOST_STEPS = 10**6  # that the bar counts; the pipeline refuses far fewer


@dataclass(frozen=True)
class Batch:
    """Pictures that are drawn together, for the command to draw and write."""

    pipe: "LatentDiffusionPipeline"
    prompts: Sequence[str]  # one a picture
    options: Mapping[str, Any]  # of the pipeline's drawing methods
    files: list[Path]  # one a picture
    named: bool  # whether the caller chose the file's name
    rows: bool = False  # whether files that exist are those of an earlier run

    def write(self, out: "Output") -> None:
        """Write what was drawn and print its paths."""
        from latent_diffusion.cli.picture_files import write_pictures

        new = [place for place, file in enumerate(self.files) if not (self.rows and file.exists())]
        images, records = ([values[place] for place in new] for values in (out.images, out.records))
        missing = replace(out, images=images, records=records)
        write_pictures(missing, [self.files[place] for place in new], named=self.named)


def batches(
    given: dict[str, Any],
    prompts: Sequence[str],
    *,
    label: str,
    steps: Callable[[int], int] = lambda steps: steps,
    keeps_pixels: bool = False,
    area: float = 1.0,
) -> "Iterator[Batch]":
    """Load the model and yield the pictures to draw, a bar moving while each batch is drawn.

    Args:
        given: the options of the command line by name, see `CommandOptions`, `Options` and `LoadOptions`.
        prompts: each is drawn `num_images` times.
        label: text of the progress bar.
        steps: from the steps asked for to those run.
        keeps_pixels: whether pixels of an input are promised to stay, which a lossy file ends.
        area: how many times the pixels of height times width are drawn at once.
    """
    from latent_diffusion.cli.live_preview import check_preview
    from latent_diffusion.cli.output import names_a_file, plan_files
    from latent_diffusion.cli.picture_files import seed_or_draw, warn_if_lossy
    from latent_diffusion.cli.progress import progress
    from latent_diffusion.cli.shared_rows import begin

    texts = [prompt for prompt in prompts for _ in range(given["num_images"])]
    share = begin(given, texts) if "resume" in given else None
    seed = seed_or_draw(given["seed"], len(texts))
    files = plan_files(given["output"], seed, len(texts)) if share is None else share.files
    if keeps_pixels:
        warn_if_lossy(files)
    if given["preview"]:
        check_preview(given["preview"])
    options = given_of(Options, given)
    checked(Options).read(options)  # before the model is loaded
    pipe, refiner = _pipelines(given)
    at_once = given["batch_size"] or (1 if share else _fitting(pipe, options, area))
    run = steps(options.get("num_inference_steps") or pipe.defaults.num_inference_steps)
    with ExitStack() as stack:
        show = _preview(pipe, given, stack)
        for first in range(0, len(texts), at_once):
            if share and not share.mine(first, at_once):
                continue
            some = slice(first, first + at_once)
            of = f" {first + 1}-{min(first + at_once, len(texts))} of {len(texts)}" if at_once < len(texts) else ""
            with progress(label + of, run) as move:
                own = {"refiner": refiner, "on_step": _both(move, show)}
                seeds = _seeds(options, seed, first, len(texts[some]))
                named = share is not None or names_a_file(given["output"])
                yield Batch(pipe, texts[some], options | seeds | own, files[some], named, share is not None)


def steps_run(steps: int, strength: float, *, exact: bool = False, resample: int = 0) -> int:
    """Return how many of `steps` the bar counts.

    Raises:
        ConfigError: strength outside [0, 1], or less than one step.
    """
    from latent_diffusion.pipeline.call.settings import steps_after_strength

    most = min(steps, MOST_STEPS)
    return (most if exact else steps_after_strength(most, strength)) * (1 + max(resample, 0))


def _pipelines(given: Mapping[str, Any]) -> "tuple[LatentDiffusionPipeline, LatentDiffusionPipeline | None]":
    """Return the model that draws, and the refiner where there is one."""
    from latent_diffusion.cli.picture_files import load_pipeline

    pipe = load_pipeline(given["model"], given_of(LoadOptions, given), given["lora"], given["embedding"])
    if not given["refiner"]:
        return pipe, None
    return pipe, load_pipeline(given["refiner"], given_of(MachineOptions, given))


def _seeds(options: Mapping[str, Any], seed: int, first: int, count: int) -> dict[str, list[int]]:
    """Return the seeds of `count` pictures, the first of which is picture `first` of the run."""
    if not options["variation_strength"]:
        return {"seed": _counted(seed, first, count)}
    seeds = {"seed": [seed] * count}  # of all pictures; only the other seed counts up
    if "variation_seed" in options:
        seeds["variation_seed"] = _counted(options["variation_seed"], first, count)
    return seeds


def _counted(seed: int, first: int, count: int) -> list[int]:
    return list(range(seed + first, seed + first + count))


def _fitting(pipe: "LatentDiffusionPipeline", options: Mapping[str, Any], area: float) -> int:
    """Return how many pictures of this size fit into the free memory together."""
    from latent_diffusion.runtime.memory import pictures_at_once, sampling_bytes

    parts = pipe.components
    pixels = (options.get("height") or pipe.defaults.height) * (options.get("width") or pipe.defaults.width)
    try:
        cells = int(pixels * area) // parts.autoencoder.factor**2
    except (OverflowError, ValueError):  # no size that there is, or no number: the pipeline refuses it by name
        return 1
    return pictures_at_once(sampling_bytes(parts.unet.config, cells), pipe.device)


def _preview(
    pipe: "LatentDiffusionPipeline", given: Mapping[str, Any], stack: ExitStack
) -> "Callable[[Step], None] | None":
    if given["preview"] is None:
        return None
    from latent_diffusion.cli.live_preview import preview_file

    show = pipe.preview(given["preview_kind"], given["preview_model"])
    return stack.enter_context(preview_file(given["preview"], show))


def _both(*actions: "Callable[[Step], None] | None") -> "Callable[[Step], None] | None":
    """Return a function that does each that is not None, or None where all are."""
    wanted = [action for action in actions if action is not None]

    def act(step: "Step") -> None:
        for action in wanted:
            action(step)

    return act if wanted else None
