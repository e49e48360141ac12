"""Peak memory and speed of training by setting and family: the table of docs/training-memory.md.

Each row is a whole run in a process of its own: the model is read, pictures are encoded, a few updates are made, the
result is written and read back. Weights are random; they and the pictures are made once for each family. On a CPU the
peak is that of the process, and the host's memory is the device's; on a GPU it is the allocator's.

    python scripts/measure_training_memory.py tiny 64
    python scripts/measure_training_memory.py sd1 256 --json sd1.json
    python scripts/measure_training_memory.py sdxl 512 plain everything
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
UPDATES = 4
EVERYTHING = ("gradient_checkpointing=true", "memory.drop_encoders=true", "memory.base=nf4", "memory.base_on_host=true")
ROWS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "gradient_checkpointing": ("gradient_checkpointing=true",),
    "memory.drop_encoders": ("memory.drop_encoders=true",),
    "memory.base: float8": ("memory.base=float8",),
    "memory.base: int8": ("memory.base=int8",),
    "memory.base: nf4": ("memory.base=nf4",),
    "memory.base_on_host": ("memory.base_on_host=true",),
    "everything": EVERYTHING,
}
MODEL = """
import torch
from benchmarks.model import ALL, open_model
from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
save_folder(open_model({family!r}).build(ALL, torch.float16), {folder!r}, torch.float16)
"""


def main() -> int:
    """Measure the rows that are asked for and print them as a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("family", help="sd1, sdxl or another family of the package; tiny takes seconds")
    parser.add_argument("size", type=int, help="side of the pictures in px")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all by default")
    parser.add_argument("--precision", default="bfloat16", help="of the runs")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--timeout", type=int, default=900, help="seconds of one run")
    asked = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = prepare(Path(folder), asked.family, asked.size, asked.precision)
        what = f"{asked.family}, {asked.size} px, {asked.precision}"
        print(f"| {what} | peak GiB | of plain | pictures/s |\n|---|---|---|---|")
        for name in asked.rows or ROWS:
            row = found[name] = measure(config, Path(folder) / "run" / str(len(found)), ROWS[name], asked.timeout)
            share = row["peak"] / found.get("plain", row)["peak"]
            print(f"| {name} | {row['peak']:.2f} | {share:.2f} | {row['speed']:.3g} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"family": asked.family, "size": asked.size, "rows": found}, indent=1) + "\n")
    return 0


def prepare(folder: Path, family: str, size: int, precision: str) -> Path:
    """Make the model and two pictures; return the configuration."""
    model, pictures = folder / "model", folder / "pictures"
    subprocess.run([sys.executable, "-c", MODEL.format(family=family, folder=str(model))], check=True, cwd=ROOT)
    pictures.mkdir()
    for k in range(2):
        values = np.random.default_rng(k).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{k}.png")
        (pictures / f"{k}.txt").write_text(f"a picture of the subject, number {k}")
    run = {
        "output": "unused", "steps": UPDATES, "batch_size": 1, "precision": precision, "log_every": 1,
        "objective": {"name": "lora", "init": str(model), "adapter": {"rank": 16}},
        "data": {"path": str(pictures), "size": size}, "trackers": [],
    }  # fmt: skip
    config = folder / "run.yaml"
    config.write_text(json.dumps(run))
    return config


def measure(config: Path, output: Path, overrides: tuple[str, ...], timeout: int) -> dict[str, float]:
    """Run one training; return its peak in GiB and the pictures a second of its last updates.

    Raises:
        RuntimeError: it failed.
    """
    command = ["-m", "latent_diffusion.train", str(config), f"output={output}", *overrides]
    code = "import sys; from latent_diffusion.train import main; code = main(sys.argv[1:])\n" + PEAK
    started = subprocess.Popen([sys.executable, "-c", code, *command[2:]], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        printed, _ = started.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        started.kill()
        raise RuntimeError(f"{' '.join(overrides) or 'plain'}: no end after {timeout} s") from None
    if started.returncode:
        raise RuntimeError(f"{' '.join(overrides) or 'plain'}: exit code {started.returncode}")
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return {"peak": float(printed.split()[-1]), "speed": max(speeds[1:])}


PEAK = """
import resource, torch
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(f"\\n{(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak) / 2**30:.3f}")
sys.exit(code)
"""
"""What a run prints at its end: the peak in GiB."""

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
