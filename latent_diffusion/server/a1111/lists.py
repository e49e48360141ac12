"""What clients of A1111 ask for before they draw: samplers, schedulers, models, upscalers, and empty lists."""

from typing import Any

import psutil

from latent_diffusion.provenance.infotext import SPACINGS, UPSCALERS
from latent_diffusion.registry import find, names
from latent_diffusion.server.drawing.shelf import Shelf

__all__ = ["EMPTY", "loras", "memory", "models", "samplers", "schedulers", "upscalers"]

EMPTY = ("prompt-styles", "hypernetworks", "face-restorers", "realesrgan-models", "extensions", "sd-vae")
LATENT_MODES = tuple(name for ours, name in UPSCALERS.items() if ours.startswith("latent"))
RHO = {"karras": 7.0, "polyexponential": 1.0}


def samplers() -> list[dict[str, Any]]:
    """Return the samplers under A1111's names, with the names of other programs."""
    kinds = {name: find("latent_diffusion.samplers", name) for name in names("latent_diffusion.samplers")}
    return [
        {"name": kind.aliases[0], "aliases": [name, *kind.aliases[1:]], "options": {}} for name, kind in kinds.items()
    ]


def schedulers() -> list[dict[str, Any]]:
    """Return the spacings that A1111 has a name for."""
    found = {"automatic": "Automatic"}
    for ours, label in SPACINGS.items():
        if label not in found.values():
            found[ours] = label
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": RHO.get(name, -1), "need_inner_model": False}
        for name, label in found.items()
    ]


def models(shelf: Shelf) -> list[dict[str, Any]]:
    """Return the models by their names; their places are left out. The hash is known of the one in use."""
    digest = shelf.hash()
    return [
        {
            "title": name,
            "model_name": name,
            "hash": digest[:10] if digest and name == shelf.name else None,
            "sha256": digest if name == shelf.name else None,
            "filename": name,
            "config": None,
        }
        for name in shelf.models()
    ]


def loras(shelf: Shelf) -> list[dict[str, Any]]:
    """Return the adapters by the names that prompts use."""
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in shelf.loras()]


def upscalers() -> list[dict[str, Any]]:
    """Return the methods of enlarging."""
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
        for name in ("None", "Lanczos")
    ]


def memory() -> dict[str, Any]:
    """Return how much of the machine's memory is used, in bytes."""
    now = psutil.virtual_memory()
    ram = {"free": now.available, "used": now.used, "total": now.total}
    return {"ram": ram, "cuda": {"error": "not measured"}}
