"""Stage offload: text encoder, U-Net and autoencoder take turns on the device.

Weights stay in host memory. Each stage of a call (encoding the prompts, sampling, encoding or decoding a picture)
copies its own part to the device and drops the copy when it is done, so that the device holds the largest part in place
of the sum. Nothing is moved, so nothing has to be moved back: calls in two threads do not see each other, and adapters
stay where they are. The price is one upload a stage.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from latent_diffusion.models.text_encoder import Encoded, TextEncoder, TextEncoders
from latent_diffusion.runtime.cpu.packed_layers import unpacked_copy

__all__ = ["moved", "offloaded_text"]

M = TypeVar("M", bound=nn.Module)


def moved(module: M, device: torch.device, dtype: torch.dtype | None = None) -> M:
    """Return a copy of `module` with its tensors on `device`, weights in `dtype` (None = their own); `module` stays."""
    twin = unpacked_copy(module)  # packed weights are for one device and one dtype
    done: dict[Tensor, Tensor] = {}  # tied weights stay tied
    for layer in twin.modules():
        for name, weight in layer._parameters.items():
            if weight is not None:
                if weight not in done:
                    done[weight] = nn.Parameter(weight.detach().to(device, dtype), requires_grad=False)
                layer._parameters[name] = done[weight]  # pyright: ignore[reportArgumentType]
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else None)
    return twin


class OffloadedTextEncoder(TextEncoder):
    """A text tower whose weights stay on the host; each run works on a copy on the device."""

    def __init__(self, tower: TextEncoder, device: torch.device) -> None:
        """Share the modules of `tower`; compute on `device`."""
        nn.Module.__init__(self)
        self.model, self.tokenizer, self.penultimate = tower.model, tower.tokenizer, tower.penultimate
        self.expansions = tower.expansions
        self.computes_on = device
        self.train(tower.training)

    def run(self, ids: Tensor, clip_skip: int | None = None) -> Encoded:
        """Return what `TextEncoder.run` returns, on the device."""
        return TextEncoder.run(moved(self, self.computes_on), ids, clip_skip)


def offloaded_text(encoder: TextEncoder | TextEncoders, device: torch.device) -> TextEncoder | TextEncoders:
    """Return `encoder` with every tower offloaded."""
    towers = [OffloadedTextEncoder(tower, device) for tower in encoder.towers]
    return TextEncoders(*towers) if len(towers) > 1 else towers[0]
