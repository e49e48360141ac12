"""Randomness with a key instead of a state.

Every random decision of training (order, noise, t, caption, dropout, crop, flip, mask) is a pure function of
(seed, purpose, index), where `index` is the number of samples the run had drawn before this one. So a resumed run
equals an uninterrupted one, and any number of processes sharing one global batch makes the same draws.

The generator is numpy's Philox, keyed with a 128-bit hash (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"). `NoiseSource` in `diffusion/noise.py` is the counterpart for sampling pictures.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["generator", "normal", "permutation", "uniform"]


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Return the generator of one decision; equal arguments give equal streams on every machine."""
    key = hashlib.blake2b(f"{seed}\0{purpose}\0{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def uniform(seed: int, purpose: str, index: int) -> float:
    """Return one float64 in [0, 1)."""
    return float(generator(seed, purpose, index).random())


def permutation(seed: int, purpose: str, index: int, count: int) -> np.ndarray:
    """Return a permutation of 0 .. count - 1, int64 (count,)."""
    return generator(seed, purpose, index).permutation(count)


def normal(seed: int, purpose: str, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return one standard normal tensor per index, float32 (len(indices), *shape), on the CPU."""
    draws = [generator(seed, purpose, i).standard_normal(tuple(shape), dtype=np.float32) for i in indices]
    return torch.from_numpy(np.stack(draws))
