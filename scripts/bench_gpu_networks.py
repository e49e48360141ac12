"""Networks with random weights, ours and diffusers' on the same tensors, and the paths both run; for `bench_gpu.py`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.folder.network_config import unet_values
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.families import sd1, sdxl
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.models.autoencoder import AutoencoderConfig
from latent_diffusion.models.unet import UNet, UNetConfig
from latent_diffusion.samplers.euler import Euler

SCALE, TOKENS = 7.5, 77  # of guidance; of a prompt
SCHEDULE, PREDICTION = read_schedule(sd1.SCHEDULER)
Draw = Callable[[int], Tensor]
"""Number of steps -> latents (B, 4, h, w)."""


@dataclass(frozen=True)
class Family:
    """What is timed."""

    name: str
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    side: int  # px

    @property
    def cells(self) -> int:
        """Latent px a side."""
        return self.side // 2 ** (len(self.autoencoder.block_out_channels) - 1)


def families(tiny: bool) -> list[Family]:
    found = [Family("SD1.5", sd1.UNET, sd1.AUTOENCODER, 512), Family("SDXL", sdxl.UNET, sdxl.AUTOENCODER, 1024)]
    if not tiny:
        return found
    small = dict(norm_num_groups=8, cross_attention_dim=32)
    unets = (
        replace(sd1.UNET, block_out_channels=(16, 16, 32, 32), num_attention_heads=(2, 2, 2, 2), **small),
        replace(
            sdxl.UNET,
            block_out_channels=(16, 32, 32),
            num_attention_heads=(2, 2, 2),
            transformer_layers_per_block=(1, 1, 1),
            added_width=16 + 6 * 8,
            size_width=8,
            **small,
        ),
    )
    vae = replace(sd1.AUTOENCODER, block_out_channels=(8, 8, 16, 16), norm_num_groups=4)
    return [Family(f.name, unet, vae, f.side // 8) for f, unet in zip(found, unets, strict=True)]


def build(kind: Callable[..., nn.Module], config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a network with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return kind(config).to(dtype).eval().requires_grad_(False)


def peer(model: nn.Module, values: dict[str, Any], kind: str) -> Any:
    """Return diffusers' network of the same kind on the same tensors."""
    import diffusers

    with torch.device("meta"):
        theirs = getattr(diffusers, kind).from_config(values)
    theirs.load_state_dict(model.state_dict(), assign=True)
    return theirs.eval().requires_grad_(False)


class Told:
    """Prompt, negative prompt and noise of one batch."""

    def __init__(self, family: Family, batch: int, device: torch.device, dtype: torch.dtype, cells: int = 0) -> None:
        generator, config = torch.Generator("cpu").manual_seed(1), family.unet
        height, width = family.cells, cells or family.cells

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        def condition() -> Conditioning:
            context = draw(batch, TOKENS, config.cross_attention_dim)
            if config.added_width is None:
                return Conditioning(context)
            sizes = torch.tensor([[family.side, family.side, 0, 0, family.side, family.side]] * batch)
            pooled = draw(batch, config.added_width - 6 * config.size_width)
            return Conditioning(context, pooled, sizes.to(device, torch.float32))

        self.prompt, self.negative = condition(), condition()
        self.noise = torch.randn(batch, 4, height, width, generator=generator).to(device)

    def to(self, dtype: torch.dtype) -> "Told":
        """Return the same in another dtype; the noise stays float32."""
        other = copy.copy(self)
        other.prompt, other.negative = (c.to(dtype=dtype) for c in (self.prompt, self.negative))
        return other


def our_draw(unet: Any, told: Told, dtype: torch.dtype) -> Draw:
    """Return this package's path: what `pipeline` runs between text states and latents."""

    def draw(steps: int) -> Tensor:
        visited = levels(SCHEDULE, "leading", steps, steps_offset=1, fractional=True)
        denoiser = Denoiser(unet, SCHEDULE, PREDICTION, dtype)
        denoise = CFG(SCALE).bind(denoiser, told.prompt, told.negative, levels=visited)
        x = told.noise
        for step in Euler()(denoise, x, visited, NoiseSource([0] * len(x))):
            x = step.x
        return x

    return draw


def their_draw(unet: Any, told: Told, dtype: torch.dtype) -> Draw:
    """Return diffusers' path: what its pipelines do between text states and latents."""
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    both = Conditioning.cat([told.negative, told.prompt])
    added = {} if both.pooled is None else {"text_embeds": both.pooled, "time_ids": both.size_ids}

    def draw(steps: int) -> Tensor:
        scheduler.set_timesteps(steps, device=told.noise.device)
        x = told.noise.to(dtype) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            rows = scheduler.scale_model_input(torch.cat([x, x]), t)
            output = unet(rows, t, both.context, added_cond_kwargs=added, return_dict=False)[0]
            away, towards = output.chunk(2)
            x = scheduler.step(away + SCALE * (towards - away), t, x, return_dict=False)[0]
        return x

    return draw


def flops(work: Callable[[], Any]) -> float:
    """Return TFLOP of convolutions, matrix products and attention; 1 multiply-add = 2 FLOP."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e12


def compiled(plain: UNet, family: Family, mode: str) -> Any:
    """Return diffusers' U-Net at its best: channels_last and compiled, its weights its own."""
    torch._dynamo.reset()
    theirs = copy.deepcopy(peer(plain, unet_values(family.unet), "UNet2DConditionModel"))
    theirs = theirs.to(memory_format=torch.channels_last)
    if mode == "max_autotune":
        return torch.compile(theirs, mode="max-autotune", fullgraph=True)
    theirs.compile_repeated_blocks(fullgraph=True)
    return theirs


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(f"{float((found.float() - wanted.float()).norm() / wanted.float().norm()):.2e}")
