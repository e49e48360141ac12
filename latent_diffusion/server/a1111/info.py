"""The answer to a drawing: pictures as base64, and `info`, a JSON text about how they were made."""

import json
import time
from typing import Any

from latent_diffusion.provenance.infotext import UPSCALERS
from latent_diffusion.provenance.other_names import a1111_name
from latent_diffusion.provenance.record import Record
from latent_diffusion.server.a1111.payload import TextToImage
from latent_diffusion.server.a1111.translation import Translated
from latent_diffusion.server.drawing.job import Job
from latent_diffusion.server.encoded import to_base64

__all__ = ["answer_of"]

SHORT = 10  # digits of a hash


def answer_of(job: Job, body: TextToImage, drawn: Translated) -> dict[str, Any]:
    """Return the JSON body of `/txt2img` and `/img2img`."""
    echo = body.model_dump(exclude={"script_args"} if not body.script_args else None)
    if not echo.get("include_init_images", False):
        echo |= {name: None for name in ("init_images", "mask") if name in echo}
    images = [to_base64(picture.png) for picture in job.pictures] if body.send_images else []
    return {"images": images, "parameters": echo, "info": json.dumps(_info(job, body, drawn))}


def _info(job: Job, body: TextToImage, drawn: Translated) -> dict[str, Any]:
    records = [picture.record for picture in job.pictures]
    first = records[0] if records else None
    if first is None:  # stopped before its first picture
        return {
            "prompt": body.prompt,
            "all_seeds": [],
            "infotexts": [],
            "extra_generation_params": _extra(None, job, drawn),
        }
    task = first.inpaint or first.image_to_image or first.hires
    return {
        "prompt": first.prompt,
        "all_prompts": [record.prompt for record in records],
        "negative_prompt": first.negative_prompt or "",
        "all_negative_prompts": [record.negative_prompt or "" for record in records],
        "seed": first.seed,
        "all_seeds": [record.seed for record in records],
        "subseed": _subseed(first),
        "all_subseeds": [_subseed(record) for record in records],
        "subseed_strength": first.variation_strength,
        "width": first.width,
        "height": first.height,
        "sampler_name": a1111_name(first.sampler.partition(":")[0]),
        "cfg_scale": first.guidance_scale,
        "steps": first.num_inference_steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.model,
        "sd_model_hash": (first.model_hash or "")[:SHORT],
        "sd_vae_name": first.vae,
        "sd_vae_hash": first.vae_hash and first.vae_hash[:SHORT],
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": task.strength if task else None,
        "extra_generation_params": _extra(first, job, drawn),
        "index_of_first_image": 0,
        "infotexts": [picture.text for picture in job.pictures],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": (first.clip_skip or 0) + 1,
        "is_using_inpainting_conditioning": False,
        "version": first.software,
    }


def _subseed(record: Record) -> int:
    return -1 if record.variation_seed is None else record.variation_seed


def _extra(record: Record | None, job: Job, drawn: Translated) -> dict[str, Any]:
    """Return what else was done, above all what the request asked for and was not followed."""
    extra: dict[str, Any] = {}
    task = record and (record.inpaint or record.image_to_image or record.hires)
    if task:
        extra["Steps run"] = task.steps_run
    if record and record.hires:
        extra |= {"Hires upscale": record.hires.scale, "Hires upscaler": UPSCALERS[record.hires.upscaler]}
    if job.request.task in ("inpaint", "outpaint"):
        extra["Pixels changed outside the mask"] = sum(picture.changed_outside or 0 for picture in job.pictures)
    if drawn.ignored:
        extra["Ignored"] = ", ".join(f"{name}: {str(value)[:60]}" for name, value in drawn.ignored.items())[:4000]
    if job.notes:
        extra["Notes"] = "; ".join(job.notes)
    return extra
