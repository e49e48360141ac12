"""The call that comes nearest to what another tool wrote into a picture; what it does not follow is named."""

import re
from pathlib import PurePosixPath
from typing import Any

from latent_diffusion.checkpoint.components import Applied
from latent_diffusion.checks import MAX_SEED
from latent_diffusion.pipeline.engine.lora_folder import ENDINGS
from latent_diffusion.pipeline.plan import Plan
from latent_diffusion.prompts.other_languages import LANGUAGES, written
from latent_diffusion.prompts.terms import take_adapters
from latent_diffusion.provenance.foreign import Found
from latent_diffusion.provenance.late_start import late_start, share_of
from latent_diffusion.provenance.other_schedules import schedule_of, times_of

__all__ = ["plan_of_found"]

HARMLESS = ("Version", "VAE hash", "Lora hashes", "TI hashes", "Template", "User")
"""Fields of an A1111 text that decide no pixel."""
CPU_NOISE = ("A1111", "ComfyUI", "InvokeAI", "SwarmUI")  # tools whose noise torch's CPU generator makes, or may make
COUNTED_TIMES = ("ddim", "pndm", "unipc")  # A1111 runs these by another rule when it starts from a picture
TRAINED_LEVELS = 1000
_WORD = re.compile(r"\bembedding:([^\s,()\[\]]+)")  # ComfyUI's way to name a learned word
_HASHED = re.compile(r"([^,:\s][^,:]*?)\s*:\s*([0-9a-fA-F]{8,64})")  # "name: hash" of an A1111 text
_TAG = re.compile(r"<[a-z]+(?:\[[^\]]*\])?(?::[^<>]*)?>")  # SwarmUI's, such as <random:a|b>


def plan_of_found(found: Found) -> Plan:
    """Return the call that comes nearest to what another tool wrote."""
    values = dict(found.options)
    other = {key: value for key, value in found.other.items() if key not in HARMLESS}
    model, digest = values.pop("model", None), values.pop("model_hash", None)
    vae = other.pop("VAE", None)
    for file in found.loras:
        other.pop(f"LoRA {file[:200]}", None)
    missing = []
    if (noise := values.pop("noise", "CPU")) != "CPU":
        missing.append(f"its noise was drawn on a GPU ({noise}) and is drawn on the CPU here, so the picture differs")
    if found.tool not in CPU_NOISE:
        missing.append(f"the noise of {found.tool} cannot be reproduced, so the picture differs")
    refiner = {name: values.pop(name, None) for name in ("refiner", "refiner_switch", "refiner_step")}
    values |= schedule_of(found.tool, values)
    method, of_task = _task(found, values, missing)
    times = times_of(values, TRAINED_LEVELS)
    if times and method == "hires":
        missing.append(f"ddim_uniform visits {len(times)} times there; two passes with one spacing cannot follow it")
    elif times:
        if "strength" in of_task:  # as many steps of a path of another length
            run = int(values["num_inference_steps"] * of_task["strength"])
            of_task["strength"] = share_of(min(run, len(times)), len(times))
        said_by_times = ("num_inference_steps", "spacing", "discard_next_to_last")
        values = {name: value for name, value in values.items() if name not in said_by_times} | {"timesteps": times}
    arguments: dict[str, Any] = {**values, "negative_prompt": found.negative_prompt}
    for name in ("seed", "variation_seed"):
        if name in arguments:  # torch's CPU generator reads these bits of a longer seed
            arguments[name] = arguments[name] % (MAX_SEED + 1)
    if "seed" in arguments:
        arguments["seed"] = [arguments["seed"]]
    texts = {"": found.prompt, **{name: arguments[name] for name in arguments if name.endswith(("prompt", "prompt_2"))}}
    texts = {name: _translated(found.tool, text, missing) for name, text in texts.items()}
    prompt = texts.pop("")
    if found.tool == "InvokeAI":
        arguments["emphasis"] = "comfy"  # compel weighs by the same rule
    missing += [f"{key}: {value}" for key, value in other.items()]
    hashes = _HASHED.findall(found.other.get("Lora hashes", ""))
    switch = refiner["refiner_switch"]
    return Plan(
        method,
        prompt,
        {**arguments, **texts, **of_task},
        model,
        digest,
        None,
        missing=tuple(dict.fromkeys(missing)),
        refiner=refiner["refiner"],
        refined_below=TRAINED_LEVELS * (1 - (0.8 if switch is None else switch)),
        refined_after=refiner["refiner_step"],
        adapters=tuple(_adapter(file, *strengths) for file, strengths in found.loras.items()),
        lora_hashes={name: digest for name, digest in hashes if name in {tag.name for tag in take_adapters(prompt)[1]}},
        vae=vae,
        tool=found.tool,
    )


def _adapter(file: str, unet: float, text: float) -> Applied:
    """Return an adapter that a tool names by its file, with Windows's separators or others."""
    way = PurePosixPath(file.replace("\\", "/"))
    name = way.with_suffix("") if way.suffix.lower() in ENDINGS else way
    return Applied("lora", str(name), "", {"unet": unet, "text_encoder": text, "text_encoder_2": text})


def _task(found: Found, values: dict[str, Any], missing: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the pipeline's method and the arguments that belong to it; they are taken out of `values`."""
    strength, started = values.pop("strength", None), values.pop("first_step", None)
    hires = {name: values.pop(name, None) for name in ("hires_scale", "hires_steps", "upscaler")}
    of_mask = {name: values.pop(name, None) for name in ("masked_content", "inpaint_area", "padding")}
    steps = values.get("num_inference_steps")
    if found.task == "hires":
        strength, count = strength or 0.7, hires["hires_steps"] or steps
        if count and not started:
            count, strength = late_start(found.tool, count, strength, second=True)
        return "hires", {
            "scale": hires["hires_scale"],
            "upscaler": hires["upscaler"] or "latent",
            "hires_steps": count,
            "hires_strength": strength,
        }
    task: dict[str, Any] = {}
    if found.task == "inpaint":
        task = {
            "masked_content": of_mask["masked_content"] or "original",
            "inpaint_area": of_mask["inpaint_area"] or "whole",
            "padding_mask_crop": of_mask["padding"],
            "inpainting_adapter": False,  # no other tool reads it
        }
    elif found.task != "image_to_image":
        return "__call__", {}
    strength = 1.0 if strength is None else strength
    if steps and strength and not started:
        if found.tool == "A1111" and values.get("sampler") in COUNTED_TIMES:
            missing.append(
                f"the first step of {values['sampler']} of {found.tool} on a picture is not followed exactly"
            )
        values["num_inference_steps"], strength = late_start(found.tool, steps, strength, second=False)
    return found.task, {"strength": strength, **task}


def _translated(tool: str, text: str, missing: list[str]) -> str:
    """Return a prompt as `tool` reads it, in our language; what has no like here is named."""
    if tool not in LANGUAGES:
        return text
    if tool in ("ComfyUI", "SwarmUI", "Fooocus"):
        for name in _WORD.findall(text):
            missing.append(f"embedding:{name} is the learned word {name!r} here; it needs --embedding")
        text = _WORD.sub(r"\1", text)
    if tool == "SwarmUI" and (tags := _TAG.findall(text)):
        missing.append(f"{', '.join(tags)[:200]} in its prompt is text here")
    stretches = LANGUAGES[tool](text)
    if stretches is None:
        missing.append(f"its prompt joins or swaps parts by compel's syntax, which is text here: {text[:100]!r}")
        return written([(text, 1.0)])
    weights = {weight for _, weight in stretches}
    if tool == "InvokeAI" and min(weights, default=1) < 1:
        missing.append("its prompt has weights below 1, which compel blends with the prompt without those words")
    if tool in ("Fooocus", "NovelAI") and weights - {1.0}:
        missing.append(f"weights in its prompt follow a rule of {tool} that is not implemented")
    return written(stretches)
