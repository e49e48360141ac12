"""Ways to compute that a trial would choose or not, chosen; and levels of processor that this one has."""

import pytest

from latent_diffusion.runtime.cpu import packed_layers, packing
from latent_diffusion.runtime.cpu.native import attention, gated, library, training_attention, winograd
from latent_diffusion.runtime.cpu.native.library import ALLOWED, VARIABLE, Level

# plain C, AVX2 and the highest: those between differ in bfloat16, and in 8 bits, whose levels have tests of their own
LEVELS = [name for name, each in ALLOWED.items() if each <= Level.AVX2 or each == library.level()]


@pytest.fixture
def chosen(monkeypatch):
    """Choose packed layers and convolutions in C whatever this machine's trial says and however small the map is."""
    monkeypatch.setattr(packed_layers, "SMALLEST", 1)
    monkeypatch.setattr(packing, "conv_packs", packing.reorders)
    monkeypatch.setattr(packing, "linear_packs", packing.reorders)
    monkeypatch.setattr(winograd, "pays", lambda *, doubled: True)


@pytest.fixture(params=LEVELS if library.library() is not None else [])
def level(request, monkeypatch):
    """Let the kernels of one level compute, each where it exists, whether a trial would choose it or not."""
    if ALLOWED[request.param] > library.level():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(attention, "wins", lambda *_: True)
    monkeypatch.setattr(gated, "available", lambda: True)
    monkeypatch.setattr(training_attention, "available", lambda: True)
    with monkeypatch.context() as variables:
        variables.setenv(VARIABLE, request.param)
        library.level.cache_clear()
        yield ALLOWED[request.param]
    library.level.cache_clear()
