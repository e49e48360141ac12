"""The recipes that can be chosen, and the configuration of a run made from one of them and the fields of a request."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from latent_diffusion.checks import MAX_SEED, SIZE_STEP, check_size
from latent_diffusion.config import RunConfig, parse_section, read_config
from latent_diffusion.data.opening import open_parts
from latent_diffusion.data.settings import DataConfig
from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.train_folder import TrainFolder

__all__ = ["RECIPES", "TrainFields", "configuration", "recipe", "recipes", "written"]

RECIPES = {
    "lora": "An adapter (LoRA): small, quick, for a style or a subject.",
    "finetune": "The whole U-Net: for many pictures.",
    "inpaint": "An inpainting U-Net, which reads a mask: for repainting.",
}
"""Files of `configs/` whose data are one folder of pictures, and what they train."""
PLACES = (Path(__file__).parent / "recipes", Path(__file__).parents[3] / "configs")  # in a wheel, in the repository
MAX_SIDE = 1024  # px of a training picture
MAX_PROMPTS = 8

Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f\u2028]*$")
]


class TrainFields(BaseModel):
    """What to train, and on what; null or left out = the recipe's own value."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="Name of the run and of its result.")
    data: str = Field(max_length=500, description="Folder or .zip of pictures, a name of `GET /training`.")
    recipe: Literal["lora", "finetune", "inpaint"] = Field(description="Configuration to start from.")
    model: str | None = Field(None, max_length=200, description="Model to train; null = the one in use.")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="Updates.")
    batch_size: int | None = Field(None, ge=1, le=1024, description="Pictures of an update.")
    learning_rate: float | None = Field(None, gt=0, le=1, description="Largest learning rate.")
    size: int | None = Field(
        None, ge=SIZE_STEP, le=MAX_SIDE, description="Side of the pictures in px; null = the model's."
    )
    caption: Line | None = Field(None, description="Caption of the pictures that have none; null = refuse them.")
    prompts: list[Line] | None = Field(None, max_length=MAX_PROMPTS, description="Prompts of the sample pictures.")
    held_out: int | None = Field(
        None, ge=0, le=256,
        description="Pictures that are not trained on, whose loss is shown by noise band; null = a tenth, at most 8.",
    )  # fmt: skip
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of the run.")


def recipe(name: str) -> RunConfig:
    """Return a recipe as its file has it."""
    file = next(place / f"{name}.yaml" for place in PLACES if (place / f"{name}.yaml").is_file())
    return read_config(file)


def recipes() -> dict[str, dict[str, Any]]:
    """Return every recipe: what it trains, and the values that a request may change."""
    found = {}
    for name, about in RECIPES.items():
        run = recipe(name)
        found[name] = {
            "about": about,
            "steps": run.steps,
            "batch_size": run.batch_size,
            "learning_rate": run.optimizer["learning_rate"] if isinstance(run.optimizer, dict) else None,
            "prompts": run.sample.prompts if run.sample else [],
        }
    return found


def configuration(service: Service, folder: TrainFolder, fields: TrainFields, output: Path) -> RunConfig:
    """Return the configuration of a run.

    The log, the sample pictures, the checkpoints and the warm-up of a recipe are for runs of its length; in a shorter
    run they come earlier: 50 lines of the log, 4 sheets and checkpoints, a tenth of the updates as warm-up.

    Raises:
        Refusal: no such data or model, or a size that is not known.
        ConfigError: values that do not go together.
        DataError: data that cannot be read.
    """
    values = recipe(fields.recipe).model_dump(mode="json")
    source = folder.source(fields.data)
    model, size = _model(service, fields)
    steps = values["steps"] = fields.steps or values["steps"]
    values["batch_size"] = fields.batch_size or values["batch_size"]
    values |= {"seed": fields.seed, "output": str(output), "warmup": min(values["warmup"], steps // 10)}
    values["log_every"] = _sooner(values["log_every"], steps, 50)
    for section in ("sample", "checkpoint"):
        values[section]["every"] = _sooner(values[section]["every"], steps, 4)
    if fields.learning_rate is not None:
        values["optimizer"]["learning_rate"] = fields.learning_rate
    if fields.prompts:
        values["sample"]["prompts"] = fields.prompts
    values["objective"] |= {"init": model, "validation": None}
    data = {name: value for name, value in values["data"].items() if name != "where"}
    values["data"] = data | {"path": str(source), "size": size}
    if fields.caption is not None:
        values["data"]["default_caption"] = fields.caption
    held_out = _held_out(values["data"], fields)
    if held_out:
        values["objective"]["validation"] = {"file_name": held_out}
        values["data"]["where_not"] = {"file_name": held_out}
    return parse_section(RunConfig, values, "training")


def written(run: RunConfig, name: str) -> str:
    """Return a configuration as a file that `latent-diffusion train` reads: JSON is YAML, whatever its texts are."""
    head = f"# Written by `latent-diffusion serve`; also started by: latent-diffusion train {name}.yaml\n"
    return head + json.dumps(run.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def _sooner(every: int, steps: int, times: int) -> int:
    return max(1, min(every, steps // times))


def _model(service: Service, fields: TrainFields) -> tuple[str, int]:
    """Return where the model to train lies, and the side of its training pictures."""
    shelf = service.shelf
    name = shelf.name if fields.model is None else shelf.find(fields.model)
    size = fields.size
    if size is None and name != shelf.name:
        raise Refusal(400, f"size: give the side of the pictures in px, since the model {name!r} is not loaded", "size")
    if size is None:
        size = min(shelf.pipe.defaults.height, shelf.pipe.defaults.width)
    check_size("size", size)
    place = shelf.models()[name]
    return (str(Path(place).resolve()) if Path(place).exists() and place != name else place), size


def _held_out(data: dict[str, Any], fields: TrainFields) -> list[str]:
    """Return the names of pictures evenly spread over the data; at least half of them stay for training."""
    parts = open_parts(parse_section(DataConfig, data, "data"), fields.seed)
    names = [part.source.name(int(k)) for part in parts for k in part.kept]
    count = min(len(names) // 10, 8) if fields.held_out is None else fields.held_out
    if count > len(names) // 2:
        raise Refusal(400, f"held_out: {count} of {len(names)} pictures; leave at least half for training", "held_out")
    return [names[k * len(names) // count] for k in range(count)]
