"""The sources of a `data:` section, opened: which rows are kept, and that each has the captions it must have."""

import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latent_diffusion.data.buckets import Buckets
from latent_diffusion.data.composed.rows import ComposedSource
from latent_diffusion.data.places.hub import fetched, on_hub
from latent_diffusion.data.places.stalled import read_within, watched
from latent_diffusion.data.rows.captions import Captions
from latent_diffusion.data.rows.kohya import repeated_folders
from latent_diffusion.data.rows.metadata import looked_for, values_of
from latent_diffusion.data.rows.source import Source
from latent_diffusion.data.settings import DataConfig, SourceConfig
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.registry import find, nearest

__all__ = ["Part", "check_captions", "open_parts"]

logger = logging.getLogger(__name__)

LAYOUTS = "latent_diffusion.data.sources"
TRIED = ("datasets", "parquet", "webdataset", "imagefolder")
"""Layouts that `auto` tries, in this order."""
OF_LAYOUTS = frozenset({"caption_ending", "picture", "subfolders"})
"""Settings that some layouts read and others do not."""


@dataclass(eq=False)
class Part:
    """One source and the rows of it that are trained on.

    Attributes:
        source: all rows.
        config: how it is read.
        captions: of its rows.
        kept: rows of the source that are trained on, (n,) int64.
        weight: how often a pass shows each.
        buckets: the sizes its pictures are trained at; None: squares.
    """

    source: Source
    config: SourceConfig
    captions: Captions
    kept: np.ndarray
    weight: float
    buckets: Buckets | None

    def name(self, k: int) -> str:
        """Return what errors call the picture of row k of the source."""
        return f"{self.source.where}/{self.source.name(k)}"

    def read(self, k: int) -> bytes:
        """Return the picture of row k of the source as its file has it.

        Raises:
            DataError: it cannot be read, or nothing came within `data.read_timeout`.
        """
        return watched(self.config.read_timeout, lambda: self.source.read(k))

    def mask(self, k: int) -> bytes | None:
        """Return the mask of row k of the source as its file has it, or None; errors as of `read`."""
        return watched(self.config.read_timeout, lambda: self.source.mask(k))

    def identity(self) -> bytes:
        """Return `Source.identity`; errors as of `read`."""
        return watched(self.config.read_timeout, self.source.identity)


def open_parts(config: DataConfig, seed: int) -> list[Part]:
    """Return the sources of a run.

    Raises:
        ConfigError: a filter or caption field that no row has.
        DataError: a source or captions are missing or broken, or no row is left.
    """
    configs = [
        one
        for part in _on_disk(config)
        for one in read_within(part.read_timeout, part.path, lambda part=part: repeated_folders(part))
    ]
    parts = [watched(one.read_timeout, lambda one=one: _open(one, config, seed)) for one in configs]
    _refuse_unread(parts)
    if config.share_held_out:
        parts = _of_share(parts, config)
    if config.quarantine is not None:
        _leave_out(parts, config.quarantine)
    plain = sum(part.weight * len(part.kept) for part in parts if not part.config.regularisation)
    others = sum(part.weight * len(part.kept) for part in parts if part.config.regularisation)
    if others and not plain:
        raise ConfigError("data.sources: all are `regularisation`; one source at least must be trained on by itself")
    for part in parts:
        if part.config.regularisation:
            part.weight *= plain / others
    return parts


def _on_disk(config: DataConfig) -> list[SourceConfig]:
    """Return the sources with the places on this machine of those that are on the hub."""
    return [
        part.model_copy(update={"path": fetched(part.path, download=config.download)}) if on_hub(part.path) else part
        for part in config.parts()
    ]


def _open(config: SourceConfig, data: DataConfig, seed: int) -> Part:
    buckets = None
    if data.buckets is not None:
        buckets = Buckets(data.buckets, [config.size] if config.size else data.buckets.sizes or [data.size])
    elif config.size not in (None, data.size):
        raise ConfigError(f"data.sources: {config.path!r} has a `size` of its own, which needs data.buckets")
    kind = read_within(config.read_timeout, config.path, lambda: _layout(config))
    source = kind.open(config.path, config)
    rows = _chosen(source, config)
    if config.composed is not None:
        source = ComposedSource(source, rows, config, data.size)
        rows = np.arange(len(source))
    captions = Captions(config, seed)
    return Part(source, config, captions, rows, config.weight, buckets)


def _layout(config: SourceConfig) -> type[Source]:
    if config.layout not in ("auto", "kohya"):
        return find(LAYOUTS, config.layout)
    for name in TRIED:
        module = importlib.import_module(f"{LAYOUTS}.{name}")
        kind: type[Source] = getattr(module, module.__all__[0])
        if kind.recognises(config.path):
            return kind
    raise AssertionError("a folder is the last layout and takes every path")


def _refuse_unread(parts: Sequence[Part]) -> None:
    """Refuse a setting that none of the sources reads for which it is set.

    Raises:
        ConfigError: naming the setting and the first source.
    """
    for name in sorted(OF_LAYOUTS):
        default = SourceConfig.model_fields[name].get_default()
        given = [part for part in parts if getattr(part.config, name) != default]
        if given and not any(name in part.source.reads for part in given):
            value, source = getattr(given[0].config, name), given[0].source
            raise ConfigError(f"data.{name}: {value!r} is not read with {source.where!r}, {source.words}; leave it out")


def _chosen(source: Source, config: SourceConfig) -> np.ndarray:
    """Return the rows that the filters keep, (n,) int64."""
    for field in [*config.where, *config.where_not, *config.captions]:
        absent_ok = field in config.captions and (config.missing_captions == "empty" or config.default_caption)
        if field not in source.fields and not absent_ok:
            why = f"{nearest(field, source.fields)}; fields are {sorted(source.fields)}"
            if source.fields == {"file_name"}:
                why = f": there are no captions; looked for {looked_for(config.caption_ending)}"
            raise ConfigError(f"no row of {source.where!r} has a field {field!r}{why}")
    kept = np.arange(len(source))
    steps = [f"{len(source)} rows"]
    for filters, wanted in ((config.where, True), (config.where_not, False)):
        for field, values in filters.items():
            allowed = {values} if isinstance(values, str) else set(values)
            kept = np.array([k for k in kept if bool(values_of(source.row(int(k)), field) & allowed) is wanted], int)
            steps.append(f"{len(kept)} after {field} {'in' if wanted else 'not in'} {sorted(allowed)}")
    if not len(kept):
        raise DataError(f"no picture of {source.where!r} is left: {', '.join(steps)}")
    return kept


def _of_share(parts: Sequence[Part], config: DataConfig) -> list[Part]:
    """Return the parts with the pictures that are read: those held out, or the others."""
    before = sum(len(part.kept) for part in parts)
    for part in parts:
        names = [part.source.name(int(k)) for k in part.kept]
        part.kept = part.kept[np.array([config.reads(name) for name in names], bool)]
    left = [part for part in parts if len(part.kept)]
    if not left:
        raise DataError(
            f"objective.validation: {config.share_held_out:g} of {before} pictures holds none out or leaves none to "
            f"train on; choose another share, or a filter such as objective.validation.split=test"
        )
    return left


def _leave_out(parts: Sequence[Part], file: str) -> None:
    """Leave out the pictures that the lines of a quarantine file name, as SOURCE<tab>NAME<tab>REASON."""
    try:
        with open(file, encoding="utf-8") as stream:
            lines = [line.rstrip("\n").split("\t") for line in stream if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.quarantine: {file}: cannot be read: {error}") from error
    if short := next((number for number, line in enumerate(lines, start=1) if len(line) < 2), None):
        raise DataError(f"data.quarantine: {file}: entry {short}: expected SOURCE<tab>NAME<tab>REASON")
    named = {(os.path.normpath(line[0]), line[1]) for line in lines}
    present = {os.path.normpath(part.source.where) for part in parts}
    if absent := [where for where, _ in sorted(named) if where not in present]:
        told = "data.quarantine: %s: %d of %d entries name pictures of %r, which is no source of this run"
        logger.warning(told, file, len(absent), len(named), absent[0])
    left_out = 0
    for part in parts:
        where = os.path.normpath(part.source.where)
        if where not in {place for place, _ in named}:
            continue
        names = [(where, part.source.name(int(k))) for k in part.kept]
        stays = np.array([name not in named for name in names], bool)
        left_out += int((~stays).sum())
        part.kept = part.kept[stays]
        if not len(part.kept):
            raise DataError(f"no picture of {part.source.where!r} is left: {file} names all of them")
    logger.info("%d pictures are left out, as %s names them", left_out, file)


def check_captions(parts: Sequence[Part]) -> None:
    """Refuse rows without a caption where each must have one; count them where they may have none.

    Raises:
        DataError: captions are missing, or cannot be read.
    """
    for part in parts:
        fields = [*part.config.captions]
        missing = [
            str(row["file_name"])
            for row in (part.source.row(int(k)) for k in part.kept)
            if not part.captions.fields(row) and fields
        ]
        if not missing:
            continue
        told = f"{len(missing)} of {len(part.kept)} pictures of {part.source.where!r} have no caption in {fields}: "
        told += ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
        if part.config.missing_captions == "error":
            raise DataError(f"{told}; write them, or set data.missing_captions=empty")
        logger.warning("%s; they get the empty prompt", told)
