"""Which sampler gives the best picture per second? EffLite-KID and Name@1 against seconds a picture.

    python scripts/compare_samplers.py [MODEL] [--prompts 100] [--output docs/bundled-samplers]

Draws one picture for each of the same training prompts with every sampler, spacing and number of steps of `CASES`, and
times single pictures, the cases taking turns so that a slow minute is everyone's. Writes OUTPUT.json and OUTPUT.svg.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.evaluation.drawing import draw, score_drawings
from latent_diffusion.evaluation.gallery import build_gallery
from latent_diffusion.evaluation.pictures import read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0
from latent_diffusion.randomness import permutation

DATA = Path(__file__).parent.parent / "assets" / "emoji-128.zip"
SAMPLERS = (
    ("ddpm", "trailing"),
    ("ddim", "trailing"),
    ("euler", "karras"),
    ("heun", "karras"),
    ("dpmpp_2m", "karras"),
    ("dpmpp_2m", "trailing"),
    ("dpmpp_2m_sde", "karras"),
    ("dpmpp_3m_sde", "exponential"),
    ("unipc", "karras"),
    ("euler_ancestral", "karras"),
)
STEPS = (6, 10, 16, 25)
ROUNDS = 3
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000", "#ff8800", "#8855cc")


@dataclass(frozen=True)
class Case:
    """One way to draw and what it gave; `seconds` is for one picture alone."""

    sampler: str
    spacing: str
    steps: int
    seconds: float
    name1: float
    style: float
    kid: float


def measure(model: str, prompts: int) -> list[Case]:
    pipe = LatentDiffusionPipeline.from_pretrained(model)
    pictures, network = read_pictures(DATA), load_efficientnet_lite0()
    gallery = build_gallery(network, pictures)
    rows = [r for r in select(pictures.rows, read_trained_on(locate_model(model)).where) if r.split == "train"]
    asked = [rows[k] for k in permutation(0, "evaluation prompts", 0, len(rows))[:prompts]]
    cases = [(sampler, spacing, steps) for sampler, spacing in SAMPLERS for steps in STEPS]
    times: dict[tuple[str, str, int], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for sampler, spacing, steps in cases:
            start = time.perf_counter()
            pipe(asked[0].text, seed=0, sampler=sampler, spacing=spacing, num_inference_steps=steps)
            times[sampler, spacing, steps].append(time.perf_counter() - start)
    found = []
    for sampler, spacing, steps in cases:

        def generate(texts: list[str], seeds: list[int], sampler=sampler, spacing=spacing, steps=steps):
            how = {"sampler": sampler, "spacing": spacing, "num_inference_steps": steps}
            images = pipe(texts, seed=seeds, output_type="pt", **how).images
            assert isinstance(images, torch.Tensor), 'output_type "pt" gives a tensor'
            return images * 2 - 1

        score = score_drawings(network, gallery, draw(generate, asked, 1, 0, 16), None)
        seconds = statistics.median(times[sampler, spacing, steps])
        assert score.kid is not None, "more than one prompt gives a distance"
        found.append(Case(sampler, spacing, steps, seconds, score.scores["name1"], score.scores["style"], score.kid))
        print(found[-1], flush=True)
    return found


def plot(cases: list[Case]) -> str:
    """Return an SVG with two panels: KID (lower is better) and Name@1 (higher is better) against seconds."""
    width, height, margin = 420, 300, 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 160}" height="{height + 20}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    longest = max(case.seconds for case in cases) * 1.05
    for panel, (title, value) in enumerate((("EffLite-KID x1000", "kid"), ("Name@1", "name1"))):
        top = max(getattr(case, value) for case in cases) * 1.08
        left = panel * width + margin

        def place(case: Case, left=left, top=top, value=value) -> tuple[float, float]:
            return left + case.seconds / longest * (width - 60), height - 30 - getattr(case, value) / top * (
                height - 60
            )

        parts.append(f'<path d="M{left} 20V{height - 30}H{left + width - 60}" fill="none" stroke="black"/>')
        parts.append(f'<text x="{left}" y="14" font-weight="bold">{title}</text>')
        parts.append(f'<text x="{left + width - 60}" y="{height - 4}" text-anchor="end">seconds a picture</text>')
        for share in (0.25, 0.5, 0.75, 1.0):
            x, y = left + share * (width - 60), height - 30 - share * (height - 60)
            parts.append(f'<text x="{x:.0f}" y="{height - 17}" text-anchor="middle">{share * longest:.2g}</text>')
            parts.append(f'<text x="{left - 4}" y="{y + 4:.0f}" text-anchor="end">{share * top:.3g}</text>')
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("docs/bundled-samplers"))
    arguments = parser.parse_args()
    cases = measure(arguments.model, arguments.prompts)
    arguments.output.with_suffix(".json").write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")
    arguments.output.with_suffix(".svg").write_text(plot(cases) + "\n")


if __name__ == "__main__":
    main()
