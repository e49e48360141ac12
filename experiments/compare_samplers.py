"""Which sampler gives the best picture per second? EffLite-KID and Name@1 against seconds a picture.

    python -m experiments.compare_samplers --only seconds [MODEL] [--output docs/bundled-samplers]
    python -m experiments.compare_samplers --only quality [MODEL] [--prompts 48] [--output docs/bundled-samplers]

The first times single pictures with every sampler, spacing and number of steps of `CASES`, the cases taking turns so
that a slow minute is everyone's: leave the machine alone meanwhile. The second draws one picture for each of the same
training prompts with each; it may take its time, and goes on where it was stopped. Both fill OUTPUT.json, and then
OUTPUT.svg once there is something of both. Delete OUTPUT.json to measure anew.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.evaluation.drawn import draw, score_drawings
from latent_diffusion.evaluation.gallery import build_gallery
from latent_diffusion.evaluation.pictures import read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0
from latent_diffusion.randomness import permutation

DATA = Path(__file__).parent.parent / "assets" / "emoji-128.zip"
PROMPT = "a 3d render of a red apple"
SAMPLERS = (
    ("ddpm", "trailing"),
    ("ddim", "trailing"),
    ("dpmpp_2m", "karras"),
    ("dpmpp_2m_sde", "karras"),
    ("unipc", "karras"),
    ("euler_ancestral", "karras"),
)
STEPS = (8, 15, 25)
CASES = [(sampler, spacing, steps) for steps in STEPS for sampler, spacing in SAMPLERS]
ROUNDS = 5
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


@dataclass(frozen=True)
class Case:
    """One way to draw and what it gave; `seconds` is for one picture alone, None what was not measured yet."""

    sampler: str
    spacing: str
    steps: int
    seconds: float | None = None
    prompts: int | None = None
    name1: float | None = None
    style: float | None = None
    kid: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The pipeline's options."""
        return {"sampler": self.sampler, "spacing": self.spacing, "num_inference_steps": self.steps}


def time_pictures(model: str, cases: list[Case]) -> Iterator[list[Case]]:
    """Yield the cases once, each with the median seconds of one picture."""
    pipe = LatentDiffusionPipeline.from_pretrained(model)
    times: list[list[float]] = [[] for _ in cases]
    pipe(PROMPT, seed=0)  # the first picture pays for what is made once
    for _ in range(ROUNDS):
        for case, found in zip(cases, times):
            start = time.perf_counter()
            pipe(PROMPT, seed=0, **case.options)
            found.append(time.perf_counter() - start)
    yield [replace(case, seconds=round(statistics.median(found), 4)) for case, found in zip(cases, times)]


def judge(model: str, cases: list[Case], prompts: int) -> Iterator[list[Case]]:
    """Yield the cases after each that was judged; those that are need no second time."""
    pipe = LatentDiffusionPipeline.from_pretrained(model)
    pictures, network = read_pictures(DATA), load_efficientnet_lite0()
    gallery = build_gallery(network, pictures)
    rows = [r for r in select(pictures.rows, read_trained_on(locate_model(model)).where) if r.split == "train"]
    asked = [rows[k] for k in permutation(0, "evaluation prompts", 0, len(rows))[:prompts]]
    for number, case in enumerate(cases):
        if case.prompts == len(asked):
            continue

        def generate(texts: list[str], seeds: list[int], case=case) -> torch.Tensor:
            images = pipe(texts, seed=seeds, output_type="pt", **case.options).images
            assert isinstance(images, torch.Tensor), 'output_type "pt" gives a tensor'
            return images * 2 - 1

        score = score_drawings(network, gallery, draw(generate, asked, 1, 0, 32), None)
        assert score.kid is not None, "more than one prompt gives a distance"
        name1, style = round(score.scores["name1"], 4), round(score.scores["style"], 4)
        cases[number] = replace(case, prompts=len(asked), name1=name1, style=style, kid=round(score.kid, 1))
        print(cases[number], flush=True)
        yield cases


def round_numbers(top: float) -> list[float]:
    """Return the ticks of an axis from 0 to `top`: four to eight multiples of 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(top / 4))
    step = next(step for step in (5 * power, 2 * power, power) if top / step >= 4)
    return [round(number * step, 10) for number in range(1, math.floor(top / step) + 1)]


def plot(cases: list[Case]) -> str:
    """Return an SVG with KID (lower is better) and Name@1 against seconds, of cases of which all is known."""
    width, height, margin = 420, 300, 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 160}" height="{height + 20}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    longest = max(case.seconds or 0 for case in cases) * 1.05
    for panel, (title, value) in enumerate((("EffLite-KID x1000", "kid"), ("Name@1", "name1"))):
        top = max(getattr(case, value) for case in cases) * 1.08
        left = panel * width + margin

        def place(case: Case, left=left, top=top, value=value) -> tuple[float, float]:
            x = left + (case.seconds or 0) / longest * (width - 60)
            return x, height - 30 - getattr(case, value) / top * (height - 60)

        parts.append(f'<path d="M{left} 20V{height - 30}H{left + width - 60}" fill="none" stroke="black"/>')
        parts.append(f'<text x="{left}" y="14" font-weight="bold">{title}</text>')
        parts.append(f'<text x="{left + width - 60}" y="{height - 4}" text-anchor="end">seconds a picture</text>')
        for tick in round_numbers(longest):
            x = left + tick / longest * (width - 60)
            parts.append(f'<text x="{x:.0f}" y="{height - 17}" text-anchor="middle">{tick:g}</text>')
        for tick in round_numbers(top):
            y = height - 30 - tick / top * (height - 60)
            parts.append(f'<text x="{left - 4}" y="{y + 4:.0f}" text-anchor="end">{tick:g}</text>')
        for (sampler, spacing), colour in zip(SAMPLERS, COLOURS, strict=True):
            points = [place(case) for case in cases if (case.sampler, case.spacing) == (sampler, spacing)]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
    for number, ((sampler, spacing), colour) in enumerate(zip(SAMPLERS, COLOURS, strict=True)):
        y = 30 + 16 * number
        parts.append(f'<rect x="{2 * width + 8}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{2 * width + 22}" y="{y}">{sampler}, {spacing}</text>')
    return "\n".join([*parts, "</svg>"])


def read(path: Path) -> list[Case]:
    """Return every case with what is known of it."""
    known = [Case(**values) for values in json.loads(path.read_text())] if path.is_file() else []
    by_way = {(case.sampler, case.spacing, case.steps): case for case in known}
    return [by_way.get(way, Case(*way)) for way in CASES]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--only", choices=("seconds", "quality"), required=True)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--output", type=Path, default=Path("docs/bundled-samplers"))
    arguments = parser.parse_args()
    cases = read(arguments.output.with_suffix(".json"))
    if arguments.only == "seconds":
        measured = time_pictures(arguments.model, cases)
    else:
        measured = judge(arguments.model, cases, arguments.prompts)
    for found in measured:
        lines = ",\n ".join(json.dumps(asdict(case)) for case in found)
        arguments.output.with_suffix(".json").write_text(f"[\n {lines}\n]\n")
        complete = [case for case in found if case.seconds is not None and case.kid is not None]
        if complete:
            arguments.output.with_suffix(".svg").write_text(plot(complete) + "\n")


if __name__ == "__main__":
    main()
