"""Every way in which a safetensors file can be wrong must end as one CheckpointError that names the file."""

import json
import os
import pickle
import stat
import struct

import pytest
import torch

from latent_diffusion.checkpoint.files import safetensors_file
from latent_diffusion.checkpoint.files.safetensors_file import open_file, read_tensors, write_tensors
from latent_diffusion.errors import CheckpointError, ResourceError


def raw(header: object, body: bytes = b"\0" * 8, *, text: str | None = None) -> bytes:
    """Return the bytes of a file with this header (two float32 of one tensor fit the default body)."""
    encoded = (json.dumps(header) if text is None else text).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = raw({"a": entry()})
TWICE = json.dumps({"a": entry(), "b": entry()}).replace('"b"', '"a"')
FAULTS = {
    "empty file": (b"", "empty"),
    "seven bytes": (GOOD[:7], "7 bytes"),
    "header length 2^63": (struct.pack("<Q", 2**63) + GOOD[8:], "announced"),
    "header longer than the file": (struct.pack("<Q", 10_000) + GOOD[8:], "announced"),
    "header of 90 MB": (struct.pack("<Q", 90_000_000) + GOOD[8:], "announced"),
    "cut body": (GOOD[:-1], "cut short"),
    "extra byte": (GOOD + b"\0", "no tensor"),
    "zip appended": (GOOD + b"PK\x03\x04" + b"\0" * 40, "no tensor"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "'b' starts at byte 4"),
    "gap": (raw({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "'b' starts at byte 12"),
    "negative offset": (raw({"a": entry(offsets=(-8, 0))}), "'a'"),
    "wrong shape": (raw({"a": entry(shape=(3,))}), "'a'.*takes 12 bytes"),
    "shape overflows": (raw({"a": entry(shape=(2**62, 2**62))}), "'a'"),
    "shape of booleans": (raw({"a": entry(shape=(True, 2))}), "'a': bad shape"),
    "bad dtype": (raw({"a": entry("F33")}), "unknown dtype 'F33'"),
    "dtype is no word": (raw({"a": entry(["F32"])}), "'a'"),
    "field missing": (raw({"a": {"dtype": "F32", "shape": [2]}}), "'a'"),
    "not JSON": (raw(None, text="{nonsense}"), "no JSON"),
    "not UTF-8": (struct.pack("<Q", 4) + b'{"\xff}', "no JSON"),
    "not an object": (raw([1, 2]), "no JSON object"),
    "deep nesting": (raw(None, text="[" * 200_000), "no JSON"),
    "duplicate name": (raw(None, text=TWICE), "'a' appears twice"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}, "a": entry()}), "__metadata__"),
    "HTML page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 3, "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "pickle": (pickle.dumps({"a": list(range(99))}), "pickle"),
    "torch zip": (b"PK\x03\x04" + b"\0" * 99, "pickle or zip"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_file(fault, tmp_path):
    content, words = FAULTS[fault]
    path = tmp_path / "some model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and caught.value.exit_code == 4


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            read_tensors(path)
        assert str(path) in str(caught.value)


def test_the_good_one_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(GOOD)
    assert torch.equal(read_tensors(path)["a"], torch.zeros(2))


def test_everything_comes_back(tmp_path):
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    tensors = {
        "plain": base,
        "same memory": base,
        "transposed": base.t(),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "step": torch.tensor([7], dtype=torch.int64),
        "flag": torch.tensor([True, False]),
    }
    path = tmp_path / "all.safetensors"
    write_tensors(path, tensors, {"note": "x"})
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")["__metadata__"] == {"format": "pt", "note": "x"}
    assert os.listdir(tmp_path) == [path.name]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_saving_over_a_file_that_is_open(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(1000)})
    old = read_tensors(path)["a"]
    write_tensors(path, {"a": torch.full((1000,), 2.0)})
    assert old.eq(1).all() and read_tensors(path)["a"].eq(2).all()


@pytest.mark.parametrize("call", ["save_file", "replace", "fsync"])
def test_a_full_disk_leaves_the_old_file(call, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(4)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file if call == "save_file" else os, call, full)
    with pytest.raises(ResourceError, match=r"No space left.*16 bytes needed, .* free") as caught:
        write_tensors(path, {"a": torch.zeros(4)})
    monkeypatch.undo()
    assert str(path) in str(caught.value) and caught.value.exit_code == 6
    assert read_tensors(path)["a"].eq(1).all() and os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ResourceError, match="cannot be written"):
        write_tensors(tmp_path / "absent" / "a.safetensors", {"a": torch.ones(1)})


def test_equal_tensors_and_strings_make_equal_files(tmp_path):
    strings = {f"ss_{name}": f'{name} \u00e4 "quoted" \\ \n \x7f' for name in "hgfedcba"}
    tensors = {name: torch.arange(6.0).reshape(2, 3) for name in "cab"}
    made = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, tensors, strings)
        made.add(path.read_bytes())
        assert open_file(path)[1] == {"format": "pt", **strings}
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_tensors(path).items())
    assert len(made) == 1
