"""From a body of A1111 to the native request; what has no counterpart is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from latent_diffusion.options.tasks import MAX_EDGE
from latent_diffusion.pipeline.call.settings import Defaults
from latent_diffusion.pipeline.tasks.fit import fit
from latent_diffusion.provenance.a1111 import read_a1111
from latent_diffusion.provenance.infotext import UPSCALERS
from latent_diffusion.provenance.other_names import sampler_of, spacing_of
from latent_diffusion.registry import find, names, nearest
from latent_diffusion.server.a1111.payload import ImageToImage, TextToImage
from latent_diffusion.server.encoded import from_base64, from_bytes
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.request import DrawFields, check_area

__all__ = ["Translated", "translate"]

CONTENTS = ("fill", "original", "noise", "nothing")  # `inpainting_fill`
RESIZING = ("stretch", "crop", "pad", "stretch")  # `resize_mode`; 3 enlarges in latent space
HIRES_STRENGTH = 0.75  # A1111's, where a request gives none
WITHOUT_EFFECT = {
    "restore_faces": False, "tiling": False, "styles": [], "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0,
    "s_min_uncond": 0.0, "refiner_checkpoint": None, "refiner_switch_at": None, "disable_extra_networks": False,
    "firstpass_image": None, "comments": {}, "firstphase_width": 0, "firstphase_height": 0, "hr_checkpoint_name": None,
    "hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": "", "hr_negative_prompt": "", "save_images": False,
    "do_not_save_samples": False, "do_not_save_grid": False, "force_task_id": None, "script_args": [],
    "image_cfg_scale": None, "initial_noise_multiplier": None, "mask_round": True, "latent_mask": None,
}  # fmt: skip
"""Fields without a counterpart, and the values with which they do nothing in A1111 either."""
USUAL = {
    "hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler",
    "hr_checkpoint_name": "Use same checkpoint", "refiner_checkpoint": "None", "initial_noise_multiplier": 1.0,
}  # fmt: skip
"""More such values."""
MODEL, CLIP_SKIP, VAE = "sd_model_checkpoint", "CLIP_stop_at_last_layers", "sd_vae"


@dataclass
class Translated:
    """A native request, and the fields of the body that it does not follow."""

    fields: dict[str, Any]
    image: Image.Image | None = None
    mask: Image.Image | None = None
    ignored: dict[str, Any] = field(default_factory=dict)


def translate(body: TextToImage, settings: Mapping[str, Any], defaults: Defaults) -> Translated:
    """Return the native request of a body.

    Args:
        body: of `/txt2img` or `/img2img`.
        settings: the server's, overridden by those of the request.
        defaults: of the model in use.

    Raises:
        Refusal: an unknown sampler (404), a script (422), or pictures that cannot be read (400).
    """
    _refuse_scripts(body)
    seed = {} if body.seed < 0 else {"seed": body.seed}
    drawn = Translated({"prompt": body.prompt, "negative_prompt": body.negative_prompt, **seed})
    drawn.fields["num_images"] = body.batch_size * body.n_iter
    drawn.ignored |= body.unknown
    for name, neutral in WITHOUT_EFFECT.items():
        value = getattr(body, name, neutral)
        if value != neutral and value != USUAL.get(name):
            drawn.ignored[name] = value
    if body.subseed_strength > 0:
        drawn.fields["variation_strength"] = body.subseed_strength
        drawn.fields |= {} if body.subseed < 0 else {"variation_seed": body.subseed}
    for name in ("seed_resize_from_h", "seed_resize_from_w"):
        if getattr(body, name) > 0:
            drawn.ignored[name] = getattr(body, name)
    sizes = {
        "num_inference_steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "width": body.width,
        "height": body.height,
    }
    drawn.fields |= {name: value for name, value in sizes.items() if value is not None}
    _sampling(body, drawn)
    _settings(settings, drawn)
    if isinstance(body, ImageToImage):
        _redraw(body, drawn)
    elif body.enable_hr:
        _second_pass(body, drawn, defaults)
    if body.infotext:
        _fill(body, drawn)
    return drawn


def _refuse_scripts(body: TextToImage) -> None:
    named = [body.script_name] if body.script_name else []
    for name in (*named, *body.alwayson_scripts):
        raise Refusal(422, f"script {name!r:.60} is not known; there are no scripts here", "script_name")


def _sampling(body: TextToImage, drawn: Translated) -> None:
    """Translate the names of sampler and scheduler, and eta, which most samplers do not have."""
    asked = body.sampler_name or body.sampler_index
    automatic = (body.scheduler or "automatic").strip().lower() == "automatic"
    kind = None
    if asked is not None:
        found = sampler_of(asked)
        if found is None:
            known = names("latent_diffusion.samplers")
            raise Refusal(404, f"sampler {asked!r:.60} not found{nearest(asked, known)}; see /samplers", "sampler_name")
        kind, implied = found
        drawn.fields |= {"sampler": kind, "spacing": implied or "automatic"}
    if body.scheduler and not automatic:
        spacing = "beta_sigma" if body.scheduler.lower() == "beta" else body.scheduler
        if spacing_of(spacing, kind or "euler", "ays_sd1") is None:
            raise Refusal(404, f"scheduler {spacing!r:.60} not found; see /schedulers", "scheduler")
        drawn.fields["spacing"] = spacing
    if body.eta:
        if kind and hasattr(find("latent_diffusion.samplers", kind.partition(":")[0]), "eta"):
            drawn.fields["eta"] = body.eta
        else:
            drawn.ignored["eta"] = body.eta


def _settings(settings: Mapping[str, Any], drawn: Translated) -> None:
    """Translate A1111's settings: model and clip skip; the others change no picture here."""
    for name, value in settings.items():
        if name == MODEL:
            drawn.fields["model"] = str(value)
        elif name == CLIP_SKIP:
            drawn.fields |= {"clip_skip": int(value) - 1} if value > 1 else {}
        elif name != VAE or value not in ("Automatic", "None", None):
            drawn.ignored[name] = value


def _second_pass(body: TextToImage, drawn: Translated, defaults: Defaults) -> None:
    scale = body.hr_scale
    width, height = body.width or defaults.width, body.height or defaults.height
    scales = [new / old for new, old in ((body.hr_resize_x, width), (body.hr_resize_y, height)) if new > 0 and old > 0]
    if scales:
        scale = max(scales)
        if max(scales) - min(scales) > 8 / min(width, height):
            drawn.ignored["hr_resize"] = f"{body.hr_resize_x}x{body.hr_resize_y}: nothing is cut off here"
    theirs = {name: ours for ours, name in UPSCALERS.items()}
    upscaler = theirs.get(body.hr_upscaler or "Latent")
    if upscaler is None:
        drawn.ignored["hr_upscaler"] = body.hr_upscaler
    strength = HIRES_STRENGTH if body.denoising_strength is None else body.denoising_strength
    drawn.fields |= {"task": "hires", "scale": scale, "upscaler": upscaler or "latent", "hires_strength": strength}
    if body.hr_second_pass_steps > 0:
        drawn.fields["hires_steps"] = body.hr_second_pass_steps


def _redraw(body: ImageToImage, drawn: Translated) -> None:
    """Translate the picture and its mask."""
    if len(body.init_images) != 1:
        raise Refusal(422, f"init_images has {len(body.init_images)} pictures; give one", "init_images")
    drawn.image = from_bytes(from_base64(body.init_images[0], "init_images"), "init_images")
    drawn.fields["strength"] = 0.75 if body.denoising_strength is None else body.denoising_strength
    mode = RESIZING[body.resize_mode]
    if body.resize_mode == 3:
        drawn.ignored["resize_mode"] = "3: the picture is stretched before it is encoded"
    if body.mask is None:
        drawn.fields |= {"task": "image_to_image", "resize_mode": mode}
        return
    drawn.mask = _mask(from_bytes(from_base64(body.mask, "mask"), "mask"))
    if drawn.mask.size != drawn.image.size:
        drawn.mask = drawn.mask.resize(drawn.image.size, Image.Resampling.NEAREST)
    blur = max(body.mask_blur_x, body.mask_blur_y) if body.mask_blur is None else body.mask_blur
    drawn.fields |= {
        "task": "inpaint",
        "masked_content": CONTENTS[body.inpainting_fill],
        "mask_invert": bool(body.inpainting_mask_invert),
        "feather": min(max(blur, 0), MAX_EDGE),
        "inpaint_area": "masked" if body.inpaint_full_res else "whole",
    }
    if body.inpaint_full_res:
        drawn.fields["padding_mask_crop"] = max(body.inpaint_full_res_padding, 0)
    elif body.width and body.height and (body.width, body.height) != drawn.image.size:
        check_area(body.width, body.height)
        drawn.image = fit(drawn.image.convert("RGB"), body.height, body.width, mode)  # A1111 repaints the resized one
        drawn.mask = fit(drawn.mask.convert("RGB"), body.height, body.width, mode).convert("L")


def _mask(picture: Image.Image) -> Image.Image:
    """Return a mask whose white is repainted: of a picture with transparency the opaque part, else the white part."""
    grey = picture.getchannel("A") if picture.mode == "RGBA" else picture.convert("L")
    return Image.fromarray(np.where(np.asarray(grey) > 127, 255, 0).astype(np.uint8))


def _fill(body: TextToImage, drawn: Translated) -> None:
    """Fill the fields that the body does not give from A1111's text about a picture."""
    found = read_a1111(body.infotext or "")
    if found is None:
        raise Refusal(400, "infotext: not a text of A1111 about a picture", "infotext")
    prompt, negative, options, other, _ = found
    given = body.model_fields_set
    texts = {"prompt": prompt, "negative_prompt": negative}
    drawn.fields |= {name: text for name, text in texts.items() if name not in given}
    for name, value in options.items():
        if name in DrawFields.model_fields and name not in ("model", "strength"):
            drawn.fields.setdefault(name, value)
    drawn.ignored |= {name: value for name, value in other.items() if name not in ("Version", "Template")}
