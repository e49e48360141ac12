"""The player of diffusion training, and its loss on held-out pictures.

    x0 ~ q(z | picture),  x = alpha_t x0 + sigma_t noise,  loss = w(t) |network(x, t, caption) - target|^2

Every draw (posterior, t, noise, caption, dropout) is keyed with the sample number.
Reference: Rombach et al. 2022, arXiv:2112.10752, eq. (3).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.config import Section
from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.diffusion.loss import DiffusionLoss, Noised
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.randomness import normal
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.training.losses.base_prior import BasePrior
from latent_diffusion.training.losses.conditions import Conditions
from latent_diffusion.training.losses.keyed_times import KeyedTimes, TimesSettings
from latent_diffusion.training.losses.masked_loss import Areas, PictureAreas
from latent_diffusion.training.networks.frozen_states import Latents
from latent_diffusion.training.networks.trained_networks import TrainedNetworks
from latent_diffusion.training.objective import Losses, Share

__all__ = ["Denoising", "HeldOutLoss", "LossSettings", "TimesSettings"]


class LossSettings(Section):
    """What is minimised: the keys that every diffusion objective has in its `objective:` section."""

    weighting: Literal["simple", "min_snr", "soft_min_snr", "p2", "debiased", "bound"] = "simple"
    """Weight of the loss by noise level."""
    gamma: float | None = Field(default=None, gt=0)
    """min_snr and soft_min_snr: where the signal-to-noise ratio is clipped; p2: the exponent. null: 5, 5, 1."""
    k: float | None = Field(default=None, gt=0)
    """p2: what is added to the signal-to-noise ratio; null: 1."""
    huber: float | None = Field(default=None, gt=0)
    """Size of error above which the loss grows linearly (pseudo-Huber); null: the squared error."""
    times: TimesSettings = TimesSettings()
    """Which noise levels are trained on."""
    stratified: bool = True
    """Spread the times of one update evenly over the global batch: less variance, the same mean."""
    offset_noise: float = Field(default=0.0, ge=0)
    """Deviation of a constant added to each channel of the noise, for very dark and very bright pictures."""
    input_perturbation: float = Field(default=0.0, ge=0)
    """Deviation of noise added to the network's input only."""


class Denoising(TrainedNetworks):
    """The networks that are trained to denoise; reads latents and text states."""

    held: tuple[Latents, Conditions]  # set when the objective is prepared, before the first batch

    def __init__(
        self,
        parts: Components,
        trained: Mapping[str, nn.Module],
        settings: LossSettings,
        seed: int,
        batch_size: int,
        among: Sequence[int] | None = None,
    ) -> None:
        """Take the model that computes and those of its modules (or of their changes) that are trained.

        Args:
            parts: the model; its networks are not registered here.
            trained: what is registered, saved and given to the optimizer, by name.
            settings: the loss.
            seed: of the run.
            batch_size: pictures of an update, over which stratified times are spread.
            among: the only times that are trained; None = all.

        Raises:
            ConfigError: parts of the settings that do not go together.
        """
        super().__init__(parts, trained)
        self.settings, self.seed = settings, seed
        self.loss = DiffusionLoss(
            parts.schedule, parts.prediction, settings.weighting, settings.gamma, settings.k, settings.huber
        )
        weights = self.loss.weight(torch.arange(parts.schedule.num_train_timesteps))
        self.keyed_times = KeyedTimes(settings.times, weights, seed, batch_size if settings.stratified else 0, among)
        inside = torch.from_numpy(self.keyed_times.probabilities > 0)
        self.mean_weight = float(weights[inside].mean()) if settings.times.law == "importance" else None
        self.areas: PictureAreas | None = None
        self.prior: BasePrior | None = None

    def shares(self, samples: Sequence[int]) -> list[float]:
        """Return a number in [0, 1) for each sample number, spread evenly over the batch if they are stratified."""
        return self.keyed_times.shares(samples)

    def times(self, samples: Sequence[int]) -> Tensor:
        """Return an integer time for each sample number, (B,), by the law of times."""
        return self.keyed_times(samples)

    def forward(self, batch: Batch, step: int) -> Losses:
        """Return the weighted loss of each picture, (B,)."""
        groups = self._groups(self.held[1], batch)
        if len(groups) == 1:
            return Losses(self._losses(batch), present=batch.present)
        parts = torch.cat([self._losses(batch.take(places)) for places in groups])
        order = torch.tensor([place for places in groups for place in places]).argsort()
        return Losses(parts[order.to(parts.device)], present=batch.present)

    def _groups(self, conditions: Conditions, batch: Batch) -> list[list[int]]:
        """Return the places of pictures that go through the networks together: equally many tokens in both captions."""
        groups = conditions.groups(batch.captions)
        if self.prior is None:
            return groups
        captions = self.prior.of_class(batch).captions
        inner = [(places, self.prior.conditions.groups([captions[k] for k in places])) for places in groups]
        return [[places[k] for k in chosen] for places, parts in inner for chosen in parts]

    def _losses(self, batch: Batch) -> Tensor:
        """Return the losses (B,) of pictures whose captions have equally many tokens."""
        x0, cond = self.latents(batch), self.condition(batch)
        noise = self.noise(batch, x0)
        perturbed = None
        if self.settings.input_perturbation:
            more = normal(self.seed, "input perturbation", batch.sample, x0.shape[1:]).to(x0)
            perturbed = noise + self.settings.input_perturbation * more
        t = self.times(batch.sample).to(x0.device)
        noised = self.loss.noised(x0, t, noise, perturbed)
        areas = None if self.areas is None else self.areas(batch)
        output = self.network(cond)(noised.x, noised.time)
        losses = self.compared(x0, noised, t, output, None if areas is None else areas.weights)
        if self.prior is not None:
            losses = losses + self._distance_to_base(self.prior, batch, noised, t, output, areas)
        if self.mean_weight is not None:  # the times are drawn by weight, so the loss has the mean weight
            losses = losses * (self.mean_weight / self.loss.weight(t)).to(losses)
        if batch.weights is not None:
            losses = losses * batch.weights.to(losses)
        return losses

    def compared(self, x0: Tensor, noised: Noised, t: Tensor, output: Tensor, area: Tensor | None = None) -> Tensor:
        """Return the losses (B,) of the network's outputs; `area` as in `DiffusionLoss.compared`."""
        return self.loss.compared(output, noised.target, t, area)

    def latents(self, batch: Batch) -> Tensor:
        """Return the clean latents x0 (B, C, h, w), with the dtype and device of the U-Net's weights."""
        return self.held[0](batch).to(self.unet.conv_in.weight)

    def condition(self, batch: Batch) -> Conditioning:
        """Return what the captions condition on, in float64 where the network computes in it."""
        return self._wide(self.held[1](batch))

    def _wide(self, cond: Conditioning) -> Conditioning:
        """Return `cond` in float64 where the network computes in it."""
        like = self.unet.conv_in.weight
        return cond.to(dtype=like.dtype) if like.dtype == torch.float64 else cond

    def _distance_to_base(
        self, prior: BasePrior, batch: Batch, noised: Noised, t: Tensor, output: Tensor, areas: Areas | None
    ) -> Tensor:
        """Return the weighted distances (B,) to the base: for class captions, and outside the masks."""
        of_class = prior.of_class(batch)
        wanted = prior(noised, self._wide(prior.conditions(of_class)))
        losses = torch.zeros(len(output), dtype=wanted.dtype, device=wanted.device)
        if prior.preserve is not None:
            made = self.network(self.condition(of_class))(noised.x, noised.time)
            losses = losses + prior.preserve.weight * self.loss.compared(made, wanted, t)
        if areas is not None and prior.outside:
            losses = losses + prior.outside * self.loss.compared(output, wanted, t, areas.outside)
        return losses

    def noise(self, batch: Batch, x0: Tensor) -> Tensor:
        """Return noise like x0 (B, C, h, w), with a constant added to each channel if `offset_noise` is set.

        Reference: Guttenberg 2023, "Diffusion with offset noise".
        """
        samples = batch.sample
        noise = normal(self.seed, "noise", samples, x0.shape[1:]).to(x0)
        if self.settings.offset_noise:
            offset = normal(self.seed, "offset noise", samples, (x0.shape[1], 1, 1)).to(x0)
            noise = noise + self.settings.offset_noise * offset
        return noise


class HeldOutLoss:
    """The loss of held-out pictures on a fixed lattice of times and noise, with each picture's first caption."""

    BANDS = 4  # equal parts of 0 .. T - 1; every picture is seen at one time in each

    def __init__(self, player: Denoising, data: ImageFolder, autoencoder: AutoencoderKL, run: Any) -> None:
        self.player, self.data, self.run = player, data, run
        self.latents = Latents(autoencoder, data, run.seed)
        self.conditions = player.held[1].uncached()

    @torch.no_grad()
    def measure(self, share: Share) -> dict[str, Tensor]:
        """Return the loss of each picture of a share: over all bands of times, in each band, and in its hole."""
        total, bands = self.player.loss.schedule.num_train_timesteps, self.BANDS
        losses, of_holes = list[Tensor](), list[Tensor]()
        mine = list(share.of(len(self.data)))
        groups = self.conditions.groups([self.data.first_caption(row) for row in mine])
        order = [place for places in groups for place in places]
        chunks = [places[start : start + 32] for places in groups for start in range(0, len(places), 32)]
        for chunk in chunks:
            rows = tuple(mine[place] for place in chunk)
            pixels = torch.stack([self.data.image(row) for row in rows]).float() / 127.5 - 1
            chosen = tuple(self.data.first_caption(row) for row in rows)
            sizes = torch.tensor([self.data.size_ids(row) for row in rows], dtype=torch.float32)
            batch = Batch(rows, rows, pixels, chosen, (False,) * len(rows), sizes)
            like = self.player.unet.conv_in.weight
            x0, cond = self.latents(batch).to(like), self.conditions(batch)
            if like.dtype == torch.float64:
                cond = cond.to(dtype=like.dtype)
            for band in range(bands):
                place = torch.tensor(rows, dtype=torch.float64) / len(self.data)
                t = ((band + place) / bands * total).long().to(x0.device)
                keys = [row * bands + band for row in rows]
                noise = normal(self.run.seed, "validation noise", keys, x0.shape[1:]).to(x0)
                with autocast(self.run.precision, x0.device):
                    noised = self.player.loss.noised(x0, t, noise)
                    output = self.player.network(cond)(noised.x, noised.time)
                losses.append(self.player.compared(x0, noised, t, output).view(1, -1))
                if cond.concat is not None:
                    hole = cond.concat[:, :1]
                    of_holes.append(self.player.compared(x0, noised, t, output, hole).view(1, -1))
        if not losses:
            return {}

        def sorted_by_row(parts: list[Tensor]) -> Tensor:
            table = torch.cat([torch.cat(parts[band::bands], dim=1) for band in range(bands)]).double()
            return table[:, torch.tensor(order).argsort().to(table.device)]

        table = sorted_by_row(losses)
        figures = {"validation_loss": table.mean(0), **{f"validation_loss_{k}": table[k] for k in range(bands)}}
        return figures | ({"validation_loss_hole": sorted_by_row(of_holes).mean(0)} if of_holes else {})
