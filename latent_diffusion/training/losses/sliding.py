"""The player of training without pictures: the network's prediction for a prompt moves to one made of the base's.

    target(x, t) = base(x, t, anchor) + strength * (base(x, t, toward) - base(x, t, away))
    loss = |network(x, t, prompt) - target|^2

x is what the network itself makes of noise with this prompt, some steps on its way to a picture.

    erase c        prompt c, anchor "", toward "", away c      Gandikota et al. 2023, arXiv:2303.07345, eq. (7)
    turn c into d  prompt c, anchor d, toward d, away c
    slide          prompt c, anchor c, toward c+, away c-      Gandikota et al. 2023, arXiv:2311.12092, eq. (8)
    keep c         prompt, anchor, toward and away c
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.config import Section
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.randomness import normal, uniform
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.training.losses.conditions import whole_picture, without_text
from latent_diffusion.training.networks.trained_networks import TrainedNetworks
from latent_diffusion.training.objective import Losses

__all__ = ["ConceptSettings", "Numbers", "Sliding", "SlidingSettings"]


class ConceptSettings(Section):
    """A prompt, and where its prediction moves."""

    prompt: str
    """Prompt whose prediction is trained, written as captions are."""
    toward: str = ""
    """Prompt that it moves toward."""
    away: str | None = None
    """Prompt that it moves away from; null: `prompt`."""
    anchor: str | None = None
    """Prompt from whose prediction the way starts; null: `toward`."""
    strength: float = Field(default=1.0, ge=0)
    """Length of the way, in differences between `toward` and `away`."""

    @property
    def base_prompts(self) -> tuple[str, str, str]:
        """The prompts anchor, toward and away, of which the base's predictions are the target."""
        anchor = self.toward if self.anchor is None else self.anchor
        return anchor, self.toward, self.prompt if self.away is None else self.away


class SlidingSettings(Section):
    """How the noisy latents of training without pictures are made."""

    draw_steps: int = Field(default=20, ge=1, le=1000)
    """Sampling steps (DDIM) from noise to a picture; training takes place before one of them."""
    draw_guidance_scale: float = Field(default=3.0, ge=0)
    """Scale of classifier-free guidance of these steps."""


@dataclass(frozen=True)
class Numbers:
    """A batch without pictures: sample numbers alone."""

    sample: tuple[int, ...]

    def to(self, device: torch.device) -> "Numbers":
        """Return the batch itself: it has no tensors."""
        return self


class Sliding(TrainedNetworks):
    """The changes of a model that move its predictions for some prompts; the base stays as it is."""

    def __init__(
        self,
        base: Components,
        adapted: Components,
        trained: Mapping[str, nn.Module],
        concepts: Sequence[ConceptSettings],
        settings: SlidingSettings,
        seed: int,
        size: int,
    ) -> None:
        """Take the model without and with its changes, the changes by name, and what they shall do.

        Args:
            base: the model that makes the targets; not registered.
            adapted: the model that computes; not registered.
            trained: what is trained.
            concepts: one of them is drawn for every sample.
            settings: how x is made.
            seed: of the run.
            size: side of the pictures that x is on its way to, in px.
        """
        super().__init__(adapted, trained)
        self.base, self.concepts, self.settings, self.seed, self.size = (base,), tuple(concepts), settings, seed, size
        self.levels = levels(base.schedule, "trailing", settings.draw_steps)
        self.held: dict[str, Conditioning] = {}

    @torch.no_grad()
    def encode(self) -> None:
        """Encode all prompts by the base."""
        prompts = {text for one in self.concepts for text in (one.prompt, *one.base_prompts)}
        self.held = {prompt: self._encoded(self.base[0], [prompt]) for prompt in sorted({"", *prompts})}

    def _encoded(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """Return the condition of whole pictures with these prompts."""
        like = self.unet.conv_in.weight
        with torch.autocast(like.device.type, enabled=False):
            cond = parts.text_encoder(list(prompts)).to(like.device, like.dtype)
        if parts.zeros_for_empty_prompt:
            cond = without_text(cond, [not prompt for prompt in prompts])
        whole = [whole_picture(parts, cond[k : k + 1], self.size) for k in range(len(prompts))]
        return Conditioning.cat(whole).to(dtype=like.dtype)

    def concept_of(self, number: int) -> ConceptSettings:
        """Return the concept of a sample."""
        return self.concepts[int(uniform(self.seed, "concept", number) * len(self.concepts))]

    def step_of(self, number: int) -> int:
        """Return the number of sampling steps before the latents that a sample trains at."""
        return int(uniform(self.seed, "drawn steps", number) * self.settings.draw_steps)

    def forward(self, batch: Numbers, step: int) -> Losses:
        """Return the squared distance to the target of each sample, (B,)."""
        chosen = [self.concept_of(number) for number in batch.sample]
        prompts = [one.prompt for one in chosen]
        live = self._encoded(self.parts[0], prompts) if self.trains_text else self._kept(prompts)
        steps = [self.step_of(number) for number in batch.sample]
        like = self.unet.conv_in.weight
        with torch.no_grad():
            x = self._drawn(batch.sample, steps, live)
            t = torch.tensor([self.levels[k].t for k in steps], dtype=torch.float64)
            t = self.base[0].schedule.network_time(t).float().to(like.device)
            anchor, toward, away = (
                self._of_base(x, t, list(texts)) for texts in zip(*(c.base_prompts for c in chosen))
            )
            strength = torch.tensor([one.strength for one in chosen], dtype=x.dtype, device=x.device)
            target = anchor + strength.view(-1, 1, 1, 1) * (toward - away)
        torch.clear_autocast_cache()  # torch 2.10 would take weights from it that were rounded without gradients
        error = self.network(live)(x, t).to(x.dtype) - target
        return Losses(error.square().flatten(1).mean(1))

    def _kept(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning.cat([self.held[prompt] for prompt in prompts])

    def _of_base(self, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        unet = self.base[0].unet
        return unet(x, t, unet.project(self._kept(prompts))).to(x.dtype)

    def _drawn(self, samples: Sequence[int], steps: Sequence[int], cond: Conditioning) -> Tensor:
        """Return latents (B, C, h, w), each after its number of the steps of the network's own sampling."""
        parts, like = self.parts[0], self.unet.conv_in.weight
        side = self.size // parts.autoencoder.factor
        shape = (parts.autoencoder.config.latent_channels, side, side)
        x = normal(self.seed, "noise", samples, shape).to(like)
        left = torch.tensor(steps, device=x.device).view(-1, 1, 1, 1)
        guided = CFG(self.settings.draw_guidance_scale).bind(
            parts.denoiser(parts.unet, like.dtype), cond, self._kept([""] * len(samples))
        )
        on_their_way: Iterator[Tensor] = (step.x for step in DDIM()(guided, x, self.levels, NoiseSource([0])))
        for done in range(1, max(steps) + 1):
            x = torch.where(left >= done, next(on_their_way), x)
        return x
