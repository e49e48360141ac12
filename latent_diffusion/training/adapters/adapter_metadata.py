"""Training metadata in the header of an adapter file: kohya's `ss_` fields and ModelSpec's.

Nothing in it depends on the time or the machine, so an interrupted run ends with the same bytes.
kohya's fields: sd-scripts, docs/train_network.md. ModelSpec: github.com/Stability-AI/ModelSpec, version 1.0.1.
"""

import json
from typing import Any

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.config import RunConfig
from latent_diffusion.training.adapters.adapter_layers import AdapterSettings
from latent_diffusion.training.optimizer import optimizer_settings
from latent_diffusion.version import VERSION

__all__ = ["adapter_metadata", "word_metadata"]

FAMILIES = {  # by channels of the text states: kohya's name of the base, ModelSpec's architecture
    768: ("sd_v1", "stable-diffusion-v1"),
    1024: ("sd_v2", "stable-diffusion-v2-512"),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def adapter_metadata(
    base: Components, adapter: AdapterSettings, run: RunConfig, name: str, pictures: int, size: int
) -> dict[str, str]:
    """Return the header's strings.

    Args:
        base: the model that was trained upon.
        adapter: form and size.
        run: the run.
        name: what the adapter is called.
        pictures: how many pictures it was trained on.
        size: their side in px.
    """
    alpha = float(adapter.rank) if adapter.alpha is None else adapter.alpha
    network: dict[str, Any] = {} if adapter.form == "lora" else {"algo": adapter.form}
    if adapter.dora:
        network["dora_wd"] = True
    if adapter.rank_stabilised:
        network["rs_lora"] = True
    version, architecture = FAMILIES.get(base.unet.config.cross_attention_dim, ("", base.name))
    kind = "lora" if adapter.form == "lora" else "lycoris"
    values = {
        "ss_output_name": name,
        "ss_network_module": "networks.lora" if adapter.form == "lora" else "lycoris.kohya",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(network),
        "ss_sd_model_name": base.name,
        "ss_v2": str(base.unet.config.cross_attention_dim == 1024),
        "ss_num_train_images": str(pictures),
        "ss_steps": str(run.updates),
        "ss_total_batch_size": str(run.batch_size),
        "ss_learning_rate": str(optimizer_settings(run).learning_rate),
        "ss_seed": str(run.seed),
        "ss_resolution": f"({size}, {size})",
        "ss_training_comment": f"latent_diffusion {VERSION}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": name,
        "modelspec.architecture": f"{architecture}/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": f"{size}x{size}",
    }
    if version:
        values["ss_base_model_version"] = version
    if base.prediction.name in PREDICTIONS:
        values["modelspec.prediction_type"] = PREDICTIONS[base.prediction.name]
    return values


def word_metadata(base: Components, token: str) -> dict[str, str]:
    """Return the header's strings of the file of a learned word."""
    _, architecture = FAMILIES.get(base.unet.config.cross_attention_dim, ("", base.name))
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": token,
        "modelspec.architecture": f"{architecture}/textual-inversion",
        "modelspec.implementation": "diffusers",
        "modelspec.trigger_phrase": token,
    }
