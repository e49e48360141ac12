"""Train the U-Net on latents and captions: from scratch beside trained parts, or on from a model.

    x0 ~ q(z | picture),  x = alpha_t x0 + sigma_t noise,  loss = w(t) |network(x, t, caption) - target|^2

Fine-tuning is the same with `init`. Every draw (posterior, t, noise, caption, dropout) is keyed with the sample number.
Reference: Rombach et al. 2022, arXiv:2112.10752, eq. (3); Ho & Salimans 2022, arXiv:2207.12598 (caption dropout).
"""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.diffusers_folder import load_autoencoder, save_folder
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.checkpoint.folder.text_folder import load_text_encoder
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.config import Section
from latent_diffusion.data.folder import DataConfig, ImageFolder
from latent_diffusion.data.loader import Batch, batches
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.models.unet import UNet, UNetConfig
from latent_diffusion.nn.transformer import TransformerBlock
from latent_diffusion.randomness import normal, permutation, uniform
from latent_diffusion.registry import names, nearest
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.training.drawing import draw_sheet
from latent_diffusion.training.frozen_states import Latents, TextStates
from latent_diffusion.training.objective import Losses, Objective, Player
from latent_diffusion.training.weights_digest import weights_digest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

__all__ = ["UNetObjective", "UNetSettings"]

FAMILIES = "latent_diffusion.families"


class Parts(Section):
    """Folders of the frozen parts of a model from scratch."""

    vae: str
    """An autoencoder's folder (config.json and weights)."""
    text_encoder: str
    """A folder that holds `text_encoder/` and `tokenizer/`."""


class UNetSettings(Section):
    """The `objective:` section."""

    init: str | None = None
    """Train on from a model: a bundled name or a diffusers folder."""
    parts: Parts | None = None
    """Or train a new U-Net beside these."""
    unet: str | dict[str, Any] | None = None
    """With `parts`: the name of a family, or the fields of `UNetConfig`."""
    scheduler: dict[str, Any] = Field(default_factory=dict)
    """Changes to the noise schedule and default sampler of the model or family, as in scheduler_config.json."""
    weighting: Literal["simple", "min_snr"] = "simple"
    gamma: float = Field(default=5.0, gt=0)
    """Where `min_snr` clips the signal-to-noise ratio."""
    stratified: bool = True
    """Spread the times of one update evenly over the global batch: less variance, the same mean."""
    latent_cache_bytes: int = Field(default=4 * 2**30, ge=0)
    text_cache_bytes: int = Field(default=2 * 2**30, ge=0)
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    validation: dict[str, str | list[str]] | None = None
    """Filter of held-out pictures, in place of `data.where`; their loss is reported with every preview."""
    workers: int = Field(default=1, ge=0)


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
        assert self.held is not None, "prepare comes first"
        latents, texts = self.held
        like = self.unet.conv_in.weight
        x0, cond = latents(batch).to(like), texts(batch.captions).to(like.device)
        if like.dtype == torch.float64:
            cond = cond.to(dtype=like.dtype)
        noise = normal(self.seed, "noise", batch.sample, x0.shape[1:]).to(x0)
        return Losses(self.loss(self.network(cond), x0, self.times(batch.sample).to(x0.device), noise))

    def network(self, cond: Any) -> Any:
        projected = self.unet.project(cond)
        return lambda x, t: self.unet(x, t, projected)


class UNetObjective(Objective):
    """A whole model of which the U-Net is trained."""

    settings_type = UNetSettings
    data_type = DataConfig

    def __init__(self, settings: UNetSettings, data: DataConfig, run: Any) -> None:
        """Load or build the parts and read the pictures."""
        self.settings, self.run = settings, run
        self.components = _components(settings)
        parts = self.components
        _check_fit(parts, data.size)
        self.data = ImageFolder(data, run.seed)
        self.held_out = None
        if settings.validation is not None:
            held_out = {"where": settings.validation, "flip": False, "caption_dropout": 0.0}
            self.held_out = ImageFolder(data.model_copy(update=held_out), run.seed)
        parts.unet.train().requires_grad_(True).enable_gradient_checkpointing(run.gradient_checkpointing)
        _freeze_lone_attention(parts.unet, data.size // parts.autoencoder.factor)
        parts.autoencoder.eval().requires_grad_(False)
        parts.text_encoder.eval().requires_grad_(False)
        loss = DiffusionLoss(parts.schedule, parts.prediction, settings.weighting, settings.gamma)
        strata = run.batch_size if settings.stratified else 0
        self.player = Denoising(parts.unet, loss, run.seed, strata)
        self.players = {"unet": self.player}
        self.ema_modules: dict[str, nn.Module] = {"unet": parts.unet}
        self.frozen: dict[str, nn.Module] = {"vae": parts.autoencoder, "text_encoder": parts.text_encoder}

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts, then encode pictures and captions."""
        parts, settings = self.components, self.settings
        parts.autoencoder.to(device=accelerator.device, dtype=dtype).to(memory_format=torch.channels_last)
        # On CPUs bfloat16 GroupNorm is slow in channels_last and the U-Net has many: measured a sixth of the step.
        slow_norms = accelerator.device.type == "cpu" and self.run.precision == "bfloat16"
        layout = torch.contiguous_format if slow_norms else torch.channels_last
        parts.unet.to(device=accelerator.device, dtype=dtype).to(memory_format=layout)
        parts.text_encoder.to(accelerator.device)
        latents = Latents(parts.autoencoder, self.data, self.run.seed)
        # Under autocast the U-Net rounds text states to bfloat16 before all else: rounding them here changes nothing.
        assert isinstance(parts.text_encoder, TextEncoder), "models with two are refused before"
        texts = TextStates(parts.text_encoder, torch.bfloat16 if self.run.precision == "bfloat16" else torch.float32)
        self.player.held = (latents, texts)
        latents.fill(settings.latent_cache_bytes)
        captions = [text for row in self.data.captions for texts_of in row for text in texts_of]
        texts.fill(["", *captions], settings.text_cache_bytes)

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield batches; without pixels once latents are cached."""
        assert self.player.held is not None, "prepare comes first"
        yield from batches(self.data, numbers, self.settings.workers, pixels=not self.player.held[0].cached)

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write a whole diffusers folder."""
        save_folder(self.components, folder, getattr(torch, self.settings.export_dtype))

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data and of the weights the run starts from, as read from their files."""
        parts = self.components
        prints = {"data.path": self.data.digest}
        if self.settings.init is not None:
            prints["objective.init"] = weights_digest(parts.unet, parts.autoencoder, parts.text_encoder)
        else:
            prints["objective.parts.vae"] = weights_digest(parts.autoencoder)
            prints["objective.parts.text_encoder"] = weights_digest(parts.text_encoder)
        return prints

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """Return the mean loss of the held-out pictures on a fixed lattice of times and noise, and that of each band.

        Each picture is seen at four times, one in each quarter of 0 .. T - 1, with its first caption.
        """
        if self.held_out is None or self.player.held is None:
            return {}
        latents, texts = Latents(self.components.autoencoder, self.held_out, self.run.seed), self.player.held[1]
        total, bands = self.player.loss.schedule.num_train_timesteps, 4
        captions = TextStates(texts.encoder, texts.dtype)  # held-out captions are not in the cache
        losses: list[Tensor] = []
        for start in range(0, len(self.held_out), 32):
            rows = tuple(range(start, min(start + 32, len(self.held_out))))
            pixels = torch.stack([self.held_out.image(row) for row in rows]).float() / 127.5 - 1
            chosen = tuple(self.held_out.captions[row][0][0] for row in rows)
            batch = Batch(rows, rows, pixels, chosen, (False,) * len(rows))
            x0 = latents(batch).float()
            cond = captions(chosen).to(x0.device)
            for band in range(bands):
                place = torch.tensor(rows, dtype=torch.float64) / len(self.held_out)
                t = ((band + place) / bands * total).long().to(x0.device)
                keys = [row * bands + band for row in rows]
                noise = normal(self.run.seed, "validation noise", keys, x0.shape[1:]).to(x0)
                with autocast(self.run.precision, x0.device):
                    losses.append(self.player.loss(self.player.network(cond), x0, t, noise).view(1, -1))
        table = torch.cat([torch.cat(losses[band::bands], dim=1) for band in range(bands)])
        figures = {f"validation_loss_{band}": float(table[band].mean()) for band in range(bands)}
        return {"validation_loss": float(table.mean()), **figures}

    @torch.no_grad()
    def preview(self, step: int) -> "list[Image] | None":
        """Return one sheet with a picture of each of the run's prompts; prompt k has seed `sample.seed` + k."""
        if self.run.sample is None or not self.run.sample.prompts:
            return None
        return [draw_sheet(self.components, self.run.sample, self.data.config.size, self.run.precision)]


def _components(settings: UNetSettings) -> Components:
    if (settings.init is None) == (settings.parts is None):
        raise ConfigError("objective: give either `init` (a model to train on) or `parts` (from scratch), not both")
    if settings.init is not None:
        if settings.unet is not None:
            raise ConfigError("objective.unet: the U-Net's sizes come with `init`; leave `unet` out")
        loaded = load_model(settings.init)
        if loaded.size_count:
            raise ConfigError(f"objective.init: {loaded.name} is an SDXL model, which this objective does not train")
        config = {**loaded.scheduler_config, **settings.scheduler}
        schedule, prediction = read_schedule(config)
        return replace(loaded, schedule=schedule, prediction=prediction, scheduler_config=config)
    assert settings.parts is not None, "checked above"
    config, scheduler = _sizes(settings.unet)
    scheduler = {**scheduler, **settings.scheduler}
    schedule, prediction = read_schedule(scheduler)
    unet = UNet(config)
    nn.init.zeros_(unet.conv_out.weight)  # starts by predicting 0, the mean of the target
    return Components(
        unet=unet,
        autoencoder=load_autoencoder(Path(settings.parts.vae), torch.float32),
        text_encoder=load_text_encoder(Path(settings.parts.text_encoder)),
        schedule=schedule,
        prediction=prediction,
        scheduler_config=scheduler,
        name="unet",
    )


def _sizes(unet: str | dict[str, Any] | None) -> tuple[UNetConfig, dict[str, Any]]:
    """Return the U-Net's sizes and the family's scheduler configuration; plain values take the bundled family's."""
    family = unet if isinstance(unet, str) else "emoji"
    known = names(FAMILIES)
    if unet is None or family not in known:
        raise ConfigError(f"objective.unet: {unet!r} is neither a family ({', '.join(known)}) nor the sizes of a U-Net")
    values = importlib.import_module(f"{FAMILIES}.{family}")
    if isinstance(unet, str):
        return values.UNET, dict(values.SCHEDULER)
    allowed = [field.name for field in fields(UNetConfig)]
    for name in unet:
        if name not in allowed:
            raise ConfigError(f"objective.unet: unknown key {name!r}{nearest(name, allowed)}")
    try:
        return UNetConfig(**unet), dict(values.SCHEDULER)
    except TypeError as error:
        raise ConfigError(f"objective.unet: {error}") from error


def _check_fit(parts: Components, size: int) -> None:
    """Refuse parts that do not belong together, before anything is computed."""
    unet, latent = parts.unet.config, parts.autoencoder.config.latent_channels
    if unet.in_channels != latent or unet.out_channels != latent:
        raise ConfigError(
            f"the U-Net reads {unet.in_channels} and writes {unet.out_channels} channels, latents have {latent}; "
            "this objective trains text-to-image U-Nets"
        )
    if unet.cross_attention_dim != parts.text_encoder.width:
        raise ConfigError(
            f"the U-Net's cross_attention_dim is {unet.cross_attention_dim}, "
            f"the text encoder's width {parts.text_encoder.width}"
        )
    if size % parts.autoencoder.factor:
        raise ConfigError(f"data.size {size} px is not a multiple of the autoencoder's {parts.autoencoder.factor} px")


def _freeze_lone_attention(unet: UNet, side: int) -> None:
    """Do not train self-attention's queries and keys where the picture is one cell: a softmax over one has no gradient.

    Weight decay alone would move them. It happens at the lowest level of Stable Diffusion's U-Net under 128 px.
    """
    sides = [-(-side // 2**level) for level in range(len(unet.config.block_out_channels))]
    places = [*zip(unet.down_blocks, sides), (unet.mid_block, sides[-1]), *zip(unet.up_blocks, reversed(sides))]
    for place, cells in places:
        for block in place.modules():
            if cells == 1 and isinstance(block, TransformerBlock):
                block.attn1.to_q.requires_grad_(False)
                block.attn1.to_k.requires_grad_(False)
