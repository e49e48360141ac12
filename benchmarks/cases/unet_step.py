"""One step of the U-Net on a guided batch: with the prompt and without."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import NetworkCase, twin_of
from benchmarks.flops import count_flops
from benchmarks.lossy import call_options
from benchmarks.peers import Twin
from benchmarks.plan import AbsentError, Ready, drawn
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.network_config import unet_values
from latent_diffusion.checkpoint.folder.tiny_folder import open_tiny
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.approximation import Scope
from latent_diffusion.models.unet import UNet
from latent_diffusion.pipeline.call.approximate import choose_approximations
from latent_diffusion.pipeline.engine.machine import Machine

__all__ = ["UNetStep"]

TIME = 481  # a step in the middle
ROWS = 2  # of a guided picture


class UNetStep(NetworkCase):
    """What a sampler pays at each step; keys and values of the prompt, which are made once a picture, are ready."""

    title = "U-Net step"
    parts = ("unet",)

    def ours(self, machine: Machine, placed: Components) -> Ready:
        """Return the U-Net as the denoiser calls it."""
        unet = machine.at_work(placed.unet)
        x, cond = self.inputs()
        x = x.to(machine.device, machine.dtype)
        t = torch.full((len(x),), float(TIME), device=machine.device)
        with torch.no_grad():
            projected = unet.project(cond.to(machine.device, machine.dtype))

        @torch.no_grad()
        def call() -> Mapping[str, Tensor]:
            return {"output": unet(x, t, projected)}

        return Ready(call, machine.dtype)

    def approximated(self, tool: str, machine: Machine, placed: Components) -> Components:
        """Return the parts with an approximated U-Net; one that keeps something between steps has no single step."""
        asked = call_options(tool).get("approximate")
        parts = choose_approximations(asked, placed.unet, partial(open_tiny, autoencoder=placed.autoencoder)).parts
        side, network = self.size // placed.autoencoder.factor, placed.unet
        for part in parts:
            changed, enter = part.change(network, Scope((), (side, side), machine.device))
            if enter is not None or not isinstance(changed, UNet):
                raise AbsentError(f"{tool} depends on the steps before; use the case generate")
            network = changed
        return replace(placed, unet=network) if parts else super().approximated(tool, machine, placed)

    def theirs(self, components: Components) -> Twin:
        """Return diffusers' U-Net."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(unet_values(components.unet.config))
        return self.twin(twin_of(unet, components.unet))

    def twin(self, unet: nn.Module) -> Twin:
        """Return a U-Net of diffusers with our inputs."""
        x, cond = self.inputs()
        given = (x, torch.tensor(TIME), cond.context, cond.pooled, cond.size_ids)
        return Twin(_Step(unet), tuple(part for part in given if part is not None))

    def flops(self) -> float:
        """Count one step without `project`."""
        unet = self.model.described.unet.to("meta", torch.float32)
        x, cond = self.inputs()
        projected = unet.project(cond.to("meta"))
        return count_flops(lambda: unet(x.to("meta"), torch.empty(len(x), device="meta"), projected))

    def inputs(self) -> tuple[Tensor, Conditioning]:
        """Return noisy latents and what the U-Net is told, random, float32, on the CPU."""
        described = self.model.described
        config, count, side = described.unet.config, ROWS * self.batch, self.size // described.autoencoder.factor
        context = drawn("context", count, 77, config.cross_attention_dim)
        x = drawn("x", count, config.in_channels, side, side)
        if config.added_width is None:
            return x, Conditioning(context)
        sizes = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size][: described.size_count]] * count)
        pooled = drawn("pooled", count, described.text_encoder.pooled_width)
        return x, Conditioning(context, pooled, sizes.float())


class _Step(nn.Module):
    """Diffusers' U-Net from tensors to a tensor."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        """Return the output (B, C, h, w)."""
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
        return self.unet(x, t, context, added_cond_kwargs=added, return_dict=False)[0]
