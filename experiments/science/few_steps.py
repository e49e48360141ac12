"""Does a distilled student draw better in few steps than its teacher with any sampler? docs/science/consistency.md.

    python -m experiments.science.few_steps [STUDENT ...] [--lora FILE] [--prompts 150] [--seeds 3] [--output FILE]

One picture for each of the same prompts that the bundled model was trained on, with seeds 0, 1000, 2000: Name@1 and
Style by a network that no part was trained with, and EffLite-KID. Students are folders; each draws with its own
sampler, the teacher with several. The result file is filled case by case; a run goes on where it was stopped. Then it
prints the table. A sheet has a row for each student and steps and for the best of the teacher's, and eight columns.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.evaluation.drawn import draw, score_drawings
from latent_diffusion.evaluation.gallery import build_gallery
from latent_diffusion.evaluation.pictures import read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0
from latent_diffusion.randomness import permutation

DATA, TEACHER = "assets/emoji-128.zip", "emoji"
FEW, MANY = (2, 4), 15
OWN = "its own"
TEACHERS = (
    ("dpmpp_2m", "karras"), ("dpmpp_2m", "trailing"), ("unipc", "karras"), ("unipc", "trailing"), ("ddpm", "trailing"),
    ("lcm", "lcm"),
)  # fmt: skip
SHOWN = (
    "a 3d render of a red apple", "a flat vector illustration of a red apple", "a black and white icon of a red apple",
    "a 3d render of a grinning face", "a flat vector illustration of a soccer ball",
    "a black and white icon of an umbrella", "a 3d render of a penguin", "a flat vector illustration of a castle",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to draw."""

    model: str  # "teacher", "adapter" or a student's name
    sampler: str  # OWN: sampler, spacing and guidance scale of the model's folder
    spacing: str
    steps: int

    @property
    def name(self) -> str:
        """Key in the result file, and the row's title."""
        return f"{self.model}, {' '.join(filter(None, (self.sampler, self.spacing)))}, {self.steps} steps"

    @property
    def options(self) -> dict[str, Any]:
        """The pipeline's options; guidance is part of an adapter."""
        if self.sampler == OWN:
            return {"num_inference_steps": self.steps}
        scale = {} if self.model == "teacher" else {"guidance_scale": 1.0}
        return {"sampler": self.sampler, "spacing": self.spacing, "num_inference_steps": self.steps, **scale}


LONG = Case("teacher", "ddpm", "trailing", MANY)


def cases(*students: str) -> list[Case]:
    """Return what is compared, the students first."""
    own = {"adapter": ("lcm", "lcm")}
    made = [Case(name, *own.get(name, (OWN, "")), steps) for steps in FEW for name in students]
    made += [Case("teacher", sampler, spacing, steps) for steps in FEW for sampler, spacing in TEACHERS]
    return [*made, LONG]


def open_pipes(students: list[Path], lora: str | None) -> dict[str, LatentDiffusionPipeline]:
    """Return the models by name: "teacher", "adapter", and a student's run."""
    pipes = {"teacher": LatentDiffusionPipeline.from_pretrained(TEACHER)}
    for student in students:
        name = student.parent.name if student.name == "model" else student.name
        pipes[name] = LatentDiffusionPipeline.from_pretrained(student)
    if lora is not None:
        pipes["adapter"] = LatentDiffusionPipeline.from_pretrained(TEACHER)
        pipes["adapter"].load_lora_weights(lora)
    return pipes


def judge(
    pipes: dict[str, LatentDiffusionPipeline], wanted: list[Case], prompts: int, seeds: int, file: Path
) -> dict[str, Any]:
    """Return the figures of each case at each seed, name1, style and kid, kept in `file`."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    pictures, network = read_pictures(DATA), load_efficientnet_lite0()
    gallery = build_gallery(network, pictures)
    rows = [r for r in select(pictures.rows, read_trained_on(locate_model(TEACHER)).where) if r.split == "train"]
    asked = [rows[k] for k in permutation(0, "evaluation prompts", 0, len(rows))[:prompts]]
    for seed in range(seeds):
        for case in wanted:
            key = f"{case.name}, seed {seed}"
            if found.get(key, {}).get("prompts") == prompts:
                continue
            score = score_drawings(network, gallery, draw(drawing(pipes, case), asked, 1, 1000 * seed, 30), None)
            shares = {name: round(score.scores[name], 4) for name in ("name1", "style")}
            found[key] = {"prompts": prompts, **shares, "kid": round(score.kid or 0.0, 1)}
            print(key, found[key], flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def drawing(pipes: dict[str, LatentDiffusionPipeline], case: Case) -> Callable[[list[str], list[int]], torch.Tensor]:
    """Return what draws prompts in [-1, 1]."""

    def generate(texts: list[str], seeds: list[int]) -> torch.Tensor:
        images = pipes[case.model](texts, seed=seeds, output_type="pt", **case.options).images
        assert isinstance(images, torch.Tensor), 'output_type "pt" gives a tensor'
        return images * 2 - 1

    return generate


def table(found: dict[str, Any], wanted: list[Case], seeds: int) -> list[str]:
    """Return the lines of the table: mean and, from two seeds on, the deviation over seeds."""
    lines = ["| model | sampler | steps | Name@1 | Style | KID |", "|---|---|---|---|---|---|"]
    for case in wanted:
        rows = [found[f"{case.name}, seed {seed}"] for seed in range(seeds)]
        cells = []
        for name, digits in (("name1", 3), ("style", 3), ("kid", 1)):
            values = [row[name] for row in rows]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        sampler = ", ".join(filter(None, (case.sampler, case.spacing)))
        lines.append(f"| {case.model} | {sampler} | {case.steps} | {' | '.join(cells)} |")
    return lines


def sheet(pipes: dict[str, LatentDiffusionPipeline], wanted: list[Case], size: int = 64) -> Image.Image:
    """Return the pictures of `SHOWN`, a row for each case but most of the teacher's."""
    best = [*(Case("teacher", "dpmpp_2m", "trailing", steps) for steps in FEW), LONG]
    wanted = [case for case in wanted if case.model != "teacher" or case in best]
    page = Image.new("RGB", (size * len(SHOWN), size * len(wanted)), "white")
    for row, case in enumerate(wanted):
        images = pipes[case.model](list(SHOWN), seed=0, **case.options).images
        for column, image in enumerate(images):
            page.paste(image, (column * size, row * size))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("students", nargs="*", type=Path, metavar="STUDENT")
    parser.add_argument("--lora")
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/science/few_steps.json"))
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    pipes = open_pipes(arguments.students, arguments.lora)
    wanted = cases(*(name for name in pipes if name != "teacher"))
    if arguments.sheet is not None:
        sheet(pipes, wanted).save(arguments.sheet, quality=72, method=6)
    print(
        "\n".join(
            table(judge(pipes, wanted, arguments.prompts, arguments.seeds, arguments.output), wanted, arguments.seeds)
        )
    )


if __name__ == "__main__":
    main()
