"""Train a classifier of noisy latents: it names style, group or other fields of a picture at every noise level.

    x = alpha_t x0 + sigma_t noise,   loss = - sum over fields of log p(class | x, t)

Its gradient guides drawing (`guidance/classifier.py`), where no text is needed and no network is trained anew.
Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.1.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from latent_diffusion.checkpoint.folder.classifier_folder import load_classifier
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.data.rows.metadata import values_of
from latent_diffusion.errors import DataError
from latent_diffusion.models.latent_classifier import LatentClassifier, LatentClassifierConfig
from latent_diffusion.randomness import normal
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.training.losses.noisy_tower import NoisyTowerObjective, TowerSettings
from latent_diffusion.training.monitoring.reopened import BOUNDS, check_agreement
from latent_diffusion.training.networks.noisy_latents import NoisyLatents
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objective import Losses, Player, Share

__all__ = ["ClassifierObjective", "ClassifierSettings"]

AT_ONCE = 32  # held-out pictures


class ClassifierSettings(TowerSettings):
    """The `objective:` section."""

    fields: list[str] = Field(min_length=1)
    """Metadata fields whose values are the classes, such as `[style, group]`; every picture has one value of each."""


class Classes:
    """The classes of a data set's pictures, by field."""

    def __init__(self, fields: Sequence[str], data: ImageFolder) -> None:
        """Collect the values of `fields`.

        Raises:
            DataError: a picture with no value of a field, or with several.
        """
        self.known = {field: tuple(sorted({_value(data, row, field) for row in range(len(data))})) for field in fields}

    def of(self, data: ImageFolder, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the number of each row's class, (B,) int64 by field.

        Raises:
            DataError: a class that no training picture has.
        """
        found: dict[str, Tensor] = {}
        for field, known in self.known.items():
            values = [_value(data, row, field) for row in rows]
            strange = sorted({*values} - {*known})
            if strange:
                raise DataError(
                    f"objective.validation: held-out pictures have {field} {strange[0]!r}, which no training picture "
                    f"has; those have {', '.join(known)}"
                )
            found[field] = torch.tensor([known.index(value) for value in values])
        return found


def _value(data: ImageFolder, row: int, field: str) -> str:
    values = values_of(data.rows[row], field)
    if len(values) != 1:
        has = "no value" if not values else f"{len(values)} values"
        raise DataError(
            f"{data.rows[row].get('file_name', f'picture {row}')} has {has} of the field {field!r}, not one"
        )
    return values.pop()


class Classifying(Player):
    """The classifier; reads noisy latents and the classes of the pictures."""

    def __init__(self, network: LatentClassifier, noisy: NoisyLatents, classes: Classes) -> None:
        super().__init__()
        self.network = network
        self.noisy, self.classes = noisy, classes

    def forward(self, batch: Batch, step: int) -> Losses:
        """Return the sum of the fields' cross-entropies of each picture, (B,)."""
        like = self.network.conv_in.weight
        x, t = self.noisy(batch, like)
        losses, right = self.judged(x, t, self.classes.of(self.noisy.data, batch.row))
        logs = {f"accuracy_{field}": found.to(losses) for field, found in right.items()}
        return Losses(losses if batch.weights is None else losses * batch.weights.to(losses), logs, batch.present)

    def judged(self, x: Tensor, t: Tensor, classes: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each picture (B,), and by field whether its class has the largest probability (B,)."""
        losses, right = x.new_zeros(len(x)), dict[str, Tensor]()
        for field, log_probs in self.network(x, t).items():
            own = classes[field].to(x.device)
            losses = losses - log_probs.to(x.dtype).gather(1, own[:, None])[:, 0]
            right[field] = log_probs.argmax(dim=1) == own
        return losses, right


class ClassifierObjective(NoisyTowerObjective[LatentClassifier]):
    """A classifier beside a model's frozen autoencoder."""

    settings_type = ClassifierSettings
    trains = "a classifier"
    reads_captions = False

    def __init__(self, settings: ClassifierSettings, data: DataConfig, run: Any) -> None:
        """Read the pictures and their classes, and build the network."""
        super().__init__(settings, data, run)
        self.settings = settings
        self.classes = Classes(settings.fields, self.data)
        if self.held_out is not None:
            self.classes.of(self.held_out, range(len(self.held_out)))
        config = LatentClassifierConfig(
            fields=self.classes.known,
            in_channels=self.parts.autoencoder.config.latent_channels,
            channels=tuple(settings.channels),
            blocks=settings.blocks,
            groups=settings.groups,
        )
        network = LatentClassifier(config).train()
        self.player = Classifying(network, self.noisy, self.classes)
        self.train("classifier", network, self.player, vae=self.parts.autoencoder)

    @torch.no_grad()
    def evaluate(self, share: Share) -> dict[str, Tensor]:
        """Return the loss of held-out pictures, and the share of right classes by field: in all, and by noise level."""
        if self.held_out is None:
            return {}
        data, like = self.held_out, self.network.conv_in.weight
        figures: dict[str, list[Tensor]] = {}
        mine = list(share.of(len(data)))
        for start in range(0, len(mine), AT_ONCE):
            rows = mine[start : start + AT_ONCE]
            of_bands: dict[str, list[Tensor]] = {}
            for band, x, t in self.noisy.held_out(data, rows, like):
                with autocast(self.run.precision, like.device):
                    losses, right = self.player.judged(x, t, self.classes.of(data, rows))
                of_bands.setdefault("loss", []).append(losses.double())
                for field, found in right.items():
                    figures.setdefault(f"validation_accuracy_{field}_{band}", []).append(found.double())
                    of_bands.setdefault(f"accuracy_{field}", []).append(found.double())
            for name, parts in of_bands.items():
                figures.setdefault(f"validation_{name}", []).append(torch.stack(parts).mean(0))
        return {name: torch.cat(parts) for name, parts in figures.items()}

    @torch.no_grad()
    def verify(self, folder: Path) -> None:
        """Open the folder and compare the probabilities of some noise with those of the trained network."""
        read, config = load_classifier(folder), self.network.config
        x, t = normal(0, "verify", range(2), (config.in_channels, 16, 16)), torch.tensor([0.0, 500.0])
        like = self.network.conv_in.weight
        wanted, found = self.network(x.to(like), t.to(like.device)), read.network(x.float(), t)
        pairs = {field: (wanted[field], found[field]) for field in wanted}
        check_agreement(folder, "latent_diffusion", pairs, BOUNDS["float32"])

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data, of the classes and of the frozen autoencoder."""
        classes = [_value(self.data, row, field) for field in self.settings.fields for row in range(len(self.data))]
        return {
            "data.path": self.data.digest,
            "objective.fields": hashlib.sha256(json.dumps(classes).encode()).hexdigest(),
            "objective.model": weights_digest(self.parts.autoencoder),
        }
