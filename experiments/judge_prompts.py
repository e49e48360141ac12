"""What a model makes of prompts as people type them: Name@1, Name@5 and Style for each way to ask.

    python -m experiments.judge_prompts [MODEL] [--data assets/emoji-128.zip] [--seen 40] [--unseen 20] [-k 2]
                                    [--ways NAME ...] [--output FILE.json]

Takes concepts of the training set and pairs of concept and style never seen together, writes each prompt in every way
of `WAYS`, draws it with the model's defaults and looks the pictures up among the real ones, as `latent-diffusion
evaluate` does: read as it is typed (--no-rewrite), and rewritten. Prompts of the same tokens are drawn once; picture k
of a prompt has the same seed in every way. Ways that name no style are judged in the style the judge sees in the
picture; their "Style" is the share that shows one of the model's styles at all.
"""

import argparse
import dataclasses
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.data.rows.metadata import values_of
from latent_diffusion.errors import LatentDiffusionWarning
from latent_diffusion.evaluation.features import Features, extract
from latent_diffusion.evaluation.gallery import build_gallery
from latent_diffusion.evaluation.pictures import Picture, RealPictures, read_pictures, select
from latent_diffusion.evaluation.retrieval import Retrieval
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite0
from latent_diffusion.randomness import permutation

BATCH = 20  # pictures drawn at a time
READINGS = {"as typed": False, "rewritten": None}
Score = dict[str, float]
ARTICLE = re.compile(r"^(a|an|the) ")


@dataclasses.dataclass(frozen=True)
class Style:
    """A style's words in the captions, and others that people use for it."""

    words: str
    synonym: str
    short: str


STYLES = {
    "fluent-3d": Style("3d render", "3d rendering", "3d"),
    "fluent-flat": Style("flat vector illustration", "flat icon", "flat"),
    "fluent-mono": Style("black and white icon", "monochrome icon", "monochrome"),
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a way to ask is made from: "a red apple" in a style."""

    picture: Picture
    phrase: str  # "a red apple"
    keyword: str  # the rarest of its keywords that is not in the name
    emoji: str  # the character

    @property
    def name(self) -> str:
        """The phrase without its article."""
        return ARTICLE.sub("", self.phrase)

    @property
    def style(self) -> Style:
        """The style asked."""
        return STYLES[self.picture.style]


def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


Way = Callable[[Asked], str]
STYLED: dict[str, Way] = {
    "as trained": lambda q: q.picture.text,
    "UPPER CASE": lambda q: q.picture.text.upper(),
    "Title Case": lambda q: q.picture.text.title(),
    "spaces around": lambda q: f"  {q.picture.text.replace(' ', '  ')} ",
    "full stop": lambda q: f"{q.picture.text}.",
    "no articles": lambda q: f"{q.style.words} of {q.name}",
    "name, style": lambda q: f"{q.name}, {q.style.words}",
    "style, name": lambda q: f"{q.style.words}, {q.name}",
    "style name": lambda q: f"{q.style.words} {q.name}",
    "a name as a style": lambda q: f"{q.phrase} as a {q.style.words}",
    "please draw": lambda q: f"Please draw me {q.phrase} in {q.style.short} style!",
    "synonym of style": lambda q: f"a {q.style.synonym} of {q.phrase}",
    "short style, front": lambda q: f"a {q.style.short} {q.name}",
    "short style, end": lambda q: f"{q.name} {q.style.short}",
    "keyword for name": lambda q: f"a {q.style.words} of {a(q.keyword)}",
    "an adjective": lambda q: f"a {q.style.words} of a happy purple {q.name}",
    "a scene": lambda q: f"{q.phrase} in a garden at night, {q.style.words}",
    "unknown word": lambda q: f"a {q.style.words} of a majestic {q.name}",
    "nonsense word": lambda q: f"a {q.style.words} of a zorblatt {q.name}",
    "emoji for name": lambda q: f"a {q.style.words} of {q.emoji}",
}
FREE: dict[str, Way] = {  # no style is named
    "no style": lambda q: q.phrase,
    "name alone": lambda q: q.name,
    "NAME ALONE": lambda q: q.name.upper(),
    "emoji of": lambda q: f"emoji of {q.phrase}",
    "an emoji of": lambda q: f"an emoji of {q.phrase}",
    "name + emoji": lambda q: f"{q.name} emoji",
    "picture of": lambda q: f"a picture of {q.phrase}",
    "emoji alone": lambda q: q.emoji,
}
WAYS = STYLED | FREE


def questions(pictures: RealPictures, model: str, split: str, count: int) -> list[Asked]:
    """Return concepts of `split` that the model's styles all show: the same in every run."""
    known = select(pictures.rows, read_trained_on(locate_model(model)).where)
    shown = Counter(row.family for row in pictures.rows if row.style in STYLES)
    common = Counter(word for row in known for word in values_of(row.table, "keywords"))
    fitting = []
    for row in known:
        phrase = re.sub(rf"^a {STYLES[row.style].words} of ", "", row.text)
        words = [word for word in values_of(row.table, "keywords") if word not in phrase]
        if row.split == split and words and phrase != row.text and shown[row.family] == len(STYLES) and not row.twin:
            keyword = min(words, key=lambda word: (common[word], word))
            code = "".join(chr(int(part, 16)) for part in str(row.table["codepoint"]).split("-"))
            fitting.append(Asked(row, phrase, keyword, code))
    order = permutation(0, "prompts to judge", 0, len(fitting))
    return [fitting[k] for k in order[:count]]


class Judge:
    """Draws prompts once and says what the pictures show."""

    def __init__(self, pipe: LatentDiffusionPipeline, pictures: RealPictures) -> None:
        self.pipe = pipe
        self.network: EfficientNetLite0 = load_efficientnet_lite0()
        found = build_gallery(self.network, pictures).retrieval
        assert found is not None, "the emoji have styles and concepts"
        self.search: Retrieval = found
        self.by_concept = {(row.family, row.style): row for row in pictures.rows}

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1]."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            batch = slice(start, start + BATCH)
            out = self.pipe(list(prompts[batch]), seed=list(seeds[batch]), output_type="pt", **options)
            assert isinstance(out.images, Tensor), 'output_type "pt" gives a tensor'
            parts.append(out.images * 2 - 1)
        return torch.cat(parts)

    def styled(self, images: Tensor, asked: Sequence[Picture]) -> dict[str, float]:
        """Return the shares of pictures that show the concept and the style asked."""
        shares = self.search.search(extract(self.network, images), asked).shares()
        return {kind: shares[kind] for kind in ("name1", "name5", "style")}

    def free(self, images: Tensor, asked: Sequence[Picture]) -> dict[str, float]:
        """Return the same where no style was asked: judged in the style seen, and how often each was seen."""
        features: Features = extract(self.network, images)
        totals = {"name1": 0.0, "name5": 0.0, "style": 0.0}
        for style in STYLES:
            hits = self.search.search(features, [self.by_concept[row.family, style] for row in asked])
            seen = hits.style.float()
            totals[style] = float(seen.mean())
            totals["style"] += totals[style]
            totals["name1"] += float((seen * hits.name1).mean())
            totals["name5"] += float((seen * hits.name5).mean())
        return totals


def judge_way(judge: Judge, name: str, asked: Sequence[Asked], k: int, drawn: dict[str, Tensor]) -> dict[str, Score]:
    """Draw and judge one way to ask, as typed and rewritten; `drawn` keeps the pictures of tokens drawn before."""
    rows = [(WAYS[name](one), number * k + i, one.picture) for number, one in enumerate(asked) for i in range(k)]
    scores: dict[str, Score] = {}
    for reading, rewrite in READINGS.items():
        keys = [f"{seed} {judge.pipe.tokens(prompt, rewrite=rewrite).lines}".casefold() for prompt, seed, _ in rows]
        new = [number for number, key in enumerate(keys) if key not in drawn]
        if new:
            images = judge.draw([rows[n][0] for n in new], [rows[n][1] for n in new], rewrite=rewrite)
            drawn.update({keys[n]: image for n, image in zip(new, images)})
        together = torch.stack([drawn[key] for key in keys])
        score = (judge.styled if name in STYLED else judge.free)(together, [row[2] for row in rows])
        scores[reading] = {"drawn anew": len(new)} | score
    return scores


def table(results: dict[str, dict[str, dict[str, Score]]], example: Asked) -> str:
    """Return a Markdown table of both sets of prompts: each figure as typed, and rewritten."""
    kinds = ("name1", "name5", "style")
    lines = ["| way to ask | | seen: Name@1 | Name@5 | Style | never seen: Name@1 | Name@5 | Style |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, sets in results.items():
        figures = [" → ".join(f"{score[kind]:.2f}" for score in sets[part].values()) for part in sets for kind in kinds]
        lines.append(f"| {name} | `{WAYS[name](example)}` | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--data", default="assets/emoji-128.zip")
    parser.add_argument("--seen", type=int, default=40)
    parser.add_argument("--unseen", type=int, default=20)
    parser.add_argument("-k", type=int, default=2)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS), metavar="NAME")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    pictures = read_pictures(given.data)
    sets = {
        "seen": questions(pictures, given.model, "train", given.seen),
        "never seen": questions(pictures, given.model, "test_comp", given.unseen),
    }
    warnings.simplefilter("ignore", LatentDiffusionWarning)  # what is left out is what is measured
    judge = Judge(LatentDiffusionPipeline.from_pretrained(given.model), pictures)
    results: dict[str, dict[str, dict[str, Score]]] = {}
    drawn: dict[str, dict[str, Tensor]] = {part: {} for part in sets}
    for name in given.ways:
        results[name] = {part: judge_way(judge, name, asked, given.k, drawn[part]) for part, asked in sets.items()}
        print(name, results[name], file=sys.stderr, flush=True)
        if given.output:
            given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results, sets["seen"][0]))


if __name__ == "__main__":
    main()
