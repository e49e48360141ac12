"""The files of an adapter that a run writes: written, read back, and compared with the trained layers."""

from pathlib import Path

import torch

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.adapters.writing import LoraFormat, write_factors
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.config import RunConfig
from latent_diffusion.errors import CheckpointError
from latent_diffusion.training.adapter_layers import AdaptedModel, AdapterSettings
from latent_diffusion.training.adapter_metadata import adapter_metadata

__all__ = ["write_adapter"]

AGREEMENT = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-2}
"""Largest difference between the trained layers and those read back from a file of this dtype, of the largest output:
in the shorter ones the factors are rounded."""


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
) -> None:
    """Write an adapter in kohya's layout and, where it has keys for the form, in PEFT's; then read both back.

    Args:
        folder: an existing folder; the files are named after the run's.
        base: the model without the adapter.
        adapter: the trained changes.
        settings: form and size, for the header.
        run: the run, for the header.
        dtype: number format of the factors.
        pictures: number of pictures it was trained on, for the header.
        size: their side in px, for the header.

    Raises:
        CheckpointError: a file read back does not give the trained layers.
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
    files: dict[LoraFormat, Path] = {"kohya": folder / f"{name}.safetensors"}
    if settings.form == "lora":
        files["peft"] = folder / "pytorch_lora_weights.safetensors"
    for layout, file in files.items():
        write_factors(file, stored, layout, metadata, towers=len(base.text_encoder.towers))
        _check(file, base, adapter, AGREEMENT[dtype])


@torch.no_grad()
def _check(file: Path, base: Components, adapter: AdaptedModel, bound: float) -> None:
    """Compare the trained layers with the base's changed by the file, on random inputs."""
    read = read_lora(file, base)
    draw = torch.Generator().manual_seed(0)
    ours = parts_of(adapter.components)
    for part, changes in adapter.changes.items():
        network = adapted(parts_of(base)[part], [(read.updates.get(part, {}), 1.0)])
        for path in changes:
            trained, changed = ours[part].get_submodule(path), network.get_submodule(path)
            weight = changed.get_parameter("weight")
            shape = (2, 3, weight.shape[1]) if weight.ndim == 2 else (2, weight.shape[1], 8, 8)
            x = torch.randn(*shape, generator=draw).to(weight)
            wanted, found = trained(x), changed(x)
            off = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
            if not off <= bound:
                raise CheckpointError(
                    f"{file}: {part}.{path} read back differs from the trained layer by {off:.2g}; at most {bound}"
                )
