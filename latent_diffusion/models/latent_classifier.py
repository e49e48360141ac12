"""A classifier of noisy latents: a `LatentTower` and one layer for each field of a picture ("style", "group").

Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from latent_diffusion.errors import ConfigError
from latent_diffusion.models.latent_tower import LatentTower, LatentTowerConfig

__all__ = ["LatentClassifier", "LatentClassifierConfig"]


@dataclass(frozen=True)
class LatentClassifierConfig(LatentTowerConfig):
    """Size of the network and its classes."""

    fields: Mapping[str, tuple[str, ...]] = field(
        kw_only=True
    )  # name of a field: its classes, as the outputs have them

    def __post_init__(self) -> None:
        super().__post_init__()
        labels = [label for classes in self.fields.values() for label in classes]
        if not self.fields or any(len(classes) < 2 for classes in self.fields.values()):
            raise ConfigError("a classifier needs a field of two classes or more")
        if len({*labels}) < len(labels):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            raise ConfigError(f"classes of two fields have one name: {', '.join(twice)}; leave one of the fields out")

    def place(self, label: str) -> tuple[str, int]:
        """Return the field that has a class, and the number of its output there.

        Raises:
            ConfigError: no field has it.
        """
        for name, classes in self.fields.items():
            if label in classes:
                return name, classes.index(label)
        known = "; ".join(f"{name}: {', '.join(classes)}" for name, classes in self.fields.items())
        raise ConfigError(f"the classifier has no class {label!r:.50}; it has {known}")


class LatentClassifier(LatentTower):
    """Classes of the picture in a noisy latent."""

    config: LatentClassifierConfig

    def __init__(self, config: LatentClassifierConfig) -> None:
        super().__init__(config)
        self.heads = nn.ModuleList(nn.Linear(config.channels[-1], len(names)) for names in config.fields.values())

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Return log-probabilities (B, classes) of each field for x (B, C, h, w) and network times t (B,)."""
        seen = self.features(x, t)
        heads = zip(self.config.fields, self.heads, strict=True)
        return {name: head(seen).log_softmax(dim=1) for name, head in heads}
