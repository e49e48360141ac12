"""What the measurement ran on."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

__all__ = ["machine_facts"]


def machine_facts(device: str) -> dict[str, Any]:
    """Return processor, instructions, threads, versions and load; on a GPU its name, memory and clocks."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    facts: dict[str, Any] = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_instructions": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onednn": onednn.group(1) if onednn else None,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        **{name: installed(name) for name in ("torch", "diffusers", "transformers", "openvino")},
    }
    return facts | (_gpu() if device == "cuda" else {})


def _processor() -> str:
    """Return the processor's name with family and model, for names like "AMD EPYC" say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{word} {found[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in found]
    return f"{found.get('model name', platform.machine())} ({', '.join(numbers)})"


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    facts: dict[str, Any] = {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    try:
        facts["gpu_clock_mhz"] = torch.cuda.clock_rate()
    except Exception:  # needs a library that may be absent
        facts["gpu_clock_mhz"] = None
    return facts
