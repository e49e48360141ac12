"""The pictures and the judge that the experiments of docs/science/ share: the bundled model's styles and groups."""

from dataclasses import fields, replace
from pathlib import Path

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.evaluation.degrade import DEGRADATIONS
from latent_diffusion.evaluation.features import Features
from latent_diffusion.evaluation.gallery import Gallery, features_of
from latent_diffusion.evaluation.pictures import Picture, RealPictures, read_pictures, select
from latent_diffusion.evaluation.retrieval import Retrieval
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite0

__all__ = ["held_out", "judge", "pictures_of_the_model"]

KEPT = Path("runs/science/judge")
AT_ONCE = 300  # pictures whose features are measured and kept together


def pictures_of_the_model() -> RealPictures:
    """Return the pictures of the styles and groups that the bundled model draws, of every split."""
    pictures = read_pictures("assets/emoji-128.zip")
    where = {name: values for name, values in read_trained_on(locate_model("emoji")).where.items() if name != "split"}
    return replace(pictures, rows=tuple(select(pictures.rows, where)))


def held_out(pictures: RealPictures, count: int, first: int = 0) -> list[Picture]:
    """Return about `count` pictures, evenly spaced in file order, that the model was not trained on."""
    rows = [row for row in pictures.rows if row.split in ("val", "test_comp")]
    return rows[first :: max(1, len(rows) // count)][:count]


def judge(pictures: RealPictures) -> tuple[EfficientNetLite0, Gallery]:
    """Return a network that the model was not trained with, and the search among the real pictures.

    As `build_gallery`, with one degraded copy of every sixth training picture, and with the features kept in
    runs/science/judge/, so that several experiments, or a second start, measure them once.
    """
    network = load_efficientnet_lite0()
    features = _kept(network, pictures, pictures.rows, "real")
    train = [row for row in pictures.rows if row.split == "train"][::6]
    shares = [train[k :: len(DEGRADATIONS)] for k in range(len(DEGRADATIONS))]
    copies = [_kept(network, pictures, rows, how, how) for rows, how in zip(shares, DEGRADATIONS, strict=True)]
    styles = [row.style for rows in shares for row in rows]
    return network, Gallery(pictures, features, Retrieval(pictures.rows, features, Features.cat(copies), styles))


def _kept(
    network: EfficientNetLite0, pictures: RealPictures, rows: tuple[Picture, ...] | list[Picture], name: str,
    how: str | None = None,
) -> Features:  # fmt: skip
    """Return the features of `rows`, from the files of an earlier run where they are there."""
    parts = list[Features]()
    KEPT.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), AT_ONCE):
        file = KEPT / f"{name}-{len(rows)}-{start}.safetensors".replace(" ", "-")
        if not file.exists():
            made = features_of(network, pictures, rows[start : start + AT_ONCE], how=how)
            write_tensors(file, {field.name: getattr(made, field.name).contiguous() for field in fields(Features)})
        parts.append(Features(**read_tensors(file)))
    return Features.cat(parts)
