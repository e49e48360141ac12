"""Measure every sampler and write the tables of docs/samplers.md.

    python -m experiments.measure_samplers

Needs the extra `parity`. What is measured is what the tests assert: their own functions are called here.
"""

import importlib.util
import re
import sys
from dataclasses import fields
from functools import lru_cache
from itertools import pairwise
from math import log2
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import SPACINGS, levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find, names

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "samplers.md"
MARKS = "<!-- measured: {} -->", "<!-- end of measured -->"
STEPS = 20
SEEDS = (1, 2)


def load(path: str) -> ModuleType:
    """Import a test file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parity_figures() -> dict[str, float]:
    """Return the largest relative difference from diffusers after 20 steps for each sampler that it has too."""
    first, more = load("tests/parity/test_samplers.py"), load("tests/parity/test_more_samplers.py")
    found: list[float] = []

    def measure(got, wanted):
        got, wanted = (got[0], wanted[0]) if isinstance(got, tuple) else (got, wanted)
        found.append(((got - wanted).norm() / wanted.norm()).item())

    first.compare = more.compare = measure
    patch = SimpleNamespace(setitem=lambda table, key, value: table.__setitem__(key, value))
    grids = [("leading", 1), ("trailing", 0)]
    v = ("epsilon", "v_prediction")
    cases = {
        "ddim": [lambda p=p, g=g: first.test_ddim("scaled_linear", p, *g, 0.0) for p in v for g in grids],
        "ddpm": [lambda p=p, g=g: first.test_ddpm("scaled_linear", p, *g) for p in v for g in grids],
        "dpmpp_2m": [lambda p=p, g=g: first.test_dpmpp_2m("scaled_linear", p, *g) for p in v for g in grids],
        "dpmpp_3m_sde": [lambda p=p, g=g: more.test_dpmpp_3m_sde(*g, p) for p in v for g in grids],
        "dpmpp_sde": [lambda p=p, g=g: more.test_dpmpp_sde(*g, p, patch) for p in v for g in grids],
        "deis": [lambda p=p, g=g: more.test_deis(*g, p) for p in v for g in grids],
        "lms": [lambda p=p, g=g: more.test_lms("", *g, p) for p in v for g in grids],
        "sa_solver": [lambda g=g: more.test_sa_solver(*g) for g in grids],
        "pndm": [lambda g=g: more.test_pndm(*g) for g in grids],
        "lcm": [lambda s=s: more.test_lcm(s) for s in (4, 8)],
        "tcd": [lambda: more.test_tcd(0.3)],
    }
    for name in more.K_DIFFUSION:
        cases[name] = [lambda n=name, p=p, g=g: more.test_k_diffusion_samplers(n, *g, p) for p in v for g in grids]
    for name in ("unipc", "dpmpp_2m_sde"):
        cases[name] = [lambda n=name, p=p, g=g: more.test_multistep_samplers(n, *g, p) for p in v for g in grids]
    worst = {}
    for name, calls in cases.items():
        found.clear()
        for call in calls:
            call()
        worst[name] = max(found)
    sys.modules.pop("torchsde", None)
    return worst


def order_of(law: ModuleType, sampler) -> str:
    """Return the measured order between 80 and 160 steps: on the path if it draws no noise, else of the law."""
    if sampler.order == 0:
        return "exact for a consistency function" if type(sampler).__name__ == "LCM" else "-"
    errors = law.law_errors(sampler) if law.draws_noise(sampler) else law.path_errors(sampler)
    return f"{[log2(a / b) for a, b in pairwise(errors)][-1]:.2f}"


def calls_and_draws(contract: ModuleType, sampler) -> tuple[int, int]:
    """Return network evaluations and draws of noise beyond the first in 20 steps of karras spacing."""
    calls, noise = [], NoiseSource([0])
    draws: list[int] = []
    counted = SimpleNamespace(draw=lambda shape: draws.append(1) or noise.draw(shape))

    def denoise(x, level):
        calls.append(1)
        return contract.curved(x, level)

    list(sampler(denoise, noise.draw((4, 8, 8)), levels(contract.SCHEDULE, "karras", STEPS), counted))
    return len(calls), len(draws)


def spacings_that_run(contract: ModuleType, sampler, case: str) -> str:
    """Return how many spacings end in finite latents, equal for 2 pictures together and each alone."""
    schedule, prediction = contract.CASES[case]
    good = refused = 0
    for spacing in SPACINGS:
        ends = []
        try:
            for seeds in (SEEDS, *([seed] for seed in SEEDS)):
                denoise = Denoiser(contract.Tanh(), schedule, prediction).bind(Conditioning(torch.zeros(1, 1, 1)))
                how = {"denoise": denoise, "schedule": schedule, "spacing": spacing, "steps": 6}
                ends.append(contract.run(sampler, seeds, **how)[-1].x)
        except ConfigError:
            refused += 1
            continue
        good += bool(ends[0].isfinite().all()) and torch.allclose(ends[0], torch.cat(ends[1:]), rtol=0, atol=1e-6)
    return f"{good}" + (f" (+{refused} refused)" if refused else "") + f" of {len(SPACINGS)}"


def main() -> None:
    contract, law = load("tests/contract/test_samplers.py"), load("tests/contract/test_sampler_law.py")
    contract.levels = lru_cache(maxsize=None)(levels)  # the same for every sampler
    parity = parity_figures()
    rows = [
        "| sampler | fields | order | evaluations | draws | parity | " + " | ".join(contract.CASES) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(contract.CASES),
    ]
    for name in names("latent_diffusion.samplers"):
        kind = find("latent_diffusion.samplers", name)
        sampler = kind()
        own = ", ".join(f"{field.name}={field.default}" for field in fields(kind)) or "-"
        calls, draws = calls_and_draws(contract, sampler)
        same = f"{parity[name]:.0e}" if name in parity else "-"
        cells = [spacings_that_run(contract, sampler, case) for case in contract.CASES]
        rows.append(
            f"| `{name}` | {own} | {order_of(law, sampler)} | {calls} | {draws} | {same} | {' | '.join(cells)} |"
        )
        print(rows[-1], flush=True)
    start, end = MARKS[0].format("samplers"), MARKS[1]
    page = PAGE.read_text()
    page = re.sub(
        f"{re.escape(start)}.*?{re.escape(end)}", lambda _: "\n".join([start, *rows, end]), page, flags=re.DOTALL
    )
    PAGE.write_text(page)


if __name__ == "__main__":
    with torch.no_grad():
        main()
