"""Which recipe learns most from the same number of samples? One change at a time, from scratch, on a small part.

    python -m experiments.compare_recipes [ROW ...] [--output docs/bundled-recipes.json] [--commands | --table]

Every row trains `configs/emoji/study/unet.yaml` (or `autoencoder.yaml`) with a few values changed, then draws the
prompts of all its training pictures six times and judges them as `latent-diffusion evaluate` does; rows that only draw
take the bundled model as it is. A row found in OUTPUT is not run again, so that the study can be interrupted.
`--commands` prints each row's training command, `--table` what is found so far, for a page; neither runs anything. Rows
of OUTPUT can be compared with each other and nothing else.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.folder.diffusers_folder import load_autoencoder
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.evaluation.drawn import draw, score_drawings
from latent_diffusion.evaluation.gallery import Gallery, build_gallery
from latent_diffusion.evaluation.pictures import Picture, read_pictures, select
from latent_diffusion.evaluation.reconstruction import score_reconstruction
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0
from latent_diffusion.randomness import permutation

ROOT = Path(__file__).parent.parent
DATA = ROOT / "assets" / "emoji-128.zip"
UNET, AUTOENCODER = "configs/emoji/study/unet.yaml", "configs/emoji/study/autoencoder.yaml"
SHIPPED = "emoji"


@dataclass(frozen=True)
class Row:
    """One choice: the values of `config` that differ, and how the model draws (the pipeline's options)."""

    changes: str = ""
    config: str | None = UNET  # None: nothing is trained, the bundled model draws
    drawing: Mapping[str, Any] = field(default_factory=dict)


DRAWING = {"sampler": "ddim", "spacing": "trailing", "num_inference_steps": 12}
"""How the study's own models draw: quick, and possible with every noise schedule of the rows."""

NOISE = "objective.scheduler."
ROWS = {
    "baseline": Row(),
    "seed-1": Row("seed=1"),
    "epsilon": Row(f"{NOISE}prediction_type=epsilon"),
    "v-unweighted": Row("objective.weighting=simple"),
    "zero-snr": Row(f"{NOISE}rescale_betas_zero_snr=true"),
    "less-noise": Row(f"{NOISE}beta_end=0.006 {NOISE}rescale_betas_zero_snr=true"),
    "more-noise": Row(f"{NOISE}beta_end=0.024"),
    "cosine": Row(f"{NOISE}beta_schedule=squaredcos_cap_v2"),
    "heads-8": Row("objective.unet.num_attention_heads=[8,8,8]"),
    "dropout-0": Row("data.caption_dropout=0"),
    "dropout-0.2": Row("data.caption_dropout=0.2"),
    "captions-text": Row("data.captions=[text]"),
    "captions-name": Row("data.captions=[text,text,text,text_alt,text_alt,name]"),
    "average-none": Row("ema.decay=0"),
    "average-short": Row("ema.warmup=50"),
    "average-long": Row("ema.warmup=4"),
    "batch-32": Row("batch_size=32 steps=320 warmup=25"),
    "rate-half": Row("optimizer.learning_rate=4e-4"),
    "f4c4": Row(config=AUTOENCODER),
    "f4c8": Row("objective.model.latent_channels=8", AUTOENCODER),
    "f8c4": Row("objective.model.block_out_channels=[32,64,128,128]", AUTOENCODER),
    "f8c16": Row("objective.model.block_out_channels=[32,64,128,128] objective.model.latent_channels=16", AUTOENCODER),
    **{f"guidance-{scale}": Row(config=None, drawing={"guidance_scale": scale}) for scale in (1.0, 1.5, 2.0, 3.0)},
    **{
        f"guidance-{scale}-from-{start}-to-{stop}": Row(
            config=None, drawing={"guidance_scale": scale, "guidance_interval": (start, stop)}
        )
        for scale, start, stop in ((2.0, 0.2, 0.8), (3.0, 0.2, 0.8), (1.5, 0.0, 0.5), (3.0, 0.5, 1.0))
    },
}


def command(name: str) -> list[str]:
    """Return the arguments that train a row, to be run from the repository's root."""
    row = ROWS[name]
    assert row.config is not None, "a row that only draws trains nothing"
    return ["-m", "latent_diffusion.train", row.config, f"output=runs/study/{name}", *row.changes.split()]


def train(name: str) -> None:
    """Train a row, or continue with it."""
    subprocess.run([sys.executable, *command(name)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


class Judge:
    """The real pictures and the network that looks at them, measured once for all rows."""

    def __init__(self) -> None:
        self.pictures, self.network = read_pictures(DATA), load_efficientnet_lite0()
        self.held: Gallery | None = None

    def drawings(self, model: str, drawing: Mapping[str, Any], split: str, most: int, each: int) -> dict[str, float]:
        """Return the scores of `each` pictures of `most` prompts of `split`, of what the model was trained on."""
        self.held = self.held or build_gallery(self.network, self.pictures)
        pipe = LatentDiffusionPipeline.from_pretrained(model)
        chosen = select(self.pictures.rows, read_trained_on(locate_model(model)).where)
        asked = _some([row for row in chosen if row.split == split], most)

        def generate(texts: list[str], seeds: list[int]) -> torch.Tensor:
            images = pipe(texts, seed=seeds, output_type="pt", **drawing).images
            assert isinstance(images, torch.Tensor), 'output_type "pt" gives a tensor'
            return images * 2 - 1

        drawings = draw(generate, asked, each, 0, 32)
        score = score_drawings(self.network, self.held, drawings, None)
        assert score.kid is not None, "more than one prompt gives a distance"
        real = self.pictures.load(asked, drawings.images.shape[-1]).repeat_interleave(each, 0)
        error = (drawings.images - real).mul(127.5).square().flatten(1).mean(1).sqrt().mean()
        return {**score.scores, "kid": score.kid, "error": float(error)}

    def autoencoder(self, folder: Path) -> dict[str, float]:
        """Return PSNR and rKID of held-out pictures of the kind the study's autoencoders saw."""
        held_out = select(self.pictures.rows, read_trained_on(folder).where)
        rows = [row for row in held_out if row.split != "train"]
        model = load_autoencoder(folder / "vae").eval()

        @torch.no_grad()
        def reconstruct(images: torch.Tensor) -> torch.Tensor:
            return model.to_images(model.to_latents(images))

        score = score_reconstruction(self.network, reconstruct, self.pictures, rows, 64)
        return {"psnr": score.psnr, "rkid": score.rkid}


def _some(rows: list[Picture], most: int) -> list[Picture]:
    return [rows[k] for k in permutation(0, "evaluation prompts", 0, len(rows))[:most]]


def measure(name: str, judge: Judge) -> dict[str, Any]:
    """Train and judge one row."""
    row = ROWS[name]
    found: dict[str, Any] = {"row": name, "changes": row.changes, **row.drawing}
    if row.config is None:
        return found | {split: judge.drawings(SHIPPED, row.drawing, split, 48, 1) for split in ("train", "test_comp")}
    train(name)
    model = ROOT / "runs" / "study" / name / "model"
    if row.config == AUTOENCODER:
        return found | judge.autoencoder(model)
    return found | {"train": judge.drawings(str(model), DRAWING, "train", 24, 6)}


def table(found: list[dict[str, Any]]) -> str:
    """Return the trained U-Nets, the ways to draw and the autoencoders as Markdown, one table after the other."""
    trained = ["| row | changed | Name@1 | Style | Joint@1 | KID x1000 | error |", "|---|---|---|---|---|---|---|"]
    drawn = [
        "| guidance | of the steps | seen: Name@1 | Style | KID x1000 | never seen: Name@1 | Style | KID x1000 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rebuilt = ["| row | changed | PSNR, dB | rKID x1000 |", "|---|---|---|---|"]
    for row in found:
        head = f"| {row['row']} | {'`' + row['changes'] + '`' if row['changes'] else ''} |"
        if "psnr" in row:
            rebuilt.append(f"{head} {row['psnr']:.1f} | {row['rkid']:.0f} |")
        elif "test_comp" in row:
            start, stop = row.get("guidance_interval", (0, 1))
            cells = [_cells(row[split], ("name1", "style")) for split in ("train", "test_comp")]
            drawn.append(f"| {row['guidance_scale']:g} | {start:g} to {stop:g} | {' '.join(cells)}")
        else:
            scores = _cells(row["train"], ("name1", "style", "joint1"))
            trained.append(f"{head} {scores} {row['train']['error']:.1f} |")
    return "\n\n".join("\n".join(lines) for lines in (trained, drawn, rebuilt) if len(lines) > 2)


def _cells(scores: dict[str, float], shares: tuple[str, ...]) -> str:
    return " ".join(f"{scores[name]:.3f} |" for name in shares) + f" {scores['kid']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "bundled-recipes.json")
    parser.add_argument("--commands", action="store_true", help="print the training commands and run nothing")
    parser.add_argument("--table", action="store_true", help="print what OUTPUT holds as Markdown and run nothing")
    arguments = parser.parse_args()
    names = arguments.rows or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if arguments.commands:
        print("\n".join(" ".join(["python", *command(name)]) for name in names if ROWS[name].config))
        return
    found = json.loads(arguments.output.read_text()) if arguments.output.is_file() else []
    if arguments.table:
        print(table(found))
        return
    judge = Judge()
    for name in names:
        if all(row["row"] != name for row in found):
            found.append(measure(name, judge))
            lines = ",\n ".join(json.dumps(row) for row in found)
            arguments.output.write_text(f"[\n {lines}\n]\n")
            print(json.dumps(found[-1]), flush=True)


if __name__ == "__main__":
    main()
