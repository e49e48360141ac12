import pytest
import torch

from latent_diffusion.evaluation.copying import score_copying
from latent_diffusion.evaluation.drawn import Drawings
from latent_diffusion.evaluation.pictures import read_pictures


@pytest.fixture
def trained(folder):
    pictures = read_pictures(folder)
    return pictures, [row for row in pictures.rows if row.split == "train"]


def test_a_copy_is_found_at_distance_zero(trained):
    pictures, rows = trained
    asked = tuple(rows[3:6])
    score = score_copying(pictures, Drawings(asked, pictures.load(asked, 32), 1), rows)
    assert score.found == (3, 4, 5)
    assert score.nearest == pytest.approx(0, abs=0.1)
    assert score.copies == 1
    assert score.between > 1


def test_distances_are_grey_levels(trained):
    pictures, rows = trained
    images = (pictures.load(rows[:1], 32) - 10 / 127.5).clamp(min=-1)
    white = images[:, :1].mean() > -1  # the pictures are not black, so the shift is not clipped away everywhere
    assert white
    score = score_copying(pictures, Drawings(tuple(rows[:1]), images, 1), rows)
    assert 1 < score.nearest <= 10.01


def test_noise_is_no_copy(trained):
    pictures, rows = trained
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    score = score_copying(pictures, Drawings(tuple(rows[:2]), images, 2), rows)
    assert score.pictures == 2
    assert score.copies == 0
