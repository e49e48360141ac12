"""Which kind of model a file was made for: a guess, for messages only."""

from collections.abc import Iterable, Mapping

from latent_diffusion.adapters.keys import flat

__all__ = ["family_of_file", "family_of_width"]

OF_WIDTH = {  # channels of the text states that the U-Net's cross-attentions read
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "SDXL",
    1280: "the SDXL refiner",
}
OF_METADATA = {  # beginnings of kohya's `ss_base_model_version` and of ModelSpec's architecture
    "sd_v1": "Stable Diffusion 1",
    "sd_v2": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "stable-diffusion-v1": "Stable Diffusion 1",
    "stable-diffusion-v2": "Stable Diffusion 2",
    "stable-diffusion-xl": "SDXL",
    "stable-diffusion-3": "Stable Diffusion 3",
    "flux": "Flux",
}
OF_PATH = {  # pieces of flat paths
    "lora_te2_": "SDXL",
    "text_encoder_2_": "SDXL",
    "single_transformer_blocks": "Flux",
    "double_blocks": "Flux",
    "joint_": "Stable Diffusion 3",
}
CROSS_KEYS = ("attn2_to_k_lora_down_weight", "attn2_to_k_lora_A_weight", "attn2_to_k_hada_w1_b", "attn2_to_k_diff")


def family_of_width(width: int) -> str:
    """Return the family whose text states have `width` channels, for people."""
    return OF_WIDTH.get(width, f"a model with text states of {width} channels")


def family_of_file(shapes: Mapping[str, Iterable[int]], metadata: Mapping[str, str]) -> str | None:
    """Return the family a file was made for, by its metadata, then by its keys; None if neither determines it."""
    said = metadata.get("ss_base_model_version", "") or metadata.get("modelspec.architecture", "")
    for start, family in OF_METADATA.items():
        if said.startswith(start):
            return family
    for key, shape in shapes.items():
        name = flat(key)
        for piece, family in OF_PATH.items():
            if piece in name:
                return family
        if name.endswith(CROSS_KEYS):
            return family_of_width(tuple(shape)[1])
    return None
