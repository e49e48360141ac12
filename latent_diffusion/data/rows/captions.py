"""The caption of a sample: which of a picture's captions, and the changes of `WordingConfig`, all draws keyed.

Nothing is written to the files. Tags are the parts of a caption between separators, as in kohya's sd-scripts, whose
order of changes is kept: lines, choices, prefix and suffix, tags.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from latent_diffusion.data.rows.metadata import captions_of
from latent_diffusion.data.rows.table import Row
from latent_diffusion.data.settings import ReadingConfig, WordingConfig
from latent_diffusion.randomness import generator, uniform

__all__ = ["Captions", "Wording"]

CHOICES = re.compile(r"\{([^{}]*)\}")
MOST_CHOICES = 1000  # replacements in one caption: a choice that makes choices must end


class Wording:
    """The changes to a caption."""

    def __init__(self, config: WordingConfig) -> None:
        """Take the settings."""
        self.config = config
        self.tagged = config.shuffle or config.drop_tags > 0
        self.draws = self.tagged or config.wildcards or config.lines == "draw"
        """Whether a caption differs from sample to sample."""

    def __call__(self, text: str, draw: np.random.Generator) -> str:
        """Return the caption of one sample from `text`, which may have several lines."""
        config = self.config
        for old, new in config.replace.items():
            text = text.replace(old, new)
        lines = [line for line in (" ".join(line.split()) for line in text.split("\n")) if line]
        if config.lines == "draw" and len(lines) > 1:
            text = lines[int(draw.integers(len(lines)))]
        else:
            text = " ".join(lines if config.lines == "join" else lines[:1])
        if config.wildcards:
            text = _chosen(text, draw)
        text = " ".join(part for part in (config.prefix, text, config.suffix) if part)
        if self.tagged or config.keep_separator:
            text = self._tags(text, draw)
        if config.second_separator:
            text = text.replace(config.second_separator, config.separator)
        if config.trigger and config.trigger.lower() not in text.lower():
            text = f"{config.trigger}{f'{config.separator} ' if text else ''}{text}"
        return text

    def _tags(self, text: str, draw: np.random.Generator) -> str:
        """Return the text with the tags that are not kept in a drawn order, a share of them left out."""
        config = self.config
        head, tail = [], []
        if config.keep_separator and config.keep_separator in text:
            first, *rest = text.split(config.keep_separator, 2)
            head, loose, tail = self._split(first), self._split(rest[0]), self._split("".join(rest[1:]))
        else:
            tags = self._split(text)
            head, loose = tags[: config.keep], tags[config.keep :]
        if config.shuffle:
            loose = [loose[k] for k in draw.permutation(len(loose))]
        if config.drop_tags:
            loose = [tag for tag, share in zip(loose, draw.random(len(loose))) if share >= config.drop_tags]
        return f"{config.separator.rstrip()} ".join([*head, *loose, *tail])

    def _split(self, text: str) -> list[str]:
        return [tag for tag in (tag.strip() for tag in text.split(self.config.separator)) if tag]


def _chosen(text: str, draw: np.random.Generator) -> str:
    """Return the text with one of the choices of each innermost `{a|b}`, again until none is left; `{{` is a brace."""
    text = text.replace("{{", "\0").replace("}}", "\1")
    for _ in range(MOST_CHOICES):
        found = CHOICES.search(text)
        if found is None:
            break
        options = found.group(1).split("|")
        text = text[: found.start()] + options[int(draw.integers(len(options)))].strip() + text[found.end() :]
    return " ".join(text.replace("\0", "{").replace("\1", "}").split())


class Captions:
    """The captions of the rows of one source."""

    def __init__(self, config: ReadingConfig, seed: int) -> None:
        """Take the settings and the run's seed."""
        self.config, self.seed = config, seed
        self.wording = Wording(config.wording)
        fields = config.captions
        repeated = Counter(fields) if isinstance(fields, list) and len({*fields}) < len(fields) else None
        self.shares: Mapping[str, float] | None = fields if isinstance(fields, dict) else repeated

    def fields(self, row: Row) -> dict[str, list[str]]:
        """Return the captions of each field that has some."""
        join = self.config.wording.lines == "join"
        found = {field: captions_of(row, field, join=join) for field in self.config.captions}
        found = {field: texts for field, texts in found.items() if texts}
        if not found and self.config.default_caption:
            return {"default_caption": [self.config.default_caption]}
        return found

    def finite(self, row: Row) -> Sequence[str] | None:
        """Return every caption that a sample of the row may have, the dropped one aside; None: there is no end."""
        if self.wording.draws:
            return None
        fixed = generator(self.seed, "wording", 0)  # nothing is drawn from it
        return [self.wording(text, fixed) for texts in self.fields(row).values() for text in texts] or [self._none()]

    def first(self, row: Row, key: int) -> str:
        """Return the first caption of a row, for held-out pictures; its draws have the key `key`."""
        texts = next(iter(self.fields(row).values()), None)
        return self.wording(texts[0], generator(self.seed, "held-out wording", key)) if texts else self._none()

    def _none(self) -> str:
        """Return the caption of a picture that has none: empty, or the words that every caption has."""
        return self.wording("", generator(self.seed, "wording", 0)) if self.config.captions else ""

    def draw(self, row: Row, number: int) -> str:
        """Return the caption of sample `number`, which shows the row; "" when it is dropped."""
        dropout = self.config.caption_dropout
        if dropout > 0 and uniform(self.seed, "caption dropout", number) < dropout:
            return ""
        fields = self.fields(row)
        if not fields:
            return self._none()
        texts = [*fields.values()]
        chosen = texts[0][0]
        if len(texts) > 1 or len(texts[0]) > 1:
            draw = generator(self.seed, "caption", number)
            of_field = texts[self._field([*fields], draw)]
            chosen = of_field[int(draw.integers(len(of_field)))]
        return (
            self.wording(chosen, generator(self.seed, "wording", number)) if self.wording.draws else self._fixed(chosen)
        )

    def _fixed(self, text: str) -> str:
        return self.wording(text, generator(self.seed, "wording", 0))

    def _field(self, names: list[str], draw: np.random.Generator) -> int:
        """Draw a field: all alike, or by weight."""
        if self.shares is None:
            return int(draw.integers(len(names)))
        sums = np.cumsum([self.shares.get(name, 1.0) for name in names])
        return int(np.searchsorted(sums, draw.random() * sums[-1], side="right"))
