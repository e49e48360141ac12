"""The layers of a model that get a trainable change, its form and size; and a model with the changes in place.

The model itself stays as it is: the adapted networks are copies that share its tensors.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from latent_diffusion.adapters.mask_channels import FIRST
from latent_diffusion.adapters.model_parts import parts_of, unused_layers, with_parts
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.config import Section
from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.low_rank import Adapted, Change, DoRA, Hadamard, Kronecker, LowRank, Sum, Whole, alpha_scale
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.randomness import generator
from latent_diffusion.training.networks.weight_rules import WeightRule

__all__ = ["PRESETS", "AdaptedModel", "AdapterSettings", "adapt"]

PRESETS = {
    "attention": r"(^|\.)(attn\d|self_attn)\.",
    "transformer": r"(^|\.)(attn\d|self_attn|ff|mlp|proj_in|proj_out)(\.|$)",
    "linear": r"^(?!unet\.add_embedding\.)",
    "all": r"^(?!unet\.add_embedding\.)",
}
"""Layers by name: queries, keys, values and outputs of attention; these with feed-forward layers and the projections
around them (what kohya's scripts train); every linear layer; every linear layer and convolution. SDXL's embedding of
pooled text and sizes is in none: diffusers 0.42 takes its name in kohya's layout for that of another layer."""

FORMS = {"lora": LowRank, "loha": Hadamard, "lokr": Kronecker}
PARTS = ("unet", "text_encoder", "text_encoder_2")


class Rule(WeightRule):
    """Other numbers for the layers or factors whose path a pattern matches."""

    match: str
    """Regular expression, searched in "part.path.of.layer" for rank and alpha, with ".factor" for the other numbers."""
    rank: int | None = Field(default=None, ge=0)
    """Rank of these layers; 0 leaves them out."""
    alpha: float | None = Field(default=None, gt=0)
    """Alpha of these layers."""


class AdapterSettings(Section):
    """The `objective.adapter:` section."""

    start: str | None = None
    """Adapter file to go on from: form, rank, alpha, parts and layers are the file's; null: zero changes."""
    form: Literal["lora", "loha", "lokr"] = "lora"
    """Form of the change: LoRA, or its relatives LoHa and LoKr."""
    rank: int = Field(default=16, ge=1)
    """Rank r of the factors."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength: the change is scaled by alpha / rank; null: the rank."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    dora: bool = False
    """Learn the length of each row apart from its direction (DoRA)."""
    factor: int | None = Field(default=None, ge=1)
    """LoKr: size of the first matrix; null: near the square root of the layer's size."""
    layers: Literal["attention", "transformer", "linear", "all"] | list[str] = "transformer"
    """Layers to change: a preset, or regular expressions searched in "part.path.of.layer"."""
    parts: list[Literal["unet", "text_encoder", "text_encoder_2"]] = Field(default=["unet"], min_length=1)
    """Networks to change."""
    rules: list[Rule] = Field(default_factory=list)
    """Other ranks, alphas, learning rates and ends by pattern; the last rule that matches holds."""

    @model_validator(mode="after")
    def _consistent(self) -> "AdapterSettings":
        if self.factor is not None and self.form != "lokr":
            raise ValueError(f"factor is for LoKr; leave it out for form {self.form!r}")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts {self.parts} names one twice")
        return self


@dataclass(frozen=True)
class AdaptedModel:
    """A model with trainable changes in place.

    Attributes:
        components: the model that computes with the changes; all other tensors are those of the model it was made of.
        changes: part -> path of the layer below it -> change.
        alphas: the alpha of each change but whole ones, as files of adapters have it: its scale times its rank.
    """

    components: Components
    changes: Mapping[str, Mapping[str, Change]]
    alphas: Mapping[str, Mapping[str, float]]

    def modules(self) -> dict[str, nn.ModuleDict]:
        """Return the changes of each part as one module; dots of their paths become "/", which modules allow."""
        return {
            part: nn.ModuleDict({path.replace(".", "/"): change for path, change in changes.items()})
            for part, changes in self.changes.items()
        }

    def factors(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the factors of every layer as `adapters.writing.write_factors` takes them, float32 on the CPU."""
        return {
            part: {path: self._factors(part, path, change) for path, change in changes.items()}
            for part, changes in self.changes.items()
        }

    def _factors(self, part: str, path: str, change: Change) -> dict[str, Tensor]:
        fields = {
            name.rpartition(".")[2]: parameter.detach().float().cpu().contiguous()
            for name, parameter in change.named_parameters()
        }
        if "dora_scale" in fields:
            layer = parts_of(self.components)[part].get_submodule(path)
            assert isinstance(layer, Adapted), "changes are in place"
            fields["dora_scale"] = fields["dora_scale"].reshape(-1, *[1] * (layer.weight.ndim - 1))
        return fields if isinstance(change, Whole) else fields | {"alpha": torch.tensor(self.alphas[part][path])}


def adapt(base: Components, settings: AdapterSettings, seed: int, *, repaints: bool = False) -> AdaptedModel:
    """Return `base` with a zero change of every chosen layer; factors are drawn by (seed, layer), in any order.

    A layer is chosen only if its weight requires a gradient in `base`, so what cannot learn is left out there.

    Args:
        base: the model.
        settings: layers, form and size.
        seed: of the factors.
        repaints: whether `base` is a plain model that was given channels for a mask (`adapters.mask_channels`), whose
            first convolution is then changed as a whole.

    Raises:
        ConfigError: a part that the model lacks, a pattern or part without any layer.
    """
    there = parts_of(base)
    if repaints and "unet" not in settings.parts:
        raise ConfigError(
            f"objective.adapter.parts: {settings.parts} is without unet, whose first convolution an inpainting adapter "
            "changes"
        )
    changes: dict[str, dict[str, Change]] = {}
    alphas: dict[str, dict[str, float]] = {}
    networks: dict[str, nn.Module] = {}
    for part in settings.parts:
        if part not in there:
            raise ConfigError(f"objective.adapter.parts: {base.name} has no {part}; it has {', '.join(there)}")
        network = shared_copy(there[part])
        if repaints and part == "unet":
            first: Change = Whole(base.unet.conv_in)
            changes[part], alphas[part] = {FIRST: first}, {}
            network.set_submodule(FIRST, Adapted(base.unet.conv_in, first))
        for path, layer in _chosen(base, part, settings):
            if path in changes.get(part, {}):
                continue
            rank, alpha = _numbers(settings, f"{part}.{path}")
            if not rank:
                continue
            key = int(generator(seed, f"adapter {part}.{path}", 0).integers(2**63))
            change = _change(layer, settings, rank, alpha, torch.Generator().manual_seed(key))
            changes.setdefault(part, {})[path] = change
            alphas.setdefault(part, {})[path] = change.scale * rank
            network.set_submodule(path, Adapted(layer, change))
        if part not in changes:
            raise ConfigError(f"objective.adapter: no layer of {part} is chosen by layers {settings.layers} and rules")
        networks[part] = network
    _check_patterns(settings, changes)
    return AdaptedModel(with_parts(base, networks), changes, alphas)


def _chosen(base: Components, part: str, settings: AdapterSettings) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    network, unused = parts_of(base)[part], unused_layers(base, part)
    patterns = [PRESETS[settings.layers]] if isinstance(settings.layers, str) else settings.layers
    for path, layer in network.named_modules():
        convolution = isinstance(layer, nn.Conv2d)
        if not (convolution or isinstance(layer, nn.Linear)) or not layer.weight.requires_grad:
            continue
        if (settings.layers == "linear" and convolution) or path.startswith(unused):
            continue
        if any(re.search(pattern, f"{part}.{path}") for pattern in patterns):
            yield path, layer


def _numbers(settings: AdapterSettings, path: str) -> tuple[int, float]:
    """Return rank and alpha of a layer; alpha is the rank unless it is given."""
    rank, alpha = settings.rank, settings.alpha
    for rule in settings.rules:
        if re.search(rule.match, path):
            rank = rank if rule.rank is None else rule.rank
            alpha = alpha if rule.alpha is None else rule.alpha
    return rank, float(rank) if alpha is None else alpha


def _change(
    layer: nn.Linear | nn.Conv2d, settings: AdapterSettings, rank: int, alpha: float, draw: torch.Generator
) -> Change:
    scale = alpha_scale(alpha, rank, rank_stabilised=settings.rank_stabilised)
    if settings.form == "lokr":
        change: Sum = Kronecker(layer, rank, scale, draw, settings.factor)
    else:
        change = FORMS[settings.form](layer, rank, scale, draw)
    return DoRA(layer, change) if settings.dora else change


def _check_patterns(settings: AdapterSettings, changes: Mapping[str, Mapping[str, Change]]) -> None:
    """Refuse a pattern that matches nothing: a slip in it would be a setting without effect."""
    layers = [f"{part}.{path}" for part, of_part in changes.items() for path in of_part]
    parameters = [
        f"{part}.{path}.{name}"
        for part, of_part in changes.items()
        for path, change in of_part.items()
        for name, _ in change.named_parameters()
    ]
    patterns = [] if isinstance(settings.layers, str) else [("layers", pattern) for pattern in settings.layers]
    patterns += [("rules", rule.match) for rule in settings.rules if rule.rank != 0]
    for place, pattern in patterns:
        if not any(re.search(pattern, path) for path in (*layers, *parameters)):
            raise ConfigError(f"objective.adapter.{place}: {pattern!r} matches no layer, such as {layers[0]}")
