"""Does a bridge draw better in few steps than diffusion that reads the same picture? docs/science/flow.md.

    python -m experiments.science.bridge [BRIDGE] [CHANNELS] [--pictures 150] [--seeds 3] [--output FILE] [--sheet PATH]

Each black and white icon is turned into a 3d render with the render's caption, by models that were trained alike: the
bridge, which starts at the icon's latents, and diffusion from noise that reads them (`partner: channels`). Beside them
stand the icon as it is, the real render through the autoencoder, which none can pass, and the bundled model, which
reads the caption alone. Three sets of pictures: renders that no model was trained on, icons that none was, and pairs of
the training data.

    PSNR     of the drawn picture against the real render, 64 px: mean over pictures and its standard error
    KID      of the drawn pictures against the real renders of the set, with the error of a jackknife over pictures
    Name@1   share of the drawn pictures that a network finds among the real ones by their name

Seeds of one picture are averaged first. The file is filled case by case; a run goes on where it was stopped.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from experiments.science.figures import Found, mean_and_error, save_picture
from experiments.science.pictures import judge, pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.level import Sampler
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.gallery import Gallery
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import Picture
from latent_diffusion.evaluation.reconstruction import psnr
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M

__all__ = ["Case", "Pair", "cases", "draw", "error_of", "left_out", "pairs_of", "table", "versus"]

ICON, RENDER = "fluent-mono", "fluent-3d"
SIDE, BATCH, FOLDS, COLUMNS = 64, 30, 20, 8
FEW, MANY = 5, 15
SAMPLERS: dict[str, Sampler] = {"ddim": DDIM(), "dpmpp_2m": DPMpp2M()}
ICON_ITSELF, RENDER_ITSELF = "the icon, decoded", "the real render, decoded"


class Pair(NamedTuple):
    """An icon and the render of the same thing."""

    icon: Picture
    render: Picture


@dataclass(frozen=True)
class Case:
    """One way to draw."""

    model: str  # "bridge", "channels", "bundled", ICON_ITSELF or RENDER_ITSELF
    sampler: str = ""
    spacing: str = ""
    steps: int = 0
    scale: float = 1.0  # of guidance

    @property
    def name(self) -> str:
        """Key in the result file."""
        how = f", {self.sampler} {self.spacing}, {self.steps} steps, guidance {self.scale:g}" if self.steps else ""
        return self.model + how

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for a picture: twice a step with guidance."""
        return self.steps * (1 if self.scale == 1 else 2)

    @property
    def drawn_of_noise(self) -> bool:
        """Whether another seed gives another picture."""
        return self.model in ("channels", "bundled")


def cases() -> list[Case]:
    """Return what is compared; 1.5 is the bundled model's own guidance."""
    made = [Case(ICON_ITSELF), Case(RENDER_ITSELF)]
    for steps in (FEW, MANY):
        made.append(Case("bridge", "ddim", "trailing", steps))
        ways = (("ddim", "trailing"), ("dpmpp_2m", "trailing"), ("dpmpp_2m", "karras"))
        made += [Case("channels", sampler, spacing, steps) for sampler, spacing in ways]
        made.append(Case("bundled", "dpmpp_2m", "trailing", steps, 1.5))
    return made


def pairs_of(rows: Sequence[Picture], most: int) -> dict[str, list[Pair]]:
    """Return the three sets of pairs, each evenly spaced and of at most `most`."""
    icons = {row.table["name"]: row for row in rows if row.style == ICON}
    sets: dict[str, list[Pair]] = {"new renders": [], "new icons": [], "trained": []}
    for render in rows:
        icon = icons.get(render.table["name"])
        if render.style == RENDER and icon is not None:
            trained = (icon.split == "train", render.split == "train")
            name = "trained" if all(trained) else "new icons" if trained[1] else "new renders"
            sets[name].append(Pair(icon, render))
    return {name: spaced(pairs, most) for name, pairs in sets.items()}


def spaced(pairs: list[Pair], most: int) -> list[Pair]:
    """Return at most `most` of the pairs, evenly spaced."""
    count = min(most, len(pairs))
    return [pairs[k * len(pairs) // count] for k in range(count)]


@torch.no_grad()
def draw(parts: Components, case: Case, icons: Tensor, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1], drawn of icons (B, 3, H, W), B captions and B seeds."""
    start, noise, sampler = parts.autoencoder.to_latents(icons), NoiseSource(list(seeds)), SAMPLERS[case.sampler]
    beside = start if parts.reads_partner else None
    texts = (list(captions), [""] * len(icons))
    prompt, empty = (replace(parts.text_encoder(text), concat=beside) for text in texts)
    denoise = CFG(case.scale).bind(parts.denoiser(parts.unet), prompt, empty)
    visited = levels(
        parts.schedule, case.spacing, case.steps, intervals=sampler.intervals, fractional=sampler.fractional
    )
    x = noise.draw(start.shape[1:]) if case.drawn_of_noise else start
    for step in sampler(denoise, x, visited, noise):
        x = step.x
    return parts.autoencoder.to_images(x).clamp(-1, 1)


@torch.no_grad()
def decoded(parts: Components, images: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1] as the autoencoder gives them back."""
    return parts.autoencoder.to_images(parts.autoencoder.to_latents(images)).clamp(-1, 1)


def drawn(parts: Components, case: Case, icons: Tensor, renders: Tensor, captions: list[str], seed: int) -> Tensor:
    """Return the pictures of a case, (N, 3, H, W), picture k with the seed 1000 `seed` + k."""
    made = list[Tensor]()
    for first in range(0, len(icons), BATCH):
        part = slice(first, first + BATCH)
        if case.model in (ICON_ITSELF, RENDER_ITSELF):
            made.append(decoded(parts, (icons if case.model == ICON_ITSELF else renders)[part]))
        else:
            seeds = [1000 * seed + k for k in range(len(icons))][part]
            made.append(draw(parts, case, icons[part], captions[part], seeds))
    return torch.cat(made)


def left_out(count: int, statistic: Callable[[Tensor], float]) -> list[float]:
    """Return a statistic of `count` pictures, given the numbers of those that are kept, with each fold left out."""
    number, folds = torch.arange(count), min(count, FOLDS)
    return [statistic(number[number % folds != fold]) for fold in range(folds)]


def error_of(values: Sequence[float]) -> float:
    """Return the standard error of the whole from its values with a fold left out (jackknife)."""
    return math.sqrt((len(values) - 1) * statistics.pvariance(values))


def measured(
    network: EfficientNetLite0, gallery: Gallery, pairs: Sequence[Pair], real: Tensor, drawings: Sequence[Tensor]
) -> dict[str, Any]:
    """Return the figures of a case; `real` (N, 3, H, W), and as many drawings for each seed."""
    renders = [pair.render for pair in pairs]
    ratios = torch.stack([psnr(images, real) for images in drawings]).mean(0)
    features = [extract(network, images) for images in drawings]
    heads, real_head = torch.stack([of_seed.head for of_seed in features]), extract(network, real).head

    def distance(kept: Tensor) -> float:
        return kid(heads[:, kept].flatten(0, 1), real_head[kept], kept.repeat(len(heads)), kept)

    assert gallery.retrieval is not None, "the pictures have styles and families"
    shares = [gallery.retrieval.search(of_seed, renders).shares()["name1"] for of_seed in features]
    return {
        "psnr": [round(ratio, 4) for ratio in ratios.tolist()],
        "kid": distance(torch.arange(len(pairs))),
        "kid_left_out": left_out(len(pairs), distance),
        "name1": statistics.mean(shares),
    }


def table(found: Found, keys: dict[tuple[str, Case], str]) -> list[str]:
    """Return the lines of the table; `keys` has the key of each set and case."""
    lines = ["| pictures | model | sampler | evaluations | PSNR, dB | KID | Name@1 |", "|---|---|---|---|---|---|---|"]
    for (name, case), key in keys.items():
        values = found[key]
        how = f"{case.sampler}, {case.spacing} | {case.evaluations}" if case.steps else "|"
        model = case.model if case.scale == 1 else f"{case.model}, guidance {case.scale:g}"
        lines.append(
            f"| {name} ({len(values['psnr'])}) | {model} | {how} | {mean_and_error(values['psnr'], 2)} | "
            f"{values['kid']:.1f} ± {error_of(values['kid_left_out']):.1f} | {values['name1']:.3f} |"
        )
    return lines


def versus(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return how much higher the figures of one case are than those of another on the same pictures, with errors."""
    ratios = [a - b for a, b in zip(one["psnr"], other["psnr"], strict=True)]
    apart = [a - b for a, b in zip(one["kid_left_out"], other["kid_left_out"], strict=True)]
    return f"PSNR {mean_and_error(ratios, 2, '+')} dB, KID {one['kid'] - other['kid']:+.1f} ± {error_of(apart):.1f}"


def sheet(parts: dict[str, Components], icons: Tensor, renders: Tensor, captions: list[str]) -> Image.Image:
    """Return icons, real renders, and what bridge and channels draw in few steps, a row each."""
    ways = [Case(model, "ddim", "trailing", FEW) for model in ("bridge", "channels")]
    rows = [icons, renders, *(drawn(parts[case.model], case, icons, renders, captions, 0) for case in ways)]
    page = Image.new("RGB", (SIDE * len(icons), SIDE * len(rows)), "white")
    for row, images in enumerate(rows):
        for column, image in enumerate(to_pil(images)):
            page.paste(image, (SIDE * column, SIDE * row))
    return page


def main() -> None:
    """Measure what is not in the file yet, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bridge", nargs="?", default="runs/science/bridge/model")
    parser.add_argument("channels", nargs="?", default="runs/science/bridge_channels/model")
    parser.add_argument("--pictures", type=int, default=150, help="at most, of each set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/science/bridge.json"))
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    models = {"bridge": arguments.bridge, "channels": arguments.channels, "bundled": "emoji"}
    parts = {name: LatentDiffusionPipeline.from_pretrained(model, device="cpu", dtype="float32").components
             for name, model in models.items()}  # fmt: skip
    pictures = pictures_of_the_model()
    sets = pairs_of(pictures.rows, arguments.pictures)

    def loaded(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, list[str]]:
        icons, renders = (pictures.load([pair[side] for pair in pairs], SIDE) for side in (0, 1))
        return icons, renders, [pair.render.text for pair in pairs]

    if arguments.sheet is not None:
        save_picture(sheet(parts, *loaded(spaced(sets["new renders"], COLUMNS))), arguments.sheet)
    found, opened = Found(arguments.output), cache(lambda: judge(pictures))
    keys = {
        (name, case): f"{name}, {len(pairs)} pictures, {case.name}, {arguments.seeds} seeds"
        for name, pairs in sets.items()
        for case in cases()
    }
    for (name, case), key in keys.items():
        if key not in found:
            icons, renders, captions = loaded(sets[name])
            seeds = range(arguments.seeds if case.drawn_of_noise else 1)
            images = [drawn(parts.get(case.model, parts["bundled"]), case, icons, renders, captions, k) for k in seeds]
            found[key] = measured(*opened(), sets[name], renders, images)
            print(key, flush=True)
    print("\n".join(table(found, keys)))
    for (name, case), key in keys.items():
        if case.model == "channels":
            ours = found[keys[name, Case("bridge", "ddim", "trailing", case.steps)]]
            print(f"{name}: bridge less {case.name}: {versus(ours, found[key])}")


if __name__ == "__main__":
    main()
