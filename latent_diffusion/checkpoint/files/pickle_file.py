"""The one door for pickles: old `.ckpt` and `.pt` files, read without ever running code in them.

torch's `weights_only` reader builds tensors and plain containers and refuses every other name. Names that Lightning,
omegaconf and numpy left in published checkpoints are read as inert stand-ins: objects without behaviour, in whose place
nothing is imported. The list is fixed; a name outside it is refused, and there is no second, less careful reader.
"""

import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.checkpoint.files.weights import Stored
from latent_diffusion.errors import CheckpointError

__all__ = ["SUFFIXES", "is_pickle", "open_pickle", "read_pickle"]

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
MAX_ENTRIES = 100_000  # of an archive; a model of 3000 tensors has 3000
SMALL = 10_000_000  # bytes of entries that are read twice to check their sum
MAX_PROGRAM = 100_000_000  # bytes of the pickle itself; a model's takes 1 MB
LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the real file with `git lfs pull`"),
    (b"<", "a web page: the download failed"),
    (b"7z\xbc\xaf", "a 7-zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "a gzip archive"),
)


class Inert:
    """Stands where a file names a class that we do not read: takes anything, does nothing."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> "Inert":
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""

    def __hash__(self) -> int:
        return id(self)


class PlainDict:
    """Stands for dictionaries with behaviour: is a plain one."""

    def __new__(cls, *arguments: Any) -> Any:
        """Return an empty dictionary, whose entries the reader fills in."""
        return {}


class Parameters(dict):
    """Stands for torch's ParameterDict, in which learned words lie: keeps its tensors."""

    def __setstate__(self, state: Any) -> None:
        """Keep the entries; there they are part of the state."""
        if isinstance(state, dict):
            inner = state.get("_parameters", {})
            self.update(inner if isinstance(inner, dict) else {})


STAND_INS: tuple[tuple[Any, str], ...] = (
    *(
        (Inert, name)
        for lightning in ("pytorch_lightning", "lightning.pytorch", "lightning")
        for name in (
            f"{lightning}.callbacks.model_checkpoint.ModelCheckpoint",
            f"{lightning}.callbacks.early_stopping.EarlyStopping",
            f"{lightning}.callbacks.lr_monitor.LearningRateMonitor",
        )
    ),
    *(
        (Inert, name)
        for name in (
            *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
            *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.basecontainer.BaseContainer"),
            *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray"),
            *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "_codecs.encode"),
            *("pathlib.PosixPath", "pathlib.WindowsPath", "typing.Any", "argparse.Namespace"),
            *("builtins.list", "builtins.int", "builtins.float", "builtins.str", "builtins.bool"),
        )
    ),
    *(
        (PlainDict, name)
        for name in (
            *("collections.defaultdict", "builtins.dict"),
            *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict"),
        )
    ),
    (Parameters, "torch.nn.modules.container.ParameterDict"),
)


_one_at_a_time = threading.Lock()  # torch keeps the list of names for the whole process


def is_pickle(path: Path) -> bool:
    """Whether a file is a zip archive or a bare pickle, by its first bytes; False when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(PICKLES)
    except OSError:
        return False


def open_pickle(path: Path) -> tuple[dict[str, Stored], int | None]:
    """Return the tensors of a checkpoint by name, and the training step if it has one.

    Raises:
        CheckpointError: damaged, names something outside the fixed list, or holds no tensors.
    """
    content = read_pickle(path)
    step = content.get("global_step") if isinstance(content, dict) else None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name")

    def stored(tensor: Tensor) -> Stored:
        # a copy: what torch returns may lie in the mapped file
        return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().clone().contiguous())

    return {name: stored(tensor) for name, tensor in tensors.items()}, step if type(step) is int else None


def read_pickle(path: Path) -> Any:
    """Return what a pickle holds: tensors and plain containers; everything else is an inert stand-in.

    Raises:
        CheckpointError: damaged, too large for its file, or names something outside the fixed list.
    """
    _check_archive(path)
    try:
        with _one_at_a_time, warnings.catch_warnings(), torch.serialization.safe_globals(list(STAND_INS)):
            warnings.simplefilter("ignore")  # about protocols that old tools used
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise CheckpointError(f"{path}: needs more memory than is available") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refused(str(error))}") from None
    except Exception as error:  # whatever a damaged pickle makes torch's reader stumble over
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a valid checkpoint: {why or type(error).__name__}") from None


def _refused(error: str) -> str:
    """Return in one line what torch's reader refused."""
    said = error.rpartition("WeightsUnpickler error:")[2]  # the text before it is advice to disable the check
    if found := re.search(r"(?:GLOBAL|class|function|module)\s+[`'\"<]*([\w.]+\.[\w.]+)", said):
        return (
            f"it names {found[1]}, which could run code and is not on the list of allowed names; "
            "convert it to safetensors with the tool that made it"
        )
    why = re.split(r"\.?\s+(?:Please|Check)\b|\.\s", " ".join(said.split()))[0]  # what follows is advice to allow it
    return f"not a valid checkpoint, or one that could run code: {why}; convert it to safetensors with its own tool"


def _check_archive(path: Path) -> None:
    """Check sizes before anything is unpacked.

    Raises:
        CheckpointError: no pickle, or an archive that would unpack to more than it is.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(64)
        if not start.startswith(PICKLES):
            like = next((f"; it looks like {what}" for sign, what in LIKE if start.lstrip().startswith(sign)), "")
            raise CheckpointError(f"{path}: {f'not a checkpoint{like}' if size else 'the file is empty'}")
        if not start.startswith(PICKLES[0]):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            fault = next(_archive_faults(entries, size), None)
            for entry in entries:
                if fault is None and entry.file_size <= SMALL:
                    archive.read(entry)  # checks its sum, which torch does not
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: a damaged archive: {error}") from None
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}")


def _archive_faults(entries: list[zipfile.ZipInfo], size: int) -> Iterator[str]:
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_ENTRIES or len(set(names)) != len(names):
        yield f"an archive of {len(entries)} entries, {len(names) - len(set(names))} of them twice"
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        yield "a compressed archive; torch writes its files as they are"
    if sum(entry.file_size for entry in entries) > size:
        yield "an archive that unpacks to more than it is"
    programs = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM:
        yield f"an archive with {len(programs)} data.pkl; a checkpoint has one"
    if any(entry.flag_bits & 0x1 for entry in entries):
        yield "an encrypted archive"
