"""The pictures and the judge that the experiments of docs/science/ share: the bundled model's styles and groups."""

from dataclasses import replace

from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.evaluation.gallery import Gallery, build_gallery
from latent_diffusion.evaluation.pictures import Picture, RealPictures, read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite0

__all__ = ["held_out", "judge", "pictures_of_the_model"]


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
    """Return the network that the model was not trained with, and the search among the real pictures."""
    network = load_efficientnet_lite0()
    return network, build_gallery(network, pictures)
