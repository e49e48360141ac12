"""What a pipeline is made of at the moment of a call; new adapters make a new one, running calls keep theirs."""

from dataclasses import dataclass

import torch

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.pipeline.job import Job
from latent_diffusion.pipeline.options import Options, Texts, check_names
from latent_diffusion.pipeline.prompts import read_prompts
from latent_diffusion.pipeline.seeds import noise_for
from latent_diffusion.pipeline.settings import Defaults, Settings
from latent_diffusion.runtime.placement import choose_device, choose_dtype

__all__ = ["Engine"]


@dataclass(frozen=True)
class Engine:
    """The parts in their places."""

    components: Components
    device: torch.device
    dtype: torch.dtype  # what the U-Net computes in; the small parts compute in float32
    defaults: Defaults

    @classmethod
    def build(cls, components: Components, device: torch.device | str | None, dtype: str | torch.dtype) -> "Engine":
        """Put the parts on `device`, the U-Net in `dtype`.

        Raises:
            ConfigError: unknown device or dtype.
        """
        place = choose_device(device)
        kind = choose_dtype(dtype, place, sum(p.numel() for p in components.unet.parameters()))
        components.unet.to(device=place, dtype=kind).eval()
        components.autoencoder.to(device=place, dtype=torch.float32).eval()
        components.text_encoder.to(place).eval()
        return cls(components, place, kind, Defaults.of(components))

    def settings(self, options: Options) -> Settings:
        """Return the checked settings of a call.

        Raises:
            ConfigError: an unknown name, or a value that cannot be.
        """
        check_names(options)
        return Settings.resolve(self.components, self.defaults, options)

    def start(self, prompt: Texts, settings: Settings, options: Options, *, initial: str = "seed") -> Job:
        """Encode the prompts and open the noise streams of one call.

        Args:
            prompt: one text or several; None with `prompt_embeds`.
            settings: what `settings` returned.
            options: the call's.
            initial: where the first noise comes from: "seed", or "latents" when the caller gave it.

        Raises:
            ConfigError: prompts or seeds that cannot be.
        """
        prompts = read_prompts(self.components, prompt, options, settings)
        generator = options.get("generator")
        noise, seeds = noise_for(options.get("seed"), generator, len(prompts))
        if generator is not None and initial == "seed":
            initial = "generator"
        return Job(self.components, self.device, self.dtype, settings, prompts, noise, seeds, initial)
