"""Read a LoRA file, or one of its relatives, for the layers of a model; keys that are left out are named."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latent_diffusion.adapters.family import family_of_file, family_of_width
from latent_diffusion.adapters.forms import Update, update_of
from latent_diffusion.adapters.keys import Place, read_key, spellings
from latent_diffusion.adapters.load_report import LoadReport
from latent_diffusion.adapters.mask_channels import FIRST, changes_mask_channels, with_mask_channels
from latent_diffusion.adapters.model_parts import original_paths, parts_of
from latent_diffusion.adapters.peft_config import PeftConfigs
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.checkpoint_file import open_checkpoint
from latent_diffusion.checkpoint.files.pickle_file import is_pickle
from latent_diffusion.checkpoint.folder.trained_times import TrainedTimes
from latent_diffusion.errors import CheckpointError, warn

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
    """Read LoRA, LoHa, LoKr, DoRA or full changes, and PEFT's (IA)3 and OFT.

    Keys may be those of kohya, PEFT, diffusers, LyCORIS or ComfyUI. For a plain model, the file may be an inpainting
    adapter, see `adapters.mask_channels`.

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
    tensors = {key: stored.fetch() for key, stored in opened.tensors.items()}
    found = _matched(file, tensors, spellings(parts_of(components), original_paths(components)))
    family = family_of_file({key: tensor.shape for key, tensor in tensors.items()}, opened.metadata)
    here = family_of_width(components.unet.config.cross_attention_dim)
    made_for = f"; it looks made for {family}, this is {here}" if family and family != here else ""
    if not found.fields:
        raise CheckpointError(
            f"{file}: none of its {len(tensors)} tensors belongs to a layer of {components.name} ({here})"
            f"{made_for or _first(found.unmatched)}"
        )
    inpainting = changes_mask_channels(found.fields.get(Place("unet", FIRST), {}), components)
    if inpainting:
        components = with_mask_channels(components)
    updates = _updates(file, found, PeftConfigs.of(opened.metadata, file), components, made_for)
    if found.unmatched:
        warn(f"{file}: {len(found.unmatched)} of {len(tensors)} tensors are not used{_first(found.unmatched)}")
    report = LoadReport(
        name=name or name_of(file),
        file=str(file),
        hash=hash_of(file),
        format=max((w for w in found.writers if w), key=found.writers.__getitem__, default="kohya"),
        family=family,
        forms=dict(Counter(update.form for part in updates.values() for update in part.values())),
        matched=tuple(str(place) for place in found.fields),
        unmatched=tuple(found.unmatched),
        inpainting=inpainting,
        trained=TrainedTimes.of_adapter(opened.metadata, components.schedule, file),
    )
    return Adapter(report, updates)


@dataclass(frozen=True)
class Found:
    """The tensors of a file, sorted by layer."""

    fields: Mapping[Place, Mapping[str, Tensor]]  # layer -> factor -> tensor
    unmatched: Sequence[str]  # keys of no layer
    writers: Mapping[str, int]  # number of keys of each writer


def _matched(file: Path, tensors: Mapping[str, Tensor], known: Mapping[str, Place]) -> Found:
    """Sort tensors by the layer they change.

    Raises:
        CheckpointError: one factor of a layer is there twice.
    """
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
    return Found(fields, unmatched, writers)


def _updates(
    file: Path, found: Found, configs: PeftConfigs, components: Components, made_for: str
) -> dict[str, dict[str, Update]]:
    """Return the changes by part and layer.

    Raises:
        CheckpointError: naming the layer whose change is incomplete or does not fit.
    """
    parts = parts_of(components)
    updates: dict[str, dict[str, Update]] = defaultdict(dict)
    for place, fields in found.fields.items():
        layer: Any = parts[place.part].get_submodule(place.path)
        try:
            scale = configs.scale(place)
            updates[place.part][place.path] = update_of(
                fields, layer.weight, getattr(layer, "bias", None), scale, lambda at=place: configs.oft_terms(at)
            )
        except CheckpointError as error:
            left = f"; not read{_first(found.unmatched)}" if found.unmatched else ""
            raise CheckpointError(f"{file}: {place}: {error}{made_for}{left}") from None
    return dict(updates)


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
    """Return the name of an adapter: its file's, or its folder's if the file's is generic."""
    return file.parent.name if file.name in IN_FOLDER else file.stem


def hash_of(file: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 of all bytes after a safetensors header, or of another file."""
    with open(file, "rb") as opened:
        opened.seek(0 if is_pickle(file) else 8 + int.from_bytes(opened.read(8), "little"))
        return hashlib.file_digest(opened, "sha256").hexdigest()[:HASH_DIGITS]


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f": {', '.join(names[:SHOWN])}{more}" if names else ""
