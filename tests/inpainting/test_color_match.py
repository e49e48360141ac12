"""Colours are matched on the ring around the hole, and on nothing else."""

import torch

from latent_diffusion.inpainting.color_match import match_colors


def scene():
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(1, 3, 60, 80, generator=generator) - 0.5
    hole = torch.zeros(1, 1, 60, 80)
    hole[..., 20:40, 20:50] = 1
    return original, hole


def test_a_tint_of_the_whole_drawing_is_undone():
    original, hole = scene()
    tint = torch.tensor([0.1, -0.2, 0.05]).reshape(1, 3, 1, 1)
    matched = match_colors(torch.cat([original * 0.8 + tint, original]), original, hole)
    torch.testing.assert_close(matched, original.expand(2, -1, -1, -1), rtol=0, atol=1e-5)


def test_what_is_in_the_hole_does_not_count():
    original, hole = scene()
    painted = torch.where(hole.bool(), torch.tensor(0.9), original)
    torch.testing.assert_close(match_colors(painted, original, hole), painted, rtol=0, atol=1e-5)
    hidden = torch.where(hole.bool(), torch.tensor(-1.0), original)
    assert torch.equal(match_colors(painted, original, hole), match_colors(painted, hidden, hole))


def test_without_surroundings_nothing_is_done():
    original, hole = scene()
    assert torch.equal(match_colors(original * 0.5, original, torch.ones_like(hole)), original * 0.5)


def test_a_flat_ring_does_not_raise_the_contrast_without_bound():
    original, hole = scene()
    painted = torch.where(hole.bool(), original, torch.tensor(0.25))
    matched = match_colors(painted, original, hole)
    inside = hole.expand_as(matched).bool()
    assert matched.isfinite().all() and matched.abs().max() <= 1
    assert matched[inside].std() <= 1.51 * painted[inside].std()
