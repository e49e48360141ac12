"""`latent-diffusion evaluate`: how good a model is, in figures and in pictures to look at."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_diffusion.cli.arguments import only, takes
from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import MachineOptions

if TYPE_CHECKING:
    from latent_diffusion.evaluation.composition.score import CompositionReport
    from latent_diffusion.evaluation.evaluate import Examined, Settings
    from latent_diffusion.evaluation.pictures import RealPictures
    from latent_diffusion.models.clip import CLIP
    from latent_diffusion.models.efficientnet_lite import EfficientNetLite0

__all__ = ["evaluate"]

ASKED, RESULT = "What is asked", "Result"


@takes(
    only(Options, "num_inference_steps", "guidance_scale", "guidance_interval", "sampler"),
    only(MachineOptions, "device", "dtype"),
)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="NAME|PATH", help="Bundled model's name, or a folder.")] = "emoji",
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="Real pictures: an image folder, or a .zip of one.")
    ] = Path("assets/emoji-128.zip"),
    prompts: Annotated[
        int, typer.Option(min=1, help="Largest number of prompts from the training set.", rich_help_panel=ASKED)
    ] = 300,
    images_per_prompt: Annotated[
        int, typer.Option("--images-per-prompt", "-k", min=1, help="Pictures for each prompt.", rich_help_panel=ASKED)
    ] = 4,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE,...",
            help="Use only prompts with these values, as in style=noto,fluent-3d or group=food-drink. Repeatable.",
            show_default="what the model was trained on",
            rich_help_panel=ASKED,
        ),
    ] = None,
    where_not: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE,...",
            help="Leave out prompts with these values.",
            show_default="as for --where",
            rich_help_panel=ASKED,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=2, help="Number of prompts of each kind, for a quick run.", show_default="all", rich_help_panel=ASKED
        ),
    ] = None,
    likelihood: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Number of pictures of each kind whose likelihood is computed; 0 leaves it out.",
            rich_help_panel=ASKED,
        ),
    ] = 0,
    composition: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts of combinations never trained on (assets/composition.jsonl); only they are measured.",
            show_default="not measured",
            rich_help_panel=ASKED,
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="CLIP of the CLIP figures: a model folder with clip/ and text_encoder/ (assets/emoji-first), or a "
            "folder of transformers' CLIPModel.",
            show_default="the model's own, if it has one",
            rich_help_panel=ASKED,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            "-s",
            min=0,
            max=2**32 - 1,
            help="Seed of the choice of prompts and of the pictures.",
            rich_help_panel=ASKED,
        ),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for evaluation.json and the picture sheets; must be new or empty.",
            show_default="outputs/evaluation-<time>",
            rich_help_panel=RESULT,
        ),
    ] = None,
    at_least: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE=VALUE",
            help="End with exit code 1 if a figure is lower, as in seen.name1=0.3. Repeatable.",
            show_default="no check",
            rich_help_panel=RESULT,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time.", rich_help_panel="Machine")] = 16,
    *,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    guidance_interval: tuple[float, float] | None,
    sampler: str | None,
    device: str | None,
    dtype: str,
) -> int:
    """Evaluate a model against real pictures.

    The autoencoder reconstructs held-out pictures (PSNR, rKID). The model draws prompts of its training set and
    prompts never seen, and each drawing is searched among the real pictures. Name@1 and Name@5: the concept is right.
    Style: the style is right. Joint@1: both are right. KID: distance from the set of real pictures. CLIP: similarity
    of pictures and prompts in the model's own CLIP or that of `--clip`, left out where there is none. Likelihood: bits
    of the real pictures' latents by the probability-flow ODE, with and without their captions. The rows below give the
    figures of real, degraded and copied pictures. Composition: drawings of a colour and a thing, a ground and a thing,
    counts, pairs and places that were never trained together, judged by measurement. Needs
    `pip install "latent_diffusion[eval]"`.

    **Examples**

    `latent-diffusion evaluate emoji --clip assets/emoji-first`

    `latent-diffusion evaluate emoji --composition assets/composition.jsonl`

    `latent-diffusion evaluate runs/mine --data my-pictures.zip --limit 20 -k 2 --steps 20`
    """
    from latent_diffusion.evaluation.trained_on import parse_filters, read_trained_on

    floors = _floors(at_least or [])
    given = parse_filters(where or []), parse_filters(where_not or [])
    import latent_diffusion.evaluation.evaluate as examination
    from latent_diffusion.checkpoint.locate import locate_model
    from latent_diffusion.cli.commands.evaluation_table import print_composition, print_tables
    from latent_diffusion.cli.picture_files import load_pipeline
    from latent_diffusion.cli.progress import parts_progress
    from latent_diffusion.evaluation.pictures import read_pictures
    from latent_diffusion.evaluation.pipeline_examined import examine_pipeline
    from latent_diffusion.evaluation.report_file import (
        COMPOSITION_FIGURES,
        FIGURES,
        composition_figures,
        figures,
        require_names,
        write_composition,
        write_report,
    )
    from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0

    require_names(floors, FIGURES if composition is None else COMPOSITION_FIGURES)
    place = locate_model(model)
    recorded, towers = read_trained_on(place), _clip(place, clip, floors, composition)
    network, pictures = load_efficientnet_lite0(), read_pictures(data)
    folder = _result_folder(output)
    pipe = load_pipeline(model, {"device": device, "dtype": dtype})
    towers = None if towers is None else towers.to(pipe.device)
    own = pipe.defaults
    drawing: dict[str, Any] = {
        "num_inference_steps": own.num_inference_steps if num_inference_steps is None else num_inference_steps,
        "guidance_scale": own.guidance_scale if guidance_scale is None else guidance_scale,
        "guidance_interval": guidance_interval,
        "sampler": sampler or own.sampler,
    }
    examined = examine_pipeline(pipe, place.name, clip=towers, **drawing)
    asked = examination.Settings(
        prompts=prompts,
        images_per_prompt=images_per_prompt,
        where=given[0] if where else recorded.where,
        where_not=given[1] if where or where_not else recorded.where_not,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        likelihood=likelihood,
    )
    if composition is not None:
        composed = _compose(composition, examined, pictures, network.to(pipe.device), asked, str(data))
        told = {"prompts": str(composition), "data": str(data), "seed": seed, **drawing}
        files = write_composition(composed, told, folder)
        print_composition(composed)
        return _end(files, composition_figures(composed), floors)
    with parts_progress() as progress:
        report = examination.evaluate(examined, pictures, network.to(pipe.device), asked, progress)
    settings = {
        "data": str(data),
        "prompts": prompts,
        "images_per_prompt": images_per_prompt,
        "where": dict(asked.where),
        "where_not": dict(asked.where_not),
        "limit": limit,
        "likelihood": likelihood,
        "clip": None if clip is None else str(clip),
        "seed": seed,
        **drawing,
    }
    files = write_report(report, settings, folder)
    print_tables(report)
    return _end(files, figures(report), floors)


def _end(files: Sequence[Path], found: Mapping[str, float], floors: Mapping[str, float]) -> int:
    """Name the files and the figures below their floors; return 1 if there is one, else 0."""
    from latent_diffusion.evaluation.report_file import check

    for file in files:
        typer.echo(file)
    failed = check(found, floors)
    for line in failed:
        typer.echo(f"check failed: {line}", err=True)
    return 1 if failed else 0


def _clip(place: Path, clip: Path | None, floors: dict[str, float], composition: Path | None) -> "CLIP | None":
    """Return the CLIP of the folder `clip`, else of the model's folder `place`; None where there is none.

    Raises:
        CheckpointError: the CLIP is missing or damaged.
        ConfigError: a figure of `floors` needs a CLIP that is not there, or a CLIP is given that no figure needs.
    """
    from latent_diffusion.checkpoint.folder.clip_folder import has_clip, open_clip

    if composition is not None:
        if clip is not None:
            raise ConfigError("--clip has no effect with --composition, whose figures need no CLIP; leave one out")
        return None
    if clip is not None or has_clip(place):
        return open_clip(clip or place)
    needed = [name for name in floors if name.endswith((".clip", ".clip_real"))]
    if needed:
        raise ConfigError(
            f"--at-least {needed[0]} needs a CLIP, {str(place)!r} has none; give one, e.g. --clip assets/emoji-first"
        )
    return None


def _compose(
    file: Path,
    examined: "Examined",
    pictures: "RealPictures",
    network: "EfficientNetLite0",
    asked: "Settings",
    data: str,
) -> "CompositionReport":
    """Return what the composition test of the prompts in `file` finds."""
    from latent_diffusion.cli.progress import parts_progress
    from latent_diffusion.evaluation.composition.prompts import KINDS, read_asked
    from latent_diffusion.evaluation.composition.score import make_judge, score_composition
    from latent_diffusion.evaluation.pictures import select

    prompts = read_asked(file)
    prompts = [one for kind in KINDS for one in [one for one in prompts if one.kind == kind][: asked.limit]]
    with parts_progress() as progress:
        judge = make_judge(network, pictures, select(pictures.rows, {**asked.where, "split": ["train"]}), progress)
        return score_composition(
            examined, prompts, judge, data, seed=asked.seed, batch_size=asked.batch_size, progress=progress
        )


def _floors(texts: list[str]) -> dict[str, float]:
    floors = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            floors[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"--at-least {text!r} is not of the form figure=number, as in seen.name1=0.3") from None
    return floors


def _result_folder(output: Path | None) -> Path:
    """Return the folder for the results, made and empty: found out before the long computation."""
    folder = output or Path("outputs") / time.strftime("evaluation-%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ResourceError(f"--output {str(folder)!r} is not empty; nothing is overwritten, choose another name")
        (folder / ".partial").touch()
        (folder / ".partial").unlink()
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise ResourceError(f"--output {str(folder)!r} cannot be written: {error.strerror or error}") from error
    return folder
