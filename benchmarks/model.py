"""The models that are measured: a family's true sizes with random weights, made in memory, or a model on disk.

Random weights come from names and shapes alone, so every process makes the same ones and nothing is copied between
them. Each tensor is drawn, cast and kept before the next: no float32 copy of the whole stands beside a bfloat16 one.
"""

import importlib
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.checkpoint.locate import bundled_models
from latent_diffusion.families import FAMILIES, tiny
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latent_diffusion.models.text_config import TextConfig
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.models.unet import UNet, UNetConfig
from latent_diffusion.registry import names

__all__ = ["ALL", "RandomModel", "Source", "StoredModel", "open_model", "random_weights"]

ALL = ("unet", "autoencoder", "text_encoder")
BIAS = 0.02  # largest bias, and distance of a norm's weight from 1: all of them take part in the result

Module = TypeVar("Module", bound=nn.Module)


class StoredModel:
    """A model on disk."""

    def __init__(self, name: str) -> None:
        """Find it."""
        self.name = name

    @cached_property
    def described(self) -> Components:
        """The parts as they are stored, to be counted and asked, not run."""
        return load_model(self.name, None)

    def build(self, parts: Collection[str], dtype: torch.dtype) -> Components:
        """Return the whole model, which holds the named `parts`: the U-Net in `dtype`, the rest in float32."""
        return load_model(self.name, lambda weights: dtype)


class RandomModel:
    """A family with random weights; what is not asked for is tiny."""

    def __init__(self, family: str) -> None:
        """Read the family's sizes."""
        self.values: Any = importlib.import_module(f"{FAMILIES}.{family}")
        self.family = family
        width = self.values.UNET.cross_attention_dim
        self.towers = getattr(self.values, "TEXT", (TextConfig(width=width, layers=2, heads=2),))

    @cached_property
    def described(self) -> Components:
        """The parts in their true sizes on the meta device, to be counted and asked."""
        with torch.device("meta"):
            return self._components(UNet(self.values.UNET), AutoencoderKL(self.values.AUTOENCODER), self._text())

    def build(self, parts: Collection[str], dtype: torch.dtype) -> Components:
        """Return the named parts (of `ALL`) in their true sizes: the U-Net in `dtype`, the rest in float32."""
        unet: UNetConfig = self.values.UNET if "unet" in parts else tiny.UNET
        coder: AutoencoderConfig = self.values.AUTOENCODER if "autoencoder" in parts else tiny.AUTOENCODER
        with torch.device("meta"):
            networks = UNet(unet), AutoencoderKL(coder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            text = self._text() if "text_encoder" in parts else _tower(TextConfig(width=32, layers=1, heads=2))
        return self._components(
            random_weights(networks[0], dtype), random_weights(networks[1], torch.float32), text.eval()
        )

    def _text(self) -> TextEncoder | TextEncoders:
        towers = [_tower(config) for config in self.towers]
        return towers[0] if len(towers) == 1 else TextEncoders(*towers)

    def _components(self, unet: UNet, coder: AutoencoderKL, text: TextEncoder | TextEncoders) -> Components:
        scheduler = self.values.SCHEDULER
        zeros = getattr(self.values, "ZEROS_FOR_EMPTY_PROMPT", False)
        schedule, prediction = read_schedule(scheduler)
        return Components(unet, coder, text, schedule, prediction, scheduler, self.family, zeros_for_empty_prompt=zeros)


Source = StoredModel | RandomModel
"""Where parts come from."""


def open_model(name: str) -> Source:
    """Return the model that `name` means: bundled, a family with random weights, or a folder or file.

    Raises:
        CheckpointError: it is none of them.
    """
    if name not in bundled_models() and name in names(FAMILIES):
        return RandomModel(name)
    return StoredModel(name)


def _tower(config: TextConfig) -> TextEncoder:
    tokenizer = clip_vocabulary(config.pad_token)
    return TextEncoder(config.build(tokenizer), tokenizer, penultimate=config.penultimate)


def random_weights(module: Module, dtype: torch.dtype) -> Module:
    """Give a module of the meta device weights on the CPU, the same for the same names and shapes."""
    named = dict(module.named_parameters())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # torch draws with one thread each
        tensors = pool.map(partial(_draw, dtype=dtype), named, named.values())
        state = dict(zip(named, tensors))
    module.load_state_dict(state, assign=True)
    return module.eval()


def _draw(name: str, like: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return weights spread as torch's own initialisation has them: uniform, 1 / sqrt(inputs) at most."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    most = like[0].numel() ** -0.5 if like.ndim > 1 else BIAS
    drawn = torch.empty(like.shape, dtype=torch.float32).uniform_(-most, most, generator=generator)
    if like.ndim == 1 and name.endswith("weight"):  # a norm's
        drawn += 1
    return drawn.to(dtype)
