"""Does a classifier of noisy latents guide drawing without any text? docs/science/classifier.md.

    python -m experiments.science.classifier [--pictures 96] [--noisy FOLDER] [--clean FOLDER] [--output FOLDER]

Three parts. The share of right styles and groups on held-out pictures, at eleven noise levels, for a classifier that
was trained at all levels and for one that was trained on nearly clean latents. The empty prompt, drawn by the bundled
model at scale 1 and guided to each of three styles at growing scales: which style another network sees, how far the
pictures are from real ones (EffLite-KID x1000) and from each other (mean 1 - cosine of features within a style). Names
without a style under classifier-free guidance, with and without the classifier.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.judge_prompts import STYLES, Asked, questions
from experiments.science.figures import PAGES, Found, chart, fill, save_picture
from experiments.science.pictures import judge, pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.folder.classifier_folder import load_classifier
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.gallery import Gallery
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import Picture, RealPictures
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0
from latent_diffusion.randomness import normal

PAGE = PAGES / "classifier.md"
TIMES = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
KINDS = {"trained at all levels": "noisy", "trained on clean latents": "clean"}
CONTROL = 4.0  # the scale at which the classifier of clean latents guides
BATCH = 24


def accuracy(found: Found, folder: str, kind: str, pipe: LatentDiffusionPipeline, pictures: RealPictures) -> None:
    """Measure the share of right classes of held-out pictures at each noise level, three draws of noise each."""
    network, schedule = load_classifier(folder).network, pipe.components.schedule
    classes = network.config.fields
    rows = [row for row in pictures.rows if row.split in ("val", "test_comp")]
    rows = [row for row in rows if all(str(row.table[field]) in known for field, known in classes.items())]
    x0 = torch.cat(
        [pipe.components.autoencoder.to_latents(pictures.load(rows[k : k + 16], 64)) for k in range(0, len(rows), 16)]
    ).float()
    for field in classes:
        own = torch.tensor([classes[field].index(str(row.table[field])) for row in rows])
        for t in TIMES:
            level, shares = schedule.level(t), list[float]()
            for seed in range(3):
                noise = normal(seed, f"classified {t}", range(len(rows)), x0.shape[1:])
                x = add_noise(x0, noise, level.alpha, level.sigma)
                seen = network(x, torch.full((len(x),), float(t)))[field].argmax(dim=1)
                shares.append(float((seen == own).float().mean()))
            found[f"{kind}, {field}, {t}"] = shares


def draw(pipe: LatentDiffusionPipeline, prompts: Sequence[str], guidance: Sequence[str], scale: float) -> Tensor:
    """Return pictures (B, 3, 64, 64) in [-1, 1]; prompt k has seed k."""
    parts = list[Tensor]()
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        seeds = list(range(len(prompts)))[part]
        out = pipe(
            list(prompts[part]), seed=seeds, guidance=list(guidance) or None, guidance_scale=scale, output_type="pt",
            rewrite=False,
        )  # fmt: skip
        assert isinstance(out.images, Tensor), 'output_type "pt" gives a tensor'
        parts.append(out.images * 2 - 1)
    return torch.cat(parts)


def drawn(
    pipe: LatentDiffusionPipeline, asked: Sequence[Asked], count: int, folders: dict[str, str], output: Path
) -> None:
    """Draw what is not drawn yet, as .npy files of bytes."""
    cases = {f"empty, {style}, {scale:g}": ("noisy", style, scale) for scale in SCALES for style in STYLES}
    cases |= {f"empty, {style}, clean": ("clean", style, CONTROL) for style in STYLES}
    cases |= {f"named, {style}, {scale:g}": ("noisy", style, scale) for scale in (0.0, CONTROL) for style in STYLES}
    for label, (kind, style, scale) in cases.items():
        if label.startswith("named") and not asked:
            continue
        file = output / f"{label}.npy"
        if file.exists():
            continue
        texts = [f"classifier:model={folders[kind]},label={style},scale={scale:g}"] if scale else []
        named = label.startswith("named")
        prompts = [one.name for one in asked] if named else [""] * (count // len(STYLES))
        images = draw(pipe, prompts, texts, 1.5 if named else 1.0)
        np.save(file, ((images + 1) * 127.5).round().byte().numpy())


def judged(found: Found, asked: Sequence[Asked], network: EfficientNetLite0, gallery: Gallery, output: Path) -> None:
    """Judge the drawn pictures: style, name, distance from real pictures of the style, distance from each other."""
    assert gallery.retrieval is not None
    by_concept = {(row.family, row.style): row for row in gallery.pictures.rows}
    for style in STYLES:
        real = [row for row in gallery.pictures.rows if row.style == style and row.split == "train"]
        true = gallery.features_of(real)
        for file in sorted(output.glob(f"*, {style}, *.npy")):
            if file.stem in found:
                continue
            features = extract(network, torch.from_numpy(np.load(file)).float() / 127.5 - 1)
            rows: list[Picture] = [real[0]] * len(features)
            if file.stem.startswith("named"):
                rows = [by_concept[one.picture.family, style] for one in asked]
            hits, unit = gallery.retrieval.search(features, rows), F.normalize(features.head)
            others = 1 - (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
            found[file.stem] = {
                "style": hits.style.float().tolist(),
                "name1": hits.name1.float().tolist(),
                "kid": kid(features.head, true.head),
                "diversity": float(others.mean()),
            }
    if "real diversity" not in found:
        values = list[float]()
        for style in STYLES:
            real = [row for row in gallery.pictures.rows if row.style == style and row.split == "train"][::20]
            unit = F.normalize(gallery.features_of(real).head)
            values.append(float((1 - (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]).mean()))
        found["real diversity"] = float(np.mean(values))


def write(found: Found, asked: Sequence[Asked], output: Path) -> None:
    """Put tables, chart and pictures on the page."""
    panels = {
        field: {
            kind: [(t, float(np.mean(found[f"{name}, {field}, {t}"]))) for t in TIMES] for kind, name in KINDS.items()
        }
        for field in ("style", "group")
    }
    (PAGES / "classifier.svg").write_text(chart(panels, "time, of 999"))
    lines = ["| classifier | field | " + " | ".join(map(str, TIMES)) + " |", "|---" * (len(TIMES) + 2) + "|"]
    for field, curves in panels.items():
        lines += [
            f"| {kind} | {field} | " + " | ".join(f"{y:.2f}" for _, y in line) + " |" for kind, line in curves.items()
        ]
    fill(PAGE, "accuracy", lines)
    lines = ["| scale | Style | by style | EffLite-KID x1000 | diversity |", "|---|---|---|---|---|"]
    for scale in (*(f"{scale:g}" for scale in SCALES), "clean"):
        each = [found[f"empty, {style}, {scale}"] for style in STYLES]
        name = f"{CONTROL:g}, by the classifier of clean latents" if scale == "clean" else scale
        kids, apart = (np.mean([one[kind] for one in each]) for kind in ("kid", "diversity"))
        lines.append(f"| {name} | {_styles(each)} | {kids:.0f} | {apart:.2f} |")
    lines.append(f"| real pictures | | | | {found['real diversity']:.2f} |")
    fill(PAGE, "empty prompt", lines)
    if asked:
        lines = ["| names without a style, guidance 1.5 | Style | by style | Name@1 |", "|---|---|---|---|"]
        for scale, name in (("0", "alone"), (f"{CONTROL:g}", f"and the classifier, scale {CONTROL:g}")):
            each = [found[f"named, {style}, {scale}"] for style in STYLES]
            named = np.mean([np.mean(one["name1"]) for one in each])
            lines.append(f"| {name} | {_styles(each)} | {named:.2f} |")
        fill(PAGE, "named", lines)
    rows = (*(f"{scale:g}" for scale in SCALES), "clean")
    columns = list[Column]()
    for style in STYLES:
        sheets = [np.load(output / f"empty, {style}, {row}.npy") for row in rows]
        for k in range(min(4, len(sheets[0]))):
            shown = [to_pil(torch.from_numpy(sheet[k : k + 1]).float() / 127.5 - 1)[0] for sheet in sheets]
            columns.append(Column(style, None, shown))
    save_picture(draw_grid(columns, per_row=12, cell=64), PAGES / "classifier.webp")


def _styles(each: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """Return two cells: the share of right styles, and the same by style."""
    shares = [float(np.mean(one["style"])) for one in each]
    return f"{np.mean(shares):.2f} | {', '.join(f'{share:.2f}' for share in shares)}"


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=96, help="of the empty prompt at each scale")
    parser.add_argument("--names", type=int, default=32, help="prompts of the last part")
    parser.add_argument("--judge-every", type=int, default=1, help="fit the judge on every so many-th real picture")
    parser.add_argument("--noisy", default="runs/science/classifier/model")
    parser.add_argument("--clean", default="runs/science/classifier-clean/model")
    parser.add_argument("--output", type=Path, default=Path("runs/science/classifier-figures"))
    given = parser.parse_args()
    found, began = Found(given.output / "found.json"), time.process_time()
    pictures, pipe = pictures_of_the_model(), LatentDiffusionPipeline.from_pretrained("emoji", dtype="float32")
    asked = questions(pictures, "emoji", "train", given.names)
    folders = {"noisy": given.noisy, "clean": given.clean}
    for kind, folder in folders.items():
        if f"{kind}, group, {TIMES[-1]}" not in found:
            with torch.no_grad():
                accuracy(found, folder, kind, pipe, pictures)
    drawn(pipe, asked, given.pictures, folders, given.output)
    with torch.no_grad():
        some = replace(pictures, rows=pictures.rows[:: given.judge_every])
        judged(found, asked, *judge(some), given.output)
    found["minutes"] = found.values.get("minutes", 0.0) + (time.process_time() - began) / 60
    write(found, asked, given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
