"""A data set file of kohya's sd-scripts (`--dataset_config`), as keys of the `data:` section.

Keys of a subset hold for it, those of its data set for all its subsets, those of `[general]` for all. A key that would
change what is trained on and has no counterpart here is refused, never passed over.
Reference: sd-scripts, docs/config_README.md.
"""

import logging
import math
import tomllib
from pathlib import Path
from typing import Any

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["kohya_section"]

logger = logging.getLogger(__name__)

BUCKETS = {"enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"}
DATASET = BUCKETS | {"resolution", "batch_size"}
SUBSET = {
    "image_dir", "num_repeats", "is_reg", "class_tokens", "caption_extension", "flip_aug", "random_crop",
    "shuffle_caption", "keep_tokens", "keep_tokens_separator", "secondary_separator", "caption_separator",
    "caption_prefix", "caption_suffix", "caption_dropout_rate", "caption_tag_dropout_rate", "enable_wildcard",
    "cache_info",
}  # fmt: skip
OFF: dict[str, tuple[Any, ...]] = {
    "color_aug": (False,), "alpha_mask": (False,), "caption_dropout_every_n_epochs": (0,), "token_warmup_min": (1,),
    "token_warmup_step": (0, 0.0), "network_multiplier": (1, 1.0), "validation_split": (0, 0.0),
}  # fmt: skip
"""Keys without a counterpart, and their values that change nothing."""


def kohya_section(path: str) -> dict[str, Any]:
    """Return `sources`, `size` and, with buckets, `buckets`.

    Raises:
        ConfigError: absent, not TOML, or a key that is unknown or has no counterpart.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {getattr(error, 'strerror', None) or error}") from error
    _known(values, {"general", "datasets"}, path)
    general = _tables(values, "general", path, many=False)
    _known(general, DATASET | SUBSET | OFF.keys(), f"{path}: [general]")
    sources: list[dict[str, Any]] = []
    buckets: list[dict[str, Any] | None] = []
    for number, dataset in enumerate(_tables(values, "datasets", path), start=1):
        place = f"{path}: [[datasets]] {number}"
        _known(dataset, DATASET | SUBSET | OFF.keys() | {"subsets"}, place)
        shared = {**general, **{key: value for key, value in dataset.items() if key != "subsets"}}
        size, bucket = _sizes(shared, place)
        buckets.append(bucket)
        if "batch_size" in shared:
            logger.warning("%s: batch_size is that of the run's own settings, not that of this file", place)
        for subset in _tables(dataset, "subsets", place, whole="datasets.subsets"):
            _known(subset, SUBSET | OFF.keys(), f"{place}: subset")
            sources.append(_source({**shared, **subset}, size, place))
    if not sources:
        raise ConfigError(f"{path}: no [[datasets.subsets]] with an image_dir")
    if any(bucket != buckets[0] for bucket in buckets):
        raise ConfigError(f"{path}: the data sets have different settings of buckets; give all the same")
    found: dict[str, Any] = {"sources": sources, "size": max(source["size"] for source in sources)}
    return found if buckets[0] is None else {**found, "buckets": buckets[0]}


def _tables(values: dict[str, Any], key: str, place: str, *, whole: str = "", many: bool = True) -> Any:
    """Return the table, or the list of tables, of a key; an empty one where it is absent."""
    found = values.get(key, [] if many else {})
    right = isinstance(found, list) and all(isinstance(one, dict) for one in found) if many else isinstance(found, dict)
    if not right:
        how = f"a list of tables, [[{whole or key}]]" if many else f"a table, [{key}]"
        raise ConfigError(f"{place}: {key}: found {found!r}; write it as {how}")
    return found


def _known(values: dict[str, Any], known: set[str], place: str) -> None:
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{place}: {key!r} is not read here{nearest(key, known)}; take it out")
        if key in OFF and value not in OFF[key]:
            raise ConfigError(f"{place}: {key} = {value!r} has no counterpart here; set it to {OFF[key][0]!r}")


def _sizes(values: dict[str, Any], place: str) -> tuple[int, dict[str, Any] | None]:
    """Return the side of the pictures, and the settings of buckets."""
    resolution = values.get("resolution")
    sides: list[Any] = resolution if isinstance(resolution, list) else [resolution, resolution]
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        raise ConfigError(f"{place}: resolution: found {resolution!r}; give a number of px, or [width, height]")
    width, height = sides
    if not values.get("enable_bucket", False):
        if width != height:
            raise ConfigError(f"{place}: resolution {width}x{height} is no square; set enable_bucket = true")
        return width, None
    return round(math.sqrt(width * height)), {
        "step": values.get("bucket_reso_steps", 64),
        "min_side": values.get("min_bucket_reso", 256),
        "max_side": values.get("max_bucket_reso", 1024),
        "enlarge": not values.get("bucket_no_upscale", False),
    }


def _source(values: dict[str, Any], size: int, place: str) -> dict[str, Any]:
    """Return one subset as one of `data.sources`."""
    if "image_dir" not in values:
        raise ConfigError(f"{place}: a subset has no image_dir; metadata files of the fine-tuning method are not read")
    wording = {
        "lines": "draw" if values.get("enable_wildcard", False) else "first",
        "wildcards": values.get("enable_wildcard", False),
        "prefix": values.get("caption_prefix") or "",
        "suffix": values.get("caption_suffix") or "",
        "separator": values.get("caption_separator", ","),
        "shuffle": values.get("shuffle_caption", False),
        "keep": values.get("keep_tokens", 0),
        "keep_separator": values.get("keep_tokens_separator") or None,
        "second_separator": values.get("secondary_separator") or None,
        "drop_tags": values.get("caption_tag_dropout_rate", 0.0),
    }
    return {
        "path": values["image_dir"],
        "layout": "imagefolder",
        "subfolders": False,
        "size": size,
        "weight": values.get("num_repeats", 1),
        "regularisation": values.get("is_reg", False),
        "caption_ending": values.get("caption_extension", ".caption"),
        "default_caption": values.get("class_tokens"),
        "caption_dropout": values.get("caption_dropout_rate", 0.0),
        "flip": values.get("flip_aug", False),
        "fit": "random_crop" if values.get("random_crop", False) else "crop",
        "wording": wording,
    }
