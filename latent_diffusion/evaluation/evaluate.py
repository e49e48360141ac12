"""The whole examination of a text-to-image model on a data set of real pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.evaluation.caption_bits import LatentLikelihood, LikelihoodScore, score_likelihood
from latent_diffusion.evaluation.clip_score import ImageTextModel
from latent_diffusion.evaluation.copying import CopyingScore, score_copying
from latent_diffusion.evaluation.drawn import Drawings, DrawingScore, Generate, draw, score_drawings
from latent_diffusion.evaluation.gallery import Gallery, Progress, build_gallery, ignore_progress
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import Picture, RealPictures, select
from latent_diffusion.evaluation.reconstruction import Reconstruct, ReconstructionScore, score_reconstruction
from latent_diffusion.evaluation.reference import ReferenceRow, reference_rows
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0
from latent_diffusion.randomness import permutation

__all__ = ["Examined", "Report", "Settings", "evaluate"]

UNSEEN_SPLITS = ("test_comp", "test")
"""Splits whose concepts the training set has in other styles: prompts never seen."""


@dataclass(frozen=True)
class Examined:
    """A model as the examination sees it.

    Attributes:
        name: for the report.
        size: side of its pictures, px.
        generate: prompts and seeds to images.
        reconstruct: images through its autoencoder and back; None leaves that part out.
        clip: its CLIP model; None leaves the CLIP score out.
        likelihood: of pictures under it; None leaves that part out.
    """

    name: str
    size: int
    generate: Generate
    reconstruct: Reconstruct | None = None
    clip: ImageTextModel | None = None
    likelihood: LatentLikelihood | None = None


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Attributes:
        prompts: at most so many prompts of the training set, drawn with `seed`.
        images_per_prompt: pictures for each prompt.
        where: the part of the data the model was trained on: field -> accepted values.
        where_not: field -> values left out.
        limit: at most so many prompts of each kind and pictures to reconstruct, for a quick look; None = all. The real
            pictures that are searched are always all of them: fewer would make the search easier.
        seed: of the choice of prompts and of the pictures.
        batch_size: pictures drawn at a time.
        grid: prompts on each sheet.
        likelihood: pictures of each kind whose likelihood is computed; 0 leaves it out.
    """

    prompts: int = 300
    images_per_prompt: int = 4
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    where_not: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    batch_size: int = 16
    grid: int = 24
    likelihood: int = 0


@dataclass(frozen=True)
class Report:
    """What was found. `seen`/`unseen` are prompts of the training set / never seen; `references` belong to `unseen`.

    `seen_grid` and `unseen_grid` show the real picture above the drawn ones, `nearest_grid` each drawing below the
    training picture nearest to it.
    """

    model: str
    size: int
    reconstruction: ReconstructionScore | None
    seen: DrawingScore | None
    unseen: DrawingScore | None
    copying: CopyingScore | None
    seen_likelihood: LikelihoodScore | None
    unseen_likelihood: LikelihoodScore | None
    references: list[ReferenceRow]
    seen_grid: Image.Image | None
    unseen_grid: Image.Image | None
    nearest_grid: Image.Image | None


def evaluate(
    model: Examined,
    pictures: RealPictures,
    network: EfficientNetLite0,
    settings: Settings,
    progress: Progress = ignore_progress,
) -> Report:
    """Examine a model: its autoencoder, then what it draws for prompts it was trained on and for new ones.

    Raises:
        ConfigError: a filter that no picture passes, or a number that cannot be.
        DataError: no picture is left, or one cannot be read.
    """
    if min(settings.prompts, settings.images_per_prompt, settings.batch_size, settings.limit or 1) < 1:
        raise ConfigError("prompts, images per prompt, limit and batch size must be at least 1")
    chosen = select(pictures.rows, settings.where)
    for name, values in settings.where_not.items():
        left_out = {row.file for row in select(pictures.rows, {name: values})}
        chosen = [row for row in chosen if row.file not in left_out]
    most = settings.prompts if settings.limit is None else min(settings.prompts, settings.limit)
    seen = _some([row for row in chosen if row.split == "train"], most, settings.seed)
    unseen = _some([row for row in chosen if row.split in UNSEEN_SPLITS], settings.limit, settings.seed)
    if not seen and not unseen:
        raise DataError(f"{pictures.where}: no picture of the training set and none held out passes the filter")
    reconstruction = None
    held_out = _some([row for row in pictures.rows if row.split != "train"], settings.limit, settings.seed)
    if model.reconstruct is not None and len(held_out) > 1:
        reconstruction = score_reconstruction(network, model.reconstruct, pictures, held_out, model.size, progress)
    gallery = build_gallery(network, pictures, progress)
    drawn, score = _examine(network, gallery, model, seen, settings, progress)
    drawn_new, score_new = _examine(network, gallery, model, unseen, settings, progress)
    trained = [row for row in chosen if row.split == "train"]
    copying = score_copying(pictures, drawn, trained, progress) if drawn and len(trained) > 1 else None
    return Report(
        model=model.name,
        size=model.size,
        reconstruction=reconstruction,
        seen=score,
        unseen=score_new,
        copying=copying,
        seen_likelihood=_likelihood(model, pictures, seen, settings, progress),
        unseen_likelihood=_likelihood(model, pictures, unseen, settings, progress),
        references=reference_rows(network, gallery, unseen),
        seen_grid=_sheet(pictures, drawn, settings.grid),
        unseen_grid=_sheet(pictures, drawn_new, settings.grid),
        nearest_grid=_nearest_sheet(pictures, drawn, trained, copying),
    )


def _some(rows: list[Picture], count: int | None, seed: int) -> list[Picture]:
    """Return at most `count` rows in an order drawn with `seed`: the same rows in every run."""
    order = permutation(seed, "evaluation prompts", 0, len(rows))
    return [rows[k] for k in order[:count]]


def _examine(
    network: EfficientNetLite0,
    gallery: Gallery,
    model: Examined,
    asked: list[Picture],
    settings: Settings,
    progress: Progress,
) -> tuple[Drawings | None, DrawingScore | None]:
    if not asked:
        return None, None
    drawings = draw(model.generate, asked, settings.images_per_prompt, settings.seed, settings.batch_size, progress)
    return drawings, score_drawings(network, gallery, drawings, model.clip)


def _likelihood(
    model: Examined,
    pictures: RealPictures,
    rows: list[Picture],
    settings: Settings,
    progress: Progress,
) -> LikelihoodScore | None:
    rows = rows[: settings.likelihood]
    if model.likelihood is None or len(rows) < 2:
        return None
    return score_likelihood(model.likelihood, pictures, rows, model.size, settings.batch_size, progress)


def _sheet(pictures: RealPictures, drawings: Drawings | None, count: int) -> Image.Image | None:
    if drawings is None:
        return None
    asked = drawings.asked[:count]
    real = to_pil(pictures.load(asked, drawings.images.shape[-1]))
    drawn = to_pil(drawings.images[: len(asked) * drawings.per_prompt])
    step = drawings.per_prompt
    columns = [Column(row.text, real[k], drawn[k * step : (k + 1) * step]) for k, row in enumerate(asked)]
    return draw_grid(columns)


def _nearest_sheet(
    pictures: RealPictures, drawings: Drawings | None, trained: Sequence[Picture], copying: CopyingScore | None
) -> Image.Image | None:
    if drawings is None or copying is None:
        return None
    found = [trained[number] for number in copying.found]
    real = to_pil(pictures.load(found, drawings.images.shape[-1]))
    drawn = to_pil(drawings.images[:: drawings.per_prompt][: copying.pictures])
    columns = [Column(row.text, real[k], [drawn[k]]) for k, row in enumerate(drawings.asked[: copying.pictures])]
    return draw_grid(columns, per_row=20)
