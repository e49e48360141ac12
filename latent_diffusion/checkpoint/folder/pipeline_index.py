"""`model_index.json` of a diffusers folder: which pipeline it is and which parts it has.

Class names are compared, never imported. Parts that change no picture we draw (a safety checker and the feature
extractor before it, the image encoder of IP-Adapter) are not run, and a message names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.json_file import read_json
from latent_diffusion.checkpoint.folder.default_sampler import with_class_defaults
from latent_diffusion.errors import CheckpointError

__all__ = [
    "INDEX", "PARTS", "PipelineIndex", "index_values", "pipeline_class", "pipeline_index", "read_index",
    "scheduler_made",
]  # fmt: skip

INDEX = "model_index.json"
SD = ("", "Img2Img", "Inpaint", "InstructPix2Pix", "Depth2Img")
XL = ("", "Img2Img", "Inpaint", "InstructPix2Pix")
SD_CLASSES = tuple(f"StableDiffusion{task}Pipeline" for task in SD)
XL_CLASSES = tuple(f"StableDiffusionXL{task}Pipeline" for task in XL)
LIFTING = tuple(f"StableDiffusion{task}Pipeline" for task in ("", "Img2Img", "Inpaint"))
NETWORKS = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
TOWERS = (
    {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]},
    {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    },
)
ABSENT = [None, None]
PASSED_OVER = ("feature_extractor", "image_encoder", "safety_checker")
PARTS = ("scheduler", *NETWORKS, *(part for tower in TOWERS for part in tower), *PASSED_OVER)
"""The folders of a model."""


@dataclass(frozen=True)
class PipelineIndex:
    """The required content of a `model_index.json`."""

    xl: bool  # whether prompts are read as SDXL does
    towers: tuple[int, ...]  # text encoders there are: 0 is `text_encoder`, 1 `text_encoder_2`
    zeros_for_empty_prompt: bool  # see `Components`
    unused: tuple[str, ...]  # parts in the folder that we pass over
    scheduler: str | None = None  # class of the scheduler, None = the index names none
    lifts_offset: bool = False  # whether this pipeline of diffusers uses steps_offset 1 whatever the file states

    @property
    def notes(self) -> tuple[str, ...]:
        """A message that names the parts that are not read."""
        return (f"not used: {', '.join(self.unused)}",) if self.unused else ()


def scheduler_made(index: PipelineIndex, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return the scheduler that diffusers makes of a `scheduler_config.json`, and what differs from that file.

    diffusers takes the class from model_index.json and the fields from scheduler_config.json, and its pipelines for
    Stable Diffusion 1 and 2 take steps_offset for 1 (0.42.1, `StableDiffusionPipeline.__init__`).
    """
    made, notes = dict(config), []
    kind, offset = config.get("_class_name"), config.get("steps_offset", 0)
    if index.scheduler is not None and kind != index.scheduler:
        made["_class_name"] = index.scheduler
        notes.append(f"scheduler_config.json has the class {kind}; using {index.scheduler}, which {INDEX} names")
    if index.lifts_offset and type(offset) is int and offset >= 0 and offset != 1:
        made["steps_offset"] = 1
        if "steps_offset" in config and with_class_defaults(made).get("timestep_spacing") == "leading":
            notes.append(f"steps_offset {offset} is used as 1, as in diffusers")
    return made, tuple(notes)


def read_index(file: Path) -> PipelineIndex:
    """Read a model_index.json; see `pipeline_index`."""
    return pipeline_index(read_json(file), str(file))


def pipeline_index(index: Mapping[str, Any], file: str) -> PipelineIndex:
    """Return what kind of model the fields of a model_index.json mean; `file` is where they were found.

    Raises:
        CheckpointError: another kind of pipeline, or a part of another class.
    """
    kind = index.get("_class_name")
    if kind not in SD_CLASSES + XL_CLASSES:
        known = ", ".join(SD_CLASSES + XL_CLASSES)
        raise CheckpointError(f"{file}: _class_name is {kind!r:.100}; supported are {known}")
    xl = kind in XL_CLASSES
    towers = tuple(k for k, parts in enumerate(TOWERS) if not xl or any(_there(index.get(part)) for part in parts))
    towers = towers if xl else (0,)
    if xl and 1 not in towers:
        raise CheckpointError(f"{file}: text_encoder_2 is missing; every SDXL model has it")
    expected = NETWORKS | {part: kind for k in towers for part, kind in TOWERS[k].items()}
    for part, wanted in expected.items():
        found = index.get(part)
        # a fast tokenizer is the same tokenizer
        plain = [str(word).removesuffix("Fast") for word in found] if isinstance(found, list) else found
        if plain != wanted:
            raise CheckpointError(f"{file}: {part} is {found!r:.100}; only {wanted} is supported")
    unused = tuple(part for part in sorted(index) if part not in (*expected, "scheduler") and _there(index[part]))
    zeros = xl and index.get("force_zeros_for_empty_prompt", True) is True
    scheduler = str(index["scheduler"][1]) if _there(index.get("scheduler")) else None
    return PipelineIndex(xl, towers, zeros, unused, scheduler, lifts_offset=kind in LIFTING)


def _there(entry: Any) -> bool:
    """Whether an entry of the index names a class; plain values are settings."""
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def pipeline_class(components: Components) -> str:
    """Return the name of the diffusers pipeline that reads these parts."""
    config = components.unet.config
    task = {9: "Inpaint", 8: "InstructPix2Pix", 5: "Depth2Img"}.get(config.in_channels, "")
    if config.added_width is None:
        return f"StableDiffusion{task}Pipeline"
    if len(components.text_encoder.towers) == 1:
        task = "Img2Img"  # the refiner
    return f"StableDiffusionXL{task}Pipeline"


def index_values(components: Components, scheduler: str, version: str) -> dict[str, Any]:
    """Return the fields of a `model_index.json`; `scheduler` is the class of the default sampler."""
    kind = pipeline_class(components)
    parts: dict[str, Any] = {**NETWORKS, "scheduler": ["diffusers", scheduler], **dict.fromkeys(PASSED_OVER, ABSENT)}
    if kind in SD_CLASSES:
        parts |= TOWERS[0] | {"requires_safety_checker": False}
    else:
        there = len(components.text_encoder.towers) == 2
        parts |= (TOWERS[0] if there else dict.fromkeys(TOWERS[0], ABSENT)) | TOWERS[1]
        parts |= {"force_zeros_for_empty_prompt": components.zeros_for_empty_prompt}
        parts.pop("safety_checker")  # SDXL's classes have none
        if "Img2Img" in kind or "Inpaint" in kind:
            parts["requires_aesthetics_score"] = components.size_count == 5
    return {"_class_name": kind, "_diffusers_version": version, **dict(sorted(parts.items()))}
