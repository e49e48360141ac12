"""The parameters of a ComfyUI graph, under this package's names; other fields are named.

A picture may pass through several samplers. Where the last one goes on without adding noise, it ends the path of the
one before (base and refiner); where it adds noise to enlarged latents, it is the second pass of hires. Reference:
github.com/comfyanonymous/ComfyUI, nodes.py and comfy/samplers.py (names of inputs, and what they mean).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latent_diffusion.provenance.comfy_graph import CONDITIONING, LATENTS, ComfyGraph, graph_of
from latent_diffusion.provenance.json_fields import known, read_float, read_int
from latent_diffusion.provenance.other_names import sampling_of

__all__ = ["ComfyPicture", "read_comfyui"]

SETTINGS = {
    "seed": ("seed", "noise_seed"),
    "num_inference_steps": ("steps",),
    "guidance_scale": ("cfg",),
    "strength": ("denoise",),
    "sampler": ("sampler_name",),
    "spacing": ("scheduler",),
    "model": ("ckpt_name", "unet_name"),
}
"""Our name -> the inputs that hold it."""
WIDTHS, HEIGHTS = ("width", "empty_latent_width"), ("height", "empty_latent_height")
FACTORS = ("scale_by", "upscale_by")
UPSCALERS = {"bilinear": "latent", "bicubic": "latent_bicubic", "nearest-exact": "latent_nearest"}
FULL_NOISE = 0.9999  # a denoise above is 1: comfy/samplers.py, KSampler.set_steps
MAX_PASSES = 10
FOLLOWED = frozenset(
    (
        "KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "KSamplerSelect", "BasicScheduler",
        "KarrasScheduler", "ExponentialScheduler", "RandomNoise", "CFGGuider", "BasicGuider", "CheckpointLoaderSimple",
        "UNETLoader", "CLIPLoader", "DualCLIPLoader", "CLIPTextEncode", "CLIPTextEncodeSDXL", "CLIPSetLastLayer",
        "ConditioningZeroOut", "EmptyLatentImage", "LatentUpscale", "LatentUpscaleBy", "ImageScale", "ImageScaleBy",
        "VAEDecode", "VAEEncode", "VAEEncodeForInpaint", "SetLatentNoiseMask", "InpaintModelConditioning", "LoadImage",
        "LoadImageMask", "LoraLoader", "LoraLoaderModelOnly", "SaveImage", "PreviewImage", "PrimitiveInt",
        "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "StringConcatenate", "Reroute", "Note",
        "Efficient Loader", "KSampler (Efficient)",
    )
)  # fmt: skip
"""Kinds of nodes whose part in the picture is read here; of the others only the names are."""


@dataclass
class ComfyPicture:
    """The parameters of a picture in a graph."""

    prompt: str = ""
    negative_prompt: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    loras: dict[str, tuple[float, float]] = field(default_factory=dict)  # file -> strength on U-Net and text encoders
    task: str = "text_to_image"


@dataclass(frozen=True)
class _Pass:
    """One sampler of the path."""

    key: str
    settings: Mapping[str, Any]
    behind: tuple[str, ...]  # nodes that made its latents, without the earlier sampler
    earlier: str | None
    adds_noise: bool
    first_step: int
    last_step: int | None


def read_comfyui(values: Mapping[str, Any]) -> ComfyPicture | None:
    """Return the parameters in the graph, or None if it is not a graph or has no sampler."""
    graph = graph_of(values)
    last = graph.last_sampler()
    if last is None:
        return None
    found = ComfyPicture()
    passes = [_pass(graph, last, found)]
    while passes[-1].earlier and len(passes) < MAX_PASSES and passes[-1].earlier not in (one.key for one in passes):
        passes.append(_pass(graph, passes[-1].earlier, found))
    first = _describe_passes(graph, passes, found)
    _describe_prompts(graph, first.key, found)
    if last != first.key:
        for side, text in (("positive", found.prompt), ("negative", found.negative_prompt)):
            other = graph.prompt(last, side)[0]
            if other is not None and other != text:
                found.other[f"{side} prompt of the last sampler"] = other[:2000]
    _describe_rest(graph, last, first.key, found)
    found.options |= {"emphasis": "comfy"}
    return found


def _pass(graph: ComfyGraph, key: str, found: ComfyPicture) -> _Pass:
    """Read the numbers of one sampler: the nearest that are not another sampler's."""
    settings: dict[str, Any] = {}
    for name, inputs in SETTINGS.items():
        there, value = graph.nearest(inputs, [key], without=(*LATENTS, *CONDITIONING))
        if not there and name == "model":  # a loader of everything, behind a side
            there, value = graph.nearest(inputs, [key], without=LATENTS)
        if there and value is None:
            found.other[inputs[0]] = "comes from a node that is not followed"
        settings[name] = value
    if settings["sampler"] == "uni_pc":
        found.other["uni_pc"] = "its B(h) is h there; here it is exp(h) - 1, as in uni_pc_bh2"
    sampling = sampling_of(str(settings.pop("sampler") or "")[:100], str(settings.pop("spacing") or "")[:100])
    numbers = {name: read_float(settings[name]) for name in ("guidance_scale", "strength")}
    numbers |= {name: read_int(settings[name]) for name in ("seed", "num_inference_steps")}
    behind = graph.latents_behind(key)
    earlier = next((one for one in behind if graph.nodes[one].is_sampler), None)
    inputs = graph.nodes[key].inputs
    start, end, steps = (
        read_int(graph.value(value))
        for value in (inputs.get("start_at_step"), inputs.get("end_at_step"), numbers["num_inference_steps"])
    )
    return _Pass(
        key,
        known({**settings, **numbers, **sampling}),
        tuple(one for one in behind if one != earlier),
        earlier,
        inputs.get("add_noise") not in ("disable", False),
        max(start or 0, 0),
        end if end is not None and steps is not None and end < steps else None,
    )


def _describe_passes(graph: ComfyGraph, passes: list[_Pass], found: ComfyPicture) -> _Pass:
    """Describe the task and its numbers; return the pass that the prompts, seed and size belong to."""
    last, *before = passes
    first = last
    if before and not last.adds_noise:
        first = before[0]
        _describe_end(last, first, found)
        before = before[1:]
    elif last.last_step is not None:
        found.other["end_at_step"] = f"{last.last_step} of {last.settings['num_inference_steps']}"
    partial = _is_partial(first)
    if before and partial:
        second, first = first, before[0]
        _describe_second_pass(graph, first, second, found)
        before = before[1:]
        if first.last_step is not None:
            found.other["end_at_step of the first pass"] = str(first.last_step)
    elif partial or _from_picture(graph, first):
        _describe_start(graph, first, found)
    if before:
        found.other["samplers"] = f"{len(passes)}; the last is described"
    found.options = {**first.settings, **found.options}
    if found.task not in ("image_to_image", "inpaint") or "width" in found.options:
        found.options |= _size(graph, first, found)
    return first


def _is_partial(one: _Pass) -> bool:
    """Return whether a sampler begins in the middle of the path."""
    strength = one.settings.get("strength")
    return bool(one.first_step) or (strength is not None and strength <= FULL_NOISE)


def _from_picture(graph: ComfyGraph, one: _Pass) -> bool:
    return any(graph.nodes[key].kind.startswith("LoadImage") for key in one.behind)


def _describe_end(last: _Pass, first: _Pass, found: ComfyPicture) -> None:
    """Describe a sampler that goes on where the one before stopped."""
    if last.settings.get("model") != first.settings.get("model"):
        found.options["refiner"] = last.settings.get("model", "")
        found.options["refiner_step"] = last.first_step
    if first.last_step is not None and first.last_step != last.first_step:
        found.other["end_at_step"] = f"{first.last_step}, and the next sampler begins at {last.first_step}"
    if last.last_step is not None:
        found.other["end_at_step of the last sampler"] = str(last.last_step)
    _name_differences(last, first, found, "the last sampler", ("seed", "model", "strength"))


def _name_differences(
    one: _Pass, first: _Pass, found: ComfyPicture, what: str, without: tuple[str, ...] = ("seed", "strength")
) -> None:
    """Name the numbers in which a sampler is not like the one that is described."""
    for name, value in one.settings.items():
        if name not in without and value != first.settings.get(name):
            found.other[f"{name.replace('_', ' ')} of {what}"] = str(value)[:100]


def _describe_second_pass(graph: ComfyGraph, first: _Pass, second: _Pass, found: ComfyPicture) -> None:
    """Describe a sampler that draws on an enlarged picture of another one."""
    steps, strength = second.settings.get("num_inference_steps"), second.settings.get("strength")
    if second.first_step and steps:
        strength, found.options["first_step"] = (steps - second.first_step) / steps, second.first_step
    scale, upscaler = _enlarging(graph, first, second, found)
    if scale is None or scale <= 1:
        larger = "at the same size" if scale else "at a size that cannot be read"
        found.other["second pass"] = f"{steps} steps at denoise {strength} {larger}"
        return
    found.task = "hires"
    found.options |= known({"hires_scale": scale, "hires_steps": steps, "upscaler": upscaler, "strength": strength})
    without = ("seed", "strength", "num_inference_steps")
    _name_differences(second, first, found, "the second pass", without)
    seed = second.settings.get("seed")
    found.other["noise of the second pass"] = f"made from seed {seed} there; here it goes on from the first pass"


def _enlarging(graph: ComfyGraph, first: _Pass, second: _Pass, found: ComfyPicture) -> tuple[float | None, str | None]:
    """Return how much larger the second pass works, and our name of what enlarges; None where it cannot be read."""
    nodes = [graph.nodes[key] for key in second.behind]
    small = _size(graph, first, ComfyPicture())
    scale, method = 1.0, None
    for node in nodes:
        factor = next((read_float(graph.value(node.inputs[name])) for name in FACTORS if name in node.inputs), None)
        width, height = (
            next((read_int(graph.value(node.inputs[name])) for name in names if name in node.inputs), None)
            for names in (WIDTHS, HEIGHTS)
        )
        method = method or node.inputs.get("upscale_method")
        if factor is not None:
            scale *= factor
        elif width and small.get("width"):
            return width / small["width"], _upscaler(method, nodes, found)
        elif height and small.get("height"):
            return height / small["height"], _upscaler(method, nodes, found)
        elif "upscale_model" in node.inputs:
            return None, None
    return scale, _upscaler(method, nodes, found)


def _upscaler(method: object, nodes: list[Any], found: ComfyPicture) -> str:
    """Return our name of a way to enlarge."""
    pixels = any(node.kind.startswith(("ImageScale", "ImageUpscale")) for node in nodes)
    ours = "lanczos" if pixels else UPSCALERS.get(str(method), "latent")
    if (pixels and method != "lanczos") or (not pixels and method not in UPSCALERS) or method == "nearest-exact":
        found.other["enlarged by"] = f"{str(method)[:50]}; here by {ours}"
    return ours


def _describe_start(graph: ComfyGraph, first: _Pass, found: ComfyPicture) -> None:
    """Describe a sampler that starts from a picture, or from empty latents in the middle of the path."""
    steps = first.settings.get("num_inference_steps")
    if not _from_picture(graph, first):
        begin = f"from step {first.first_step}" if first.first_step else f"denoise {first.settings.get('strength')}"
        found.other["empty latents"] = f"drawn on {begin}; here the whole path is drawn"
        return
    if first.first_step and steps:
        found.options |= {"strength": (steps - first.first_step) / steps, "first_step": first.first_step}
    nodes = [graph.nodes[key] for key in first.behind]
    found.task = "inpaint" if any("mask" in node.inputs for node in nodes) else "image_to_image"
    if grow := next((node.inputs["grow_mask_by"] for node in nodes if "grow_mask_by" in node.inputs), None):
        found.other["grow_mask_by"] = str(grow)[:20]


def _size(graph: ComfyGraph, first: _Pass, found: ComfyPicture) -> dict[str, int]:
    """Return the width and height of the latents that a sampler starts from."""
    size: dict[str, int] = {}
    for name, inputs in (("width", WIDTHS), ("height", HEIGHTS)):
        for key in first.behind:
            there = next((each for each in inputs if each in graph.nodes[key].inputs), None)
            if there is None:
                continue
            value = read_int(graph.value(graph.nodes[key].inputs[there]))
            if value is None:
                found.other[name] = "comes from a node that is not followed"
            else:
                size[name] = value
            break
    return size


def _describe_prompts(graph: ComfyGraph, sampler: str, found: ComfyPicture) -> None:
    """Describe both texts, and SDXL's second text and size numbers where a node holds them."""
    texts: dict[str, str] = {}
    for side, prefix in (("positive", ""), ("negative", "negative_")):
        text, key = graph.prompt(sampler, side)
        if text is None:
            found.other[f"{side} prompt"] = "comes from nodes that are not followed; drawn without one"
        texts[side] = text or ""
        inputs = graph.nodes[key].inputs if key else {}
        if "text_g" not in inputs:
            continue
        first, second = graph.text(inputs.get("text_l")), graph.text(inputs["text_g"])
        texts[side] = first if first is not None else texts[side]
        if second is not None and second != texts[side]:
            found.options[f"{prefix}prompt_2"] = second
        pairs = {
            "original_size": ("height", "width"),
            "crops_coords_top_left": ("crop_h", "crop_w"),
            "target_size": ("target_height", "target_width"),
        }
        for name, names in pairs.items():
            pair = tuple(read_int(graph.value(inputs.get(each))) for each in names)
            if None not in pair:
                found.options[f"{prefix}{name}"] = pair
    found.prompt, found.negative_prompt = texts["positive"], texts["negative"]


def _note_lora(found: ComfyPicture, file: str, unet: object, text: object) -> None:
    found.other[f"LoRA {file[:200]}"] = str(unet)[:20]
    strengths = read_float(unet), read_float(text)
    if strengths[0] is not None and strengths[1] is not None:
        earlier = found.loras.get(file, (0.0, 0.0))
        found.loras[file] = (earlier[0] + strengths[0], earlier[1] + strengths[1])


def _describe_rest(graph: ComfyGraph, last: str, first: str, found: ComfyPicture) -> None:
    """Describe adapters and the layer of the text encoder, and name the nodes that are not followed."""
    for key in graph.upstream([first], without=LATENTS):
        inputs = graph.nodes[key].inputs
        for name, value in inputs.items():
            if name == "lora_name" and isinstance(value, str) and value != "None":
                unet = graph.value(inputs.get("strength_model", inputs.get("lora_model_strength", 1)))
                text = graph.value(inputs.get("strength_clip", inputs.get("lora_clip_strength", 0)))
                _note_lora(found, value, unet, text)
            elif isinstance(value, dict) and value.get("on") and isinstance(value.get("lora"), str):
                unet, text = value.get("strength", 1), value.get("strengthTwo")
                _note_lora(found, value["lora"], unet, unet if text is None else text)
    there, layer = graph.nearest(("stop_at_clip_layer", "clip_skip"), [first], without=LATENTS)
    counted = read_int(layer)
    if there and counted is not None and counted < -1:
        found.options["clip_skip"] = -counted - 1  # -1 is the last layer there, 0 here
    kinds = {graph.nodes[key].kind for key in graph.upstream([last])} - FOLLOWED
    if kinds:
        found.other["nodes that are not followed"] = ", ".join(sorted(kinds))[:500]
