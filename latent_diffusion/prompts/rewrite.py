"""Rewriting of typed prompts into the form of the training captions: a style's opening words and a known name.

A small model learns a few styles by the words of its captions, and objects by their names. For "a blue robot, 3d" it
guesses; for "a 3d render of a robot" it draws one. The words are in the model's folder
(`checkpoint.prompt_forms`): the longest name it knows is looked for in the prompt, and the style in what is
left.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.errors import warn

__all__ = ["SAYS_NOTHING", "Rewritten", "read_as", "rewrite"]

_SYNTAX = re.compile(r"[()\[\]<>|\\]|\b(?:AND|BREAK)\b")
_WORD = re.compile(r"[^\W_]+(?:['&.-][^\W_]+)*")
_ARTICLES = {"a", "an", "the"}
_PLACES = {"with", "without", "in", "on", "at", "under", "over", "by", "near", "from", "and", "holding", "wearing"}
SAYS_NOTHING = _ARTICLES | _PLACES | {
    "of", "as", "for", "me", "my", "please", "draw", "make", "show", "create", "generate", "want", "i", "to", "it",
    "is", "are", "some", "style", "styled", "picture", "image", "photo", "drawing", "emoji", "emojis", "icon", "symbol",
}  # fmt: skip
"""Words of a prompt that are left out without a warning."""
_NAMED_OTHERWISE = {"❤": "red heart"}  # Unicode's "heavy black heart" means filled, not its colour
_MOST_WORDS = 8  # of a name
_BLANK = " \t\n,.;:!-"


@dataclass(frozen=True)
class Rewritten:
    """A rewritten prompt."""

    text: str | None  # None: it is read as it is
    left_out: tuple[str, ...] = ()  # words that stood for something and are not read
    known: bool = True  # whether it contains one of the model's names


@dataclass(frozen=True)
class _Found:
    """A name or a style in words[start:stop]."""

    start: int
    stop: int
    value: str

    def overlaps(self, other: "_Found") -> bool:
        """Whether they share a word."""
        return self.start < other.stop and other.start < self.stop


def read_as(prompt: str, forms: PromptForms | None) -> str | None:
    """Return what is read in place of `prompt`; None: it is read as it is.

    A `LatentDiffusionWarning` names the words that are left out. For a prompt without any of the model's names it warns
    that the picture may show anything.
    """
    found = None if forms is None else rewrite(prompt, forms)
    if found is None:
        return None
    shown = repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")
    if not found.known:
        message = f"prompt {shown}: no word of it is among this model's names; the picture may show anything"
        warn(message)
    elif found.left_out:
        words = ", ".join(found.left_out)
        message = f"prompt {shown} is rewritten to {found.text!r}, without {words[:80]}: not among this model's names; "
        warn(f"{message}--no-rewrite (rewrite=False) uses the whole prompt")
    return found.text


def rewrite(prompt: str, forms: PromptForms) -> Rewritten | None:
    """Return `prompt` in the form of the model's captions.

    None for an empty one, and for one with weights, schedules or other syntax: such a prompt is
    used as it is. In a prompt all in upper case AND and BREAK are words ("A BLACK AND WHITE ICON OF A CAT").
    """
    if not prompt.isupper():
        return _rewrite(prompt, forms)
    found = _rewrite(prompt.lower(), forms)
    return found if found is None or found.text else replace(found, text=prompt.lower())


def _rewrite(prompt: str, forms: PromptForms) -> Rewritten | None:
    if _SYNTAX.search(prompt):
        return None
    words = _words(prompt)
    if not words:
        return None
    ways = _ways_to_say(forms)
    names = _names(words, ways, forms)
    name = _best(names, words)
    styles = [found for found in _styles(words, ways) if name is None or not found.overlaps(name)]
    style = max(styles, key=lambda found: (found.stop - found.start, -found.start), default=None)
    opening = forms.default_style if style is None else style.value
    if name is None:
        rest = prompt if style is None else _without(prompt, words[style.start : style.stop])
        return Rewritten(_unless_same(f"{opening} {rest.strip(_BLANK)}".strip(), words), known=False)
    inside = _places(found for found in (name, style) if found)
    outside = [k for k, word in enumerate(words) if k not in inside and word not in SAYS_NOTHING]
    said = set(_words(name.value))
    named = words[name.start : name.stop] == _words(name.value)
    if named and not outside and words[: len(_words(opening))] == _words(opening):
        return Rewritten(None)  # it opens as captions do; with or without an article
    again = _places(found for found in (*names, *styles) if found.value in (name.value, opening))
    left_out = tuple(words[k] for k in outside if k not in again and words[k] not in said)
    return Rewritten(_unless_same(f"{opening} {_with_article(name.value)}", words), left_out)


def _spelled(character: str) -> str:
    """Return an emoji's Unicode name, any other character as it is, and nothing for boxed letters, such as in flags."""
    if unicodedata.category(character) != "So":
        return character
    name = unicodedata.name(character, "")
    return " " if " LETTER " in name else f" {_NAMED_OTHERWISE.get(character, name)} "


def _unless_same(text: str, words: Sequence[str]) -> str | None:
    return None if _words(text) == words else text


def _words(prompt: str) -> list[str]:
    """Return the words in lower case; an emoji counts as its name."""
    text = unicodedata.normalize("NFC", "".join(map(_spelled, prompt))).lower()
    return _WORD.findall(text.replace("’", "'"))


def _without(prompt: str, phrase: Sequence[str]) -> str:
    """Return the prompt without the words that name its style."""
    return re.sub(r"\b" + r"\W+".join(map(re.escape, phrase)) + r"\b", "", prompt, count=1, flags=re.IGNORECASE)


def _places(parts: Iterable[_Found]) -> set[int]:
    """Return the number of every word in the parts."""
    return {k for part in parts for k in range(part.start, part.stop)}


def _names(words: Sequence[str], ways: Mapping[tuple[str, ...], str], forms: PromptForms) -> list[_Found]:
    """Return every name; words that say a style are none."""
    found = []
    for start, word in enumerate(words):
        most = min(forms.most_words.get(word, 1), _MOST_WORDS, len(words) - start)
        for stop in range(start + 1, start + most + 1):
            phrase = words[start:stop]
            if (name := _known(phrase, forms)) is not None and tuple(phrase) not in ways:
                found.append(_Found(start, stop, name))
    return found


def _best(names: Sequence[_Found], words: Sequence[str]) -> _Found | None:
    """Return the longest name.

    Of equals a name before another word for one, then the last before the first "with", "in", ...: of "a pirate ship on
    the sea" the ship.
    """
    part, parts = 0, []
    for word in words:
        part += word in _PLACES
        parts.append(part)

    def rank(one: _Found) -> tuple[int, bool, int, int]:
        said = " ".join(words[one.start : one.stop])
        return one.stop - one.start, said.startswith(one.value.lower()), -parts[one.start], one.start

    return max(names, key=rank, default=None)


def _ways_to_say(forms: PromptForms) -> dict[tuple[str, ...], str]:
    """Return the opening words of each style, by every way to say it."""
    said = [(tuple(_words(text)), opening) for opening, others in forms.styles.items() for text in (opening, *others)]
    return {words: opening for words, opening in said if words}


def _styles(words: Sequence[str], ways: Mapping[tuple[str, ...], str]) -> Iterator[_Found]:
    """Yield every way to say a style."""
    for size in {len(said) for said in ways}:
        for start in range(len(words) - size + 1):
            if opening := ways.get(tuple(words[start : start + size])):
                yield _Found(start, start + size, opening)


def _known(words: Sequence[str], forms: PromptForms) -> str | None:
    """Return the name that the words are, one or several of it."""
    phrase = " ".join(words)
    for form in (phrase, phrase.removesuffix("s"), phrase.removesuffix("es")):
        if form in forms.names:
            return forms.names[form]
    return None


def _with_article(name: str) -> str:
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
