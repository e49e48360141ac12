"""From prompt arguments to the conditions of every image of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.pipeline.options import Options, Texts
from latent_diffusion.pipeline.settings import Settings

__all__ = ["Prompts", "read_prompts"]

MAX_CHARACTERS = 10_000  # of one prompt; CLIP reads 77 tokens


@dataclass(frozen=True)
class Prompts:
    """What each image is told, prompt by prompt: every image of the first prompt comes first."""

    texts: list[str | None]  # one an image; None where embeddings were given instead
    negative_texts: list[str | None]
    second: list[str | None]  # what the second text encoder read instead; None = the same
    negative_second: list[str | None]
    positive: Conditioning  # of B images
    negative: Conditioning | None  # of B images; None where there is no guidance to need it

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.texts)


def read_prompts(components: Components, prompt: Texts, options: Options, settings: Settings) -> Prompts:
    """Check and encode the prompts of a call, each `num_images_per_prompt` times in a row.

    Args:
        components: the model; its text encoder makes the conditions.
        prompt: one text or several; excludes the option `prompt_embeds`.
        options: the call's.
        settings: the call's; says whether the negative side is needed.

    Raises:
        ConfigError: none or both of text and embeddings, lists of unequal length, or an impossible text.
    """
    images = options.get("num_images_per_prompt", 1)
    _check_count("num_images_per_prompt", images)
    side = Side(
        "prompt", prompt, options.get("prompt_2"), options.get("prompt_embeds"), options.get("pooled_prompt_embeds")
    )
    away = Side(
        "negative_prompt",
        options.get("negative_prompt"),
        options.get("negative_prompt_2"),
        options.get("negative_prompt_embeds"),
        options.get("negative_pooled_prompt_embeds"),
    )
    if side.prompt is None and side.embeds is None:
        raise ConfigError("give `prompt` or `prompt_embeds`")
    if away.prompt is None and away.embeds is None:
        away = replace(away, prompt="")
    positive = side.encode(components.text_encoder, settings.clip_skip)
    count = len(positive)
    if away.embeds is None and len(away.texts()) not in (1, count):
        raise ConfigError(f"{len(away.texts())} negative prompts for {count} prompts; give one for all, or one each")
    negative = None
    if settings.guided:
        negative = away.encode(components.text_encoder, settings.clip_skip)
        if components.zeros_for_empty_prompt:
            negative = away.empty_as_zeros(negative)
        negative = _matched(negative, positive)
    if settings.size_ids is not None:
        positive = replace(positive, size_ids=settings.size_ids.rows("positive", count))
        if negative is not None:
            negative = replace(negative, size_ids=settings.size_ids.rows("negative", count))
    return Prompts(
        *(
            [text for text in _for_all(texts, count) for _ in range(images)]
            for texts in (side.texts(), away.texts(), side.second_texts(), away.second_texts())
        ),
        positive=positive.repeat_interleave(images),
        negative=None if negative is None else negative.repeat_interleave(images),
    )


@dataclass(frozen=True)
class Side:
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
        """Return what the second text encoder reads instead; [None] where that is the same."""
        return _texts(f"{self.name}_2", self.prompt_2)

    def encode(self, encoder: TextEncoder | TextEncoders, clip_skip: int | None) -> Conditioning:
        """Return the conditions of all prompts of this side.

        Raises:
            ConfigError: none or both of text and embeddings, or what this encoder does not read or make.
        """
        if self.embeds is not None:
            return self._given(encoder, self.embeds)
        if self.pooled is not None:
            raise ConfigError(f"`{self._pooled_name}` needs `{self.name}_embeds`")
        texts = [text or "" for text in self.texts()]
        if self.prompt_2 is None:
            return encoder(texts, clip_skip=clip_skip)
        if not isinstance(encoder, TextEncoders):
            raise ConfigError(f"`{self.name}_2`: this model has one text encoder; leave it out")
        second = [text or "" for text in self.second_texts()]
        if len(second) != len(texts):
            raise ConfigError(f"{len(second)} texts in `{self.name}_2` for {len(texts)} in `{self.name}`; give as many")
        return encoder(texts, clip_skip=clip_skip, second=second)

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

    def empty_as_zeros(self, cond: Conditioning) -> Conditioning:
        """Return `cond` with zeros for every prompt that is empty, as SDXL was trained."""
        seconds = _for_all(self.second_texts(), len(cond))
        empty = [text == "" and not second for text, second in zip(self.texts(), seconds)]
        if not any(empty):
            return cond
        keep = torch.tensor([not is_empty for is_empty in empty]).to(cond.context)
        pooled = None if cond.pooled is None else cond.pooled * keep[:, None]
        return replace(cond, context=cond.context * keep[:, None, None], pooled=pooled)


def _matched(negative: Conditioning, positive: Conditioning) -> Conditioning:
    """Return `negative` with as many rows as `positive`; one row is for all."""
    if len(negative) == 1:
        negative = negative.repeat_interleave(len(positive))
    if negative.context.shape != positive.context.shape:
        raise ConfigError(
            f"negative text states have shape {tuple(negative.context.shape)}, those of the prompts "
            f"{tuple(positive.context.shape)}; they must agree"
        )
    return negative


def _for_all(texts: Sequence[str | None], count: int) -> list[str | None]:
    return list(texts) * count if len(texts) == 1 else list(texts)


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
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"`{name}` holds {text!r}; only texts are prompts")
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(f"`{name}` has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"`{name}` {text[:40]!r} holds half a character (a lone surrogate); it is no valid text")
    return texts


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        raise ConfigError(f"{name} {value!r} is not an integer from 1 to 10000")
