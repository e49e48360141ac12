"""The one door for pickles: what it reads, and that nothing in them is ever run."""

import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict

import pytest
import torch

from latent_diffusion.checkpoint.files.checkpoint_file import open_checkpoint
from latent_diffusion.checkpoint.files.pickle_file import MAX_PROGRAM, open_pickle, read_pickle
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.checkpoint.single.single_file import load_single_file, save_single_file
from latent_diffusion.errors import CheckpointError


@pytest.fixture
def sentinel(tmp_path):
    """A path that must not appear: what hostile files try to make."""
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists(), "code in a file was run"


class Touch:
    """Makes the sentinel when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def refuse(path, words="."):
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to open the door
    return str(caught.value)


@pytest.fixture
def lightning(monkeypatch):
    """A Lightning that is not installed: classes to pickle by name, gone again before the file is read."""
    modules = {}
    for name, kinds in {
        "pytorch_lightning.callbacks.model_checkpoint": ["ModelCheckpoint"],
        "pytorch_lightning.utilities.parsing": ["AttributeDict"],
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.base": ["ContainerMetadata"],
    }.items():
        for depth in range(1, name.count(".") + 2):
            path = ".".join(name.split(".")[:depth])
            modules.setdefault(path, types.ModuleType(path))
        for kind in kinds:
            bases = (dict,) if kind == "AttributeDict" else ()
            setattr(modules[name], kind, type(kind, bases, {"__module__": name}))
    with monkeypatch.context() as patched:
        for name, module in modules.items():
            patched.setitem(sys.modules, name, module)
        yield modules


def lightning_state(modules):
    """Return what a Lightning trainer of 2022 saved beside the weights."""
    import numpy

    checkpoint = modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint
    config = modules["omegaconf.dictconfig"].DictConfig()
    config.__dict__["_metadata"] = modules["omegaconf.base"].ContainerMetadata()
    return {
        "epoch": 3,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {checkpoint: {"best": numpy.float64(0.5), "path": "x"}},
        "hparams": modules["pytorch_lightning.utilities.parsing"].AttributeDict(lr=1e-4),
        "hyper_parameters": config,
        "optimizer_states": [],
        "scores": numpy.arange(3),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_a_real_old_checkpoint(zipped, lightning, tiny_family, tmp_path):
    first = load_folder(tiny_family("sd1"))
    save_single_file(first, tmp_path / "a.safetensors")
    state = OrderedDict(read_tensors(tmp_path / "a.safetensors"))
    file = tmp_path / "a.ckpt"
    torch.save(lightning_state(lightning) | {"state_dict": state}, file, _use_new_zipfile_serialization=zipped)
    for name in lightning:
        sys.modules.pop(name)
    tensors, step = open_pickle(file)
    assert step == 470_000 and tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name].fetch(), tensor) for name, tensor in state.items())
    assert not set(lightning) & set(sys.modules)  # nothing was imported to read it


def test_a_checkpoint_draws_what_its_weights_do(tiny_family, tmp_path, monkeypatch):
    from latent_diffusion.checkpoint.files import checkpoint_file

    first = load_folder(tiny_family("sd1"))
    save_single_file(first, tmp_path / "a.safetensors")
    header = checkpoint_file.open_file(tmp_path / "a.safetensors")[1]
    torch.save({"state_dict": read_tensors(tmp_path / "a.safetensors")}, tmp_path / "a.ckpt")
    real = checkpoint_file.open_pickle

    class WithHeader(checkpoint_file.CheckpointFile):
        def __init__(self, source, tensors, metadata=header, step=None):
            super().__init__(source, tensors, metadata, step)

    monkeypatch.setattr(checkpoint_file, "CheckpointFile", WithHeader)  # sizes as tiny as these no pickle can tell
    found = load_single_file(tmp_path / "a.ckpt")
    monkeypatch.undo()
    assert real is checkpoint_file.open_pickle
    ours, theirs = first.unet.state_dict(), found.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_learned_word_of_the_web_ui(tmp_path):
    words = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 8))})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": words, "name": "x", "step": 9}, tmp_path / "a.pt")
    found = read_pickle(tmp_path / "a.pt")
    assert torch.equal(found["string_to_param"]["*"], torch.ones(2, 8)) and found["name"] == "x"
    refuse(tmp_path / "a.pt", "no tensors by name")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_reduce_is_never_run(zipped, protocol, tmp_path, sentinel):
    file = tmp_path / "a.ckpt"
    content = {"state_dict": {"a": torch.ones(2)}, "x": Touch(sentinel)}
    try:
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    except Exception:
        pytest.skip("torch does not write this protocol")
    message = refuse(file)
    assert "system" in message or "not a" in message


DODGES = {
    "bare pickle": lambda s: pickle.dumps({"a": Touch(s)}),
    "nested pickle": lambda s: pickle.dumps({"a": Nested(pickle.dumps(Touch(s)))}),
    "resolved name": lambda s: program(b"cpkgutil\nresolve_name\n", b"Vos:system\n", f"Vtouch {s}\n".encode()),
    "getattr chain": lambda s: program(b"cbuiltins\ngetattr\n", b"cos\nsystem\n", b"Vx\n"),
    "builtins eval": lambda s: program(b"cbuiltins\neval\n", f"Vopen({str(s)!r}, 'w')\n".encode(), b""),
    "torch hub": lambda s: program(b"ctorch.hub\nload\n", b"Vx\n", b"Vy\n"),
    "torch load": lambda s: program(b"ctorch\nload\n", f"V{s}\n".encode(), b""),
    "after the payload": lambda s: pickle.dumps(Touch(s))[:-1],
    "extension": lambda s: b"\x80\x02\x82\x01.",
    "stand-in as function": lambda s: program(b"ctorch.nn.modules.container\nParameterDict\n", b"cos\nsystem\n", b""),
}


class Nested:
    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return pickle.loads, (self.data,)


def program(function, *arguments):
    return b"\x80\x02" + function + b"(" + b"".join(arguments) + b"tR."


@pytest.mark.parametrize("dodge", DODGES)
@pytest.mark.parametrize("wrapped", ["bare", "zip", "legacy"])
def test_dodges(dodge, wrapped, tmp_path, sentinel):
    data = DODGES[dodge](sentinel)
    if wrapped == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
        data = buffer.getvalue()
    elif wrapped == "legacy":
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}})
        data = b"".join(pickle.dumps(part, 2) for part in head) + data
    (tmp_path / "a.ckpt").write_bytes(data)
    refuse(tmp_path / "a.ckpt")


def archive_of(path, tensors=None):
    torch.save({"state_dict": tensors or {"a": torch.arange(1000.0)}}, path)
    return path


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as old:
        parts = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in change(parts):
            new.writestr(name, data)


def test_zip_bomb(tmp_path):
    file = archive_of(tmp_path / "a.ckpt", {"a": torch.zeros(10_000_000)})
    rewritten(file, lambda parts: parts, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 1_000_000
    refuse(file, "compressed archive")


def test_a_storage_larger_than_its_file(tmp_path):
    file = archive_of(tmp_path / "a.ckpt")
    rewritten(file, lambda parts: [(n, d[:8] if n.endswith("data/0") else d) for n, d in parts])
    refuse(file)


def test_sizes_that_lie(tmp_path):
    file = archive_of(tmp_path / "a.ckpt")

    def larger(parts):
        return [(n, d.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f") if n.endswith("pkl") else d) for n, d in parts]

    rewritten(file, larger)
    refuse(file)


@pytest.mark.parametrize("what", ["two programs", "twice", "encrypted", "crc", "no program", "huge program"])
def test_strange_archives(what, tmp_path, monkeypatch):
    file = archive_of(tmp_path / "a.ckpt")
    if what == "two programs":
        rewritten(file, lambda parts: [*parts, ("other/data.pkl", b"\x80\x02N.")])
    elif what == "no program":
        rewritten(file, lambda parts: [part for part in parts if not part[0].endswith("data.pkl")])
    elif what == "twice":
        with pytest.warns(UserWarning, match="Duplicate"):
            rewritten(file, lambda parts: [*parts, parts[-1]])
    elif what == "huge program":
        monkeypatch.setattr("latent_diffusion.checkpoint.files.pickle_file.MAX_PROGRAM", 10)
        assert MAX_PROGRAM > 10
    else:
        data = bytearray(file.read_bytes())
        place = data.index(b"PK\x01\x02")
        while place >= 0:
            data[place + (8 if what == "encrypted" else 16)] ^= 1
            place = data.find(b"PK\x01\x02", place + 4)
        file.write_bytes(data)
    refuse(file)


OTHERS = {
    "empty": (b"", "empty"),
    "one byte": (b"\x80", "not a"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7-zip|header of"),
    "text": (b"hello, this is no checkpoint at all", "not a"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".CKPT"])
def test_files_that_are_none(what, suffix, tmp_path):
    data, words = OTHERS[what]
    (tmp_path / f"a{suffix}").write_bytes(data)
    refuse(tmp_path / f"a{suffix}", words)


def test_old_tar_format(tmp_path, sentinel):
    file = tmp_path / "a.ckpt"
    with tarfile.open(file, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Touch(sentinel))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    refuse(file)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("zipped", [True, False])
def test_cut_short(cut, zipped, tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.arange(1000.0)}}, file, _use_new_zipfile_serialization=zipped)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * cut)])
    refuse(file)


@pytest.mark.parametrize("name", ["a.safetensors", "a.SAFETENSORS", "a.ckpt.txt", "a"])
def test_a_pickle_under_another_name(name, tmp_path, sentinel):
    archive_of(tmp_path / name)
    refuse(tmp_path / name, "pickle")
    (tmp_path / name).write_bytes(pickle.dumps(Touch(sentinel)))
    refuse(tmp_path / name)


def test_safetensors_under_the_name_of_a_pickle(tmp_path):
    from latent_diffusion.checkpoint.files.safetensors_file import write_tensors

    write_tensors(tmp_path / "a.ckpt", {"a": torch.ones(2)})
    assert open_checkpoint(tmp_path / "a.ckpt").tensors["a"].fetch().tolist() == [1, 1]


def test_a_name_outside_the_list_is_named(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": struct.Struct("<Q").__class__}, tmp_path / "a.ckpt")
    assert "Struct" in refuse(tmp_path / "a.ckpt", "not on the list of allowed names; convert it")


def test_no_variable_opens_the_door(tmp_path, sentinel, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"a": Touch(sentinel)}, tmp_path / "a.ckpt")
    refuse(tmp_path / "a.ckpt")
