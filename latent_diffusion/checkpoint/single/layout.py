"""Where the parts of a model lie in a CompVis or A1111 single file, and what else such files hold.

Every part has a prefix of its own. Text towers come in two kinds: transformers' names (OpenAI's CLIP) or open-clip's.
Source of the prefixes: github.com/CompVis/stable-diffusion, github.com/Stability-AI/stablediffusion and
generative-models (configs/inference).
"""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["AUTOENCODER", "TEXT_EXTRAS", "UNET", "TextPlace", "averaged_name", "layout", "strangers", "text_places"]

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
AVERAGED = "model_ema."  # the U-Net's moving average, under names without dots


@dataclass(frozen=True)
class TextPlace:
    """Where a text tower lies."""

    prefix: str
    open_clip: bool  # open-clip's names, else transformers'
    part: str  # its name in a folder

    @property
    def mark(self) -> str:
        """The start of a name that a file with this tower has, and no other."""
        return self.prefix + ("transformer.resblocks." if self.open_clip else "")


SD1 = (TextPlace("cond_stage_model.transformer.", False, "text_encoder"),)
SD2 = (TextPlace("cond_stage_model.model.", True, "text_encoder"),)
SDXL = (
    TextPlace("conditioner.embedders.0.transformer.", False, "text_encoder"),
    TextPlace("conditioner.embedders.1.model.", True, "text_encoder_2"),
)
REFINER = (TextPlace("conditioner.embedders.0.model.", True, "text_encoder_2"),)
LAYOUTS = (SD1, SD2, SDXL, REFINER)

PASSED_OVER = (
    AVERAGED,  # where the plain weights are taken
    "first_stage_model.loss.",  # the networks that judged the autoencoder in training
    "denoiser.",  # a table of noise levels (generative-models)
)
"""How names begin of what other tools store and no picture needs."""
LAW = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "logvar"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("lvlb_weights", "scale_factor", "v_pred", "ztsnr"),
}
"""Whole names of the same: the noise law, which the family or the markers give."""
TEXT = ("cond_stage_model.", "conditioner.embedders.")
"""How the names of all text towers begin."""
TEXT_EXTRAS = {"logit_scale", "attn_mask", "position_ids"}
"""Last words of names within a text tower that no picture needs."""
BESIDE_A_TOWER = TEXT_EXTRAS | {"text_projection"}
"""The same outside of the tower's prefix, where merging tools left them."""


def text_places(names: Iterable[str]) -> tuple[TextPlace, ...]:
    """Return where the text towers lie in a file with these names; () where there are none."""
    known = list(names)
    places = [p for layout in LAYOUTS for p in layout if any(name.startswith(p.mark) for name in known)]
    return tuple(places)


def layout(towers: int, *, projection: bool, open_clip: bool) -> tuple[TextPlace, ...]:
    """Return where the towers of a model go: two are SDXL's, one with a projection its refiner's.

    Args:
        towers: how many there are.
        projection: whether the last gives a pooled vector.
        open_clip: whether the only one is of OpenCLIP's kind (SD 2).
    """
    if towers == 2:
        return SDXL
    if projection:
        return REFINER
    return SD2 if open_clip else SD1


def averaged_name(name: str) -> str:
    """Return the name of a U-Net tensor's moving average, for `model.diffusion_model.<name>`."""
    return AVERAGED + "diffusion_model" + name.replace(".", "")


def strangers(names: Iterable[str], places: Iterable[TextPlace]) -> list[str]:
    """Return the names that belong to no part and are not known to be harmless, sorted."""
    known = (UNET, AUTOENCODER, *PASSED_OVER, *(place.prefix for place in places))
    return sorted(
        name
        for name in names
        if not name.startswith(known)
        and name not in LAW
        and not (name.startswith(TEXT) and name.rpartition(".")[2] in BESIDE_A_TOWER)
    )
