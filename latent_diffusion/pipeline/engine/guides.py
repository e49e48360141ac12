"""Models that guide another, opened by their names: weaker checkpoints, classifiers and CLIPs of noisy latents."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.classifier_folder import load_classifier
from latent_diffusion.checkpoint.folder.latent_clip_folder import load_latent_clip
from latent_diffusion.checkpoint.folder.latent_tower_folder import StoredTower
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.guidance import LogProb, TextScore
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.latent_tower import LatentTower
from latent_diffusion.pipeline.engine.machine import Machine

__all__ = ["Guides"]

N = TypeVar("N", bound=LatentTower)


@dataclass(frozen=True)
class Guides:
    """Opens the guides of one model, on its device."""

    components: Components
    machine: Machine
    placed: Callable[[Components], Denoiser]

    def denoiser(self, model: str) -> Denoiser:
        """Return the U-Net of another model, which must have the same text states and latents.

        One that reads the noisy latents alone guides an inpainting U-Net too: it does not see the mask.

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
        if self.components.for_inpainting and other.plain:
            del pairs["in_channels"]
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
        network = self._opened(load_classifier, classifier)
        field, number = network.config.place(label)

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            return network(x, t)[field][:, number]

        return log_prob

    def text_score(self, clip: str) -> TextScore:
        """Return the score of a CLIP of these latents, noise levels and text states.

        Raises:
            ConfigError: it was trained on others.
            CheckpointError: the folder has no CLIP of noisy latents, or a damaged one.
        """
        network, parts = self._opened(load_latent_clip, clip), self.components
        if network.config.text_width != parts.text_encoder.width:
            raise ConfigError(
                f"{clip}: trained on text states of width {network.config.text_width}, but those of {parts.name} have "
                f"{parts.text_encoder.width}; train one with objective.model={parts.name}"
            )

        def score(context: Tensor) -> LogProb:
            text = network.text_features(context.float())

            def log_prob(x: Tensor, t: Tensor) -> Tensor:
                return network.score(network.image_features(x, t), text)

            return log_prob

        return score

    def _opened(self, load: Callable[[str], StoredTower[N]], folder: str) -> N:
        """Return the network in a folder, on the device, if it reads these latents and noise levels."""
        with torch.inference_mode(False):  # the gradient with respect to x passes through its weights
            stored = load(folder)
            stored.check_fit(self.components, folder)
            return stored.network.to(self.machine.device)
