"""From a `seed` or `generator` argument to one independent noise stream per image."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latent_diffusion.checks import MAX_SEED, check_number
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options

__all__ = ["Variation", "noise_for", "open_noise"]


@dataclass(frozen=True)
class Variation:
    """Other seeds whose noise is blended into that of every image."""

    seeds: list[int]  # one an image
    shares: list[float]  # of the way to them, above 0


def open_noise(options: Options, count: int) -> tuple[NoiseSource, list[int], Variation | None]:
    """Return the noise streams of `count` images, the seed of each, and the variation.

    Every draw of a variation is a spherical mean of the two streams' draws, so strength 1 is the picture of the other
    seed, whatever the sampler draws. An int `seed` is then that of all images: they vary one picture, and only the
    other seeds count up, as in A1111.

    Raises:
        ConfigError: seeds that cannot be, a strength outside [0, 1], or other seeds that could take no effect.
    """
    seed, generator, towards = options.get("seed"), options.get("generator"), options.get("variation_seed")
    asked = options.get("variation_strength")
    strength = check_number("variation_strength", 0.0 if asked is None else asked, 1.0)
    if not strength:
        if towards is not None:
            raise ConfigError("variation_seed without variation_strength changes nothing; give a strength above 0")
        return (*noise_for(seed, generator, count), None)
    if generator is not None:
        raise ConfigError("a variation is made of seeds; give `seed` instead of `generator`")
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool)):
        seed = [secrets.randbelow(MAX_SEED + 1) if seed is None else seed] * count
    noise, seeds = noise_for(seed, None, count)
    other, others = noise_for(towards, None, count)
    variation = Variation(others, [strength] * count)
    return noise.towards(other, variation.shares), seeds, variation


def noise_for(
    seed: int | Sequence[int] | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> tuple[NoiseSource, list[int]]:
    """Return the noise streams of `count` images and the seed of each.

    Args:
        seed: an int gives image k the seed + k; a list has one seed per image; None draws one.
        generator: used instead of seeds, as in diffusers: one per image, or one that all images draw from in turn.
        count: number of images.

    Raises:
        ConfigError: both given, a seed that is no int in 0 .. 2^32 - 1, or a list of another length.
    """
    if generator is not None:
        if seed is not None:
            raise ConfigError("`seed` and `generator` exclude each other; give one of them")
        one = isinstance(generator, torch.Generator)
        generators = [generator] * count if one else list(generator) if isinstance(generator, Sequence) else []
        if not generators or not all(isinstance(g, torch.Generator) for g in generators):
            raise ConfigError(
                f"generator {generator!r} is not a torch.Generator; give one, or a list with one per image"
            )
        _check_length("generator", len(generators), count)
        return NoiseSource(generators), [g.initial_seed() for g in generators]
    if seed is None:
        seed = secrets.randbelow(MAX_SEED - count + 2)
    if isinstance(seed, int) and not isinstance(seed, bool):
        seeds = [_checked(seed) + k for k in range(count)]
        if seeds[-1] > MAX_SEED:
            raise ConfigError(
                f"seed {seed} is out of range for {count} images, whose seeds count up from it; "
                f"use 0 to {MAX_SEED - count + 1}"
            )
    elif isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = [_checked(value) for value in seed]
        _check_length("seed", len(seeds), count)
    else:
        raise ConfigError(f"seed {seed!r} is no integer; use 0 to {MAX_SEED}, a list of them, or None")
    return NoiseSource(seeds), seeds


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed {seed!r} is no integer; use 0 to {MAX_SEED}")
    if not 0 <= seed <= MAX_SEED:
        low = f"; a tool that draws on the CPU reads its low 32 bits, {seed % (MAX_SEED + 1)}" if seed > 0 else ""
        raise ConfigError(f"seed {seed} is out of range; use 0 to {MAX_SEED}{low}")
    return seed


def _check_length(name: str, found: int, count: int) -> None:
    if found != count:
        raise ConfigError(f"`{name}` has {found} entries for {count} images; give one per image")
