"""A whole picture: text, every step guided, decoding."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import OURS, PLAIN, Case, machine_options
from benchmarks.cases.text_encoder import PROMPTS, TextEncoding
from benchmarks.cases.unet_step import UNetStep
from benchmarks.cases.vae_decode import VaeDecode
from benchmarks.flops import count_flops
from benchmarks.lossy import call_options, is_lossy
from benchmarks.model import ALL
from benchmarks.openvino import converted
from benchmarks.peers import check_peer, compiled, peer_dtype
from benchmarks.plan import Ready, drawn
from latent_diffusion.checkpoint.to_diffusers import to_diffusers
from latent_diffusion.pipeline.engine.machine import Machine
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.training.clock import timed

__all__ = ["Generate"]

SCALE = 7.5  # of the guidance
LAW = ("beta_start", "beta_end", "beta_schedule", "prediction_type")


class Generate(Case):
    """One prompt to one picture by DDIM, from the same noise."""

    title = "Picture end to end"

    def flops(self) -> float:
        """Count the prompts, keys and values, every step, and the decoding."""
        unet = self.model.described.unet
        step = UNetStep(self.plan, self.model)
        cond = step.inputs()[1]
        project = count_flops(lambda: unet.to("meta", torch.float32).project(cond.to("meta")))
        text, decode = (kind(self.plan, self.model).flops() for kind in (TextEncoding, VaeDecode))
        return text + project + self.plan.steps * step.flops() + decode

    def build(self, tool: str) -> Ready:
        """Return a pipeline ready to be called."""
        seconds: dict[str, float] = {}
        if tool in (OURS, PLAIN) or is_lossy(tool):
            options = machine_options(self.plan, tool)
            with timed(seconds, "load"):
                components = self.model.build(ALL, Machine.choose(self.model.described, options).dtype)
            with timed(seconds, "prepare"):
                ours, told = LatentDiffusionPipeline(components, **options), call_options(tool)
            return self._ready(lambda steps: self._ours(ours, steps, told), ours.dtype, seconds)
        check_peer(tool)
        with timed(seconds, "load"):
            pipe: Any = to_diffusers(self.model.build(ALL, torch.float32))
            pipe.scheduler = _ddim(pipe.scheduler.config)
            pipe.set_progress_bar_config(disable=True)
        dtype, parts = peer_dtype(self.plan, tool), dict[str, float]()
        with timed(seconds, "prepare"):
            dtype = self._prepare(pipe, tool, dtype, parts)
        seconds["prepare"] -= sum(parts.values())
        return self._ready(lambda steps: self._theirs(pipe, steps), dtype, seconds | parts)

    def _ready(
        self, draw: Callable[[int], Mapping[str, Tensor]], dtype: torch.dtype, seconds: dict[str, float]
    ) -> Ready:
        """Return the call, and as its first form a picture of one step."""
        return Ready(lambda: draw(self.plan.steps), dtype, seconds, warm_up=lambda: draw(1))

    def _prepare(self, pipe: Any, tool: str, dtype: torch.dtype, seconds: dict[str, float]) -> torch.dtype:
        """Put the parts in their formats and places; return what they compute in."""
        if tool.startswith("openvino"):
            side = self.size // 2 ** (len(pipe.vae.config.block_out_channels) - 1)
            twin = UNetStep(self.plan, self.model).twin(pipe.unet)
            eight_bits = tool == "openvino-int8"
            step = converted(twin.module, twin.inputs, self.plan, seconds, eight_bits=eight_bits)
            pipe.unet = _Stub(pipe.unet, step)
            z = drawn("z", self.batch, pipe.vae.config.latent_channels, side, side)
            pipe.vae.decoder = _Decoder(converted(pipe.vae.decoder, (z,), self.plan, seconds))
            return step.dtype
        pipe.to(self.plan.device, dtype)
        if tool != "diffusers":
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if tool == "compile":
            pipe.unet = compiled(pipe.unet, self.plan)
            pipe.vae.decoder = compiled(pipe.vae.decoder, self.plan)
        return dtype

    def _noise(self) -> Tensor:
        described = self.model.described
        side = self.size // described.autoencoder.factor
        return drawn("noise", self.batch, described.autoencoder.config.latent_channels, side, side)

    def _ours(self, pipe: LatentDiffusionPipeline, steps: int, options: dict[str, Any]) -> Mapping[str, Tensor]:
        last: list[Tensor] = []
        out = pipe(
            PROMPTS[0],
            latents=self._noise(),
            height=self.size,
            width=self.size,
            seed=0,
            num_images_per_prompt=self.batch,
            rewrite=False,  # peers read the prompt as it is
            num_inference_steps=steps,
            guidance_scale=SCALE,
            sampler="ddim",
            spacing="leading",
            output_type="pt",
            on_step=lambda step: last.__setitem__(slice(None), [step.x]),
            **options,
        )
        return {"latents": last[0], "images": _tensor(out.images)}

    def _theirs(self, pipe: Any, steps: int) -> Mapping[str, Tensor]:
        last: list[Tensor] = []

        def keep(pipe: Any, index: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            last[:] = [values["latents"]]
            return values

        out = pipe(
            PROMPTS[0],
            latents=self._noise().to(pipe.unet.device, pipe.unet.dtype),
            num_images_per_prompt=self.batch,
            num_inference_steps=steps,
            guidance_scale=SCALE,
            height=self.size,
            width=self.size,
            output_type="pt",
            callback_on_step_end=keep,
        )
        return {"latents": last[0], "images": out.images}


def _tensor(images: Any) -> Tensor:
    return images if isinstance(images, Tensor) else torch.stack(images)


def _ddim(config: Mapping[str, Any]) -> Any:
    """Return the sampler that both sides have, for the model's noise law."""
    from diffusers import DDIMScheduler

    law = {name: config[name] for name in LAW}
    return DDIMScheduler(**law, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")


class _Stub(nn.Module):
    """What diffusers' pipelines ask of a U-Net, answered by another engine; its own weights are gone."""

    def __init__(self, unet: Any, step: Callable[..., Tensor]) -> None:
        super().__init__()
        self.config, self.step, self.device, self.dtype = unet.config, step, torch.device("cpu"), torch.float32
        self.add_embedding = getattr(unet, "add_embedding", None)  # asked for its width

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: Any = None, **_: Any
    ) -> tuple[Tensor]:
        added = added_cond_kwargs or {}
        return (self.step(x, t, encoder_hidden_states, added.get("text_embeds"), added.get("time_ids")),)


class _Decoder(nn.Module):
    """The same for the decoder."""

    def __init__(self, decode: Callable[..., Tensor]) -> None:
        super().__init__()
        self.decode = decode

    def forward(self, z: Tensor, latent_embeds: None = None) -> Tensor:
        return self.decode(z)
