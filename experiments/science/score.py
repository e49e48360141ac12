"""What do steps along the score cost and gain? docs/science/score.md.

    python -m experiments.science.score [--prompts 96] [--output FOLDER]

First a mixture of two Gaussians, of which the score is known exactly (that of tests/diffusion/test_score.py): 5,000
draws of each sampler for equal evaluations, and their distance from the exact law, the mean difference of the sorted
values (Wasserstein-1). Then the bundled model: EffLite-KID and Name@1 of the training set's prompts at its defaults.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.judge_prompts import questions
from experiments.measure_samplers import load
from experiments.science.figures import PAGES, Found, chart, fill, save_picture
from experiments.science.pictures import judge, pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.level import Sampler
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.samplers.ddpm import DDPM
from latent_diffusion.samplers.langevin import Langevin
from latent_diffusion.samplers.predictor_corrector import PredictorCorrector
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

EVALUATIONS = (16, 32, 64, 128, 256, 512)
SEEDS = (0, 1, 2)
SAMPLERS: dict[str, tuple[Sampler, int]] = {  # name: the sampler, and its evaluations a step
    "ddim": (DDIM(), 1),
    "ddpm": (DDPM(), 1),
    "predictor_corrector": (PredictorCorrector(), 2),
    "predictor_corrector:snr=0.3": (PredictorCorrector(snr=0.3), 2),
    "langevin": (Langevin(), 2),
    "langevin:corrections=4": (Langevin(corrections=4), 4),
}
BUDGETS = (16, 32, 64)  # of the bundled model
BATCH = 24
PAGE = PAGES / "score.md"


def mixture(found: Found) -> None:
    """Measure the distance from the exact law of a mixture."""
    law = load("tests/diffusion/test_score.py")
    data, schedule = law.Mixture(), ScaledLinearSchedule()
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    mass = data.log_density(grid, law.CLEAN).exp().cumsum(0)
    wanted = np.interp((np.arange(law.COUNT) + 0.5) / law.COUNT, (mass / mass[-1]).numpy(), grid.numpy())
    if "mixture, exact draws" not in found:
        draws = [data.draw(law.CLEAN, seed).flatten().sort().values.numpy() for seed in SEEDS]
        found["mixture, exact draws"] = [float(np.abs(values - wanted).mean()) for values in draws]
    for evaluations in EVALUATIONS:
        for name, (sampler, each) in SAMPLERS.items():
            key = f"mixture, {name}, {evaluations}"
            if key in found:
                continue
            visited = levels(schedule, "trailing", evaluations // each)
            distances = list[float]()
            for seed in SEEDS:
                noise = NoiseSource([seed])
                *_, last = sampler(data.denoise, noise.draw((1, 50, 100)).double(), visited, noise)
                values = last.x.flatten().sort().values.numpy()
                distances.append(float(np.abs(values - wanted).mean()))
            found[key] = distances


def pictures(found: Found, count: int, output: Path) -> None:
    """Measure KID and Name@1 of the bundled model for equal evaluations."""
    real = pictures_of_the_model()
    asked = questions(real, "emoji", "train", count)
    rows = [one.picture for one in asked]
    names = ("ddpm", "predictor_corrector", "langevin")
    if all(f"pictures, {name}, {budget}" in found for name in names for budget in BUDGETS):
        return
    pipe = LatentDiffusionPipeline.from_pretrained("emoji")
    network, gallery = judge(real)
    assert gallery.retrieval is not None
    true, numbers = gallery.features_of(rows), torch.arange(count)
    for budget in BUDGETS:
        for name in names:
            key = f"pictures, {name}, {budget}"
            if key in found:
                continue
            options: dict[str, Any] = {"sampler": name, "num_inference_steps": budget // SAMPLERS[name][1]}
            images = draw(pipe, [row.text for row in rows], options)
            features = extract(network, images)
            found[key] = {
                "name1": gallery.retrieval.search(features, rows).name1.float().tolist(),
                "kid": kid(features.head, true.head, numbers, numbers),
            }
            np.save(output / f"{key}.npy", ((images[:8] + 1) * 127.5).round().byte().numpy())
            print(key, np.mean(found[key]["name1"]), found[key]["kid"], file=sys.stderr, flush=True)


def draw(pipe: LatentDiffusionPipeline, prompts: Sequence[str], options: dict[str, Any]) -> torch.Tensor:
    """Return pictures (B, 3, 64, 64) in [-1, 1]; prompt k has seed k."""
    parts = list[torch.Tensor]()
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        seeds = list(range(len(prompts)))[part]
        drawn = pipe(list(prompts[part]), seed=seeds, output_type="pt", **options).images
        assert isinstance(drawn, torch.Tensor), 'output_type "pt" gives a tensor'
        parts.append(drawn * 2 - 1)
    return torch.cat(parts)


def write_mixture(found: Found) -> None:
    """Put the table and the chart of the mixture on the page."""
    lines = ["| sampler | " + " | ".join(map(str, EVALUATIONS)) + " |", "|---" * (len(EVALUATIONS) + 1) + "|"]
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in SAMPLERS:
        cells = [np.array(found[f"mixture, {name}, {evaluations}"]) for evaluations in EVALUATIONS]
        lines.append(f"| `{name}` | " + " | ".join(f"{c.mean():.3f} ± {c.std(ddof=1):.3f}" for c in cells) + " |")
        curves[name] = [(n, float(c.mean())) for n, c in zip(EVALUATIONS, cells, strict=True)]
    floor = np.array(found["mixture, exact draws"])
    lines.append(f"| exact draws | {floor.mean():.3f} ± {floor.std(ddof=1):.3f} |" + " |" * (len(EVALUATIONS) - 1))
    fill(PAGE, "mixture", lines)
    (PAGES / "score.svg").write_text(chart({"distance from the law": curves}, "evaluations", even=True))


def write_pictures(found: Found, count: int, output: Path) -> None:
    """Put the table and the sheet of the bundled model on the page."""
    lines = ["| evaluations | sampler | Name@1 | EffLite-KID x1000 |", "|---|---|---|---|"]
    names = ("ddpm", "predictor_corrector", "langevin")
    for budget in BUDGETS:
        for name in names:
            one = found[f"pictures, {name}, {budget}"]
            lines.append(f"| {budget} | `{name}` | {np.mean(one['name1']):.2f} | {one['kid']:.0f} |")
    fill(PAGE, "pictures", lines)
    shown = [np.load(output / f"pictures, {name}, {budget}.npy") for budget in (16, 64) for name in names]
    prompts = [one.picture.text for one in questions(pictures_of_the_model(), "emoji", "train", count)[:8]]
    columns = [
        Column(text, None, [to_pil(torch.from_numpy(one[k : k + 1]).float() / 127.5 - 1)[0] for one in shown])
        for k, text in enumerate(prompts)
    ]
    save_picture(draw_grid(columns, per_row=8, cell=64), PAGES / "score.webp")


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--output", type=Path, default=Path("runs/science/score"))
    parser.add_argument("--only", choices=["mixture", "pictures"])
    asked = parser.parse_args()
    found, began = Found(asked.output / "found.json"), time.process_time()
    if asked.only != "pictures":
        mixture(found)
        write_mixture(found)
    if asked.only != "mixture":
        pictures(found, asked.prompts, asked.output)
        write_pictures(found, asked.prompts, asked.output)
    found["minutes"] = found.values.get("minutes", 0) + round((time.process_time() - began) / 60, 1)
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
