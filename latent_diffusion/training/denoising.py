"""The player of diffusion training, and its loss on held-out pictures.

    x0 ~ q(z | picture),  x = alpha_t x0 + sigma_t noise,  loss = w(t) |network(x, t, caption) - target|^2

Every draw (posterior, t, noise, caption, dropout) is keyed with the sample number.
Reference: Rombach et al. 2022, arXiv:2112.10752, eq. (3).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.data.folder import ImageFolder
from latent_diffusion.data.loader import Batch
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet
from latent_diffusion.randomness import normal, permutation, uniform
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.training.frozen_states import Latents, TextStates
from latent_diffusion.training.objective import Losses, Player

__all__ = ["Denoising", "HeldOutLoss"]


class Denoising(Player):
    """The U-Net; reads latents and text states of the frozen parts."""

    def __init__(self, unet: UNet, loss: DiffusionLoss, seed: int, strata: int) -> None:
        super().__init__()
        self.unet = unet
        self.loss = loss
        self.seed = seed
        self.strata = strata
        self.held: tuple[Latents, TextStates] | None = None

    def times(self, samples: Sequence[int]) -> Tensor:
        """Return an integer time for each sample number, (B,); with strata one from each equal part of 0 .. T - 1."""
        total = self.loss.schedule.num_train_timesteps
        shares = []
        for number in samples:
            share = uniform(self.seed, "t", number)
            if self.strata:
                update, position = divmod(number, self.strata)
                share = (permutation(self.seed, "t order", update, self.strata)[position] + share) / self.strata
            shares.append(min(int(share * total), total - 1))
        return torch.tensor(shares)

    def forward(self, batch: Batch, step: int) -> Losses:
        """Return the weighted loss of each picture, (B,)."""
        assert self.held is not None, "prepare comes first"
        latents, texts = self.held
        like = self.unet.conv_in.weight
        x0, cond = latents(batch).to(like), texts(batch.captions).to(like.device)
        if like.dtype == torch.float64:
            cond = cond.to(dtype=like.dtype)
        noise = normal(self.seed, "noise", batch.sample, x0.shape[1:]).to(x0)
        return Losses(self.loss(self.network(cond), x0, self.times(batch.sample).to(x0.device), noise))

    def network(self, cond: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the U-Net as a function of x (B, C, h, w) and t (B,), with the captions `cond` projected once."""
        projected = self.unet.project(cond)
        return lambda x, t: self.unet(x, t, projected)


class HeldOutLoss:
    """The mean loss of held-out pictures on a fixed lattice of times and noise, with each picture's first caption."""

    BANDS = 4  # equal parts of 0 .. T - 1; every picture is seen at one time in each

    def __init__(self, player: Denoising, data: ImageFolder, autoencoder: AutoencoderKL, run: Any) -> None:
        assert player.held is not None, "prepare comes first"
        texts = player.held[1]
        self.player, self.data, self.run = player, data, run
        self.latents = Latents(autoencoder, data, run.seed)
        self.texts = TextStates(texts.encoder, texts.dtype)  # held-out captions are not in the player's cache

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return the mean over all, and over each band of times."""
        total, bands = self.player.loss.schedule.num_train_timesteps, self.BANDS
        losses: list[Tensor] = []
        for start in range(0, len(self.data), 32):
            rows = tuple(range(start, min(start + 32, len(self.data))))
            pixels = torch.stack([self.data.image(row) for row in rows]).float() / 127.5 - 1
            chosen = tuple(self.data.captions[row][0][0] for row in rows)
            x0 = self.latents(Batch(rows, rows, pixels, chosen, (False,) * len(rows))).float()
            cond = self.texts(chosen).to(x0.device)
            for band in range(bands):
                place = torch.tensor(rows, dtype=torch.float64) / len(self.data)
                t = ((band + place) / bands * total).long().to(x0.device)
                keys = [row * bands + band for row in rows]
                noise = normal(self.run.seed, "validation noise", keys, x0.shape[1:]).to(x0)
                with autocast(self.run.precision, x0.device):
                    losses.append(self.player.loss(self.player.network(cond), x0, t, noise).view(1, -1))
        table = torch.cat([torch.cat(losses[band::bands], dim=1) for band in range(bands)])
        figures = {f"validation_loss_{band}": float(table[band].mean()) for band in range(bands)}
        return {"validation_loss": float(table.mean()), **figures}
