"""Read a LoRA file, or one of its relatives, for the layers of a model; nothing is left out in silence."""

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latent_diffusion.adapters.family import family_of_file, family_of_width
from latent_diffusion.adapters.forms import Update, update_of
from latent_diffusion.adapters.keys import Place, read_key, spellings
from latent_diffusion.adapters.parts import original_paths, parts_of
from latent_diffusion.adapters.peft_config import PeftConfigs
from latent_diffusion.adapters.report import LoadReport
from latent_diffusion.checkpoint.checkpoint_file import open_checkpoint
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.pickle_file import is_pickle
from latent_diffusion.errors import CheckpointError, LatentDiffusionWarning

__all__ = ["Adapter", "read_lora"]

SHOWN = 5  # names listed in a message
IN_FOLDER = (  # diffusers' and PEFT's names
    *("pytorch_lora_weights.safetensors", "adapter_model.safetensors"),
    *("pytorch_lora_weights.bin", "adapter_model.bin"),
)
HASH_DIGITS = 12


@dataclass(frozen=True)
class Adapter:
    """A file of changes, matched with the layers of one model."""

    report: LoadReport
    updates: Mapping[str, Mapping[str, Update]]  # part -> path of the layer below it -> change

    @property
    def name(self) -> str:
        """What it is called in the pipeline."""
        return self.report.name


def read_lora(path: Path | str, components: Components, name: str | None = None) -> Adapter:
    """Read LoRA, LoHa, LoKr, DoRA or full changes, in the keys of kohya, PEFT, diffusers, LyCORIS or ComfyUI.

    Args:
        path: a `.safetensors` file, an old `.pt`, `.bin` or `.ckpt`, or a folder that diffusers or PEFT wrote.
        components: the model whose layers are looked for.
        name: what to call it; None = the file's name without its ending.

    Returns:
        The changes with their `LoadReport`; tensors on the CPU, in the file's dtypes.

    Raises:
        CheckpointError: the file is missing or damaged, no layer of it is in the model, or a change does not fit.
    """
    file = find_file(Path(path))
    opened = open_checkpoint(file)
    tensors, metadata = {key: stored.fetch() for key, stored in opened.tensors.items()}, opened.metadata
    parts = parts_of(components)
    known = spellings(parts, original_paths(components))
    fields: dict[Place, dict[str, Tensor]] = defaultdict(dict)
    unmatched, writers = [], Counter()
    for key, tensor in tensors.items():
        read = read_key(key)
        place = known.get(read.path) if read else None
        if read is None or place is None:
            unmatched.append(key)
            continue
        if read.field in fields[place]:
            raise CheckpointError(f"{file}: {place} has two tensors for `{read.field}`, one of them {key}")
        fields[place][read.field] = tensor
        writers[read.writer] += 1
    family = family_of_file({key: tensor.shape for key, tensor in tensors.items()}, metadata)
    here = family_of_width(components.unet.config.cross_attention_dim)
    made_for = f"; it looks made for {family}, this is {here}" if family and family != here else ""
    if not writers:
        raise CheckpointError(
            f"{file}: none of its {len(tensors)} tensors belongs to a layer of {components.name} ({here})"
            f"{made_for or _first(unmatched)}"
        )
    configs = PeftConfigs.of(metadata, file)
    updates: dict[str, dict[str, Update]] = defaultdict(dict)
    for place, found in fields.items():
        layer: Any = parts[place.part].get_submodule(place.path)
        try:
            scale = configs.scale(place)
            updates[place.part][place.path] = update_of(found, layer.weight, getattr(layer, "bias", None), scale)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {place}: {error}{made_for}") from None
    forms = Counter(update.form for part in updates.values() for update in part.values())
    report = LoadReport(
        name=name or name_of(file),
        file=str(file),
        hash=hash_of(file),
        format=max((w for w in writers if w), key=writers.__getitem__, default="kohya"),
        family=family,
        forms=dict(forms),
        matched=tuple(str(place) for place in fields),
        unmatched=tuple(unmatched),
    )
    if unmatched:
        warnings.warn(
            f"{file}: {len(unmatched)} of {len(tensors)} tensors are not used{_first(unmatched)}",
            LatentDiffusionWarning,
            stacklevel=2,
        )
    return Adapter(report, dict(updates))


def find_file(path: Path) -> Path:
    """Return the file itself, or the one in a folder.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_dir():
        found = next((path / name for name in IN_FOLDER if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path}: the folder holds none of {', '.join(IN_FOLDER)}")
        return found
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    return path


def name_of(file: Path) -> str:
    """Return what to call an adapter: its file's name, or its folder's where the file's says nothing."""
    return file.parent.name if file.name in IN_FOLDER else file.stem


def hash_of(file: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 of all bytes after a safetensors header, or of another file."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        opened.seek(0 if is_pickle(file) else 8 + int.from_bytes(opened.read(8), "little"))
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:HASH_DIGITS]


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f": {', '.join(names[:SHOWN])}{more}" if names else ""
