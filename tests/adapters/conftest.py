"""The tiny model, and changes with random factors for its layers."""

import pytest
import torch

from latent_diffusion.adapters.delta import LowRank, Product
from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture(scope="session")
def tiny_components(tiny_folder):
    """The tiny model on the CPU in float32; adapters do not change it, so all tests share it."""
    return load_folder(tiny_folder)


@pytest.fixture(scope="session")
def random_lora(tiny_components):
    """A function of (seed, rank, endings of layers) to LoRA changes of U-Net and text model, alpha half the rank."""

    def make(seed=0, rank=4, layers=ATTENTION, parts=None, size=0.2, components=tiny_components):
        draw = torch.Generator().manual_seed(seed)
        updates, there = {}, parts_of(components)
        for part in there if parts is None else parts:
            for path, layer in there[part].named_modules():
                if path.endswith(layers) and getattr(layer, "weight", None) is not None:
                    rows, *columns = layer.weight.shape
                    down = torch.randn(rank, *columns, generator=draw) * size
                    up = torch.randn(rows, rank, *[1] * (len(columns) - 1), generator=draw) * size
                    change = Update("LoRA", LowRank(Product(up, down), 0.5), None)
                    updates.setdefault(part, {})[path] = change
        return updates

    return make
