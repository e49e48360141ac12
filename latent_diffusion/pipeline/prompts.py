"""From prompt arguments to the conditions of every image of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder

__all__ = ["Prompts", "read_prompts"]

MAX_CHARACTERS = 10_000  # of one prompt; CLIP reads 77 tokens


@dataclass(frozen=True)
class Prompts:
    """What each image is told, prompt by prompt: every image of the first prompt comes first."""

    texts: list[str | None]  # one an image; None where embeddings were given instead
    negative_texts: list[str | None]
    positive: Conditioning  # of B images
    negative: Conditioning | None  # of B images; None where there is no guidance to need it

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.texts)


def read_prompts(
    encoder: TextEncoder,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    *,
    images_per_prompt: int,
    clip_skip: int | None,
    guided: bool,
) -> Prompts:
    """Check and encode the prompts, each `images_per_prompt` times in a row.

    Args:
        encoder: text to conditions.
        prompt: one text or several; excludes `prompt_embeds`.
        negative_prompt: what to move away from, one for all or one per prompt; None = "".
        prompt_embeds: (P, L, D) text states.
        negative_prompt_embeds: (P, L, D) text states, or (1, L, D) for all.
        images_per_prompt: number of images of each prompt.
        clip_skip: layers of the text model to leave out at its end, as in diffusers; None = none.
        guided: whether the negative side is needed.

    Raises:
        ConfigError: none or both of text and embeddings, lists of unequal length, or an impossible text.
    """
    _check_count("num_images_per_prompt", images_per_prompt)
    texts, positive = _one_side("prompt", encoder, prompt, prompt_embeds, clip_skip)
    if prompt is None and prompt_embeds is None:
        raise ConfigError("give `prompt` or `prompt_embeds`")
    if negative_prompt is None and negative_prompt_embeds is None:
        negative_prompt = ""
    negative_texts = _texts("negative_prompt", negative_prompt)
    count = len(positive)
    if negative_prompt_embeds is None and len(negative_texts) not in (1, count):
        raise ConfigError(f"{len(negative_texts)} negative prompts for {count} prompts; give one for all, or one each")
    negative = None
    if guided:
        negative_texts, negative = _one_side(
            "negative_prompt", encoder, negative_prompt, negative_prompt_embeds, clip_skip
        )
        if len(negative) == 1:
            negative = negative.repeat_interleave(count)
        if negative.context.shape != positive.context.shape:
            raise ConfigError(
                f"negative text states have shape {tuple(negative.context.shape)}, those of the prompts "
                f"{tuple(positive.context.shape)}; they must agree"
            )
        negative = negative.repeat_interleave(images_per_prompt)
    if len(negative_texts) == 1:
        negative_texts = list(negative_texts) * count
    return Prompts(
        texts=[text for text in texts for _ in range(images_per_prompt)],
        negative_texts=[text for text in negative_texts for _ in range(images_per_prompt)],
        positive=positive.repeat_interleave(images_per_prompt),
        negative=negative,
    )


def _one_side(
    name: str, encoder: TextEncoder, prompt: str | Sequence[str] | None, embeds: Tensor | None, clip_skip: int | None
) -> tuple[Sequence[str | None], Conditioning]:
    if embeds is None:
        texts = _texts(name, prompt)
        return texts, encoder([text or "" for text in texts], clip_skip=clip_skip)
    if prompt is not None:
        raise ConfigError(f"`{name}` and `{name}_embeds` exclude each other; give one of them")
    if not isinstance(embeds, Tensor):
        raise ConfigError(f"`{name}_embeds` is a {type(embeds).__name__}; give a tensor (prompts, tokens, width)")
    if embeds.ndim != 3 or 0 in embeds.shape or embeds.shape[-1] != encoder.width or not embeds.isfinite().all():
        raise ConfigError(
            f"`{name}_embeds` must be finite (prompts, tokens, {encoder.width}), found {tuple(embeds.shape)}"
        )
    return [None] * len(embeds), Conditioning(context=embeds.float())


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
