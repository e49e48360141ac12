"""Reading a run's YAML: `read_config("configs/emoji/unet.yaml", ["steps=100", "optimizer.learning_rate=1e-4"])`.

Every key has a type and a range, an unknown one is an error with the nearest name, and nothing can run code: YAML's
safe loader, with YAML 1.2 numbers (`1e-4` is a number, `on` and `no` are words) and duplicate keys refused. The
sections `objective:` and `data:` belong to the objective and are parsed by its own models with `parse_section`.
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = [
    "LESS_MEMORY",
    "EmaConfig",
    "EvaluateConfig",
    "MemoryConfig",
    "RunConfig",
    "SampleConfig",
    "Section",
    "parse_section",
    "read_config",
]

M = TypeVar("M", bound=BaseModel)

LESS_MEMORY = "raise accumulation, set gradient_checkpointing: true or lower data.size"
"""What to change in a configuration when memory runs out."""


class Section(BaseModel):
    """A part of a configuration: frozen, unknown keys refused, no NaN or infinity, no bool for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _only_numbers_for_numbers(cls, values: Any) -> Any:
        """Refuse `steps: true` and `steps: "10"`, which pydantic would take."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool | str) and field is not None and _is_number(field.annotation):
                raise ValueError(f"`{name}` is {value!r}, a number is required")
        return values


class EmaConfig(Section):
    """Moving average of the weights; the decay of update n is min(decay, (1 + n) / (warmup + n))."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Largest decay."""
    warmup: float = Field(default=10.0, ge=1)
    """Updates; a larger value averages less in the beginning."""


class CheckpointConfig(Section):
    """How often the whole state is saved and how many are kept."""

    every: int = Field(default=1000, ge=1)
    """Updates between checkpoints; one more is written after the last update."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that stay."""


class EvaluateConfig(Section):
    """Figures of held-out pictures during training; the best weights by them are kept in `best/`."""

    every: int = Field(default=250, ge=1)
    """Updates between evaluations; one more follows the last update."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations in a row without a better figure after which the run ends; null: it goes to its last update."""


class SampleConfig(Section):
    """Sample pictures during training, written to `samples/` (what they show is the objective's business)."""

    every: int = Field(default=1000, ge=1)
    """Updates between sample sheets and figures of held-out pictures."""
    prompts: list[str] = Field(default_factory=list)
    """Prompts of the sheet, a picture each."""
    steps: int = Field(default=20, ge=1, le=1000)
    """Sampling steps."""
    guidance_scale: float = Field(default=4.0, ge=0)
    """Scale of classifier-free guidance."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of the first picture; each next picture adds 1."""


class MemoryConfig(Section):
    """Ways to train on a small card (docs/training-memory.md); each keeps the draws and the order of the run."""

    base: Literal["float32", "bfloat16", "float8", "int8", "nf4"] | None = None
    """Format of the frozen layers under an adapter or words; nf4: 4 bits; null: as `precision` has it."""
    base_on_host: bool = False
    """Keep the frozen layers in host memory and bring each to the device while it computes: slower, least memory."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Format of the trained weights of a U-Net; bfloat16: rounded at random after each update."""
    update_in_backward: bool = False
    """Update each weight as soon as its gradient is there, and drop the gradient; without clip_norm."""
    drop_encoders: bool = False
    """Drop text encoder and autoencoder once all is cached; sample pictures and held-out ones read them again."""


class RunConfig(Section):
    """One training run."""

    output: Path
    """Folder of everything the run writes; the same command started again continues there."""
    objective: dict[str, Any]
    """`name`: a file of training/objectives; the other keys are its settings, below."""
    data: dict[str, Any]
    """What to train on; keys below."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Key of every random draw."""
    steps: int | None = Field(default=None, ge=1)
    """Updates in all; give either this or `passes`."""
    passes: float | None = Field(default=None, gt=0)
    """Times that the run goes through the data, in place of `steps`."""
    batch_size: int = Field(ge=1)
    """Pictures per update, over all processes and micro-batches."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per update; more take less memory."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "float32"
    """auto: bfloat16 where the device computes in it, else float32. bfloat16: autocast over float32 weights."""
    optimizer: dict[str, Any] = Field(default_factory=dict)
    """`name`: a file of training/optimizers, adamw unless given; the other keys are its settings, below."""
    warmup: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises to its peak."""
    decay: Literal["constant", "linear", "cosine", "polynomial", "restarts"] = "constant"
    """Course of the learning rate after the warm-up, down to zero; restarts: three cosine curves."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradients; null: no limit."""
    ema: EmaConfig | None = None
    """Moving average of the weights, which is exported; null: none. Keys below."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Keys below."""
    log_every: int = Field(default=10, ge=1)
    """Updates between two lines of the log."""
    evaluate: EvaluateConfig | None = None
    """Figures of held-out pictures, and the best weights by them; null: figures with each sample sheet. Keys below."""
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=lambda: ["tensorboard"])
    """Where curves and sample pictures go beside `log.jsonl`; wandb: Weights & Biases, by accelerate."""
    sample: SampleConfig | None = None
    """Sample pictures during training; null: none. Keys below."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    memory: MemoryConfig | None = None
    """Ways to train in less memory; null: none. Keys below."""
    fast: bool = True
    """On CPUs: faster kernels where they give the same numbers; false: torch's own."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of each process; null: cores divided by the processes of this machine."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the newest checkpoint; never: refuse a folder that has one."""
    allow_drift: bool = False
    """Continue although the configuration or the data differ from the checkpoint's."""

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        if (self.steps is None) == (self.passes is None):
            given = f"steps={self.steps} and passes={self.passes}; set one of them to null"
            found = "neither" if self.steps is None else given
            raise ValueError(f"give steps (updates) or passes (times through the data), found {found}")
        if self.steps is not None:
            self._check_curve(self.steps)
        if "name" not in self.objective:
            raise ValueError("objective.name is missing; it names a file of training/objectives")
        return self

    def _check_curve(self, steps: int) -> None:
        if self.decay != "constant" and self.warmup >= steps:
            raise ValueError(f"warmup {self.warmup} leaves nothing of {steps} steps for decay: {self.decay}")

    @property
    def updates(self) -> int:
        """Updates in all; of a run given in passes they are known after `with_steps`."""
        assert self.steps is not None, "passes become steps when the data are read"
        return self.steps

    def with_steps(self, steps: int) -> "RunConfig":
        """Return the run with the number of updates that its passes amount to.

        Raises:
            ConfigError: they leave no update for the curve of the learning rate.
        """
        try:
            self._check_curve(steps)
        except ValueError as fault:
            raise ConfigError(f"{fault}; raise passes or lower warmup") from None
        return self.model_copy(update={"steps": steps})


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core numbers and booleans; a duplicate key is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]{1,18}$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
# decimal whatever the leading zeros; PyYAML's own would read 010 as 8
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def read_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Return the run that the YAML file `path` describes, with `key=value` overrides ("optimizer.eps=1e-6") applied.

    Raises:
        ConfigError: the file is missing, is not YAML, or a key or value is wrong; the message names which.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(
            f"{path}: cannot read the configuration: {getattr(fault, 'strerror', None) or fault}"
        ) from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is `key: value` lines, found {type(values).__name__}")
    for override in overrides or []:
        _override(values, override)
    return parse_section(RunConfig, values, str(path))


def parse_section(model: type[M], values: dict[str, Any], where: str) -> M:
    """Return `values` as `model`; `where` opens the message ("run.yaml" or "run.yaml: objective").

    Raises:
        ConfigError: naming the first wrong field, what was found and what is expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as fault:
        _refuse(model, fault, where)


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a field of this type holds, as `Section | None` and `list[Section]` do."""
    return [o for o in get_args(annotation) or (annotation,) if isinstance(o, type) and issubclass(o, BaseModel)]


def _is_number(annotation: Any) -> bool:
    """Return whether a field is int or float, or one of them or None."""
    kinds = set(get_args(annotation) or (annotation,)) - {type(None)}
    return kinds in ({int}, {float}, {int, float})


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(fault, "problem", None) or str(fault).splitlines()[0]
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from None
    except (ValueError, LookupError, TypeError, AttributeError) as fault:  # PyYAML on `!!bool maybe` and the like
        raise ConfigError(f"{where}: not valid YAML: a tag (!!) does not fit its value: {fault!r:.100}") from None


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    *parents, last = key.strip().split(".")
    place = values
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise ConfigError(f"override {override!r}: `{parent}` is a value, not a section")
    place[last] = _parse_yaml(value, f"override {override!r}")


def _refuse(model: type[BaseModel], fault: ValidationError, where: str) -> NoReturn:
    error = fault.errors(include_url=False)[0]
    field = ".".join(str(part) for part in error["loc"])
    name = f"`{field}`" if field else "configuration"
    more = f" (and {fault.error_count() - 1} more)" if fault.error_count() > 1 else ""
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        hint = _meant(str(error["loc"][-1]), known, [*_paths(model), *(OF_OTHERS if model is RunConfig else ())])
        raise ConfigError(f"{where}: unknown key {name}{hint}; allowed: {', '.join(known)}{more}") from None
    if error["type"] == "missing":
        raise ConfigError(f"{where}: {name} is missing{more}") from None
    message = error["msg"].removeprefix("Value error, ")
    found = error.get("input")
    if error["type"] in ("model_type", "dict_type"):
        raise ConfigError(f"{where}: {name}: {_as_section(model, error['loc'], found)}{more}") from None
    if error["type"] == "list_type" and isinstance(found, str):
        raise ConfigError(f"{where}: {name}: a list is expected, found {found!r}; write [{found}]{more}") from None
    shown = "" if isinstance(found, dict | list) or error["type"] == "value_error" else f", found {found!r}"
    raise ConfigError(f"{where}: {name}: {message[:1].lower() + message[1:]}{shown}{more}") from None


FIRST_KEYS = {"objective": "name", "optimizer": "name", "data": "path"}
"""What a single word most likely stands for in the sections that have models of their own."""


def _as_section(model: type[BaseModel], loc: tuple[int | str, ...], found: Any) -> str:
    """Return the message for a value in place of a section: the keys of this, and the value under the first of them."""
    name = str(loc[-1]) if loc else ""
    above = _section_at(model, loc[:-1]).model_fields.get(name)
    inside = sections_in(above.annotation) if above else []
    keys = list(inside[0].model_fields) if inside else []
    first = FIRST_KEYS.get(name) if model is RunConfig and not keys else next(iter(keys), None)
    listed = f" ({', '.join(keys)})" if keys else ""
    example = f"; for example {name}: {{{first}: {found}}}" if first and isinstance(found, str | int | float) else ""
    return f"keys under it are expected{listed}, found {found!r}{'' if isinstance(found, bool) else example}"


OF_OTHERS = ("optimizer.learning_rate", "optimizer.weight_decay", "data.path", "data.size", "objective.init")
"""Keys of sections that have models of their own and are often written at the top."""


def _meant(name: str, known: list[str], paths: list[str]) -> str:
    """Return a hint at the key that `name` stands for: of its own section, or of another one, also by its initials."""
    if hint := nearest(name, known):
        return hint
    for path in paths:
        last = path.rpartition(".")[2]
        if name in (last, "".join(word[0] for word in last.split("_"))) and "_" in last:
            return f" (did you mean {path!r}?)"
    lasts = {path.rpartition(".")[2]: path for path in reversed(paths)}
    close = difflib.get_close_matches(name, lasts, n=1)
    return f" (did you mean {lasts[close[0]]!r}?)" if close else ""


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every key of a model and of its sections, with dots between them."""
    found = []
    for name, known in model.model_fields.items():
        found.append(f"{prefix}{name}")
        for inner in sections_in(known.annotation):
            found += _paths(inner, f"{prefix}{name}.")
    return found


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at `loc`."""
    return list(_section_at(model, loc).model_fields)


def _section_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the section at `loc`, following nested sections (also `Section | None`)."""
    for part in loc:
        known = model.model_fields.get(str(part))
        if known is None:
            continue
        model = next(iter(sections_in(known.annotation)), model)
    return model
