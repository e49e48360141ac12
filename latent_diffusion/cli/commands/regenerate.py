"""`latent-diffusion regenerate`: make a picture again from its metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_diffusion.cli.arguments import given_of, only, takes
from latent_diffusion.cli.command_options import CommandOptions
from latent_diffusion.cli.terminal import harmless
from latent_diffusion.errors import CheckpointError, ConfigError, DataError
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import LoadOptions, MachineOptions

if TYPE_CHECKING:
    from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
    from latent_diffusion.pipeline.plan import Plan
    from latent_diffusion.provenance.record import Record

__all__ = ["regenerate"]

AS_IT_WAS = ("dtype", "vae_dtype", "family", "prediction_type", "averaged")


@takes(
    only(Options, "lora_folder"),
    only(CommandOptions, "embedding", "refiner", "output"),
    only(MachineOptions, "device"),
    only(LoadOptions, *AS_IT_WAS, shown="as it was"),
    only(LoadOptions, "vae"),
)
def regenerate(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="Picture with a record: .png, .jpg or .webp.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME|PATH", help="Model to draw with.", show_default="the one in the record"
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image", "-i", metavar="FILE", help="Original of an inpainted or redrawn picture.", show_default=False
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask of an inpainted picture.", show_default=False)
    ] = None,
    *,
    lora_folder: Path | None,
    embedding: list[Path] | None,
    refiner: str | None,
    output: Path | None,
    device: str | None,
    **loading: Any,
) -> None:
    """Draw a picture again from its metadata, and list the parameters that could not be followed.

    Pictures of this program are reproduced exactly; those of A1111, ComfyUI, InvokeAI, NovelAI and Fooocus as far as
    their metadata allows. Pictures made from an original (inpainting) need the original again. The model is loaded with
    the recorded --family, --prediction-type and --ema, unless they are given here.

    **Examples**

    `latent-diffusion regenerate outputs/20261121-120000-7.png`

    `latent-diffusion regenerate webui.png --model v1-5.safetensors --lora-folder loras/`
    """
    from latent_diffusion.cli.output import names_a_file, plan_files
    from latent_diffusion.cli.picture_files import check_pictures, load_pipeline, write_pictures
    from latent_diffusion.cli.progress import progress
    from latent_diffusion.pipeline.regenerate import differences

    record, plan = _read(picture)
    pictures = {"image": image, "mask_image": mask}
    given = {name: file for name, file in pictures.items() if file is not None}
    options = {"image": "--image", "mask_image": "--mask"}
    check_pictures({options[name]: file for name, file in given.items()})
    if absent := [options[name] for name in plan.inputs if name not in given]:
        raise ConfigError(f"{str(picture)!r} was made by {plan.method.replace('_', ' ')}: give {' and '.join(absent)}")
    seeds = plan.arguments.get("seed", [0])
    files = plan_files(output, seeds[0], 1)
    name = _model(model, plan)
    made = {"device": device, "dtype": plan.dtype or "auto", **_loading(name, plan.loading)}
    pipe = load_pipeline(name, made | given_of(LoadOptions, loading), embeddings=embedding)
    plan = plan.fitted(pipe.components)
    second = _load_refiner(refiner, plan, device, loading["dtype"])
    _load_adapters(pipe, plan, lora_folder)
    if plan.vae and loading["vae"] is None:
        _say(f"not honoured: the autoencoder {plan.vae!r} took the place of the model's own; give --vae")
    for line in plan.missing:
        _say(f"not honoured: {line}")
    with progress("Drawing", plan.arguments.get("num_inference_steps") or pipe.defaults.num_inference_steps) as on_step:
        out = plan.draw(pipe, given, second, on_step=on_step, lora_folder=lora_folder)
    again = out.records[0]
    if record:
        for line in differences(record, again):
            _say(f"not as it was: {line}")
    elif plan.model_hash and not (again.model_hash or "").startswith(plan.model_hash):
        _say(f"not as it was: model hash was {plan.model_hash}, now {(again.model_hash or 'none')[:10]}")
    write_pictures(out, files, named=names_a_file(output))
    _say(_comparison(picture, files[0]))


def _read(picture: Path) -> "tuple[Record | None, Plan]":
    from latent_diffusion.pipeline.regenerate import plan_of_found, plan_of_record
    from latent_diffusion.provenance.foreign import read_found
    from latent_diffusion.provenance.picture_file import open_texts
    from latent_diffusion.provenance.record import Record

    texts = open_texts(picture)
    if texts.record is not None:
        record = Record.from_json(texts.record)
        return record, plan_of_record(record)
    found = read_found(texts.chunks, texts.parameters)
    if found is None:
        raise DataError(f"{str(picture)!r} has no record of how it was made")
    return None, plan_of_found(found)


def _model(model: str | None, plan: "Plan") -> str:
    """Return the model to load: the one asked for, or the bundled one that the picture names."""
    from latent_diffusion.checkpoint.locate import bundled_models

    if model is not None:
        return model
    if plan.model in bundled_models():
        return str(plan.model)
    if plan.model is None:
        raise CheckpointError("the picture's record names no model; give one with --model")
    raise CheckpointError(f"the picture was made with the model {plan.model!r}; give its path with --model")


def _loading(model: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded loading options, without those for single files if `model` is a folder."""
    from latent_diffusion.checkpoint.locate import locate_model

    of_files = () if locate_model(model).is_file() else ("family", "averaged")
    return {name: value for name, value in said.items() if name not in of_files}


def _load_refiner(
    name: str | None, plan: "Plan", device: str | None, dtype: str | None
) -> "LatentDiffusionPipeline | None":
    """Load the model that drew the end of the path, or say that it is left out."""
    from latent_diffusion.cli.picture_files import load_pipeline
    from latent_diffusion.pipeline.regenerate import loading_of

    if name is None:
        if plan.refiner is not None:
            _say(f"not honoured: the refiner {plan.refiner!r} drew the end of its path; give --refiner")
        return None
    if plan.refiner is None:
        raise ConfigError("--refiner: this picture was drawn by one model; leave it out")
    told = plan.refined_by
    made = {} if told is None else _loading(name, loading_of(told))
    return load_pipeline(name, made | {"device": device, "dtype": dtype or (told.dtype if told else "auto")})


def _load_adapters(pipe: "LatentDiffusionPipeline", plan: "Plan", folder: Path | None) -> None:
    """Load the adapters that were active without a tag in the prompt, and those of tags that only a hash finds.

    Raises:
        ConfigError: one is missing for a picture of this program; of other tools' pictures it is named.
    """
    from latent_diffusion.pipeline.engine.lora_folder import find_lora

    for adapter in plan.adapters:
        if adapter.kind != "lora":
            continue
        try:
            if folder is None:
                raise ConfigError(f"the picture was made with the adapter {adapter.name!r}; give --lora-folder")
            file = find_lora(folder, adapter.name, adapter.hash)
        except ConfigError as error:
            if plan.tool is None:
                raise
            _say(f"not honoured: LoRA {adapter.name}: {error}")
            continue
        pipe.load_lora_weights(file, adapter.name, dict(adapter.strengths))
    for name, digest in plan.lora_hashes.items():
        if folder is None:
            break  # drawing names what the prompt asks for and nobody gave
        try:
            find_lora(folder, name)  # drawing finds it too
        except ConfigError:
            pipe.load_lora_weights(find_lora(folder, name, digest), name)


def _comparison(old: Path, new: Path) -> str:
    """Print the distance of the new picture from the old one."""
    import numpy as np

    from latent_diffusion.data.pictures.images import load_image

    before, now = (np.asarray(load_image(file)).astype(int) for file in (old, new))
    if before.shape != now.shape:
        return f"the size was {before.shape[1]}x{before.shape[0]} px, now {now.shape[1]}x{now.shape[0]} px"
    most = int(abs(before - now).max())
    return "the same picture, bit for bit" if not most else f"values differ by up to {most} of 255"


def _say(line: str) -> None:
    typer.echo(harmless(line), err=True)
