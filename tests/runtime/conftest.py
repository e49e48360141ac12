"""Ways to compute that a trial would choose or not, chosen."""

import pytest

from latent_diffusion.runtime.cpu import packed_layers, packing
from latent_diffusion.runtime.cpu.native import winograd


@pytest.fixture
def chosen(monkeypatch):
    """Choose packed layers and convolutions in C whatever this machine's trial says and however small the map is."""
    monkeypatch.setattr(packed_layers, "SMALLEST", 1)
    monkeypatch.setattr(packing, "conv_packs", packing.reorders)
    monkeypatch.setattr(packing, "linear_packs", packing.reorders)
    monkeypatch.setattr(winograd, "pays", lambda *, doubled: True)
