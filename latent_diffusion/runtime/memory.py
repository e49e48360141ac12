"""How much memory is free, and how much work needs: estimates, on the safe side, that choose batch sizes and tiling.

The needs were measured with SD 1 in float32 (docs/memory.md) and grow with pixels and with the networks' width.
"""

import os
from pathlib import Path

import torch

from latent_diffusion.models.autoencoder import AutoencoderConfig
from latent_diffusion.models.unet import UNetConfig

__all__ = ["decoding_bytes", "fits", "free_memory", "pictures_at_once", "sampling_bytes"]

FLOAT32 = 4  # bytes
DECODER_MAPS = 8  # maps of the first level's width at the picture's size that a whole decoder holds at its peak
UNET_MAPS = 32  # maps of the first level's width at the latent's size that one row of the U-Net holds at its peak
ROWS = 2  # of a picture in the U-Net: with the prompt and without
SHARE = 0.5  # of the free memory that one piece of work may plan with
MOST_AT_ONCE = 32  # pictures; more make no batch faster, and an interruption would lose them all


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on `device`, or that torch holds there without using them.

    On a CPU those that can be had without swapping.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    lines = Path("/proc/meminfo")
    if lines.exists():
        for line in lines.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # free memory is not reported here


def decoding_bytes(config: AutoencoderConfig, pixels: int) -> int:
    """Return about what decoding a picture of so many pixels takes at its peak, in bytes, float32."""
    return DECODER_MAPS * config.block_out_channels[0] * pixels * FLOAT32


def sampling_bytes(config: UNetConfig, cells: int) -> int:
    """Return about what a step of a picture of so many latent cells takes at its peak, in bytes, guided, float32."""
    return ROWS * UNET_MAPS * config.block_out_channels[0] * cells * FLOAT32


def fits(need: int, device: torch.device) -> bool:
    """Whether work that needs so many bytes takes no more than its share of the free memory."""
    return need <= SHARE * free_memory(device)


def pictures_at_once(need: int, device: torch.device) -> int:
    """Return how many pictures that need so many bytes each fit into the free memory: 1 .. 32."""
    return max(1, min(MOST_AT_ONCE, int(SHARE * free_memory(device)) // max(need, 1)))
