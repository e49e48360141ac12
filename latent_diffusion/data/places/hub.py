"""Data sets of the Hugging Face Hub: `hf://datasets/OWNER/NAME[@REVISION][/PLACE]`, spelled as fsspec does.

PLACE is a folder of the repository, or a pattern of its files such as `data/train-*.parquet`. The files lie in the
hub's own cache and are read as those of any folder are; no code of a repository is run. Nothing is fetched without
`data.download`. A revision is resolved to a commit once, and a run keeps that commit (`pinned`).
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionError, ResourceError, first_line

__all__ = ["HubPath", "fetched", "on_hub", "pinned"]

SPELLING = "hf://datasets/OWNER/NAME, with @REVISION and /FOLDER behind it if wanted"
NAME = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?")
ELSEWHERE = ("hf://", "hub:", "https://huggingface.co/")
FILE_URL = re.compile(r"https://huggingface\.co/.+/resolve/.+")
COMMIT = re.compile(r"[0-9a-f]{40}")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
TABLES = (".parquet", ".arrow", ".tar")
CODE, CARD = "*.py", "README.md"


@dataclass(frozen=True)
class HubPath:
    """A data set of the hub, or a part of one."""

    repository: str
    revision: str | None
    place: str

    @classmethod
    def parse(cls, path: str) -> "HubPath":
        """Return what a path names.

        Raises:
            ConfigError: it has another spelling.
        """
        found = NAME.fullmatch(path.rstrip("/"))
        place = "" if found is None or found.group(3) is None else found.group(3)
        if found is None or ".." in place.split("/"):
            raise ConfigError(f"data.path: {path!r} names no data set of the hub; write {SPELLING}")
        return cls(found.group(1), unquote(found.group(2)) if found.group(2) else None, place)

    @property
    def pattern(self) -> str:
        """Its place with `*` for the numbers of `set-{000..127}.tar`."""
        return re.sub(r"\{\d+\.\.\d+\}", "*", self.place)

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://datasets/{self.repository}{revision}{'/' if self.place else ''}{self.place}"


def on_hub(path: str) -> bool:
    """Return whether a path names something on the hub, in whatever spelling; the URL of a file is read as any URL."""
    return path.startswith(ELSEWHERE) and not FILE_URL.match(path) and not Path(path).exists()


def pinned(path: str, *, download: bool) -> str:
    """Return the path with its commit as the revision.

    Args:
        path: of a data set on the hub.
        download: ask the hub which commit it is; False: ask the cache.

    Raises:
        ConfigError: another spelling.
        DataError: neither the hub nor the cache has it.
        ResourceError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    one = HubPath.parse(path)
    if one.revision and COMMIT.fullmatch(one.revision):
        return str(one)
    try:
        if download:  # which of its own accord would take the cache where the hub cannot be reached
            HfApi().dataset_info(one.repository, revision=one.revision)
        # with the card, the client notes which commit the revision is
        folder = snapshot_download(
            one.repository,
            repo_type="dataset",
            revision=one.revision,
            allow_patterns=CARD,
            local_files_only=not download,
        )
    except LocalEntryNotFoundError:
        raise _absent(one) from None
    except Exception as fault:
        raise _refused(one, fault) from fault
    return str(replace(one, revision=Path(folder).name))


def fetched(path: str, *, download: bool) -> str:
    """Return where the files of a data set on the hub lie on this machine; what is not there is downloaded.

    Args:
        path: of a data set on the hub.
        download: whether the hub may be asked.

    Raises:
        ConfigError: another spelling, or several splits of which none is named.
        DataError: it is not in the cache and may not be downloaded, or nothing lies at its place.
        ResourceError: the hub cannot be reached, or the disk is full.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    one = HubPath.parse(pinned(path, download=download))

    def snapshot(*, local: bool) -> Path:
        wanted = [one.pattern, f"{one.pattern}/*"] if one.place else None
        return Path(
            snapshot_download(
                one.repository,
                repo_type="dataset",
                revision=one.revision,
                allow_patterns=wanted,
                ignore_patterns=CODE,
                local_files_only=local,
            )
        )

    try:
        folder = snapshot(local=True)
    except LocalEntryNotFoundError:
        if not download:
            raise _absent(one) from None
        try:
            _check_splits(one, HfApi().list_repo_files(one.repository, revision=one.revision, repo_type="dataset"))
            folder = snapshot(local=False)
        except LatentDiffusionError:
            raise
        except Exception as fault:
            raise _refused(one, fault) from fault
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()]
    _check_splits(one, names)
    if not _at(one, names):
        there = ", ".join(sorted({name.split("/")[0] for name in names})[:10])
        raise DataError(f"{str(one)!r}: no file lies at {one.place!r}; the repository has {there or 'no files'}")
    return os.fspath(folder / one.place)


def _at(one: HubPath, names: Sequence[str]) -> list[str]:
    """Return the names of the files at the place that a path names."""
    if "*" in one.pattern:
        parts = one.pattern.count("/")
        return [name for name in names if name.count("/") == parts and PurePosixPath(name).match(one.pattern)]
    return [name for name in names if not one.place or name == one.place or name.startswith(f"{one.place}/")]


def _check_splits(one: HubPath, names: Sequence[str]) -> None:
    """Refuse tables of several splits, by the names that the `datasets` library gives them."""
    found: dict[str, str] = {}
    for name in sorted(_at(one, names)):
        file = PurePosixPath(name)
        word = re.split(r"[-_.]", file.name)[0]
        if file.suffix in TABLES and word in SPLITS:
            found.setdefault(word, str(file.with_name(f"{word}-*{file.suffix}" if "-" in file.name else file.name)))
    if len(found) > 1:
        ways = " or ".join(repr(str(replace(one, revision=None, place=place))) for place in found.values())
        raise ConfigError(f"data.path: {str(one)!r} has the splits {[*found]}; name one, as {ways}")


def _absent(one: HubPath) -> DataError:
    return DataError(
        f"data.path: {str(one)!r} is not, or not whole, in the cache of the hub on this machine, and nothing is "
        "downloaded unless data.download=true is set"
    )


def _refused(one: HubPath, fault: Exception) -> LatentDiffusionError:
    """Return what is wrong, in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"data.path: {str(one)!r}"
    if isinstance(fault, OfflineModeIsEnabled) or isinstance(fault.__cause__, OfflineModeIsEnabled):
        return ResourceError(f"{name}: HF_HUB_OFFLINE forbids the download; unset it for this command")
    if isinstance(fault, HFValidationError):
        return ConfigError(f"{name} names no data set of the hub; write {SPELLING}")
    if isinstance(fault, GatedRepoError):
        return DataError(f"{name}: its owner has to grant access; ask for it on its page, then run `hf auth login`")
    if isinstance(fault, RevisionNotFoundError):
        return DataError(f"{name}: the data set has no such revision; leave it out, or name a branch, tag or commit")
    if isinstance(fault, RepositoryNotFoundError):
        return DataError(
            f"{name}: the hub has no such data set, or not for you; check the name, or run `hf auth login`"
        )
    line = first_line(fault)
    if isinstance(fault, HfHubHTTPError):
        return ResourceError(f"{name}: the hub refused: {line}")
    if isinstance(fault, OSError) and fault.errno is not None and fault.filename:
        return ResourceError(f"{name}: {fault.filename}: {fault.strerror}; the download goes on when it is run again")
    return ResourceError(
        f"{name}: the hub cannot be reached: {line}; try again later, or leave data.download out to use the cache"
    )
