"""Train the autoencoder: pixels, a classifier's features, a little KL, and late in the run a discriminator.

    loss = l1 |made - real| + mse (made - real)^2 + perceptual d(made, real) + kl KL / (3 H W) + w(adaptive) adversarial

all as means over an image's elements. In a share of the updates the decoder is asked for the half-size picture from
the half-size latents (`equivariance`): that keeps latents smooth, which the diffusion model is grateful for.
Reference: Rombach et al. 2022, arXiv:2112.10752, appendix G; Kouzelis et al. 2025, arXiv:2502.09509 (equivariance).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from latent_diffusion.config import Section
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder, open_pictures
from latent_diffusion.data.batches.loader import Batch, batches
from latent_diffusion.data.batches.picture_masks import warn_of_unused_masks
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.data.settings import HeldOut
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latent_diffusion.models.discriminator import GROUPS, PatchDiscriminator
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0
from latent_diffusion.randomness import normal, uniform
from latent_diffusion.registry import nearest
from latent_diffusion.runtime.precision import place
from latent_diffusion.training.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from latent_diffusion.training.losses.perceptual import PerceptualLoss
from latent_diffusion.training.monitoring.reopened import BOUNDS, check_agreement
from latent_diffusion.training.networks.latent_scale import fold_latent_scale, latent_statistics
from latent_diffusion.training.networks.parts import refuse_unused
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objective import Losses, Objective, Player, Share

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

__all__ = ["AutoencoderObjective", "AutoencoderSettings"]

CHUNK = 32  # pictures at a time where nothing is learned


class Adversarial(Section):
    """The discriminator's part."""

    start: int = Field(ge=0)
    """First update in which the discriminator moves and counts."""
    weight: float = Field(default=0.5, ge=0)
    """Times the adaptive weight."""
    largest: float = Field(default=100.0, gt=0)
    """The adaptive weight is clamped to this."""
    width: int = Field(default=32, gt=0, multiple_of=GROUPS)
    """Channels after the discriminator's first convolution."""
    layers: int = Field(default=2, ge=1)
    """Convolutions of stride 2 in the discriminator."""


class AutoencoderSettings(Section):
    """The `objective:` section."""

    model: dict[str, Any] | None = None
    """Fields of `AutoencoderConfig`: train from scratch."""
    init: str | None = None
    """Or the folder of an autoencoder to train on, or of a model that has one."""
    train: Literal["all", "decoder"] = "all"
    """decoder: with `init`; latents stay as they are, so every model of them draws with the new decoder."""
    l1: float = Field(default=1.0, ge=0)
    """Weight of the absolute difference."""
    mse: float = Field(default=0.0, ge=0)
    """Weight of the squared difference."""
    perceptual: float = Field(default=0.1, ge=0)
    """Weight of the difference of a classifier's features; 0: none."""
    kl: float = Field(default=1e-6, ge=0)
    """Weight of the KL sum against the pixel sum, as latent diffusion counts it."""
    equivariance: float = Field(default=0.0, ge=0, le=1)
    """Share of the updates, before the discriminator starts, that decode half-size latents."""
    adversarial: Adversarial | None = None
    """Discriminator; null: none. Keys below."""
    scale_pictures: int = Field(default=2048, gt=0)
    """Pictures over which the latent scale is measured at export."""
    validation: HeldOut | None = None
    """Filter of held-out pictures, in place of `data.where`, or a share of all, as 0.1; their PSNR is reported."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode pictures ahead."""

    @model_validator(mode="after")
    def _consistent(self) -> "AutoencoderSettings":
        if (self.model is None) == (self.init is None):
            raise ValueError("give either `model` (sizes, from scratch) or `init` (a folder), not both")
        if self.train == "decoder" and self.init is None:
            raise ValueError("train: decoder needs `init`, whose encoder stays as it is")
        for name in ("kl", "scale_pictures") if self.train == "decoder" else ():
            if name in self.model_fields_set:
                raise ValueError(f"train: decoder leaves the latents as they are; leave `{name}` out")
        if self.equivariance and self.adversarial is not None and not self.adversarial.start:
            raise ValueError(
                "equivariance is for updates before the discriminator starts, and adversarial.start is 0; leave it out"
            )
        return self


class Generator(Player):
    """The autoencoder's side. The discriminator and the perceptual network are used, not registered."""

    def __init__(self, model: AutoencoderKL, settings: AutoencoderSettings, seed: int) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.seed = seed
        self.held: tuple[PerceptualLoss | None, PatchDiscriminator | None] = (None, None)
        self.made: dict[tuple[int, ...], Tensor] = {}  # this update's pictures, for the discriminator's move
        self.sum_over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def forward(self, batch: Batch, step: int) -> Losses:
        s = self.settings
        perceptual, discriminator = self.held
        plays = s.adversarial is not None and step >= s.adversarial.start
        real = batch.images.to(next(self.model.parameters()).dtype, memory_format=torch.channels_last)
        posterior = self.model.encode(real)
        z = posterior.sample(normal(self.seed, "posterior", batch.sample, posterior.mean.shape[1:]).to(real))
        if not plays and s.equivariance > 0 and uniform(self.seed, "equivariance", step) < s.equivariance:
            z, real = F.avg_pool2d(z, 2), F.avg_pool2d(real, 2)
        made = self.model.decode(z)
        difference = made.to(real.dtype) - real
        l1, mse = difference.abs().flatten(1).mean(1), difference.square().flatten(1).mean(1)
        logs = {"l1": l1, "psnr": _psnr(mse)}
        reconstruction = s.l1 * l1 + s.mse * mse
        if perceptual is not None:
            logs["perceptual"] = perceptual(made, real)
            reconstruction = reconstruction + s.perceptual * logs["perceptual"]
        logs["kl"] = posterior.kl() / batch.images[0].numel()
        total = reconstruction if s.train == "decoder" else reconstruction + s.kl * logs["kl"]
        if plays and s.adversarial is not None and discriminator is not None:
            adversarial = generator_loss(discriminator(made))
            last = self.model.decoder.last_layer
            weight = adaptive_weight(
                reconstruction, adversarial, last, self.sum_over_processes, largest=s.adversarial.largest
            )
            total = total + s.adversarial.weight * weight * adversarial
            logs["adversarial"], logs["adaptive_weight"] = adversarial, weight
            self.made[batch.sample] = made.detach()
        return Losses(total, {name: value.detach() for name, value in logs.items()})


class Discriminator(Player):
    """The discriminator's side; plays with the pictures the autoencoder made in the same update."""

    def __init__(self, model: PatchDiscriminator, generator: Generator, start: int) -> None:
        super().__init__()
        self.model = model
        self.held = (generator,)
        self.start = start

    def active(self, step: int) -> bool:
        return step >= self.start

    def forward(self, batch: Batch, step: int) -> Losses:
        made = self.held[0].made.pop(batch.sample)
        like = next(self.model.parameters()).dtype
        # Not in bfloat16: inside the margin the two halves of the hinge cancel but for their last bits.
        with torch.autocast(made.device.type, enabled=False):
            real = self.model(batch.images.to(like, memory_format=torch.channels_last))
            false = self.model(made.to(like))
        loss = discriminator_loss(real, false)
        logs = {"loss": loss, "real": real.mean((1, 2, 3)), "made": false.mean((1, 2, 3))}
        return Losses(loss, {name: value.detach() for name, value in logs.items()})


class AutoencoderObjective(Objective):
    """An `AutoencoderKL` and, where asked for, its discriminator."""

    settings_type = AutoencoderSettings
    data_type = DataConfig
    best_by, best_is_lowest = "validation_psnr", False

    def __init__(self, settings: AutoencoderSettings, data: DataConfig, run: Any) -> None:
        """Build the networks and read the pictures."""
        self.settings = settings
        refuse_unused(data, "the autoencoder", captions=False)
        self.data, self.held_out = open_pictures(data, settings.validation, run.seed)
        warn_of_unused_masks(self.data)
        self.model = _autoencoder(settings)
        if data.size % self.model.factor:
            raise ConfigError(f"data.size {data.size} px is not a multiple of the autoencoder's {self.model.factor} px")
        self.model.train().requires_grad_(True).enable_gradient_checkpointing(run.gradient_checkpointing)
        generator = Generator(self.model, settings, run.seed)
        self.perceptual = PerceptualLoss(load_efficientnet_lite0()) if settings.perceptual > 0 else None
        self.players = {"generator": generator}
        discriminator = None
        if settings.adversarial is not None:
            discriminator = PatchDiscriminator(3, settings.adversarial.width, settings.adversarial.layers)
            self.players["discriminator"] = Discriminator(discriminator, generator, settings.adversarial.start)
        generator.held = (self.perceptual, discriminator)
        self.ema_modules: dict[str, nn.Module] = {"autoencoder": self.model}
        self.frozen: dict[str, nn.Module] = {} if self.perceptual is None else {"perceptual": self.perceptual}
        if settings.train == "decoder":
            self.frozen |= {"encoder": self.model.encoder, "quant_conv": self.model.quant_conv}
            for part in (self.model.encoder, self.model.quant_conv):
                part.requires_grad_(False)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the networks and measure the perceptual network's channels."""
        for module in (*self.players.values(), self.perceptual):
            if module is not None:
                place(module, accelerator.device, dtype)
        generator = self.players["generator"]
        assert isinstance(generator, Generator), "the first player is the autoencoder"
        generator.sum_over_processes = lambda tensor: _summed(accelerator, tensor)
        if self.perceptual is not None:
            self.perceptual.measure(self._pictures(self.data, 512))

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield batches of pictures."""
        return batches(self.data, numbers, self.settings.workers)

    def _pictures(self, data: ImageFolder, most: int) -> Iterator[Tensor]:
        """Yield up to `most` pictures, evenly spread over the data set, as (B, 3, H, W) where the model is."""
        step = max(1, len(data) / most)
        yield from self._rows(data, [int(k * step) for k in range(min(most, len(data)))])

    def _rows(self, data: ImageFolder, rows: Sequence[int]) -> Iterator[Tensor]:
        """Yield pictures of some rows as (B, 3, H, W) where the model is."""
        like = next(self.model.parameters())
        for start in range(0, len(rows), CHUNK):
            images = torch.stack([data.image(row) for row in rows[start : start + CHUNK]])
            yield (images.to(like.device, like.dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def evaluate(self, share: Share) -> dict[str, Tensor]:
        """Return the PSNR in dB of held-out pictures, from posterior means, clipped to [-1, 1]."""
        if self.held_out is None:
            return {}
        values: list[Tensor] = []
        for real in self._rows(self.held_out, list(share.of(len(self.held_out)))):
            made = self.model.decode(self.model.encode(real).mean).clamp(-1, 1)
            values.append(_psnr((made - real).square().flatten(1).mean(1)))
        return {"validation_psnr": torch.cat(values)} if values else {}

    @torch.no_grad()
    def draw(self, share: Share) -> "list[Image]":
        """Return one picture, from the first process: originals above their reconstructions."""
        if share.rank:
            return []
        data = self.held_out or self.data
        real = next(self._pictures(data, 16))
        made = self.model.decode(self.model.encode(real).mean)
        rows = [torch.cat(list(images), dim=-1) for images in (real, made)]
        return to_pil(torch.cat(rows, dim=-2).unsqueeze(0))

    @torch.no_grad()
    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write `vae/`, with the latent scale measured and folded in, unless the latents are as they were."""
        from latent_diffusion.checkpoint.folder.diffusers_folder import save_autoencoder

        made = self.model
        if self.settings.train == "all":
            mean, std = latent_statistics(made, self._pictures(self.data, self.settings.scale_pictures))
            made = fold_latent_scale(made, mean, std)
        save_autoencoder(made, folder / "vae", torch.float32)

    @torch.no_grad()
    def verify(self, folder: Path) -> None:
        """Open the folder and compare the reconstruction of a picture with the trained autoencoder's."""
        from latent_diffusion.checkpoint.folder.diffusers_folder import load_autoencoder

        real = next(self._pictures(self.data, 1))
        read = load_autoencoder(folder / "vae", torch.float32).to(real.device)
        pair = (model.decode(model.encode(real.to(next(model.parameters()))).mean) for model in (self.model, read))
        wanted, found = pair
        check_agreement(folder / "vae", "latent_diffusion", {"the decoder": (wanted, found)}, BOUNDS["float32"])

    def pass_samples(self) -> int:
        """Return the sample numbers of a pass."""
        return self.data.pass_length

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data and of the weights the run starts from, as read from their files."""
        prints = {"data.path": self.data.digest}
        return prints if self.settings.init is None else {**prints, "objective.init": weights_digest(self.model)}


def _autoencoder(settings: AutoencoderSettings) -> AutoencoderKL:
    if settings.init is not None:
        from latent_diffusion.checkpoint.folder.diffusers_folder import load_autoencoder

        folder = Path(settings.init)
        return load_autoencoder(folder / "vae" if (folder / "vae").is_dir() else folder, torch.float32)
    values = settings.model or {}
    known = [field.name for field in fields(AutoencoderConfig)]
    for name in values:
        if name not in known:
            raise ConfigError(f"objective.model: unknown key {name!r}{nearest(name, known)}")
    try:
        return AutoencoderKL(AutoencoderConfig(**values))
    except TypeError as error:
        raise ConfigError(f"objective.model: {error}") from error


def _summed(accelerator: "Accelerator", tensor: Tensor) -> Tensor:
    total = accelerator.reduce(tensor, reduction="sum")
    assert isinstance(total, Tensor), "reduce returns what it is given"
    return total


def _psnr(mse: Tensor) -> Tensor:
    """Return the PSNR in dB of images in [-1, 1] (peak to peak 2) from their mean squared error."""
    return 10 * torch.log10(4 / mse.float().clamp(min=1e-10))
