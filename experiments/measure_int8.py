"""Measure which layers of a U-Net 8 bits hurt most, each alone, on the model's own prompts.

    python -m experiments.measure_int8 [--model emoji]

The exact network draws a few pictures; then some of its calls are made again with one layer rounded at a time, first
and last convolution included. The error is that of the network's outputs, relative, over all of these calls. Errors of
single layers add up by their squares, so a layer's share of the sum of squares is what the picture gains where it stays
exact. By this, `int8:layers=most` keeps the kind of layer exact that makes most of the squares.
"""

from collections.abc import Sequence
from typing import Any

import torch
import typer
from torch import Tensor, nn

from experiments.measure_approximations import PROMPTS
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.runtime.cpu.eight_bit_layers import in_eight_bits, round_layer

EVERY = 5  # of the calls of the network, one is compared
SHOWN = 12  # layers in the table

Call = tuple[Any, ...]


def calls_of(pipe: LatentDiffusionPipeline, steps: int) -> list[Call]:
    """Return arguments of the network's calls while it draws, one of `EVERY`."""
    found: list[Call] = []
    handle = pipe.components.unet.register_forward_pre_hook(lambda _, arguments: found.append(arguments))
    for seed, prompt in enumerate(PROMPTS):
        pipe(prompt, seed=seed, num_inference_steps=steps, output_type="latent")
    handle.remove()
    return found[::EVERY]


@torch.no_grad()
def outputs(unet: nn.Module, calls: Sequence[Call]) -> Tensor:
    """Return all outputs as one row of numbers."""
    return torch.cat([unet(*call).flatten() for call in calls])


def one_rounded(unet: UNet, name: str, rounded: UNet) -> UNet:
    """Return the exact network with one module of the rounded one; where that has none, its layer is rounded alone."""
    twin = shared_copy(unet)
    parent, _, last = name.rpartition(".")
    if "eight" in vars(rounded.get_submodule(name)):
        twin.get_submodule(parent)._modules[last] = rounded.get_submodule(name)
    else:
        round_layer(twin.get_submodule(name))
    return twin


def main(model: str = "emoji", steps: int = 12) -> None:
    """Print the layers that hurt most, with their shares of the squared error."""
    pipe = LatentDiffusionPipeline.from_pretrained(model, device="cpu", dtype="float32")
    unet = pipe.components.unet
    calls = calls_of(pipe, steps)
    wanted = outputs(unet, calls)

    def off(network: nn.Module) -> float:
        return float((outputs(network, calls) - wanted).norm() / wanted.norm())

    rounded = in_eight_bits(unet, convolutions=True)
    names = [name for name, module in rounded.named_modules() if "eight" in vars(module)]
    errors = {name: off(one_rounded(unet, name, rounded)) for name in [*names, "conv_in", "conv_out"]}
    squares = sum(errors[name] ** 2 for name in names)
    print(f"{len(calls)} calls; all {len(names)} layers rounded: off {off(rounded):.4f}, by squares {squares**0.5:.4f}")
    print(f"most: off {off(in_eight_bits(unet, convolutions=True, outermost=False)):.4f}\n")
    print("| layer | off | share |\n|---|---|---|")
    for name, error in sorted(errors.items(), key=lambda pair: -pair[1])[:SHOWN]:
        share = f"{error**2 / squares:.1%}" if name in names else "exact always"
        print(f"| {name} | {error:.4f} | {share} |")


if __name__ == "__main__":
    typer.run(main)
