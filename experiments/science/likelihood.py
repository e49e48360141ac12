"""How many bits has a latent, and how many of them does its caption explain? docs/science/likelihood.md.

    python -m experiments.science.likelihood [--pictures 64] [--steps 50] [--output FOLDER]

Four parts: the error on data of known density (that of tests/diffusion/test_likelihood.py) by steps; pictures that the
bundled model was trained on and pictures that it was not, with their own caption, another's and none; the variational
bound of the same pictures; and the processor time of a likelihood, in that of its network evaluations alone.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from experiments.measure_samplers import load
from experiments.science.figures import PAGES, Found, chart, fill, mean_and_error
from experiments.science.pictures import pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.bound import bound_one_sample
from latent_diffusion.diffusion.likelihood import (
    exact_divergence,
    hutchinson,
    log_density,
    negative_log_likelihood,
    path_to_noise,
)
from latent_diffusion.evaluation.pictures import Picture, RealPictures
from latent_diffusion.evaluation.pipeline_likelihood import latent_likelihood
from latent_diffusion.randomness import normal

PAGE = PAGES / "likelihood.md"
STEPS = (5, 10, 20, 40, 80)
KINDS = {"trained on": ("train",), "held out": ("val",), "style and concept never together": ("test_comp",)}
PARTS = ("known", "cost", "bits")
CAPTIONS = ("own", "another's", "none")
BATCH = 16


def known(found: Found) -> None:
    """Measure the error on a Gaussian and a mixture, with the exact divergence and with probes."""
    law = load("tests/diffusion/test_likelihood.py")
    schedule = law.LAWS["cosine"]
    for data, count in (("Gaussian", 1), ("mixture", 3)):
        denoise, density = law.exact(count)
        x0, noise = law.draws(count)
        for steps in STEPS:
            levels = path_to_noise(schedule, steps)
            x = levels[0].alpha * x0 + levels[0].sigma * noise
            signs = [normal(k, "probe", range(len(x)), x.shape[1:]).sign().to(x) for k in range(4)]
            for how, divergence in (("exact trace", exact_divergence), ("4 probes", hutchinson(signs))):
                off = log_density(denoise, levels, x, divergence) - density(x, levels[0])
                found[f"{data}, {how}, {steps}"] = float(off.mean().abs()) / (4 * math.log(2))


def chosen(pictures: RealPictures, kind: str, count: int) -> list[Picture]:
    """Return about `count` pictures of a kind, evenly spaced."""
    rows = [row for row in pictures.rows if row.split in KINDS[kind]]
    return rows[:: max(1, len(rows) // count)][:count]


def bits(found: Found, pipe: LatentDiffusionPipeline, pictures: RealPictures, count: int, steps: int) -> None:
    """Measure bits of pictures with each caption, and the bound with their own."""
    likelihood = latent_likelihood(pipe, steps)
    assert likelihood is not None
    for kind in KINDS:
        rows = chosen(pictures, kind, count)
        texts = [row.text for row in rows]
        for captions, prompts in zip(CAPTIONS, (texts, texts[1:] + texts[:1], [""] * len(rows)), strict=True):
            key = f"{kind}, {captions}"
            if key in found:
                continue
            values = list[float]()
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                images = pictures.load(rows[part], pipe.defaults.height)
                values += likelihood.bits(images, prompts[part], range(len(rows))[part]).tolist()
            found[key] = values
            print(key, np.mean(values) / likelihood.dimensions, file=sys.stderr, flush=True)
        if f"{kind}, bound" not in found:
            found[f"{kind}, bound"] = [bound(pipe, pictures, row, number) for number, row in enumerate(rows)]


def bound(pipe: LatentDiffusionPipeline, pictures: RealPictures, row: Picture, number: int) -> float:
    """Return the variational bound of a picture with its own caption, in bits: `bound_all_levels` by 190 of its terms.

    The 100 least noisy levels are taken one by one, of the others every tenth with ten times the weight.
    """
    parts = pipe.components
    t = torch.cat([torch.arange(100), torch.arange(105, 1000, 10)])
    x0 = parts.autoencoder.to_latents(pictures.load([row], pipe.defaults.height)).float()
    total = 0.0
    for times in t.split(38):
        cond = parts.text_encoder([row.text] * len(times))
        denoise = pipe.engine.denoiser().bind_times(cond)
        noise = normal(1, f"bound {number}", times.tolist(), x0.shape[1:])
        each = bound_one_sample(denoise, parts.schedule, x0.expand(len(times), -1, -1, -1), times, lambda z=noise: z)
        total += float((each.double() * torch.where(times < 100, 1, 10)).sum())
    return total / 1000 / math.log(2)


def cost(found: Found, pipe: LatentDiffusionPipeline, pictures: RealPictures, steps: int = 1, batch: int = 64) -> None:
    """Measure the processor time of the likelihood of a batch, in that of as many network evaluations alone."""
    rows = [row for row in pictures.rows if row.split == "train"][:batch]
    x0 = pipe.components.autoencoder.to_latents(pictures.load(rows, pipe.defaults.height))
    cond = pipe.components.text_encoder([row.text for row in rows])
    denoise = pipe.engine.plain().denoiser().bind(cond)
    levels = path_to_noise(pipe.components.schedule, steps)
    noise = normal(0, "likelihood", range(batch), x0.shape[1:])
    evaluations = 2 * steps + 1
    ratios = list[float]()
    denoise(x0, levels[-1])
    for _ in range(2):
        start = time.process_time()
        negative_log_likelihood(denoise, levels, x0, noise, hutchinson([noise.sign()]))
        whole = time.process_time() - start
        start = time.process_time()
        for _ in range(evaluations):
            denoise(x0, levels[-1])
        ratios.append(whole / (time.process_time() - start))
    found["cost"], found["batch"] = ratios, batch


def write_known(found: Found) -> None:
    """Put the table and the chart of known data on the page."""
    curves = {
        data: {how: [(n, found[f"{data}, {how}, {n}"]) for n in STEPS] for how in ("exact trace", "4 probes")}
        for data in ("Gaussian", "mixture")
    }
    (PAGES / "likelihood.svg").write_text(chart(curves, "steps", even=True))
    lines = ["| data | divergence | " + " | ".join(map(str, STEPS)) + " |", "|---" * (len(STEPS) + 2) + "|"]
    for data, ways in curves.items():
        lines += [f"| {data} | {how} | " + " | ".join(f"{y:.4f}" for _, y in line) + " |" for how, line in ways.items()]
    fill(PAGE, "known", lines)


def write_bits(found: Found) -> None:
    """Put the table of pictures on the page."""
    lines = [
        "| pictures | n | own caption | another's | none | bound, own | the caption explains |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        own, other, none, most = (np.array(found[f"{kind}, {what}"]) for what in (*CAPTIONS, "bound"))
        figures = [mean_and_error(each / 1024, 2) for each in (own, other, none, most)]
        lines.append(
            f"| {kind} | {len(own)} | " + " | ".join([*figures, f"{mean_and_error(none - own, 0)} bits"]) + " |"
        )
    fill(PAGE, "bits", lines)


def write_cost(found: Found) -> None:
    """Put the ratio of processor times on the page."""
    ratios = ", ".join(f"{ratio:.2f}" for ratio in found["cost"])
    fill(
        PAGE,
        "cost",
        [f"Processor time in that of as many evaluations alone, batch of {found['batch']}, two runs: {ratios}."],
    )


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=64, help="of each kind")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=64, help="pictures whose cost is measured together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/science/likelihood"))
    asked = parser.parse_args()
    found, began = Found(asked.output / "found.json"), time.process_time()
    if f"mixture, 4 probes, {STEPS[-1]}" not in found:
        known(found)
    write_known(found)
    if "known" in asked.parts and len(asked.parts) == 1:
        return 0
    pictures, pipe = pictures_of_the_model(), LatentDiffusionPipeline.from_pretrained("emoji", dtype="float32")
    if "cost" in asked.parts:
        if "cost" not in found:
            cost(found, pipe, pictures, batch=asked.batch)
        write_cost(found)
    if "bits" in asked.parts:
        bits(found, pipe, pictures, asked.pictures, asked.steps)
        write_bits(found)
    found["minutes"] = found.values.get("minutes", 0.0) + (time.process_time() - began) / 60
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
