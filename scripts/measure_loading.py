"""Measure the most memory that loading a model of SD 1.5's size takes, in a process of its own.

    python scripts/measure_loading.py [FOLDER]

FOLDER (default: a temporary one, 4.3 GB, removed at the end) gets random float32 weights in diffusers' layout where it
is empty. Printed are peak resident memory (VmHWM) and seconds of: nothing loaded, the folder in bfloat16, the pipeline
with a bfloat16 U-Net and float32 small parts, and the same model as one file in bfloat16.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "imports alone": "",
    "folder, all parts bfloat16": "parts = load_model(folder, torch.bfloat16)",
    "pipeline, U-Net bfloat16": "pipe = LatentDiffusionPipeline.from_pretrained(folder, dtype='bfloat16')",
    "one file, all parts bfloat16": "parts = load_model(folder + '/one.safetensors', torch.bfloat16)",
}
CHILD = """
import sys, time, torch
from transformers import CLIPTextModel, CLIPTokenizer
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.load import load_model
folder = sys.argv[1]
start = time.perf_counter()
{action}
seconds = time.perf_counter() - start
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(f"{{int(peak.split()[1]) / 2**20:.2f}} GiB, {{seconds:.1f}} s")
"""


def make(folder: Path) -> None:
    """Write a model of SD 1.5's sizes with random weights."""
    import torch

    from latent_diffusion.checkpoint.components import Components
    from latent_diffusion.checkpoint.diffusers_folder import save_folder
    from latent_diffusion.checkpoint.scheduler_config import read_schedule
    from latent_diffusion.checkpoint.single_file import save_single_file
    from latent_diffusion.checkpoint.vocabulary import clip_vocabulary
    from latent_diffusion.families import sd1
    from latent_diffusion.models.autoencoder import AutoencoderKL
    from latent_diffusion.models.text_encoder import TextEncoder
    from latent_diffusion.models.unet import UNet

    with torch.device("meta"):
        networks = [UNet(sd1.UNET), AutoencoderKL(sd1.AUTOENCODER)]
    for network in networks:
        network.to_empty(device="cpu")
        for weight in network.parameters():
            weight.data.normal_(std=0.02)
    tokenizer = clip_vocabulary(sd1.TEXT[0].pad_token)
    text = TextEncoder(sd1.TEXT[0].build(tokenizer), tokenizer)
    parts = Components(*networks, text, *read_schedule(sd1.SCHEDULER), sd1.SCHEDULER, "sd1")
    save_folder(parts, folder)
    save_single_file(parts, folder / "one.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if not (folder / "one.safetensors").exists():
            start = time.perf_counter()
            made = [
                sys.executable,
                "-c",
                f"import runpy; runpy.run_path({__file__!r})['make'](__import__('pathlib').Path({str(folder)!r}))",
            ]
            subprocess.run(made, check=True)
            print(f"made in {time.perf_counter() - start:.0f} s")
        for name, action in CASES.items():
            result = subprocess.run(
                [sys.executable, "-c", CHILD.format(action=action), str(folder)],
                check=True,
                capture_output=True,
                text=True,
            )
            print(f"{name}: {result.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
