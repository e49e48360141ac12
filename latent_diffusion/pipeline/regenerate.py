"""Make a picture again from what it says of itself, and say what could not be honoured.

Our own record makes the same picture. The texts of other tools say less than decides their pixels, and their noise is
not always ours; what is known of such differences is said beforehand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from latent_diffusion.checkpoint.components import Applied
from latent_diffusion.checks import MAX_SEED
from latent_diffusion.data.images import ImageSource
from latent_diffusion.diffusion.level import Step
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.pipeline.call.walk import CUSTOM
from latent_diffusion.pipeline.engine.output import Output
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.prompts.terms import take_adapters
from latent_diffusion.provenance.foreign import Found
from latent_diffusion.provenance.record import InpaintRecord, Record, RefinerRecord

__all__ = ["Plan", "differences", "loading_of", "plan_of_found", "plan_of_record"]

SAME_NAME = (
    "num_inference_steps", "guidance_scale", "guidance_rescale", "guidance", "guidance_interval", "approximate",
    "sampler", "spacing", "spacing_rho", "timesteps", "sigmas", "eta", "clip_skip", "emphasis", "long_prompt",
    "negative_prompt", "prompt_2", "negative_prompt_2",
)  # fmt: skip
"""Fields of a record that are options under the same name."""
LOADING = ("family", "prediction_type", "averaged", "vae_dtype")  # fields that `from_pretrained` takes
NOT_COMPARED = ("software", "device", "steps_run")  # decide no pixel, or follow from what does
NEEDS_INPUT = {"inpaint": ("image", "mask_image"), "outpaint": ("image",), "image_to_image": ("image",)}
HARMLESS = ("Version", "Lora hashes", "TI hashes", "Template", "User")  # fields of an A1111 text that decide no pixel
OF_MASK = ("Mask mode", "Mask blur", "Mask blur X", "Mask blur Y")


@dataclass(frozen=True)
class Plan:
    """A call that makes a picture again."""

    method: str  # of the pipeline; "__call__" for text to image
    prompt: str
    arguments: Mapping[str, Any]
    model: str | None  # its name, for people
    model_hash: str | None  # or the beginning of it
    dtype: str | None
    loading: Mapping[str, Any] = field(default_factory=dict)  # what else `from_pretrained` was told, by name
    adapters: tuple[Applied, ...] = ()  # to be loaded, besides those that the prompt asks for
    missing: tuple[str, ...] = ()  # what is known not to be honoured
    steps: int | None = None  # after which the caller stopped
    refiner: str | None = None  # name of the model that drew the end of the path, to be given to `draw`
    refined_below: float = 0.0  # training time at which it took over
    refined_by: RefinerRecord | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Pictures that the call needs: "image", "mask_image"."""
        return NEEDS_INPUT.get(self.method, ())

    def draw(
        self,
        pipe: LatentDiffusionPipeline,
        pictures: Mapping[str, ImageSource],
        refiner: LatentDiffusionPipeline | None = None,
        **options: Any,
    ) -> Output:
        """Make the picture again.

        Args:
            pipe: the model, with the adapters loaded.
            pictures: one for each of `inputs`.
            refiner: the second model; None leaves the end of the path to the first.
            **options: of the pipeline, such as `on_step` and `lora_folder`.

        Raises:
            ConfigError: an input is missing or not needed, or an argument that this model or version does not take.
        """
        arguments = {**self.arguments, **({} if refiner is None else self._refining(pipe, refiner))}
        if pipe.components.prompt_forms is None:
            arguments.pop("rewrite", None)  # another model than it was made with
        for name in {*self.inputs, *pictures}:
            if (name in pictures) != (name in self.inputs):
                need = "needs" if name in self.inputs else "has no use for"
                raise ConfigError(f"this picture {need} `{name}`: it was made by {self.method.strip('_')}")
        seen = options.pop("on_step", None)

        def on_step(step: Step) -> bool | None:
            wanted = seen(step) if seen else None
            return False if self.steps is not None and step.index + 1 >= self.steps else wanted

        method: Any = getattr(pipe, self.method)
        return method(self.prompt, **pictures, **arguments, **options, on_step=on_step)

    def _refining(self, pipe: LatentDiffusionPipeline, refiner: LatentDiffusionPipeline) -> dict[str, Any]:
        """Return the arguments that belong to the refiner."""
        if self.refiner is None:
            raise ConfigError("this picture has no use for a refiner: one model drew all of it")
        switch = 1 - self.refined_below / pipe.components.schedule.num_train_timesteps
        told = self.refined_by
        scores = {} if told is None else {"": told.size_ids, "negative_": told.negative_size_ids}
        read = {f"{side}aesthetic_score": ids[4] for side, ids in scores.items() if ids is not None and len(ids) == 5}
        return {"refiner": refiner, "refiner_switch": switch, **read}


def plan_of_record(record: Record) -> Plan:
    """Return the call that a record tells.

    Raises:
        DataError: the picture was made from embeddings, which it does not keep.
    """
    if record.prompt is None:
        raise DataError("this picture was made from text embeddings, which it does not keep; it cannot be made again")
    arguments: dict[str, Any] = {
        name: value for name in SAME_NAME if (value := getattr(record, name, None)) not in (None, ())
    }
    if record.read_as is None:
        arguments["rewrite"] = False
    elif record.adapters:
        arguments["rewrite"] = True  # beside adapters it is done only where it was asked for
    seed = record.seed % (MAX_SEED + 1)  # a generator's may be larger; the CPU's reads these bits of it
    arguments |= {"seed": [seed], "height": record.work_height, "width": record.work_width}
    if record.spacing == CUSTOM:
        del arguments["spacing"], arguments["num_inference_steps"]  # the times or sigmas say both
    if record.variation_strength:  # the first frame of a walk has other seeds and leans none towards them
        arguments |= {"variation_seed": record.variation_seed, "variation_strength": record.variation_strength}
    second = record.hires
    arguments |= _sizes("", record.size_ids, second and second.size_ids)
    arguments |= _sizes("negative_", record.negative_size_ids, second and second.negative_size_ids)
    method, of_task = _task(record)
    missing = []
    if record.negative_prompt is None:
        missing.append("its negative prompt was given as text embeddings, which the picture does not keep")
    if record.initial == "latents":
        missing.append("its first noise was given as latents, which the picture does not keep")
    if record.initial == "generator":
        missing.append("its noise came from a torch generator; a new one of its seed is used")
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
    )


def loading_of(record: Record | RefinerRecord) -> dict[str, Any]:
    """Return what `from_pretrained` was told besides name, device and dtype."""
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
    if record.inpaint:
        return _of_inpainting(record.inpaint)
    if record.image_to_image:
        redrawn = record.image_to_image
        names = ("strength", "exact_steps", "resize_mode")
        return "image_to_image", {name: getattr(redrawn, name) for name in names}
    if record.hires:
        second = record.hires
        return "hires", {
            "scale": second.scale,
            "upscaler": second.upscaler,
            "hires_strength": second.strength,
            "hires_steps": second.num_inference_steps,
        }
    return "__call__", {}


def _of_inpainting(task: InpaintRecord) -> tuple[str, dict[str, Any]]:
    not_arguments = ("image_sha256", "mask_sha256", "box", "steps_run", "added", "padding")
    names = [part.name for part in fields(task) if part.name not in not_arguments]
    arguments = {name: getattr(task, name) for name in names} | {"padding_mask_crop": task.padding}
    if task.added is None:
        return "inpaint", arguments
    return "outpaint", arguments | dict(zip(("left", "right", "top", "bottom"), task.added, strict=True))


def plan_of_found(found: Found) -> Plan:
    """Return the call that comes nearest to what another tool wrote."""
    values = dict(found.options)
    other = {key: value for key, value in found.other.items() if key not in HARMLESS}
    model, digest = values.pop("model", None), values.pop("model_hash", None)
    missing = []
    if (noise := values.pop("noise", "CPU")) != "CPU":
        missing.append(f"its noise was drawn on a GPU ({noise}); ours is drawn on the CPU, so the picture is another")
    if found.tool not in ("A1111", "ComfyUI", "InvokeAI"):
        missing.append(f"how {found.tool} draws its noise is not known; expect another picture")
    strength = values.pop("strength", None)
    hires = {name: values.pop(name, None) for name in ("hires_scale", "hires_steps", "upscaler")}
    of_mask = {name: values.pop(name, None) for name in ("masked_content", "inpaint_area", "padding")}
    masked = any(of_mask.values()) or any(name in other for name in OF_MASK)
    arguments: dict[str, Any] = {**values, "negative_prompt": found.negative_prompt}
    if "seed" in arguments:
        arguments["seed"] = [arguments["seed"]]
    method = "__call__"
    if hires["hires_scale"]:
        method = "hires"
        arguments |= {"scale": hires["hires_scale"], "hires_steps": hires["hires_steps"] or None}
        arguments |= {"upscaler": hires["upscaler"] or "latent", "hires_strength": strength or 0.7}
    elif masked:
        method = "inpaint"
        arguments |= {"strength": strength or 1.0, "padding_mask_crop": of_mask["padding"]}
        arguments |= {"masked_content": of_mask["masked_content"] or "original"}
        arguments |= {"inpaint_area": of_mask["inpaint_area"] or "whole"}
    elif strength is not None and strength < 1.0:
        method = "image_to_image"
        arguments["strength"] = strength
    missing += [f"{key}: {value}" for key, value in other.items()]
    return Plan(method, found.prompt, arguments, model, digest, None, missing=tuple(missing))


def differences(old: Record, new: Record) -> list[str]:
    """Return a line for everything that decides pixels and is not what it was."""
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
