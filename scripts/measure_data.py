"""Measure how sources grow with their rows, and how fast pictures are decoded.

    python scripts/measure_data.py growth FOLDER [ROWS ...]      seconds to open, MB above an empty process, row access
    python scripts/measure_data.py speed FOLDER [PICTURES]       pictures a second beside diffusers' scripts

FOLDER is filled with made-up pictures and may be removed afterwards.
"""

import io
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


def speed(folder: Path, count: int) -> None:
    """Decode 12-megapixel JPEGs to 512 px with two threads, in turn with the transforms of diffusers' scripts."""
    from torchvision import transforms

    from latent_diffusion.data.pictures.fitting import fit, reduction
    from latent_diffusion.data.pictures.images import decode_image, to_tensor

    draw, size = np.random.default_rng(0), (512, 512)
    files = [folder / f"{k}.jpg" for k in range(count)]
    for file in files:
        rough = Image.fromarray(draw.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        pixels = np.asarray(rough.resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.float32)
        pixels += draw.normal(0, 3, (3000, 4000, 1))  # grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
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


if __name__ == "__main__":
    kind, place = sys.argv[1], Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    print(f"{psutil.cpu_count()} cores")
    if kind == "growth":
        growth(place, [int(one) for one in sys.argv[3:]] or [10_000, 100_000, 1_000_000])
    else:
        speed(place, int(sys.argv[3]) if len(sys.argv) > 3 else 24)
