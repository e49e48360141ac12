"""The files of an adapter that a run writes: written, and read back."""

import logging
from pathlib import Path

import torch

from latent_diffusion.adapters.writing import LoraFormat, write_factors
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.trained_times import TrainedTimes
from latent_diffusion.config import RunConfig
from latent_diffusion.nn.low_rank import Whole
from latent_diffusion.training.adapters.adapter_layers import AdaptedModel, AdapterSettings
from latent_diffusion.training.adapters.adapter_metadata import adapter_metadata
from latent_diffusion.training.monitoring.reopened import BOUNDS, check_adapter, check_in_diffusers
from latent_diffusion.training.networks.stored_base import is_stored

__all__ = ["verify_adapter", "write_adapter"]

logger = logging.getLogger(__name__)

PEFT_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""


def write_adapter(
    folder: Path,
    base: Components,
    adapter: AdaptedModel,
    settings: AdapterSettings,
    run: RunConfig,
    dtype: str,
    *,
    pictures: int,
    size: int,
    usage: str = "",
    trained: TrainedTimes | None = None,
) -> None:
    """Write an adapter in kohya's layout and, where it has keys for the form, in PEFT's.

    Args:
        folder: an existing folder; the files are named after the run's.
        base: the model without the adapter.
        adapter: the trained changes.
        settings: form and size, for the header.
        run: the run, for the header.
        dtype: number format of the factors.
        pictures: number of pictures it was trained on, for the header.
        size: their side in px, for the header.
        usage: how to draw with it where that is not as with the base, for the header.
        trained: of a student: the times that it was trained at, and how to draw with it, for the header.
    """
    name, number = run.output.name or "adapter", getattr(torch, dtype)
    stored = {
        part: {
            path: {field: tensor if field == "alpha" else tensor.to(number) for field, tensor in fields.items()}
            for path, fields in layers.items()
        }
        for part, layers in adapter.factors().items()
    }
    metadata = adapter_metadata(base, settings, run, name, pictures, size)
    if usage:
        metadata["modelspec.usage_hint"] = usage
    if trained is not None:
        metadata |= trained.in_header()
    files: dict[LoraFormat, Path] = {"kohya": folder / f"{name}.safetensors"}
    if settings.form == "lora":
        files["peft"] = folder / PEFT_FILE
    for layout, file in files.items():
        write_factors(file, stored, layout, metadata, towers=len(base.text_encoder.towers))


def verify_adapter(
    folder: Path, base: Components, adapter: AdaptedModel, settings: AdapterSettings, run: RunConfig, dtype: str
) -> None:
    """Read back each file that `write_adapter` wrote, by diffusers too where it keeps all of the form.

    Raises:
        CheckpointError: a file does not give the trained layers, text states and output of the U-Net.
    """
    names = [f"{run.output.name or 'adapter'}.safetensors", *([PEFT_FILE] if settings.form == "lora" else [])]
    for file in (folder / name for name in names):
        check_adapter(file, base, adapter.components, adapter.changes, BOUNDS[dtype])
        readers = "this package"
        if _kept_by_diffusers(settings, adapter, kohya=file.name != PEFT_FILE):
            by_diffusers = check_in_diffusers(file, base, adapter.components, BOUNDS[dtype])
            readers = "this package and by diffusers" if by_diffusers else readers
        logger.info("%s: gives the trained outputs, read back by %s", file.name, readers)


def _kept_by_diffusers(settings: AdapterSettings, adapter: AdaptedModel, *, kohya: bool) -> bool:
    """Return whether diffusers 0.42 keeps all of a file.

    It is not given a base that is stored in another format. It reads neither LoHa nor LoKr, drops the lengths of DoRA
    in kohya's layout and those of text encoders in both, and takes the name of SDXL's `add_embedding` in kohya's layout
    for that of another layer. It refuses a file with a whole change.
    """
    if settings.form != "lora" or is_stored(adapter.components):
        return False
    if kohya and any(isinstance(change, Whole) for change in adapter.changes.get("unet", {}).values()):
        return False
    if settings.dora:
        return not kohya and set(adapter.changes) == {"unet"}
    return not (kohya and any(path.startswith("add_embedding.") for path in adapter.changes.get("unet", ())))
