"""From prompt arguments to the conditions of every image, step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checks import check_integer
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.pipeline.call.settings import Settings
from latent_diffusion.pipeline.engine.groups import Group, KeyConditions, group_prompts
from latent_diffusion.prompts.rewrite import read_as
from latent_diffusion.prompts.script import Key, Line, Script, lines_of, read_script
from latent_diffusion.prompts.states import Reading, Text, encode_texts
from latent_diffusion.prompts.terms import AdapterTag

__all__ = ["Adapt", "Prompts", "check_prompt", "read_prompts"]

MAX_CHARACTERS = 10_000  # of one prompt
MAX_IMAGES = 10_000  # of one prompt
Adapt = Callable[[tuple[AdapterTag, ...]], Components]
"""Gives the model with the adapters that a prompt asks for; () for none."""
T = TypeVar("T")


@dataclass(frozen=True)
class Prompts:
    """The conditions of each image, prompt by prompt: every image of the first prompt comes first."""

    texts: list[str | None]  # one an image; None where embeddings were given instead
    read_as: list[str | None]  # what was read in place of it; None = it was read as it is
    negative_texts: list[str | None]
    second: list[str | None]  # what the second text encoder read instead; None = the same
    negative_second: list[str | None]
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.texts)


def read_prompts(adapt: Adapt, prompt: Texts, options: Options, settings: Settings, steps: int) -> Prompts:
    """Check and encode the prompts of a call, each `num_images_per_prompt` times in a row.

    Args:
        adapt: gives the model for the adapters of a prompt.
        prompt: one text or several; excludes the option `prompt_embeds`.
        options: the call's.
        settings: the call's; says how prompts are read and whether the negative side is needed.
        steps: number of steps that are run, in which schedules are counted.

    Raises:
        ConfigError: none or both of text and embeddings, lists of unequal length, or an impossible text.
    """
    asked = options.get("num_images_per_prompt")
    images = check_integer("num_images_per_prompt", 1 if asked is None else asked, 1, MAX_IMAGES)
    side, negative = _sides(prompt, options)
    typed = side.texts()
    read = [None if text is None else read_as(text, settings.prompt_forms) for text in typed]
    if any(read):
        side = replace(side, prompt=[new or text or "" for new, text in zip(read, typed, strict=True)])
    scripts = side.scripts(steps, syntax=settings.options.emphasis != "none")
    count = len(scripts)
    against = _for_all(negative.scripts(steps, syntax=settings.options.emphasis != "none"), count)
    needed = settings.guided or any(len(terms) > 1 for script in scripts for terms in script.steps)
    lines = [
        lines_of(script.steps, [terms[0][0] if needed else None for terms in other.steps])
        for script, other in zip(scripts, against, strict=True)
    ]
    tags = [script.tags for script in scripts]
    models: dict[tuple[AdapterTag, ...], tuple[Components, KeyConditions]] = {}
    for asked in dict.fromkeys(tags):
        components = adapt(asked)
        mine = [part for part, found in zip(lines, tags, strict=True) if found == asked]
        models[asked] = components, _conditions(components, mine, side, negative, settings)
    return Prompts(
        *(
            [text for text in _for_all(texts, count) for _ in range(images)]
            for texts in (typed, read, negative.texts(), side.second_texts(), negative.second_texts())
        ),
        groups=group_prompts(lines, tags, models, images),
    )


def _conditions(
    components: Components,
    lines: Sequence[tuple[Line, ...]],
    side: "PromptArguments",
    negative: "PromptArguments",
    settings: Settings,
) -> KeyConditions:
    """Return the condition of everything that `lines` name, as this model's text encoder makes them."""
    encoder, how = components.text_encoder, settings.reading
    every = [line for script in lines for line in script]
    positives = side.conditions(encoder, [key for line in every for key, _ in line.terms], how)
    negatives = negative.conditions(encoder, [line.negative for line in every if line.negative is not None], how)
    if components.zeros_for_empty_prompt:
        empty = [key for key in negatives if isinstance(key, Text) and key.empty]
        negatives |= {key: negatives[key].map(torch.zeros_like) for key in empty}
    ids = settings.size_ids
    if ids is not None:
        positives = {key: replace(cond, size_ids=ids.rows("positive", 1)) for key, cond in positives.items()}
        negatives = {key: replace(cond, size_ids=ids.rows("negative", 1)) for key, cond in negatives.items()}
    return positives, negatives, _empty(components, settings) if settings.guidance.needs_empty else None


def _empty(components: Components, settings: Settings) -> Conditioning:
    """Return the condition (1 row) of the empty prompt, where the pushes of some guidances start."""
    cond = components.text_encoder([""], clip_skip=settings.options.clip_skip)
    if components.zeros_for_empty_prompt:
        cond = cond.map(torch.zeros_like)
    return cond if settings.size_ids is None else replace(cond, size_ids=settings.size_ids.rows("negative", 1))


def _sides(prompt: Texts, options: Options) -> tuple["PromptArguments", "PromptArguments"]:
    side = PromptArguments(
        "prompt", prompt, options.get("prompt_2"), options.get("prompt_embeds"), options.get("pooled_prompt_embeds")
    )
    negative = PromptArguments(
        "negative_prompt",
        options.get("negative_prompt"),
        options.get("negative_prompt_2"),
        options.get("negative_prompt_embeds"),
        options.get("negative_pooled_prompt_embeds"),
    )
    if side.prompt is None and side.embeds is None:
        raise ConfigError("give `prompt` or `prompt_embeds`")
    return side, replace(negative, prompt="") if negative.prompt is None and negative.embeds is None else negative


@dataclass(frozen=True)
class PromptArguments:
    """The arguments of the prompt, or of the negative prompt."""

    name: str
    prompt: Texts
    prompt_2: Texts
    embeds: Tensor | None  # (P, L, D)
    pooled: Tensor | None  # (P, W)

    def texts(self) -> Sequence[str | None]:
        """Return the texts; [None] where there are embeddings instead."""
        return _texts(self.name, self.prompt)

    def second_texts(self) -> Sequence[str | None]:
        """Return the texts of the second text encoder; [None] if they are the same."""
        return _texts(f"{self.name}_2", self.prompt_2)

    def scripts(self, steps: int, *, syntax: bool) -> list[Script]:
        """Return each prompt, parsed.

        Raises:
            ConfigError: both of text and embeddings, no text, or what the prompt language cannot read.
        """
        if self.embeds is not None:
            count = len(self.embeds) if isinstance(self.embeds, Tensor) and self.embeds.ndim else 0
            return [Script((((row, 1.0),),) * steps) for row in range(max(count, 1))]
        texts, seconds = self.texts(), self.second_texts()
        if self.prompt_2 is not None and len(seconds) not in (1, len(texts)):
            raise ConfigError(
                f"{len(seconds)} texts in `{self.name}_2` for {len(texts)} in `{self.name}`; give one, or as many"
            )
        negative = self.name != "prompt"
        return [
            read_script(text or "", second, steps, syntax=syntax, negative=negative)
            for text, second in zip(texts, _for_all(seconds, len(texts)), strict=True)
        ]

    def conditions(
        self, encoder: TextEncoder | TextEncoders, keys: Sequence[Key], how: Reading
    ) -> dict[Key, Conditioning]:
        """Return the condition (1 row) of each key.

        Raises:
            ConfigError: both of text and embeddings, or what this encoder does not read or make.
        """
        if self.embeds is not None:
            given = self._given(encoder, self.embeds)
            return {key: given[key : key + 1] for key in keys if isinstance(key, int)}
        if self.pooled is not None:
            raise ConfigError(f"`{self._pooled_name}` needs `{self.name}_embeds`")
        if self.prompt_2 is not None and not isinstance(encoder, TextEncoders):
            raise ConfigError(f"`{self.name}_2`: this model has one text encoder; leave it out")
        texts = [key for key in dict.fromkeys(keys) if isinstance(key, Text)]
        return dict(zip(texts, encode_texts(encoder, texts, how) if texts else [], strict=True))

    def _given(self, encoder: TextEncoder | TextEncoders, embeds: Tensor) -> Conditioning:
        if self.prompt is not None or self.prompt_2 is not None:
            raise ConfigError(f"`{self.name}` and `{self.name}_embeds` exclude each other; give one of them")
        _check_tensor(f"{self.name}_embeds", embeds, ("prompts", "tokens", encoder.width))
        if (self.pooled is not None) != bool(encoder.pooled_width):
            need = "needs" if encoder.pooled_width else "has no use for"
            raise ConfigError(f"`{self.name}_embeds` of this model {need} `{self._pooled_name}`")
        if self.pooled is not None:
            _check_tensor(self._pooled_name, self.pooled, (len(embeds), encoder.pooled_width))
        return Conditioning(context=embeds.float(), pooled=None if self.pooled is None else self.pooled.float())

    @property
    def _pooled_name(self) -> str:
        return f"{self.name.removesuffix('prompt')}pooled_prompt_embeds"


def _for_all(values: Sequence[T], count: int) -> list[T]:
    """Return one value for each of `count` prompts; a single one is for all."""
    if len(values) not in (1, count):
        raise ConfigError(f"{len(values)} negative prompts for {count} prompts; give one for all, or one each")
    return list(values) * count if len(values) == 1 else list(values)


def _check_tensor(name: str, value: object, shape: tuple[object, ...]) -> None:
    """Refuse what is no finite float tensor of `shape`; words in it stand for any number but 0."""
    wanted = f"({', '.join(map(str, shape))})"
    if not isinstance(value, Tensor):
        raise ConfigError(f"`{name}` is a {type(value).__name__}; give a tensor {wanted}")
    fits = len(shape) == value.ndim and all(n == w or (isinstance(w, str) and n) for n, w in zip(value.shape, shape))
    if not fits or not value.isfinite().all():
        raise ConfigError(f"`{name}` must be finite {wanted}, found {tuple(value.shape)}")


def _texts(name: str, prompt: str | Sequence[str] | None) -> Sequence[str | None]:
    if prompt is None:
        return [None]
    if not isinstance(prompt, Sequence):
        raise ConfigError(f"`{name}` is {prompt!r}; give a text, or a list of texts")
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts:
        raise ConfigError(f"`{name}` is an empty list; give at least one text")
    return [check_prompt(text, name) for text in texts]


def check_prompt(text: object, name: str = "prompt") -> str:
    """Return a text that can be a prompt.

    Raises:
        ConfigError: no text, too long, or half a character in it.
    """
    if not isinstance(text, str):
        raise ConfigError(f"`{name}` holds {text!r}; a prompt must be text")
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"`{name}` has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"`{name}` {text[:40]!r} holds half a character (a lone surrogate); it is not valid text")
    return text
