"""Make a picture again from its record, and list the parameters that could not be followed.

Our own record makes the same picture. The texts of other tools say less than decides their pixels, and their noise is
not always ours; what is known of such differences is said beforehand.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from latent_diffusion.checks import MAX_SEED
from latent_diffusion.errors import DataError
from latent_diffusion.options.call import Options
from latent_diffusion.options.option import arguments_of
from latent_diffusion.options.tasks import RedrawingOptions, RepaintingOptions, SecondPassOptions
from latent_diffusion.pipeline.call.sampling_path import CUSTOM
from latent_diffusion.pipeline.foreign_plan import plan_of_found
from latent_diffusion.pipeline.plan import Plan
from latent_diffusion.prompts.terms import take_adapters
from latent_diffusion.provenance.record import Record, RefinerRecord

__all__ = ["Plan", "differences", "loading_of", "plan_of_found", "plan_of_record"]

LOADING = ("family", "prediction_type", "averaged", "vae_dtype")  # fields that `from_pretrained` takes
NOT_COMPARED = ("software", "device", "steps_run", "open_clip")  # decide no pixel, or follow from what does


def plan_of_record(record: Record) -> Plan:
    """Return the call of a record.

    Raises:
        DataError: the picture was made from embeddings, which it does not keep.
    """
    if record.prompt is None:
        raise DataError(
            "this picture was made from text embeddings, which its record does not contain; it cannot be made again"
        )
    arguments = arguments_of(Options, record)
    if record.read_as is None:
        arguments["rewrite"] = False
    elif record.adapters:
        arguments["rewrite"] = True  # beside adapters it is done only where it was asked for
    seed = record.seed % (MAX_SEED + 1)  # a generator's may be larger; the CPU's reads these bits of it
    arguments["seed"] = [seed]
    if record.spacing == CUSTOM:
        del arguments["spacing"], arguments["num_inference_steps"]  # the times or sigmas say both
    if not record.variation_strength:  # the first frame of a walk has other seeds and no share of their noise
        arguments = {name: value for name, value in arguments.items() if not name.startswith("variation_")}
    second = record.hires
    arguments |= _sizes("", record.size_ids, second and second.size_ids)
    arguments |= _sizes("negative_", record.negative_size_ids, second and second.negative_size_ids)
    method, of_task = _task(record)
    missing = []
    if record.negative_prompt is None:
        missing.append("its negative prompt was given as text embeddings, which the record does not contain")
    if record.initial == "latents":
        missing.append("its initial noise was given as latents, which the record does not contain")
    if record.initial == "generator":
        missing.append("its noise came from a torch generator; a new generator with its seed is used")
    tags = take_adapters(record.prompt)[1] if record.emphasis != "none" else ()
    named = {tag.name for tag in tags}
    return Plan(
        method,
        record.prompt,
        {**arguments, **of_task},
        record.model,
        record.model_hash,
        record.dtype,
        loading_of(record),
        tuple(adapter for adapter in record.adapters if adapter.kind != "lora" or adapter.name not in named),
        tuple(missing),
        record.stopped_after,
        record.refiner,
        record.refined_below or 0.0,
        record.refined_by,
        lora_hashes={adapter.name: adapter.hash for adapter in record.adapters if adapter.name in named},
        vae=record.vae,
    )


def loading_of(record: Record | RefinerRecord) -> dict[str, Any]:
    """Return the recorded arguments of `from_pretrained`, without name, device and dtype."""
    return {name: value for name in LOADING if (value := getattr(record, name, None))}


def _sizes(prefix: str, numbers: tuple[float, ...] | None, second: tuple[float, ...] | None) -> dict[str, Any]:
    """Return the options that SDXL's size numbers come from.

    `second` are those of a second pass: a pair that is another there was the picture's own size, and is not given.
    """
    if numbers is None:
        return {}
    places = {"original_size": slice(0, 2), "crops_coords_top_left": slice(2, 4)}
    if len(numbers) == 6:
        places["target_size"] = slice(4, 6)
    found: dict[str, Any] = {
        f"{prefix}{name}": tuple(int(px) for px in numbers[place])
        for name, place in places.items()
        if second is None or second[place] == numbers[place]
    }
    return found if len(numbers) == 6 else {**found, f"{prefix}aesthetic_score": numbers[4]}


def _task(record: Record) -> tuple[str, dict[str, Any]]:
    """Return the pipeline's method and the arguments that belong to it alone."""
    if record.inpaint and record.inpaint.added:
        sides = dict(zip(("left", "right", "top", "bottom"), record.inpaint.added, strict=True))
        return "outpaint", arguments_of(RepaintingOptions, record.inpaint) | sides
    tasks = {"inpaint": RepaintingOptions, "image_to_image": RedrawingOptions, "hires": SecondPassOptions}
    for name, options in tasks.items():
        if task := getattr(record, name):
            return name, arguments_of(options, task)
    return "__call__", {}


def differences(old: Record, new: Record) -> list[str]:
    """Return a line for each parameter that decides pixels and differs."""
    if old.refined_by is None or new.refined_by is None:  # an older record, or the line of `refiner` says it
        old, new = replace(old, refined_by=None), replace(new, refined_by=None)
    return _unlike("", old, new)


def _unlike(prefix: str, old: Any, new: Any) -> list[str]:
    found: list[str] = []
    for name in (part.name for part in fields(old)):
        before, now = getattr(old, name), getattr(new, name)
        if name in NOT_COMPARED or before == now:
            continue
        called = prefix + name.replace("_", " ")
        if is_dataclass(before) and is_dataclass(now):
            found += _unlike(f"{called} ", before, now)
        else:
            found.append(f"{called} was {_short(before)}, now {_short(now)}")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
