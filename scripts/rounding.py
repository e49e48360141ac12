"""Round the changes of weights so that the outputs of layers, not the weights, stay near (GPTQ).

The error of a rounded weight is made up for by those weights of its row that are not rounded yet, as the second moments
of the layer's inputs allow. Reference: Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components

DAMPING = 0.01  # added to the diagonal of the moments, as a share of its mean
BLOCK = 128  # columns whose errors reach the later ones in one product
ROWS = 1024  # inputs that a layer's moments take of each batch: tokens, or places of a feature map
LARGEST = 127  # of a step: int8

Moments = dict[str, Tensor]
"""Sums x x^T (I, I), float32, of the inputs x of a layer, by the name of its weight in `pack_changes.arrays_of`."""


@torch.no_grad()
def input_moments(model: Components, pictures: Tensor, captions: Sequence[str], *, batch_size: int = 32) -> Moments:
    """Run all networks on training pictures and return the moments of the inputs of linear layers and convolutions.

    Args:
        model: in float32; latents are noised to a level drawn for each picture.
        pictures: (B, 3, H, W) in [-1, 1].
        captions: theirs, B of them.
        batch_size: pictures at a time.
    """
    found: Moments = {}
    generator = torch.Generator().manual_seed(0)
    text = model.text_encoder.towers[0].model
    networks = {"unet/": model.unet, "vae/": model.autoencoder, "text_encoder/text_model.": text}
    watched = [
        layer.register_forward_pre_hook(_adds(found, f"{prefix}{name}.weight", generator))
        for prefix, network in networks.items()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    for start in range(0, len(captions), batch_size):
        images, texts = pictures[start : start + batch_size], captions[start : start + batch_size]
        latents = model.autoencoder.to_latents(images)
        model.autoencoder.to_images(latents)
        t = torch.randint(0, model.schedule.num_train_timesteps, (len(latents),), generator=generator)
        alpha, sigma = (x.float().view(-1, 1, 1, 1) for x in model.schedule.alpha_sigma(t))
        noise = torch.randn(latents.shape, generator=generator)
        model.unet(alpha * latents + sigma * noise, t, model.unet.project(model.text_encoder(texts)))
    for hook in watched:
        hook.remove()
    return found


def _adds(found: Moments, name: str, generator: torch.Generator) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            size, stride = layer.kernel_size, layer.stride
            assert isinstance(layer.padding, tuple), "given in pixels"
            x = F.unfold(x, size, padding=layer.padding, stride=stride).transpose(1, 2)
        rows = x.flatten(0, -2)
        rows = rows[torch.randperm(len(rows), generator=generator)[:ROWS]]
        found[name] = found.get(name, 0) + rows.T @ rows

    return add


def rounded(changes: Tensor, units: Tensor, moments: Tensor) -> Tensor:
    """Return steps (O, I), int8, whose multiples of `units` change a layer's outputs nearly as `changes` do.

    Args:
        changes: of the weight (O, I), float32, a row for each output.
        units: (O,) float32; a change is at most 127 of them.
        moments: (I, I), sum of x x^T over the layer's inputs.
    """
    rest, units = changes.clone(), units[:, None]
    damped = moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)  # row i: how an error of column i is spread over those after it
    steps = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        block, errors = slice(start, start + BLOCK), []
        for i in range(start, min(start + BLOCK, rest.shape[1])):
            step = (rest[:, i : i + 1] / units).round().clamp(-LARGEST, LARGEST)
            error = (rest[:, i : i + 1] - step * units) / factor[i, i]
            rest[:, i : block.stop] -= error * factor[i, i : block.stop]
            steps[:, i : i + 1] = step
            errors.append(error)
        rest[:, block.stop :] -= torch.cat(errors, dim=1) @ factor[block, block.stop :]
    return steps.to(torch.int8)
