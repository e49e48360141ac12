"""How a prompt is read: from which step on, as which terms, in which chunks, each token with its weight."""

from dataclasses import asdict, dataclass
from typing import Any

from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.options.call import Options
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.prompts import check_prompt
from latent_diffusion.prompts.chunks import Chunks
from latent_diffusion.prompts.rewrite import read_as
from latent_diffusion.prompts.script import Terms, read_script
from latent_diffusion.prompts.states import Reading, Text, read_text
from latent_diffusion.prompts.terms import AdapterTag

__all__ = ["TokenReport", "report_tokens"]


@dataclass(frozen=True)
class ReadTerm:
    """One of the prompts joined by AND."""

    text: str
    weight: float
    towers: tuple[tuple[tuple[tuple[str, float], ...], ...], ...]  # tower, chunk, token: its text and weight

    @property
    def tokens(self) -> int:
        """Number of tokens of text that the first tower reads."""
        return sum(map(len, self.towers[0]))

    @property
    def chunks(self) -> int:
        """Number of chunks that the first tower reads."""
        return len(self.towers[0])


@dataclass(frozen=True)
class TokenReport:
    """How one prompt is read."""

    lines: tuple[tuple[int, tuple[ReadTerm, ...]], ...]  # (first step, what holds from there on)
    adapters: tuple[AdapterTag, ...]
    room: int  # tokens of text in a chunk
    read_as: str | None = None  # what is read in place of the prompt; None = it is read as it is

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def report_tokens(engine: Engine, prompt: str, options: Options) -> TokenReport:
    """Return how `prompt` is read in a call with `options`; nothing is cut. Errors as for the pipeline's method."""
    encoder, settings = engine.components.text_encoder, engine.settings(options)
    how = Reading(settings.options.emphasis, "chunk", None)
    read = read_as(check_prompt(prompt), settings.prompt_forms)
    steps, syntax = settings.num_inference_steps, settings.options.emphasis != "none"
    script = read_script(read or prompt, None, steps, syntax=syntax, negative=False)
    lines: list[tuple[int, tuple[ReadTerm, ...]]] = []
    before: Terms | None = None
    for step, terms in enumerate(script.steps):
        if terms != before:
            lines.append((step, tuple(_term(encoder, key, weight, how) for key, weight in terms)))
        before = terms
    return TokenReport(tuple(lines), script.tags, encoder.context_length - 2, read)


def _term(encoder: TextEncoder | TextEncoders, key: Text | int, weight: float, how: Reading) -> ReadTerm:
    assert isinstance(key, Text), "a script of a text names texts"
    return ReadTerm(key.first, weight, tuple(_written(chunks) for chunks in read_text(encoder, key, how)))


def _written(read: Chunks) -> tuple[tuple[tuple[str, float], ...], ...]:
    """Return the tokens of each chunk as text, "</w>" at the end of a word as a space."""
    words = read.tower.tokenizer.convert_ids_to_tokens
    return tuple(
        tuple((str(words(token.id)).replace("</w>", " "), token.weight) for token in chunk) for chunk in read.chunks
    )
