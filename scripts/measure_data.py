"""Measure how sources grow with their rows, how fast pictures are decoded, and how long training waits for them.

    python scripts/measure_data.py growth FOLDER [ROWS ...]      seconds to open, MB above an empty process, row access
    python scripts/measure_data.py speed FOLDER [PICTURES]       pictures a second beside diffusers' scripts
    python scripts/measure_data.py wait FOLDER [UPDATES [MODEL]] share of training that waits for 12-megapixel JPEGs

FOLDER is filled with made-up pictures and may be removed afterwards.
"""

import io
import json
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

OPEN = """
import sys, time, psutil, numpy as np
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
if sys.argv[1].endswith(".parquet"):
    import pyarrow.parquet
process = psutil.Process()
empty, start, spent = process.memory_info().rss, time.perf_counter(), time.process_time()
data = ImageFolder(DataConfig(path=sys.argv[1], size=16, check="none"), 0)
opened, spent = time.perf_counter() - start, time.process_time() - spent
data.sample(0)
start = time.perf_counter()
for number in range(1, 201):
    data.sample(number)
each = (time.perf_counter() - start) / 200
print(f"{len(data):>9} rows: {opened:6.2f} s to open ({spent:.2f} s of processor time), "
      f"{(process.memory_info().rss - empty) / 1e6:6.0f} MB, "
      f"{each * 1e3:6.2f} ms a sample")
"""


def growth(folder: Path, counts: list[int]) -> None:
    """Write tars and parquet files of `counts` rows, and open each in a process of its own."""
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "PNG")
    picture = stream.getvalue()
    for count in counts:
        tar, parquet = folder / f"{count}.tar", folder / f"{count}.parquet"
        with tarfile.open(tar, "w") as archive:
            for k in range(count):
                for ending, data in (("png", picture), ("txt", f"picture {k}".encode())):
                    member = tarfile.TarInfo(f"{k:08}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        schema = pyarrow.schema([("image", pyarrow.binary()), ("text", pyarrow.string())])
        with pyarrow.parquet.ParquetWriter(parquet, schema) as writer:
            for start in range(0, count, 1000):
                rows = range(start, min(start + 1000, count))
                columns = [[picture] * len(rows), [f"picture {k}" for k in rows]]
                writer.write_table(pyarrow.table(columns, schema=schema))
        for file in (tar, parquet):
            print(file.suffix[1:], end=" ", flush=True)
            subprocess.run([sys.executable, "-c", OPEN, str(file)], check=True)


def photographs(folder: Path, count: int) -> list[Path]:
    """Write 12-megapixel JPEGs with their captions."""
    draw = np.random.default_rng(0)
    files = [folder / f"{k}.jpg" for k in range(count)]
    for k, file in enumerate(files):
        rough = Image.fromarray(draw.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        pixels = np.asarray(rough.resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.float32)
        pixels += draw.normal(0, 3, (3000, 4000, 1))  # grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        file.with_suffix(".txt").write_text(f"photograph {k}")
    return files


MODEL = """
import sys, torch
from benchmarks.model import ALL, open_model
from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
save_folder(open_model(sys.argv[1]).build(ALL, torch.float32), sys.argv[2], torch.float32)
"""


def wait(folder: Path, updates: int, family: str) -> None:
    """Train a U-Net with random weights on 12-megapixel JPEGs that are decoded in every update, by two workers."""
    root = Path(__file__).parents[1]
    pictures, model, output = folder / "pictures", folder / "model", folder / "run"
    pictures.mkdir(exist_ok=True)
    photographs(pictures, 16)
    if not (model / "model_index.json").exists():
        subprocess.run([sys.executable, "-c", MODEL, family, str(model)], check=True, cwd=root)
    for decode in ("exact", "fast"):
        run = {
            "output": str(output / decode), "steps": updates, "batch_size": 2, "log_every": 1, "trackers": [],
            "objective": {"name": "unet", "init": str(model), "workers": 2},
            "data": {"path": str(pictures), "size": 512, "check": "none", "fit": "random_crop", "decode": decode},
        }  # fmt: skip
        config = folder / f"{decode}.yaml"
        config.write_text(json.dumps(run))
        subprocess.run([sys.executable, "-m", "latent_diffusion.train", str(config)], check=True, cwd=root)
        lines = [json.loads(line) for line in (output / decode / "log.jsonl").read_text().splitlines()]
        shares = [line["time/data"] for line in lines if "time/data" in line][1:]
        speeds = [line["images_per_second"] for line in lines if "images_per_second" in line][1:]
        print(
            f"{decode}: {100 * np.mean(shares):.2f} % of {len(shares)} updates after the first is waiting for data "
            f"(most in one: {100 * max(shares):.2f} %), {np.mean(speeds):.2f} pictures/s",
            flush=True,
        )


def speed(folder: Path, count: int) -> None:
    """Decode 12-megapixel JPEGs to 512 px with two threads, in turn with the transforms of diffusers' scripts."""
    from torchvision import transforms

    from latent_diffusion.data.pictures.fitting import fit, reduction
    from latent_diffusion.data.pictures.images import decode_image, to_tensor

    size = (512, 512)
    files = photographs(folder, count)
    script = transforms.Compose(
        [
            transforms.Resize(512, transforms.InterpolationMode.LANCZOS),
            transforms.CenterCrop(512),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )

    def here(file: Path, divisor: int) -> np.ndarray:
        picture = decode_image(file.read_bytes(), name=file.name, to_srgb=True, reduction=divisor)
        return to_tensor(fit(picture, size).picture).numpy()

    fast = reduction((4000, 3000), size)
    ways: dict[str, Callable[[Path], np.ndarray]] = {
        "exact": lambda file: here(file, 1),
        f"fast (1/{fast})": lambda file: here(file, fast),
        f"(1/{2 * fast})": lambda file: here(file, 2 * fast),
        "torchvision": lambda file: np.asarray(script(Image.open(file).convert("RGB"))),
    }
    wanted = ways["exact"](files[0])
    for name, make in ways.items():
        error = float(np.square(make(files[0]) - wanted).mean())
        print(f"{name}: {10 * np.log10(4 / max(error, 1e-12)):.1f} dB from exact")
    for turn in range(3):
        for name, make in ways.items():
            start, spent = time.perf_counter(), time.process_time()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(make, files))
            passed, spent = time.perf_counter() - start, time.process_time() - spent
            print(
                f"{turn} {name}: {count / passed:.1f} pictures/s, {spent / count * 1e3:.0f} ms of processor time each"
            )


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    kind, place = sys.argv[1], Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    print(f"{psutil.cpu_count()} hardware threads, {processor()}")
    if kind == "growth":
        growth(place, [int(one) for one in sys.argv[3:]] or [10_000, 100_000, 1_000_000])
    elif kind == "wait":
        wait(place, int(sys.argv[3]) if len(sys.argv) > 3 else 12, sys.argv[4] if len(sys.argv) > 4 else "emoji")
    else:
        speed(place, int(sys.argv[3]) if len(sys.argv) > 3 else 24)
