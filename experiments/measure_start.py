"""Measure what it takes to begin: imports, the first picture, the most memory, the size of the package.

    python -m experiments.measure_start [--model FOLDER] [--rounds N] [--json FILE]

FOLDER (default: a temporary one, 4.3 GB, removed at the end) gets a model of SD 1.5's sizes with random float32 weights
in diffusers' layout where it is empty. Every row is a process of its own, from its start until its work is done (the
picture is written), as its parent's clock has it; rows are interleaved (A, B, A, B, ...), one round before the first is
not counted, and seconds are medians. Memory is the most that was ever resident (VmHWM), pages of files included.
Pictures have 64 px and 1 step, but for the bundled model's, which are the command's defaults.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "latent_diffusion"
OURS = """
from latent_diffusion import LatentDiffusionPipeline
pipe = LatentDiffusionPipeline.from_pretrained(FOLDER, device="cpu", dtype=DTYPE)
pipe("a red apple", height=64, width=64, num_inference_steps=1, seed=1).images[0].save(ROOM + "/a.png")
"""
THEIRS = """
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=getattr(torch, DTYPE), local_files_only=True)
pipe.set_progress_bar_config(disable=True)
pipe("a red apple", height=64, width=64, num_inference_steps=1).images[0].save(ROOM + "/a.png")
"""
COMMAND = """
import os, sys, tempfile
from latent_diffusion.cli.main import main
leave = os._exit
os._exit = lambda code: (tell(), leave(code))  # how the command ends
sys.argv[1:] = ["generate", "a red apple", "--seed", "1", "--output", tempfile.mkdtemp(dir=ROOM) + "/"]
main()
"""
PLAIN = OURS.replace("dtype=DTYPE", "dtype=DTYPE, fast=False")  # weights as they lie in the file
TELL = """
def tell():
    import time
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("DONE", time.time(), peak.split()[1], flush=True)
"""
GROUPS = {
    "imports": {
        "import torch": "import torch",
        "import latent_diffusion": "import latent_diffusion",
        "the pipeline's class": "from latent_diffusion import LatentDiffusionPipeline",
        "diffusers' pipeline class": "from diffusers import StableDiffusionPipeline",
        "latent-diffusion --help": "from latent_diffusion.cli.main import main; main(['--help'])",
    },
    "first picture, float32": {"diffusers": THEIRS, "ours": OURS, "ours, fast=False": PLAIN},
    "first picture, bfloat16": {"diffusers": THEIRS, "ours": OURS, "ours, fast=False": PLAIN},
    "bundled model": {"latent-diffusion generate": COMMAND},
}


def make(folder: Path) -> None:
    """Write a model of SD 1.5's sizes with random weights."""
    import torch

    from latent_diffusion.checkpoint.components import Components
    from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
    from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
    from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
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
    save_folder(Components(*networks, text, *read_schedule(sd1.SCHEDULER), sd1.SCHEDULER, "sd1"), folder)


def run(code: str, values: dict[str, str]) -> tuple[float, float]:
    """Return seconds and GiB of a process of its own that runs `code`."""
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + TELL
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + code + "\ntell()"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    if done.returncode:
        sys.exit(done.stderr)
    _, end, peak = next(line for line in done.stdout.splitlines() if line.startswith("DONE")).split()
    return float(end) - start, int(peak) / 2**20


def compare(rows: dict[str, str], values: dict[str, str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Run the rows in turn."""
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "GiB": []} for name in rows}
    for index in range(rounds + 1):
        for name, code in rows.items():
            seconds, peak = run(code, values)
            if index:
                found[name]["seconds"].append(seconds)
                found[name]["GiB"].append(peak)
    return found


def show(title: str, found: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, and how many times faster than the first row each is."""
    print(f"\n{title}", flush=True)
    first = None
    for name, row in found.items():
        middle, low, high = (f(row["seconds"]) for f in (statistics.median, min, max))
        first = first or middle
        spread = f"({low:.2f} to {high:.2f})"
        print(f"  {name:28} {middle:6.2f} s {spread:16} {first / middle:6.2f}x {max(row['GiB']):6.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder of SD 1.5's sizes in float32; made where it is empty")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group alone; again for more")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    size = sum(path.stat().st_size for path in (PACKAGE / "bundled").rglob("*") if path.is_file())
    print(f"package data: {size:,} bytes")
    results: dict[str, object] = {"package data": size}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary) / "sd1"
        wanted = options.only or list(GROUPS)
        if any("first" in group for group in wanted) and not (folder / "model_index.json").exists():
            make(folder)
        for group in wanted:
            dtype = group.rpartition(" ")[2]
            values = {"FOLDER": str(folder), "DTYPE": dtype, "ROOM": temporary}
            results[group] = found = compare(GROUPS[group], values, options.rounds)
            show(group, found)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
