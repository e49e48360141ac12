"""One declaration an option: the Python methods, the command line, the record and `regenerate` follow from it."""

import json
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

from latent_diffusion.cli.arguments import takes
from latent_diffusion.cli.command_options import CommandOptions
from latent_diffusion.cli.main import app
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import LoadOptions
from latent_diffusion.options.option import (
    Option,
    arguments_of,
    checked,
    declared,
    plain_type,
    recorded,
    recorded_values,
)
from latent_diffusion.options.tasks import (
    EdgeOptions,
    HiresOptions,
    ImageToImageOptions,
    InpaintOptions,
    OutpaintOptions,
    RedrawingOptions,
    RepaintingOptions,
    SecondPassOptions,
)
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.pipeline.regenerate import plan_of_record
from latent_diffusion.provenance.record import Record

COMMANDS = {
    "generate": (Options, SecondPassOptions, CommandOptions, LoadOptions),
    "img2img": (Options, RedrawingOptions, CommandOptions, LoadOptions),
    "inpaint": (Options, RepaintingOptions, CommandOptions, LoadOptions),
    "outpaint": (Options, EdgeOptions, CommandOptions, LoadOptions),
}
METHODS = {
    "__call__": Options,
    "inpaint": InpaintOptions,
    "outpaint": OutpaintOptions,
    "image_to_image": ImageToImageOptions,
    "hires": HiresOptions,
    "from_pretrained": LoadOptions,
}
EVERY = (Options, RepaintingOptions, EdgeOptions, RedrawingOptions, SecondPassOptions, LoadOptions, CommandOptions)
CHOSEN = {  # values of options that a number or name alone does not show; the last two groups are of calls of their own
    "negative_prompt": "a dog",
    "num_inference_steps": 3,
    "height": 24,
    "width": 40,
    "guidance_scale": 3.0,
    "guidance": ("apg:scale=3.0,eta=0.0,max_norm=15.0,momentum=0.0",),
    "guidance_interval": (0.0, 0.75),
    "approximate": ("tome:ratio=0.5,levels=1",),
    "sampler": "euler_ancestral",
    "spacing": "karras",
    "spacing_rho": 5.0,
    "eta": 0.5,
    "clip_skip": 1,
    "variation_seed": 7,
}
NEEDS = {"timesteps": ((900.0, 400.0), {"spacing": None}), "sigmas": ((9.0, 2.0), {"spacing": None})}
OF_SDXL = ("prompt_2", "negative_prompt_2")


class More(TypedDict, total=False):
    """What a new option is: one annotation."""

    glow: Annotated[float, Option("Glow around bright parts.", 0.25, metavar="X", most=1.0)]
    mood: Annotated[Literal["calm", "wild"] | None, Option("Mood: calm or wild.", "calm", record_name="of_mood")]
    sharp: Annotated[bool, Option("Sharpen the picture.", False)]
    slots: Annotated[int | None, Option("Slots.", shown="as many as fit", most=9, flags=("--places", "-p"))]
    secret: Annotated[str, Option("Text that no record holds.", "", recorded=False)]
    python_only: int


def test_one_annotation_is_checked_recorded_asked_for_again_and_on_the_command_line():
    chosen, rest = checked(More).read({"glow": 1, "mood": None, "other": 5})
    assert (chosen.glow, chosen.mood, chosen.sharp, chosen.slots, rest) == (1.0, "calm", False, None, {"other": 5})
    for wrong in ({"glow": 1.5}, {"glow": None}, {"mood": "mild"}, {"sharp": 1}, {"slots": 10}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            checked(More)(**wrong)
    record = recorded(More)(**recorded_values(More, chosen))
    assert vars(record) == {"glow": 1.0, "of_mood": "calm", "sharp": False, "slots": None}
    assert arguments_of(More, record) == {"glow": 1.0, "mood": "calm", "sharp": False}

    seen: dict[str, Any] = {}
    small = typer.Typer()

    @small.command()
    @takes(More)
    def run(**given: Any) -> None:
        seen.update(given)

    assert CliRunner().invoke(small, ["--glow", "0.5", "-p", "3", "--sharp"]).exit_code == 0
    assert seen == {"glow": 0.5, "mood": "calm", "sharp": True, "slots": 3, "secret": ""}
    text = CliRunner().invoke(small, ["--help"], env={"COLUMNS": "150", "TERM": "dumb"}).output
    assert "Glow around bright parts." in text and "as many as fit" in text and "python" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_on_the_command_line_with_its_help(command):
    given = {parameter.name: parameter for parameter in typer.main.get_command(app).commands[command].params}
    for group in COMMANDS[command]:
        for option in declared(group):
            assert given[option.name].help.startswith(option.help), option.name
            assert given[option.name].default == (None if option.shown else option.default), option.name


@pytest.mark.parametrize("method", METHODS)
def test_every_option_is_a_typed_keyword_of_its_method(method):
    annotation = getattr(LatentDiffusionPipeline, method).__annotations__
    (taken,) = [get_args(kind)[0] for kind in annotation.values() if get_args(kind)[:1] == (METHODS[method],)]
    assert taken is METHODS[method]


@pytest.mark.parametrize("group", EVERY, ids=lambda group: group.__name__)
def test_defaults_pass_their_own_checks_and_helps_begin_with_a_capital_and_end_with_a_stop(group):
    assert declared(group)
    for option in declared(group):
        assert option.default is None or option.check(option.default) == option.default
        assert option.help[0].isupper() and option.help.endswith(".")
        assert option.help.split()[0] not in ("What", "Which", "How", "Whether", "Said")


def another(option: Option) -> Any:
    """Return a value that is not the default."""
    kind = plain_type(option.type)
    if option.name in CHOSEN:
        return CHOSEN[option.name]
    if get_origin(kind) is Literal:
        return next(name for name in get_args(kind) if name != option.default)
    if kind is bool:
        return not option.default
    if kind is float:
        return 0.5 * (option.most or 1.0)
    assert kind is int, f"{option.name}: give a value in CHOSEN"
    return (option.default or 0) + 1


def test_every_recorded_option_reaches_the_record_and_comes_back_as_an_argument(tiny_pipeline):
    every = {option.name: option for option in declared(Options) if option.recorded is not False}
    values = {name: another(option) for name, option in every.items() if name not in {*NEEDS, *OF_SDXL}}
    for more in ({}, *({name: value, **others} for name, (value, others) in NEEDS.items())):
        asked = values | more
        if more:
            for name in ("num_inference_steps", "discard_next_to_last", "spacing_rho"):
                asked.pop(name)
        (record,) = tiny_pipeline("a cat", seed=1, output_type="latent", **asked).records
        again = plan_of_record(Record.from_json(record.to_json())).arguments
        for name, value in asked.items():
            if value is not None:
                assert getattr(record, every[name].field_name) == value, name
                assert again[name] == ([value] if name == "seed" else value), name


@pytest.mark.parametrize(
    ("method", "group", "fixed"),
    [
        ("inpaint", RepaintingOptions, {"mask_mode": "soft", "mask_channel": "grey", "inpaint_area": "masked",
                                        "strength": 0.9, "start_from": "noised_image"}),
        ("image_to_image", RedrawingOptions, {}),
        ("hires", SecondPassOptions, {"scale": 1.5, "hires_steps": 6}),
    ],
)  # fmt: skip
def test_every_option_of_a_task_reaches_the_record_and_comes_back(tiny_pipeline, method, group, fixed):
    from PIL import Image

    picture = Image.new("RGB", (40, 32), (200, 90, 10))
    pictures = {"inpaint": {"image": picture, "mask_image": picture.convert("L")}, "image_to_image": {"image": picture}}
    values = {option.name: another(option) for option in declared(group)} | fixed
    if method == "inpaint":
        values["latent_blend"] = True  # False is for inpainting models
    out = getattr(tiny_pipeline, method)("a cat", **pictures.get(method, {}), **values, num_inference_steps=4, seed=1)
    plan = plan_of_record(Record.from_json(out.records[0].to_json()))
    task = getattr(out.records[0], method)
    for option in declared(group):
        assert getattr(task, option.field_name) == values[option.name], option.name
        assert plan.arguments[option.name] == values[option.name], option.name


def test_a_later_option_is_written_only_where_it_is_not_at_its_default(tiny_pipeline):
    (plain,) = tiny_pipeline("a cat", seed=1, num_inference_steps=2, output_type="latent").records
    assert "discard_next_to_last" not in json.loads(plain.to_json())
    assert Record.from_json(plain.to_json()) == plain
    (other,) = tiny_pipeline(
        "a cat", seed=1, num_inference_steps=2, discard_next_to_last=True, output_type="latent"
    ).records
    assert json.loads(other.to_json())["discard_next_to_last"] is True
    assert Record.from_json(other.to_json()) == other
