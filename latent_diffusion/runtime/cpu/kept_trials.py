"""Ways that won their trial, kept between runs: the next run draws with the same kernels, and starts sooner.

One file, `trials.json` in the cache folder, holds for each kind of machine the trials that were won. A way that lost is
tried again in the next run: it may have lost because the machine was busy. The folder is LATENT_DIFFUSION_CACHE, else
`latent_diffusion` in XDG_CACHE_HOME or `~/.cache`; with LATENT_DIFFUSION_CACHE=0 nothing is read or written.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import tempfile
from pathlib import Path

import torch

from latent_diffusion.runtime.cpu.native.library import DIGEST, LIBRARY, library
from latent_diffusion.version import VERSION

__all__ = ["VARIABLE", "keep", "kept"]

VARIABLE = "LATENT_DIFFUSION_CACHE"
MOST = 64  # kinds of machine in the file; the oldest goes first
DECIDE = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "LATENT_DIFFUSION_CPU_LEVEL")
"""Environment variables that change which kernels run."""

LOG = logging.getLogger("latent_diffusion")


def kept() -> frozenset[str]:
    """Return the names of the trials that were won earlier on this kind of machine."""
    file = _file()
    return frozenset() if file is None else frozenset(_read(file).get(_machine(), ()))


def keep(won: str) -> None:
    """Add the name of a trial that was won; where the folder cannot be written, it is tried again in the next run."""
    file = _file()
    if file is None:
        return
    found = _read(file)
    names = {*found.pop(_machine(), ()), won}
    newest = dict([*found.items(), (_machine(), sorted(names))][-MOST:])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            temporary.write(json.dumps(newest, indent=1))
        os.replace(temporary.name, file)
    except OSError as error:
        LOG.debug("%s cannot be written: %s", file, error)


def _file() -> Path | None:
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "0":
        return None
    above = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(chosen or Path(above) / "latent_diffusion").absolute() / "trials.json"


def _read(file: Path) -> dict[str, list[str]]:
    """Return what the file holds; nothing where there is none, or it is damaged."""
    try:
        found = json.loads(file.read_text())
        return {key: [str(name) for name in names] for key, names in found.items() if isinstance(names, list)}
    except (OSError, ValueError, AttributeError):
        return {}


@functools.cache
def _machine() -> str:
    """Return a digest of all that decides which way is right and fast: processor, threads, versions, kernels."""
    facts = [VERSION, torch.__version__, str(torch.get_num_threads()), str(os.cpu_count()), platform.machine()]
    facts += [os.environ.get(name, "") for name in DECIDE]
    facts += _processor()
    facts.append("" if library() is None else LIBRARY.read_bytes()[-DIGEST:].hex())  # it ends with its digest
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """Return the lines that describe the first processor: its name, family, model and abilities."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return [platform.processor()]
    return [line for line in first.splitlines() if line.partition(":")[0].strip() in ("model name", *wanted)]
