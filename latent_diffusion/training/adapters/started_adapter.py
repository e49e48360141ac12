"""Changes of a model's layers that go on from an adapter's file: form, rank, alpha and layers are the file's."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.adapters.lora_file import find_file, hash_of, read_lora
from latent_diffusion.adapters.mask_channels import FIRST
from latent_diffusion.adapters.writing import factors_of
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.adapters.adapter_layers import AdaptedModel, AdapterSettings, Rule, adapt

__all__ = ["start_adapter", "start_digest"]

WHERE = "objective.adapter"
Fields = Mapping[str, Tensor]


def start_adapter(
    base: Components, settings: AdapterSettings, seed: int, *, repaints: bool = False
) -> tuple[AdaptedModel, AdapterSettings]:
    """Return `base` with changes in place, and their settings: zero changes, or with `start` those of a file.

    Arguments are those of `adapt`.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another model.
        ConfigError: a setting differs from the file's, or the file has changes that are not trained here.
    """
    if settings.start is None:
        return adapt(base, settings, seed, repaints=repaints), settings
    file = Path(settings.start)
    updates = {part: dict(layers) for part, layers in read_lora(file, base).updates.items()}
    first = updates["unet"].pop(FIRST, None) if repaints and "unet" in updates else None
    factors = {
        part: {path: factors_of(f"{file}: {part}.{path}", update) for path, update in layers.items()}
        for part, layers in updates.items()
    }
    found = _described(file, factors)
    _refuse_differences(file, settings, found)
    settings = settings.model_copy(update=found | {"rules": [*found["rules"], *settings.rules]})
    made = adapt(base, settings, seed, repaints=repaints)
    if repaints:
        if first is None or first.weight is None:
            raise ConfigError(f"{WHERE}.start: {file} does not change unet.{FIRST}: it is no inpainting adapter")
        weight = base.unet.conv_in.weight.detach().float().flatten(1)
        factors["unet"][FIRST] = {"diff": first.weight.matrix(weight)}
    _fill(file, made, factors)
    return made, settings


def start_digest(settings: AdapterSettings) -> dict[str, str]:
    """Return the digest of the file that the changes started from, by its place in a configuration."""
    return {} if settings.start is None else {f"{WHERE}.start": hash_of(find_file(Path(settings.start)))}


def _described(file: Path, factors: Mapping[str, Mapping[str, Fields]]) -> dict[str, Any]:
    """Return the settings of the changes in a file; ranks and alphas that are not the usual ones become rules."""
    numbers = {f"{part}.{path}": _numbers(fields) for part, of in factors.items() for path, fields in of.items()}
    forms = {_form(fields) for of in factors.values() for fields in of.values()}
    if len(forms) != 1:
        raise ConfigError(f"{WHERE}.start: {file} has changes of several forms; adapters of one form are trained")
    ((form, dora),) = forms
    (rank, alpha), _ = Counter(numbers.values()).most_common(1)[0]
    odd = {path: pair for path, pair in numbers.items() if pair != (rank, alpha)}
    rules = [Rule(match=f"^{re.escape(path)}$", rank=r, alpha=a) for path, (r, a) in odd.items()]
    layers = [f"^({'|'.join(map(re.escape, numbers))})$"]
    found = {"form": form, "dora": dora, "rank": rank, "alpha": alpha, "parts": list(factors)}
    return found | {"layers": layers, "rules": rules, "rank_stabilised": False}


def _form(fields: Fields) -> tuple[str, bool]:
    form = next((form for key, form in (("up", "lora"), ("hada_w1_a", "loha")) if key in fields), "lokr")
    return form, "dora_scale" in fields


def _numbers(fields: Fields) -> tuple[int, float]:
    """Return rank and alpha of a layer's factors; of two whole ones of LoKr, the rank at which they are whole."""
    if "lokr_w2" in fields:
        rank = min(fields["lokr_w2"].shape[0], fields["lokr_w2"][0].numel())
        return rank, float(rank)
    rank = next(fields[key].shape[0] for key in ("down", "hada_w1_b", "lokr_w2_b") if key in fields)
    return rank, float(fields["alpha"])


def _refuse_differences(file: Path, settings: AdapterSettings, found: Mapping[str, Any]) -> None:
    """Refuse settings that were given and are not the file's; those that were left out are taken from it."""
    for name in ("form", "dora", "rank", "alpha", "parts", "layers", "rank_stabilised"):
        given = getattr(settings, name)
        same = sorted(given) == sorted(found[name]) if name == "parts" else given == found[name]
        if name in settings.model_fields_set and not same and given is not None:
            value = "those of its layers" if name == "layers" else found[name]
            raise ConfigError(
                f"{WHERE}.{name}: {given!r} is set, but {file}, from which the adapter starts, has {value!r}; leave "
                f"{name} out"
            )


@torch.no_grad()
def _fill(file: Path, made: AdaptedModel, factors: Mapping[str, Mapping[str, Fields]]) -> None:
    """Put the factors of the file into the changes."""
    for part, layers in factors.items():
        lacking = sorted(set(layers) - set(made.changes.get(part, {})))
        if lacking:
            raise ConfigError(
                f"{WHERE}.start: {file} changes {part}.{lacking[0]}, which is not trained at this data.size"
            )
        for path, fields in layers.items():
            live = {name.rpartition(".")[2]: p for name, p in made.changes[part][path].named_parameters()}
            given = {name: tensor for name, tensor in fields.items() if name != "alpha"}
            wrong = [
                k for k in {*live, *given} if k not in live or k not in given or live[k].numel() != given[k].numel()
            ]
            if wrong:
                sizes = {name: tuple(tensor.shape) for name, tensor in given.items()}
                advice = f"; set {WHERE}.factor" if "lokr_w1" in given else ""
                raise ConfigError(f"{WHERE}.start: {file}: {part}.{path} has the factors {sizes}; not trained{advice}")
            for name, parameter in live.items():
                parameter.copy_(given[name].reshape(parameter.shape).to(parameter))
