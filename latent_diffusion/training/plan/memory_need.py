"""How much memory a run needs at its peak, by formula, from the model's sizes alone: no weight is read.

A run has two heights of memory, and its need is the higher one:

    encoding   all weights as they are read + the autoencoder at work on one picture
    updates    the weights that stay + what their kernels prepare + optimizer, averages and trained weights
               + activations and gradients of one micro-batch (`step_memory.py`)

In both: the libraries (on a CPU), the pictures, and the cached latents and text states.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.config import MemoryConfig, RunConfig
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.stored import FORMATS
from latent_diffusion.runtime.cpu.training_kernels import TrainingKernels, install
from latent_diffusion.training.adapters.started_adapter import start_adapter
from latent_diffusion.training.networks.frozen_weights import frozen_layers
from latent_diffusion.training.networks.parts import freeze_lone_attention, with_masks
from latent_diffusion.training.networks.weight_rules import choose_weights
from latent_diffusion.training.optimizer import optimizer_settings
from latent_diffusion.training.plan.step_memory import encoding_peak, step_peak
from latent_diffusion.training.updates.rounding import round_trained

__all__ = ["MemoryNeed", "memory_need", "process_count"]

LIBRARIES_LATER = 20e6
"""Bytes that torch, oneDNN and the optimizer load or make in the first update, on a CPU."""
WINOGRAD = 2 * 16 / 9
"""Prepared weights of a frozen 3x3 convolution, forward and back, over its own bytes."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by what takes them, in the two heights of a run."""

    encoding: dict[str, int]
    updates: dict[str, int]

    @property
    def higher(self) -> dict[str, int]:
        """The height that decides."""
        return max(self.encoding, self.updates, key=lambda terms: sum(terms.values()))

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.higher.values())

    def line(self) -> str:
        """Return the peak and its largest terms."""
        terms = sorted(self.higher.items(), key=lambda term: -term[1])
        named = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in terms if size >= 0.005 * 2**30)
        return f"predicted peak memory: {self.peak / 2**30:.2f} GiB ({named})"


def memory_need(
    run: RunConfig, settings: Any, pictures: int, side: int, device: torch.device, kernels: TrainingKernels
) -> MemoryNeed | None:
    """Return what a run needs; None for an objective that trains no U-Net of a model that exists.

    Args:
        run: with its precision.
        settings: its parsed `objective:` section.
        pictures: of the data.
        side: of the largest pictures, in px.
        device: where it trains.
        kernels: what it trains with.
    """
    adapter: Any = getattr(settings, "adapter", None)
    train: Any = getattr(settings, "train", None)
    if getattr(settings, "init", None) is None or (adapter is None and train is None):
        return None
    parts = load_model(settings.init, left_out=("unet", "vae", "text_encoder", "text_encoder_2"))
    parts, repaints = with_masks(parts, settings)
    encoders = _bytes([parts.autoencoder, parts.text_encoder])
    whole = _bytes([parts.unet])
    cells = -(-side // parts.autoencoder.factor)
    parts.unet.train().requires_grad_(True).enable_gradient_checkpointing(run.gradient_checkpointing)
    freeze_lone_attention(parts.unet, cells)
    parts.text_encoder.requires_grad_(True)
    if adapter is not None:
        adapted, _ = start_adapter(parts, adapter, run.seed, repaints=repaints)
        parts.unet.requires_grad_(False)
        parts.text_encoder.requires_grad_(False)
        networks, parts = adapted.modules(), adapted.components
        for module in networks.values():
            module.requires_grad_(True)
    else:
        networks = choose_weights(parts, train)
    assert isinstance(parts.unet, UNet), "every model has one"
    if (run.memory or MemoryConfig()).weights == "bfloat16":
        round_trained(parts.unet)
    trained = sum(p.numel() for module in networks.values() for p in module.parameters() if p.requires_grad)
    passes = 2 if getattr(settings, "preserve", None) is not None else 1  # with the caption, and with the class's
    step = passes * _step(run, parts, cells)
    extra = _bytes(networks.values()) if adapter is not None else 0
    memory = run.memory or MemoryConfig()
    form = memory.base or ("bfloat16" if run.precision == "bfloat16" else "float32")
    stored = memory.base is not None or memory.base_on_host
    frozen = 0 if adapter is None else sum(_numbers(layer) for layer in frozen_layers(parts.unet))
    on_device = 0.0 if memory.base_on_host and device.type != "cpu" else FORMATS[form].size
    kept = _bytes([parts.unet]) + int((on_device - 4) * frozen)
    if adapter is not None and form == "bfloat16":
        for layer in frozen_layers(parts.unet):
            layer.to(torch.bfloat16)
    caches = _caches(settings, parts, pictures, side, run)
    host = {"pictures": _pictures(run, pictures, side)} if device.type == "cpu" else {}
    if device.type == "cpu":
        host["libraries"] = psutil.Process().memory_info().rss + int(LIBRARIES_LATER)
    optimizer = optimizer_settings(run).state_bytes
    return MemoryNeed(
        encoding={
            **host,
            **caches,
            "U-Net": extra + (0 if memory.base is not None else whole),  # else it stays in its file until it is stored
            "encoders": encoders,
            "a picture being encoded": encoding_peak(parts.autoencoder.encode, parts.autoencoder, side, side),
        },
        updates={
            **host,
            **caches,
            "U-Net": kept,
            "encoders": 0 if memory.drop_encoders else encoders,
            "prepared weights": 0 if stored else _prepared(parts.unet, kernels),
            "optimizer": optimizer * trained,
            "moving average": 4 * trained if run.ema is not None else 0,
            "activations and gradients": step,
        },
    )


def process_count() -> int:
    """Return the processes of this run, which share a batch."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _bytes(networks: Iterable[nn.Module]) -> int:
    """Return the bytes of all weights, each counted once."""
    weights = {id(p): p for network in networks for p in network.parameters()}
    return sum(p.numel() * p.element_size() for p in weights.values())


def _numbers(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters(recurse=False))


def _step(run: RunConfig, parts: Components, cells: int) -> int:
    """Return the bytes of activations and gradients of one micro-batch."""
    pooled = parts.text_encoder.pooled_width if parts.unet.config.added_width else 0
    batch = max(1, run.batch_size // (run.accumulation * process_count()))
    stay = not (run.memory or MemoryConfig()).update_in_backward
    return step_peak(parts.unet, batch, cells, cells, pooled=pooled, precision=run.precision, gradients_stay=stay)


def _prepared(unet: UNet, kernels: TrainingKernels) -> int:
    """Return the bytes that the kernels prepare of frozen weights, beside these."""
    install(unet, kernels)
    total = 0.0
    for layer in unet.modules():
        kind = type(layer).__name__
        if kind == "FrozenWinograd":
            total += WINOGRAD * layer.weight.numel() * 4  # pyright: ignore
        elif kind in ("FrozenConv2d", "FrozenLinear"):
            total += sum(2 * p.numel() for p in layer.parameters(recurse=False))
    return int(total)


def _caches(settings: Any, parts: Components, pictures: int, side: int, run: RunConfig) -> dict[str, int]:
    """Return the bytes of latents and text states that are kept in memory."""
    numbers = 2 * parts.autoencoder.config.latent_channels * (side // parts.autoencoder.factor) ** 2
    flips = 2 if run.data.get("flip") else 1
    latents = pictures * flips * numbers * 4
    width = parts.text_encoder.context_length * parts.text_encoder.width + parts.text_encoder.pooled_width
    states = (pictures + 1) * width * (2 if run.precision == "bfloat16" else 4)
    return {
        "latents": latents if latents <= settings.latent_cache_bytes else 0,
        "text states": states if states <= settings.text_cache_bytes else 0,
    }


def _pictures(run: RunConfig, pictures: int, side: int) -> int:
    """Return the bytes of the scaled pictures that are kept in memory."""
    most = run.data.get("cache_bytes", 2**30)
    size = 3 * side * side * pictures
    kept = run.data.get("check", "all") == "all" and run.data.get("cache") is None and size <= most
    return size if kept else 0
