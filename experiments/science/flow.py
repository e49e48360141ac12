"""How straight are a model's paths, and how well does it draw in one, two and four steps? docs/science/flow.md.

    python -m experiments.science.flow [REFLOWED] [--only straightness|quality] [--prompts 150] [--output FOLDER]

Straightness: the mean over the path of the squared deviation of the velocity from the chord, of eight prompts, 60 steps
of Euler, with and without guidance. Quality: the judge of `few_steps.py`, with DDIM, whose step is Euler's on the line.
"""

import argparse
from pathlib import Path

import torch

from experiments.science.few_steps import SHOWN, Case, judge, table
from experiments.science.figures import Found
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.diffusion.straight import straightness
from latent_diffusion.guidance.cfg import CFG

SCALES = (1.0, 1.5)
FINE = 60
STEPS = (1, 2, 4)


@torch.no_grad()
def measure(pipe: LatentDiffusionPipeline, scale: float) -> list[float]:
    """Return the straightness of the path of each prompt, from the noise of seeds 0 .. 7."""
    parts = pipe.components
    prompt, empty = (parts.text_encoder(texts) for texts in (list(SHOWN), [""] * len(SHOWN)))
    denoise = CFG(scale).bind(parts.denoiser(parts.unet), prompt, empty)
    side = parts.unet.config.sample_size
    x = NoiseSource(list(range(len(SHOWN)))).draw((parts.autoencoder.config.latent_channels, side, side))
    return straightness(denoise, x, levels(parts.schedule, "linspace", FINE)).tolist()


def main() -> None:
    """Measure, keep what is found and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("reflowed", nargs="?")
    parser.add_argument("--only", choices=("straightness", "quality"))
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/science/flow"))
    arguments = parser.parse_args()
    names = {"teacher": "emoji"} | ({} if arguments.reflowed is None else {"student": arguments.reflowed})
    pipes = {name: LatentDiffusionPipeline.from_pretrained(model, dtype="float32") for name, model in names.items()}
    if arguments.only != "quality":
        found = Found(arguments.output / "straightness.json")
        print("| model | guidance scale | straightness |\n|---|---|---|")
        for name, pipe in pipes.items():
            for scale in SCALES:
                if f"{name} {scale}" not in found:
                    found[f"{name} {scale}"] = measure(pipe, scale)
                values = torch.tensor(found[f"{name} {scale}"])
                print(f"| {name} | {scale:g} | {values.mean():.4f} ± {values.std():.4f} |", flush=True)
    if arguments.only != "straightness":
        wanted = [Case(name, "ddim", "trailing", steps) for steps in STEPS for name in pipes]
        scores = judge(pipes, wanted, arguments.prompts, arguments.seeds, arguments.output / "quality.json")
        print("\n".join(table(scores, wanted, arguments.seeds)))


if __name__ == "__main__":
    main()
