"""A model described in the header of a single file: the JSON files of its diffusers folder under one metadata key.

With it any model comes back as it was, whatever its sizes, vocabulary and noise law. Other tools pass it over; for them
there are the `modelspec` fields.
Reference: github.com/Stability-AI/ModelSpec, version 1.0.0.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.network_config import (
    autoencoder_config,
    autoencoder_values,
    diffusers_version,
    unet_config,
    unet_values,
)
from latent_diffusion.checkpoint.folder.pipeline_index import INDEX, index_values, pipeline_index, scheduler_made
from latent_diffusion.checkpoint.folder.plan import ModelPlan, Tower
from latent_diffusion.checkpoint.folder.scheduler_config import write_schedule
from latent_diffusion.checkpoint.folder.text_folder import ENDINGS, plan_text_model, text_config
from latent_diffusion.checkpoint.folder.vocabulary import tokenizer_of, tokenizer_values
from latent_diffusion.checkpoint.single.detect import families_of_files
from latent_diffusion.errors import CheckpointError

__all__ = ["KEY", "header_of", "plan_of"]

KEY = "latent_diffusion"
SCHEDULER = "scheduler/scheduler_config.json"


def header_of(components: Components) -> dict[str, str]:
    """Return the metadata of a model's single file."""
    scheduler = write_schedule(components.schedule, components.prediction, components.scheduler_config)
    values: dict[str, Any] = {
        INDEX: index_values(components, scheduler["_class_name"], diffusers_version()),
        SCHEDULER: scheduler,
        "unet/config.json": unet_values(components.unet.config),
        "vae/config.json": autoencoder_values(components.autoencoder.config),
    }
    for tower in components.text_encoder.towers:
        ending = ENDINGS[bool(tower.pooled_width)]
        values[f"text_encoder{ending}/config.json"] = text_config(tower)
        values[f"tokenizer{ending}"] = tokenizer_values(tower.tokenizer)
    return {KEY: json.dumps(values, ensure_ascii=True), **_modelspec(components)}


def _modelspec(components: Components) -> dict[str, str]:
    """Return the fields that other tools read; none for a model that they could not know."""
    kinds = {"epsilon": "epsilon", "v_prediction": "v"}
    prediction = kinds.get(components.prediction.name)
    architecture = _architecture(components)
    if architecture is None or prediction is None:
        return {}
    side = components.unet.config.sample_size * components.autoencoder.factor
    fields = {
        "sai_model_spec": "1.0.0",
        "architecture": architecture,
        "implementation": "diffusers",
        "title": components.name,
        "resolution": f"{side}x{side}",
        "prediction_type": prediction,
    }
    return {f"modelspec.{name}": value for name, value in fields.items()}


def _architecture(components: Components) -> str | None:
    """Return ModelSpec's name of the family with these sizes, where two have them of that with the same prediction."""
    sizes = unet_sizes(components.unet.config)
    found = [values for values in families_of_files().values() if unet_sizes(values.UNET) == sizes]
    found.sort(key=lambda values: values.SCHEDULER["prediction_type"] != components.prediction.name)
    return next((values.ARCHITECTURE for values in found if hasattr(values, "ARCHITECTURE")), None)


def unet_sizes(config: Any) -> tuple[Any, ...]:
    """Return the sizes by which U-Nets of two families differ."""
    return config.in_channels, config.out_channels, config.block_out_channels, config.cross_attention_dim


def plan_of(metadata: Mapping[str, str], path: Path) -> ModelPlan | None:
    """Return the plan in a header that this package wrote; None for other files.

    Raises:
        CheckpointError: the header is damaged, or a field has an unsupported value; the message names it.
    """
    if KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata {KEY!r} of the header is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: metadata {KEY!r} of the header is no JSON object")

    def part(name: str) -> tuple[dict[str, Any], str]:
        place = f"{path}: {name} of the header"
        if not isinstance(values.get(name), dict):
            raise CheckpointError(f"{place} is missing")
        return values[name], place

    index = pipeline_index(*part(INDEX))
    towers = []
    for tower in index.towers:
        encoder = f"text_encoder{ENDINGS[tower]}"
        model = plan_text_model(*part(f"{encoder}/config.json"), projection=bool(tower))
        towers.append(Tower(encoder, model, tokenizer_of(*part(f"tokenizer{ENDINGS[tower]}")), index.xl))
    scheduler, place = part(SCHEDULER)
    made, notes = scheduler_made(index, scheduler)
    return ModelPlan(
        unet_config(*part("unet/config.json")),
        autoencoder_config(*part("vae/config.json")),
        tuple(towers),
        made,
        place,
        path.stem,
        notes,
        zeros_for_empty_prompt=index.zeros_for_empty_prompt,
    )
