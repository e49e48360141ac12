"""Measure what mapping saves: memory of a process that has loaded Stable Diffusion 1's autoencoder (random weights).

    python -m benchmarks.loading

Each way is a process of its own: weights mapped one by one, as they are; read into memory of their own; and fetched by
safetensors' `safe_open`, which maps the file as a whole. "after loading" is what is resident (VmRSS) when the model is
there, checked and unused, "peak" the most there was (VmHWM), both less what the process held before.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from latent_diffusion.checkpoint.files import safetensors_file
from latent_diffusion.checkpoint.files.weights import Stored
from latent_diffusion.checkpoint.folder import network_weights
from latent_diffusion.checkpoint.folder.diffusers_folder import load_autoencoder, save_autoencoder
from latent_diffusion.families import sd1
from latent_diffusion.models.autoencoder import AutoencoderKL

__all__ = ["main"]


def main() -> None:
    """Write the weights, load them in each way and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        save_autoencoder(AutoencoderKL(sd1.AUTOENCODER), folder)
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
        print(f"| {size:.0f} MiB of float32 weights | after loading, MiB | peak, MiB |\n|---|---|---|")
        for way in ("mapped", "read", "safe_open"):
            command = [sys.executable, "-m", "benchmarks.loading", way, folder]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"| {way} | {found['VmRSS']:.0f} | {found['VmHWM']:.0f} |")


def load(way: str, folder: str) -> None:
    """Load in this process and print the growth of its memory."""
    if way == "read":
        safetensors_file.map_piece = lambda *place: None
    if way == "safe_open":
        network_weights.open_tensors = fetched_by_safetensors
    load_autoencoder(Path(__file__).parent.parent / "latent_diffusion" / "bundled" / "emoji" / "vae")  # imports
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = memory()
    model = load_autoencoder(folder, torch.float32)
    after = memory()
    assert next(model.parameters()).dtype == torch.float32
    print(json.dumps({name: after[name] - before[name] for name in after}))


def fetched_by_safetensors(file: Path) -> dict[str, Stored]:
    """Return the tensors of a file, each fetched by the library."""
    opened: Any = safe_open(file, "pt")
    names = opened.keys()
    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    return {
        name: Stored(shapes[name], torch.float32, lambda n=name: opened.get_tensor(n), mapped=True) for name in names
    }


def memory() -> dict[str, float]:
    """Return what is resident of this process now and at most, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


if __name__ == "__main__":
    load(*sys.argv[1:]) if len(sys.argv) > 1 else main()
