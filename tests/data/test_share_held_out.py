"""A share of a data set is held out: by the names of the pictures, whatever else lies beside them."""

import pytest
from PIL import Image

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.errors import ConfigError, DataError


def photos(folder, names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (16, 16), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    return folder


def both(folder, share):
    """The pictures that are trained on, and those held out."""
    config = DataConfig.model_validate({"path": str(folder), "size": 16, "flip": True})
    made = ImageFolder(config.trained_on(share), 0), ImageFolder(config.held_out(share), 1)
    assert made[0].flips(0) and not made[1].flips(0) and made[0].digest != made[1].digest
    return tuple({row["file_name"] for row in data.rows} for data in made)


def test_each_picture_is_on_one_side_and_stays_there(tmp_path):
    names = [f"{k:03}" for k in range(60)]
    trained, held = both(photos(tmp_path / "few", names[20:50]), 0.3)
    assert not trained & held and len(trained | held) == 30 and 3 <= len(held) <= 15
    more_trained, more_held = both(photos(tmp_path / "few", reversed(names)), 0.3)
    assert trained < more_trained and held < more_held and len(more_trained | more_held) == 60
    assert held < both(tmp_path / "few", 0.6)[1]


def test_a_share_that_leaves_a_side_empty_is_refused(tmp_path):
    config = DataConfig.model_validate({"path": str(photos(tmp_path / "two", "ab")), "size": 16})
    with pytest.raises(DataError, match=r"0\.001 of 2 pictures holds none out"):
        ImageFolder(config.held_out(0.001), 0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        config.trained_on(1.0)
    with pytest.raises(DataError, match="leaves none to train on"):
        ImageFolder(config.trained_on(0.999), 0)
