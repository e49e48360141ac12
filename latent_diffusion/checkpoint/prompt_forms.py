"""How a model was asked in training: the opening words of its styles and the names of what it can draw.

A folder may say so in two files of its own, which other tools pass over. `prompts.json`:

    {"default_style": "a 3d render of",
     "styles": {"a 3d render of": ["3d render", "3d"], "a black and white icon of": ["monochrome"]}}

and `names.txt`, one name a line, after a colon other words for it ("hot beverage: coffee, cup of tea").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.atomic import replacing
from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.text_file import read_text
from latent_diffusion.errors import CheckpointError

__all__ = ["FORMS", "NAMES", "PromptForms", "read_prompt_forms", "write_prompt_forms"]

FORMS, NAMES = "prompts.json", "names.txt"


@dataclass(frozen=True)
class PromptForms:
    """The form of a model's training captions."""

    styles: Mapping[str, tuple[str, ...]]  # opening words, such as "a 3d render of" -> other words for the style
    default_style: str  # opening words of the style of a prompt that names none
    names: Mapping[str, str]  # in lower case, a name or another word for it -> the name

    @cached_property
    def most_words(self) -> Mapping[str, int]:
        """The first word of every name -> number of words of the longest name that begins with it."""
        longest: dict[str, int] = {}
        for name in self.names:
            first, _, rest = name.partition(" ")
            longest[first] = max(longest.get(first, 1), 1 + len(rest.split(" ")) * bool(rest))
        return longest


def read_prompt_forms(folder: Path) -> PromptForms | None:
    """Return the prompt forms in `folder`, or None if it has none.

    Raises:
        CheckpointError: a file cannot be read, or its content is not valid.
    """
    file = folder / FORMS
    if not file.exists():
        return None
    values = read_json(file)
    styles: Any = values.get("styles")
    default: Any = values.get("default_style")
    if set(values) != {"styles", "default_style"} or not _are_styles(styles) or default not in list(styles):
        raise CheckpointError(
            f"{file}: `styles` (opening words -> list of other words) and `default_style`, one of them, were expected"
        )
    return PromptForms({opening: tuple(words) for opening, words in styles.items()}, default, _names(folder / NAMES))


def _are_styles(styles: Any) -> bool:
    return isinstance(styles, dict) and all(
        bool(opening.strip()) and isinstance(words, list) and all(isinstance(word, str) and word for word in words)
        for opening, words in styles.items()
    )


def _names(file: Path) -> dict[str, str]:
    """Return the names and other words for them; a name wins over the same word for another."""
    lines = read_text(file).splitlines()
    rows = [line.partition(":") for line in lines if line.strip()]
    others = {word.strip().lower(): name.strip() for name, _, words in rows for word in words.split(",")}
    found = others | {name.strip().lower(): name.strip() for name, _, _ in rows}
    return {word: name for word, name in found.items() if word and name}


def write_prompt_forms(forms: PromptForms, folder: Path) -> None:
    """Write the two files into a model's folder.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    write_json(folder / FORMS, {"default_style": forms.default_style, "styles": dict(forms.styles)})
    others: dict[str, list[str]] = {}
    for word, name in forms.names.items():
        listed = others.setdefault(name, [])
        if word != name.lower():
            listed.append(word)
    lines = [f"{name}: {', '.join(words)}" if words else name for name, words in others.items()]
    with replacing(folder / NAMES) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
