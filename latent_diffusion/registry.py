"""The folder is the registry: `name: ddim` finds `samplers/ddim.py`.

A file placed in such a folder is found by its name; it exports one class, the first name of its `__all__`.
"""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Iterable

from latent_diffusion.errors import ConfigError

__all__ = ["find", "names", "nearest"]


def names(package: str) -> list[str]:
    """Return the names that `package` (for example "latent_diffusion.samplers") offers, sorted."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


@functools.cache  # a class stays; a name that is not found is looked for again
def find(package: str, name: str) -> type:
    """Return the class that file `name` of `package` exports.

    Raises:
        ConfigError: no file of that name; the message lists those there are and the nearest.
    """
    known = names(package)
    if name not in known:
        what = package.rpartition(".")[2].rstrip("s")
        raise ConfigError(f"unknown {what} {name!r}; there are {', '.join(known)}{nearest(name, known)}")
    module = importlib.import_module(f"{package}.{name}")
    return getattr(module, module.__all__[0])


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" for the closest known name, or "" when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
