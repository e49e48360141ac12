"""Time this package beside diffusers on one GPU, at equal weights, prompts, noise, sampler and guidance.

    python scripts/bench_gpu.py [--seconds 540] [--json bench_gpu.json] [--long] [--tiny] [--only TEXT]

Weights are random, in the true sizes of SD 1.5 and SDXL; diffusers gets the same ones. Pictures begin at text states
and end at latents: text encoders have no part, decoding has rows of its own. The ways of a row run in turn, A B A B;
times are medians, ratios medians over the turns. A row is begun only where the time left allows; the JSON file is
written anew after each. `--tiny` shrinks everything, so that the script runs to its end on a CPU, where its times mean
nothing.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_gpu_kernels import kernel_rows, peaks, synchronized
from bench_gpu_networks import (
    Draw,
    Family,
    Told,
    build,
    compiled,
    families,
    flops,
    our_draw,
    peer,
    relative,
    their_draw,
)
from bench_gpu_table import table

from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.checkpoint.folder.network_config import autoencoder_values, unet_values
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.runtime.cuda.cuda_graphs import CudaRecorder
from latent_diffusion.runtime.cuda.cuda_speedup import fast_cuda, fuse
from latent_diffusion.runtime.cuda.exact import exact_float32
from latent_diffusion.runtime.cuda.fusions import PLAIN
from latent_diffusion.runtime.cuda.graphs import GraphedUNet, Graphs, decoded

STEPS, PICTURE_STEPS = 50, 20  # of a path that is timed; of a picture that a user waits for
CHECKED_STEPS = 10  # of the path whose end is compared with float32
CONTENDED = 1.15  # slowest over fastest turn, above which a row does not count


class Bench:
    """One run: its machine, its peaks, its clock, and the rows so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.begun = arguments, time.perf_counter()
        self.device = torch.device("cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu")
        self.dtype = torch.bfloat16
        self.steps, self.rounds = (3, 2) if arguments.tiny else (STEPS, 3)
        self.graphs = Graphs(CudaRecorder(self.device)) if self.device.type == "cuda" else None
        try:
            import diffusers

            self.diffusers, self.no_peer = diffusers.__version__, None
        except Exception as error:  # a broken installation of it fails in many ways
            self.diffusers, self.no_peer = None, f"diffusers cannot be imported: {str(error).splitlines()[0][:120]}"
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if self.graphs else f"CPU ({platform.machine()})",
            "tiny": arguments.tiny,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "diffusers": self.diffusers,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "dtype": "bfloat16",
            "without": "text encoders",
        }

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.arguments.seconds - (time.perf_counter() - self.begun)

    def row(self, name: str, needs: float, work: Callable[[], dict[str, Any]], reason: str | None = None) -> None:
        """Add a row, or why there is none; a failure is a reason too, and the next row is tried."""
        if self.arguments.only not in name:
            return
        if reason is None and self.left() < needs:
            reason = f"needs about {needs:.0f} s, {max(self.left(), 0):.0f} s are left"
        start = time.perf_counter()
        if reason is None:
            try:
                found = work()
            except Exception as error:  # whatever fails, the other rows count
                found = {"skipped": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        else:
            found = {"skipped": reason}
        self.rows.append({"row": name, "took_s": round(time.perf_counter() - start, 1), **found})
        print(json.dumps(self.rows[-1]), flush=True)
        self.write()

    def write(self) -> None:
        """Write everything so far."""
        target = Path(self.arguments.json)
        part = target.with_name(target.name + ".part")
        part.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1))
        os.replace(part, target)

    def ours(self, model: Any) -> Any:
        """Return a network as this package works with it on the device; weights are shared."""
        twin = shared_copy(model)
        if self.graphs is not None:
            return fast_cuda(twin, self.dtype)
        fuse(twin, PLAIN)
        return twin

    def at_work(self, unet: UNet) -> UNet:
        """Return the U-Net that replays graphs, where there is a GPU."""
        return unet if self.graphs is None else GraphedUNet(unet, self.graphs)

    def race(self, ways: dict[str, Draw], steps: int, allowed: float) -> dict[str, Any]:
        """Time ways in turn, with fewer steps than `steps` where that would take more than `allowed` seconds."""

        def seconds(way: Draw, count: int) -> float:
            return synchronized(self.device, lambda: way(count))

        found: dict[str, Any] = {f"{name}_first_call_s": round(seconds(way, 2), 2) for name, way in ways.items()}
        short = min(steps, 3)
        a_step = sum(seconds(way, short) for way in ways.values()) / short
        count = max(short, min(steps, int(allowed / (a_step * self.rounds))))
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.rounds):
            for name, way in ways.items():
                times[name].append(seconds(way, count) * steps / count)
        found |= {f"{name}_s": round(statistics.median(t), 6) for name, t in times.items()}
        for name in times.keys() - {"ours"}:
            ratios = [a / b for a, b in zip(times[name], times["ours"], strict=True)]
            found[f"{name}/ours"] = round(statistics.median(ratios), 3)
        spread = max(max(t) / min(t) for t in times.values())
        notes = [f"{steps} steps extrapolated from {count}"] * (count < steps) + ["contended"] * (spread > CONTENDED)
        return found | {"spread": round(spread, 2), "note": "; ".join(notes)}

    def floor(self, tflop: float) -> dict[str, float]:
        """Return the work of a row and the least time it can take at the measured peak."""
        return {"tflop": round(tflop, 4), "floor_s": round(tflop / self.facts["peaks"]["matmul_tflops"], 5)}


def agreement(bench: Bench, family: Family, plain: UNet, fast: UNet, theirs: Any) -> dict[str, Any]:
    """Return the errors of one step and of a short path against float32: diffusers', or ours where it is missing."""
    told = Told(family, 1, bench.device, bench.dtype)
    wide = copy.deepcopy(plain if theirs is None else theirs).float()
    exact = (their_draw if theirs else our_draw)(wide, told.to(torch.float32), torch.float32)
    ways = {"ours": our_draw(bench.at_work(fast), told, bench.dtype)}
    if theirs is not None:
        ways["eager"] = their_draw(theirs, told, bench.dtype)
    found: dict[str, Any] = {"against": "diffusers float32" if theirs else "this package's plain float32"}
    for steps, what in ((1, "one_step"), (CHECKED_STEPS, f"{CHECKED_STEPS}_steps")):
        wanted = exact(steps)
        found |= {f"{name}_{what}_error": relative(way(steps), wanted) for name, way in ways.items()}
    return found


def picture_rows(bench: Bench, family: Family, batches: tuple[int, ...]) -> None:
    """Add the rows of one U-Net: agreement, each batch beside eager diffusers, then beside compiled diffusers."""
    device, dtype = bench.device, bench.dtype
    plain = build(UNet, family.unet, device, dtype)
    theirs = None if bench.no_peer else peer(plain, unet_values(family.unet), "UNet2DConditionModel")
    fast = bench.ours(plain)
    meta = build(UNet, family.unet, torch.device("meta"), dtype)
    large = family.name == "SDXL"
    bench.row(f"{family.name} agreement", 30, lambda: agreement(bench, family, plain, fast, theirs))

    def job(batch: int, others: dict[str, Callable[[Told], Draw]], allowed: float) -> dict[str, Any]:
        told = Told(family, batch, device, dtype)
        on_meta = Told(family, batch, torch.device("meta"), dtype)
        pair = Conditioning.cat([on_meta.negative, on_meta.prompt])
        rows = torch.cat([on_meta.noise, on_meta.noise]).to(dtype)
        step = flops(lambda: meta(rows, rows[:, 0, 0, 0], meta.project(pair)))
        ways = {name: make(told) for name, make in others.items()}
        ways["ours"] = our_draw(bench.at_work(fast), told, dtype)
        found = bench.floor(bench.steps * step) | bench.race(ways, bench.steps, allowed)
        return found | {
            "of_floor": round(found["floor_s"] / found["ours_s"], 3),
            "ms_a_step": round(found["ours_s"] * 1000 / bench.steps, 3),
        }

    eager = {} if theirs is None else {"eager": lambda told: their_draw(theirs, told, dtype)}
    for batch in batches:
        name = f"{family.name} {family.side} px, {bench.steps} steps, batch {batch}"
        bench.row(name, 40 if large else 15, lambda batch=batch: job(batch, eager, 30 if large else 15))
    no_compile = bench.no_peer or (None if bench.graphs else "compiling is timed on GPUs only")
    modes = ["compiled"] + (["max_autotune"] if bench.arguments.long and not large else [])
    for batch in batches if not large else batches[:1]:
        for mode in modes:
            name = f"{family.name} {family.side} px, {bench.steps} steps, batch {batch}, {mode}"
            make = {mode: lambda told, mode=mode: their_draw(compiled(plain, family, mode), told, dtype)}
            needs = 200 if mode == "max_autotune" else 90
            bench.row(name, needs, lambda batch=batch, make=make: job(batch, make, 12), no_compile)


def decode_rows(bench: Bench, family: Family) -> None:
    """Add the rows of the decoder."""
    plain = build(AutoencoderKL, family.autoencoder, bench.device, bench.dtype)
    theirs = None if bench.no_peer else peer(plain, autoencoder_values(family.autoencoder), "AutoencoderKL")
    best = None if theirs is None else copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    fast, meta = bench.ours(plain), build(AutoencoderKL, family.autoencoder, torch.device("meta"), bench.dtype)
    wide = copy.deepcopy(plain).float()

    def job(cells: int) -> dict[str, Any]:
        z = torch.randn(1, 4, cells, cells, generator=torch.Generator("cpu").manual_seed(2)).to(
            bench.device, bench.dtype
        )
        ours = (lambda: fast.decode(z)) if bench.graphs is None else (lambda: decoded(bench.graphs, fast, z))
        single = {"ours": ours}
        if theirs is not None and best is not None:
            single |= {"eager": lambda: theirs.decode(z).sample, "eager_channels_last": lambda: best.decode(z).sample}
        wanted = wide.decode(z.float())
        ways = {name: (lambda count, way=way: [way() for _ in range(count)][-1]) for name, way in single.items()}
        times = bench.race(ways, 10, 6)
        times |= {f"{name}_s": round(times[f"{name}_s"] / 10, 6) for name in ways} | {"note": "a picture"}
        errors = {f"{name}_error": relative(way(), wanted) for name, way in single.items()}
        found = bench.floor(flops(lambda: meta.decode(z.to("meta")))) | times | errors
        return found | {
            "of_floor": round(found["floor_s"] / found["ours_s"], 3),
        }

    for factor in (1, 2):
        bench.row(f"decode {family.side * factor} px", 20, lambda factor=factor: job(family.cells * factor))


def change_rows(bench: Bench, family: Family) -> None:
    """Add the rows of what users wait for: the first picture, a new size, another adapter."""

    def fresh(way: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--first", way, "--seconds", "120"]
        command += ["--tiny"] * bench.arguments.tiny + ["--cpu"] * bench.arguments.cpu
        with tempfile.TemporaryDirectory() as cache:  # no kernel is compiled yet
            environment = {**os.environ, "TRITON_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=max(bench.left(), 60), env=environment
            )
        if run.returncode:
            raise RuntimeError(run.stderr.strip().splitlines()[-1])
        return json.loads(run.stdout.splitlines()[-1])

    def change() -> dict[str, Any]:
        fast = bench.ours(build(UNet, family.unet, bench.device, bench.dtype))
        usual, wide = (Told(family, 1, bench.device, bench.dtype, c) for c in (0, family.cells * 3 // 2))
        path = next(name for name, _ in fast.named_modules() if name.endswith("attn1.to_q"))
        update = Update("full", torch.randn_like(fast.get_submodule(path).weight) * 1e-3, None)
        other = adapted(fast, [({path: update}, 1.0)])
        found = {}
        for name, unet, told in (("start", fast, usual), ("new_size", fast, wide), ("adapter", other, usual)):
            draw = our_draw(bench.at_work(unet), told, bench.dtype)
            times = [synchronized(bench.device, lambda draw=draw: draw(PICTURE_STEPS)) for _ in range(3)]
            found[f"{name}_extra_s"] = round(times[0] - min(times[1:]), 3)
        return found | {"graphs": len(bench.graphs) if bench.graphs else 0, "note": "first less a later picture"}

    bench.row(f"{family.name} first picture, ours", 40, lambda: fresh("ours"))
    bench.row(f"{family.name} first picture, eager", 40, lambda: fresh("eager"), bench.no_peer)
    bench.row(f"{family.name} new size, other adapter", 15, change)


def first_picture(bench: Bench, family: Family, way: str) -> dict[str, Any]:
    """Return the seconds from weights on the device to the first picture of this process, 20 steps, and to the next."""
    plain, vae = (
        build(UNet, family.unet, bench.device, bench.dtype),
        build(AutoencoderKL, family.autoencoder, bench.device, bench.dtype),
    )
    told = Told(family, 1, bench.device, bench.dtype)
    if way == "eager":
        theirs = peer(plain, unet_values(family.unet), "UNet2DConditionModel")
        decoder = peer(vae, autoencoder_values(family.autoencoder), "AutoencoderKL")
        draw = their_draw(theirs, told, bench.dtype)
    synchronized(bench.device, lambda: None)
    start = time.perf_counter()
    if way == "ours":
        draw, decoder = our_draw(bench.at_work(bench.ours(plain)), told, bench.dtype), bench.ours(vae)

    def picture() -> Any:
        latents = draw(PICTURE_STEPS).to(bench.dtype)
        return (
            decoder.decode(latents)
            if bench.graphs is None or way == "eager"
            else decoded(bench.graphs, decoder, latents)
        )

    first = synchronized(bench.device, picture) and time.perf_counter() - start
    return {
        "first_s": round(first, 3),
        "next_s": round(synchronized(bench.device, picture), 3),
        "note": f"{PICTURE_STEPS} steps",
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=540.0, help="no row is begun that would end later")
    parser.add_argument("--json", default="bench_gpu.json", help="file of the results")
    parser.add_argument("--long", action="store_true", help="diffusers with max-autotune too: minutes more")
    parser.add_argument("--tiny", action="store_true", help="tiny networks: does everything run?")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--first", choices=("ours", "eager"), help=argparse.SUPPRESS)
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    arguments = parsed()
    if not arguments.tiny and (arguments.cpu or not torch.cuda.is_available()):
        sys.exit("no CUDA device here; --tiny runs everything on this CPU with tiny networks")
    bench = Bench(arguments)
    exact_float32()
    small, large = families(arguments.tiny)
    if arguments.first:
        print(json.dumps(first_picture(bench, small, arguments.first)))
        return
    bench.facts["peaks"] = peaks(bench.device, tiny=arguments.tiny)
    print(json.dumps(bench.facts), flush=True)
    picture_rows(bench, small, (1, 8))
    change_rows(bench, small)
    decode_rows(bench, small)
    picture_rows(bench, large, (1, 8))
    kernel_rows(bench.row, bench.device, bench.dtype, tiny=arguments.tiny)
    bench.facts["peaks_after"] = peaks(bench.device, tiny=arguments.tiny)
    bench.write()
    print(table(bench.rows))
    print(f"peaks before {bench.facts['peaks']}, after {bench.facts['peaks_after']}")
    if bench.device.type == "cpu" or arguments.tiny:
        print(f"This was {bench.facts['device']} with tiny shapes: it shows that everything runs, and no speed.")


if __name__ == "__main__":
    main()
