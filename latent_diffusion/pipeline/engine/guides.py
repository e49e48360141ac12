"""Models that guide another: a weaker checkpoint, a classifier of noisy latents. Opened by the names in a text."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.classifier_folder import load_classifier
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.guidance import LogProb
from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.engine.machine import Machine

__all__ = ["Guides"]


@dataclass(frozen=True)
class Guides:
    """Opens the guides of one model, on its device."""

    components: Components
    machine: Machine
    placed: Callable[[Components], Denoiser]

    def denoiser(self, model: str) -> Denoiser:
        """Return the U-Net of another model, which must have the same text states and latents.

        Raises:
            ConfigError: it reads others.
            CheckpointError: no such model.
        """
        other = load_model(model, torch.float32)
        latents = tuple(model.autoencoder.config.latent_channels for model in (self.components, other))
        pairs = {"latent_channels": latents} | {
            name: (getattr(self.components.unet.config, name), getattr(other.unet.config, name))
            for name in ("cross_attention_dim", "in_channels", "added_width")
        }
        for name, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise ConfigError(f"{other.name} cannot guide {self.components.name}: {name} is {theirs}, not {ours}")
        return self.placed(replace(other, unet=self.machine.place_unet(other.unet)))

    def log_prob(self, classifier: str, label: str) -> LogProb:
        """Return the log-probability of a class of a classifier of these latents and noise levels.

        Raises:
            ConfigError: it was trained on others, or has no such class.
            CheckpointError: the folder has no classifier, or a damaged one.
        """
        with torch.inference_mode(False):  # the gradient with respect to x passes through its weights
            stored = load_classifier(classifier)
            stored.check_fit(self.components, classifier)
            network = stored.network.to(self.machine.device)
        field, number = network.config.place(label)

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            return network(x, t)[field][:, number]

        return log_prob
