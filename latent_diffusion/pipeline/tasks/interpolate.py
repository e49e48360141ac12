"""Frames between prompts and between noises.

Text states are mixed in a straight line, noises on the sphere they lie on. A sampler that draws noise in every step
draws mixed noise in every step, so the first and the last frame equal the key pictures.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latent_diffusion.checks import check_integer
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options
from latent_diffusion.pipeline.call.seeds import Variation, noise_for
from latent_diffusion.pipeline.call.settings import Settings
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output, OutputType, check_output_type
from latent_diffusion.pipeline.engine.prompts import check_prompt
from latent_diffusion.prompts.rewrite import read_as
from latent_diffusion.prompts.script import read_script
from latent_diffusion.prompts.states import Text, encode_texts
from latent_diffusion.runtime.undisturbed import undisturbed

__all__ = ["interpolate"]

MAX_FRAMES = 10_000
NOT_HERE = (
    "generator",
    "num_images_per_prompt",
    "prompt_2",
    "prompt_embeds",
    "refiner",
    "pooled_prompt_embeds",
    "variation_seed",
    "variation_strength",
)


@undisturbed()
def interpolate(
    engine: Engine, prompt: str | Sequence[str], options: Options, *, frames: int, output_type: OutputType
) -> Output:
    """Draw the frames from key to key; arguments and errors as for the pipeline's method."""
    check_output_type(output_type)
    engine.components.check_unmasked()
    for name in NOT_HERE:
        if options.get(name) is not None:
            raise ConfigError(f"{name} cannot be used with interpolate; give prompts and seeds")
    settings = engine.settings(options)
    texts, seeds = _keys(prompt, options)
    check_integer("frames", frames, 2, MAX_FRAMES)
    places = [k * (len(texts) - 1) / (frames - 1) for k in range(frames)]
    starts = [min(int(place), len(texts) - 2) for place in places]
    shares = [place - start for place, start in zip(places, starts, strict=True)]
    read = [read_as(text, settings.prompt_forms) for text in texts]
    meant = [new or text for new, text in zip(read, texts, strict=True)]
    cond = _mixed(_encoded(engine, meant, settings), starts, shares)
    first, second = ([seeds[start + k] for start in starts] for k in (0, 1))
    told: Options = {**options, "prompt_embeds": cond.context, "pooled_prompt_embeds": cond.pooled, "seed": first}
    job = engine.start(None, settings, told)
    job = replace(
        job,
        noise=job.noise.towards(noise_for(second, None, frames)[0], shares),
        variation=Variation(second, shares),
        prompts=replace(
            job.prompts,
            texts=[_text(texts, start, share) for start, share in zip(starts, shares)],
            read_as=[_text(read, start, share) for start, share in zip(starts, shares)],
        ),
    )
    return job.output(job.draw(job.initial_noise(), options.get("on_step")), output_type)


def _keys(prompt: str | Sequence[str], options: Options) -> tuple[list[str], list[int]]:
    """Return prompt and seed of each key; one prompt or one seed is that of all.

    Raises:
        ConfigError: fewer than two keys, lists of unequal length, or what is no text.
    """
    if not isinstance(prompt, Sequence):
        raise ConfigError(f"`prompt` is {prompt!r:.50}; interpolate needs a text, or a list of texts")
    texts = [check_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
    seed = options.get("seed")
    _, seeds = noise_for(seed, None, len(seed) if isinstance(seed, Sequence) and seed else 1)
    count = max(len(texts), len(seeds))
    if count < 2 or {len(texts), len(seeds)} - {1, count}:
        raise ConfigError(f"interpolate needs two prompts or two seeds, and equal numbers of both or one; found "
                          f"{len(texts)} and {len(seeds)}")  # fmt: skip
    return texts * (count // len(texts)), seeds * (count // len(seeds))


def _encoded(engine: Engine, texts: Sequence[str], settings: Settings) -> list[Conditioning]:
    read = [_read(text, settings) for text in texts]
    keys = encode_texts(engine.components.text_encoder, read, settings.reading)
    lengths = sorted({key.context.shape[1] for key in keys})
    if len(lengths) > 1:
        raise ConfigError(f"prompts of {' and '.join(map(str, lengths))} tokens cannot be mixed; shorten the long ones")
    return keys


def _read(text: str, settings: Settings) -> Text:
    """Return a prompt that says one thing in all steps.

    Raises:
        ConfigError: it says several, or asks for adapters.
    """
    script = read_script(
        text, None, settings.num_inference_steps, syntax=settings.options.emphasis != "none", negative=False
    )
    (key, weight), *others = script.steps[0]
    if script.tags or others or weight != 1.0 or len(set(script.steps)) > 1 or not isinstance(key, Text):
        raise ConfigError(f"prompt {text[:60]!r}: schedules, AND and <lora:...> cannot be used with interpolate")
    return key


def _mixed(keys: Sequence[Conditioning], starts: Sequence[int], shares: Sequence[float]) -> Conditioning:
    """Return the condition of each frame, (frames, L, D)."""

    def between(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.lerp(values[s], values[s + 1], share) for s, share in zip(starts, shares)])

    pooled = [key.pooled for key in keys if key.pooled is not None]
    return Conditioning(between([key.context for key in keys]), pooled=between(pooled) if pooled else None)


def _text(texts: Sequence[str | None], start: int, share: float) -> str | None:
    """Return the prompt of a frame where it is one of the keys', else None: it has none in words."""
    if share in (0.0, 1.0) or texts[start] == texts[start + 1]:
        return texts[start + (share == 1.0)]
    return None
