"""Adapters that a prompt names, from the pipeline or from a folder of files."""

import os
from collections.abc import Sequence
from pathlib import Path

from latent_diffusion.adapters.lora_file import hash_of, read_lora
from latent_diffusion.adapters.stack import Stack
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.pickle_file import SUFFIXES
from latent_diffusion.checkpoint.files.safetensors_file import open_file
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.prompts.terms import AdapterTag
from latent_diffusion.registry import nearest

__all__ = ["ENDINGS", "check_folder", "find_lora", "with_tags"]

ENDINGS = (".safetensors", *SUFFIXES)
LEAST_DIGITS = 8  # of a hash that names a file
ALIAS = "ss_output_name"  # of a header: what A1111 writes into prompts in place of the file's name


def with_tags(
    stack: Stack, tags: Sequence[AdapterTag], folder: str | os.PathLike[str] | None, components: Components
) -> Stack:
    """Return the stack with the adapters of `tags` added.

    A loaded adapter of that name gets the tag's weight in place of its own; other names are looked
    up in `folder`. A name given twice has the sum of its weights.

    Args:
        stack: the pipeline's.
        tags: of one prompt.
        folder: where files are; None = nowhere.
        components: the untouched parts, whose layers files are matched with.

    Raises:
        ConfigError: an adapter that is neither loaded nor in the folder.
        CheckpointError: a file that is damaged or made for another model.
    """
    sums: dict[str, tuple[float, float]] = {}
    for tag in tags:
        unet, text = sums.get(tag.name, (0.0, 0.0))
        sums[tag.name] = unet + tag.unet_weight, text + tag.text_weight
    for name, (unet, text) in sums.items():
        if name not in stack.loaded:
            stack = stack.load(read_lora(find_lora(folder, name), components, name))
        strength = {"unet": unet, "text_encoder": text, "text_encoder_2": text}
        active = {**stack.active, name: strength}
        stack = stack.set(tuple(active), tuple(active.values()))
    return stack


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder of adapters; checked in every call that gives one, whether a prompt needs it or not.

    Raises:
        ConfigError: there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder of adapters")
    return root


def find_lora(folder: str | os.PathLike[str] | None, name: str, digest: str = "") -> Path:
    """Return the adapter's file in a folder or below it; a name may give the way, as in "styles/ink".

    Where no file has the name, it is looked for in the headers of the safetensors files, as the name that the adapter
    was trained under (A1111 writes that into prompts), and at last the file of the hash `digest`, see `hash_of`.

    Raises:
        ConfigError: no folder, no such file, or several.
    """
    if folder is None:
        raise ConfigError(f"the prompt's <lora:{name}> is not loaded; give its folder with lora_folder (--lora-folder)")
    root = check_folder(folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS)
    files = {path: path.relative_to(root).with_suffix("").as_posix() for path in paths}
    found = [path for path, way in files.items() if way == name]
    found = found or [path for path, way in files.items() if way.rpartition("/")[2] == name]
    found = found or [path for path in files if _alias(path) == name]
    if not found and len(digest) >= LEAST_DIGITS:
        found = [path for path in files if path.is_file() and hash_of(path).startswith(digest.lower())][
            :1
        ]  # copies are one adapter
    if not found:
        count = f"{len(files)} files of {', '.join(ENDINGS)}"
        raise ConfigError(f"{root}: has no adapter {name!r}{nearest(name, files.values())} ({count})")
    if len(found) > 1:
        ways = ", ".join(path.relative_to(root).as_posix() for path in found[:5])
        raise ConfigError(f"{root}: {name!r} is the name of {ways}; rename or move all but one")
    return found[0]


def _alias(path: Path) -> str | None:
    """Return the name that a safetensors file was trained under; None where it gives none or is damaged."""
    try:
        return open_file(path)[1].get(ALIAS) if path.suffix.lower() == ENDINGS[0] else None
    except CheckpointError:
        return None
