"""Train a CLIP of noisy latents: pictures at every noise level find their captions within the global batch.

    x = alpha_t x0 + sigma_t noise,   logits = scale * f(x, t) . g(c),   loss: `contrastive_loss`

The model's text encoder is frozen (as one tower of Zhai et al. 2022, LiT, arXiv:2111.07991); one layer over its states
and the tower of the latents are trained. The gradient guides drawing (`guidance/noised_clip.py`).
Reference: Nichol et al. 2021 (GLIDE), arXiv:2112.10741, section 2.4.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from latent_diffusion.checkpoint.folder.latent_clip_folder import load_latent_clip
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.latent_clip import LatentCLIP, LatentCLIPConfig
from latent_diffusion.randomness import normal
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.training.losses.noisy_tower import NoisyTowerObjective, TowerSettings
from latent_diffusion.training.monitoring.reopened import BOUNDS, check_agreement
from latent_diffusion.training.networks.frozen_states import MeanStates, Sharing
from latent_diffusion.training.networks.noisy_latents import NoisyLatents
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objective import Losses, Player, Share
from latent_diffusion.training.objectives.clip import contrastive_loss, held_out_pairs

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LatentCLIPObjective", "LatentCLIPSettings"]


class LatentCLIPSettings(TowerSettings):
    """The `objective:` section."""

    model: str = "emoji"
    """Model whose latents, noise levels and text states are read: a bundled name, a folder or a single file."""
    embed_dim: int = Field(default=256, gt=0)
    """Length of the features that are compared."""


class Contrasting(Player):
    """The tower of noisy latents, the layer over text states and the temperature."""

    def __init__(self, network: LatentCLIP, noisy: NoisyLatents, texts: MeanStates) -> None:
        super().__init__()
        self.network = network
        self.noisy, self.texts = noisy, texts

    def forward(self, batch: Batch, step: int) -> Losses:
        """Return the contrastive loss of each picture among the global batch, (B,)."""
        like = self.network.conv_in.weight
        x, t = self.noisy(batch, like)
        losses, right = self.compared(x, t, batch.captions)
        scale = self.network.logit_scale.detach()
        return Losses(losses, {"accuracy": right.to(losses), "logit_scale": scale}, batch.present)

    def compared(
        self, x: Tensor, t: Tensor, captions: Sequence[str], *, together: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) of each pair, and whether each picture's best caption is its own (B,)."""
        network = self.network
        image, text = network.image_features(x, t), network.text_features(self.texts(captions).to(x))
        with torch.autocast(x.device.type, enabled=False):
            return contrastive_loss(image.to(x.dtype), text.to(x.dtype), network.logit_scale, together=together)


class LatentCLIPObjective(NoisyTowerObjective[LatentCLIP]):
    """A CLIP beside a model's frozen autoencoder and text encoder."""

    settings_type = LatentCLIPSettings
    trains = "a CLIP of latents"
    reads_captions = True
    couples_samples = True

    def __init__(self, settings: LatentCLIPSettings, data: DataConfig, run: Any) -> None:
        """Read the pictures, and build the network."""
        if not data.captions:
            raise ConfigError("data.captions: CLIP learns from captions; name the metadata fields that hold them")
        super().__init__(settings, data, run)
        config = LatentCLIPConfig(
            in_channels=self.parts.autoencoder.config.latent_channels,
            channels=tuple(settings.channels),
            blocks=settings.blocks,
            groups=settings.groups,
            text_width=self.parts.text_encoder.width,
            embed_dim=settings.embed_dim,
        )
        network = LatentCLIP(config).train()
        self.texts = MeanStates(self.parts.text_encoder)
        self.player = Contrasting(network, self.noisy, self.texts)
        frozen = {"vae": self.parts.autoencoder, "text_encoder": self.parts.text_encoder}
        self.train("clip", network, self.player, **frozen)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts, then encode pictures and captions."""
        super().prepare(accelerator, dtype)
        captions = self.data.all_captions()  # None: they are drawn without end, and encoded in every step
        self.texts.fill(() if captions is None else ["", *captions], Sharing.between(accelerator))

    @torch.no_grad()
    def evaluate(self, share: Share) -> dict[str, Tensor]:
        """Return loss and accuracy of held-out pairs, each among 64 (or the last few): in all, and by noise level."""
        if self.held_out is None:
            return {}
        data, like = self.held_out, self.network.conv_in.weight
        figures: dict[str, list[Tensor]] = {}
        for rows, captions in held_out_pairs(data, share):
            of_bands = list[tuple[Tensor, Tensor]]()
            for band, x, t in self.noisy.held_out(data, rows, like):
                with autocast(self.run.precision, like.device):
                    losses, right = self.player.compared(x, t, captions, together=False)
                of_bands.append((losses.double(), right.double()))
                figures.setdefault(f"validation_accuracy_{band}", []).append(right.double())
            for name, parts in zip(("loss", "accuracy"), zip(*of_bands, strict=True), strict=True):
                figures.setdefault(f"validation_{name}", []).append(torch.stack(parts).mean(0))
        return {name: torch.cat(parts) for name, parts in figures.items()}

    @torch.no_grad()
    def verify(self, folder: Path) -> None:
        """Open the folder and compare the features of some noise and texts with those of the trained network."""
        read, config = load_latent_clip(folder).network, self.network.config
        x, t = normal(0, "verify", range(2), (config.in_channels, 16, 16)), torch.tensor([0.0, 500.0])
        context, like = normal(0, "verify text", range(2), (3, config.text_width)), self.network.conv_in.weight
        pairs = {
            "image": (self.network.image_features(x.to(like), t.to(like.device)), read.image_features(x.float(), t)),
            "text": (self.network.text_features(context.to(like)), read.text_features(context.float())),
            "scale": (self.network.logit_scale, read.logit_scale),
        }
        check_agreement(folder, "latent_diffusion", pairs, BOUNDS["float32"])

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data and of the frozen parts."""
        digests = [weights_digest(module) for module in self.frozen.values()]
        return {"data.path": self.data.digest, "objective.model": " ".join(digests)}
