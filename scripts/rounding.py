"""Round the changes of weights so that what the networks compute, not the weights, stays near.

Two parts. Units: rounded to units u, the n weights of a tensor move the outputs by about n u^2 g^2 / 12 in square, with
g^2 the mean square of the outputs' gradients at the tensor, and take n log2(1 / u) bits and a constant. At a given
number of bits all tensors together move the outputs least where each u is in proportion to 1 / g. Rounding (GPTQ): the
error of a rounded weight is made up for by those weights of its row that are not rounded yet, as the second moments of
the layer's inputs allow; Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components

DAMPING = 0.01  # added to the diagonal of the moments, as a share of its mean
BLOCK = 128  # columns whose errors reach the later ones in one product
ROWS = 1024  # inputs that a layer's moments take of each batch: tokens, or places of a feature map
FEW = 8  # pictures whose gradients are added before they are squared
WIDEST = 3.0  # unit of a tensor over its changes: what training pictures do not show may need them
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
    watched = [
        layer.register_forward_pre_hook(_adds(found, f"{prefix}{name}.weight", generator))
        for prefix, network in _networks(model).items()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    for start in range(0, len(captions), batch_size):
        images, texts = pictures[start : start + batch_size], captions[start : start + batch_size]
        latents = model.autoencoder.to_latents(images)
        model.autoencoder.to_images(latents)
        _predicted(model, latents, texts, generator)
    for hook in watched:
        hook.remove()
    return found


def output_gradients(model: Components, pictures: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Return for each weight the root mean square gradient of its network's outputs, over their norm.

    The U-Net's outputs are predictions at levels drawn for each picture, to which the text encoder contributes; the
    decoder's are pictures. A product with noise stands for all outputs: its gradients have the same mean square.
    Weights that no output depends on are left out. Arguments as for `input_moments`.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {f"{at}{name}": weight for at, net in _networks(model).items() for name, weight in net.named_parameters()}
    squares = dict.fromkeys(weights, 0.0)
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    for start in range(0, len(captions), FEW):
        with torch.no_grad():
            latents = model.autoencoder.to_latents(pictures[start : start + FEW])
        predicted = _predicted(model, latents, captions[start : start + FEW], generator)
        for output in (predicted, model.autoencoder.to_images(latents)):
            probe = torch.randn(output.shape, generator=generator) / output.detach().norm()
            made = torch.autograd.grad((output * probe).sum(), list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, made, strict=True):
                squares[name] += 0.0 if gradient is None else float(gradient.square().mean())
    for weight in frozen:
        weight.requires_grad_(False)
    return {name: square**0.5 for name, square in squares.items() if square}


def units_of(sizes: Mapping[str, tuple[int, float]], gradients: Mapping[str, float], share: float) -> dict[str, float]:
    """Return the unit of each tensor: in proportion to 1 / gradient, `share` of the changes in the geometric mean.

    Args:
        sizes: number and root mean square of each tensor's changes, above zero.
        gradients: of `output_gradients`; a tensor without one has `share` of its own changes.
        share: the larger, the smaller the file.
    """
    known = {name: size for name, size in sizes.items() if name in gradients}
    count = sum(number for number, _ in known.values())
    logs = sum(number * math.log(change * gradients[name]) for name, (number, change) in known.items())
    constant = math.exp(logs / count) if count else 1.0
    return {
        name: share * (min(constant / gradients[name], WIDEST * change) if name in gradients else change)
        for name, (_, change) in sizes.items()
    }


def _networks(model: Components) -> dict[str, nn.Module]:
    """Return the networks by what the names of their weights begin with in `pack_changes.arrays_of`."""
    text = model.text_encoder.towers[0].model
    return {"unet/": model.unet, "vae/": model.autoencoder, "text_encoder/text_model.": text}


def _predicted(model: Components, latents: Tensor, captions: Sequence[str], generator: torch.Generator) -> Tensor:
    """Return the U-Net's outputs for latents (B, C, h, w), each noised to a level drawn for it."""
    t = torch.randint(0, model.schedule.num_train_timesteps, (len(latents),), generator=generator)
    alpha, sigma = (x.float().view(-1, 1, 1, 1) for x in model.schedule.alpha_sigma(t))
    noise = torch.randn(latents.shape, generator=generator)
    return model.unet(alpha * latents + sigma * noise, t, model.unet.project(model.text_encoder(captions)))


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
