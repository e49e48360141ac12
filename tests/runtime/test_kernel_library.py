"""The file of compiled kernels, absent, foreign, cut or damaged: it is passed over, and never ends the process."""

import ctypes
import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from latent_diffusion.errors import ConfigError, LatentDiffusionWarning
from latent_diffusion.runtime import attention_kernels as attention
from latent_diffusion.runtime.cpu.native import library
from latent_diffusion.runtime.cpu.native.library import LIBRARY, VARIABLE, Level, open_library

built = pytest.mark.skipif(library.library() is None, reason="the kernels were not built")


@built
def test_the_whole_file_is_opened(tmp_path):
    kernels = open_library(Path(shutil.copy(LIBRARY, tmp_path)))
    assert kernels is not None and kernels.processor_level() > 0


NEEDS = {  # what the system names of a processor at each level, beside what the lower ones need
    Level.AVX2: {"avx2", "fma"},
    Level.AVX512: {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    Level.AVX512_VNNI: {"avx512_vnni"},
    Level.AVX512_BF16: {"avx512_bf16"},
    Level.AMX: {"amx_tile", "amx_int8", "amx_bf16"},
}


@built
def test_the_level_found_is_the_highest_that_the_system_names():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = {name for line in lines if line.startswith("flags") for name in line.partition(":")[2].split()}
    wanted = Level.PLAIN
    for each, needed in NEEDS.items():
        if not needed <= named:
            break
        wanted = each
    kernels = library.library()
    assert kernels is not None and kernels.processor_level() == wanted


@built
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_is_not_opened(tmp_path, share):
    data = LIBRARY.read_bytes()
    (tmp_path / "kernels.so").write_bytes(data[: int(share * len(data))])
    with pytest.warns(LatentDiffusionWarning, match=r"kernels\.so is damaged .* install the package again"):
        assert open_library(tmp_path / "kernels.so") is None


@built
@pytest.mark.parametrize("place", [0, 200, 20_000, -100, -1])
def test_a_file_with_one_wrong_byte_is_not_opened(tmp_path, place):
    data = bytearray(LIBRARY.read_bytes())
    data[place] ^= 1
    (tmp_path / "kernels.so").write_bytes(data)
    with pytest.warns(LatentDiffusionWarning, match="damaged"):
        assert open_library(tmp_path / "kernels.so") is None


def test_what_is_absent_a_folder_or_no_library_is_passed_over(tmp_path):
    text = b"no library"
    (tmp_path / "text.so").write_bytes(text + hashlib.sha256(text).digest())
    for file in (tmp_path / "absent.so", tmp_path, tmp_path / "text.so"):
        assert open_library(file) is None


@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
def test_without_speed_ups_it_is_not_opened(monkeypatch, backend):
    library.library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("opened"))
    try:
        attention.load_kernel(backend, torch.device("cpu"), torch.float32, fast=False)
    finally:
        library.library.cache_clear()


@pytest.fixture
def named(monkeypatch):
    """Return the level chosen on a processor with AVX2 where the variable is as given."""

    def choose(name):
        monkeypatch.setenv(VARIABLE, name)
        library.level.cache_clear()
        return library.level()

    kernels = type("Kernels", (), {"processor_level": lambda self: 2, "norm_plain": 1, "norm_avx2": 2, "gate_plain": 3})
    monkeypatch.setattr(library, "library", lambda: kernels())
    yield choose
    library.level.cache_clear()


def test_the_variable_lowers_the_level(named):
    assert named("") == named("avx2") == Level.AVX2 and named("plain") == Level.PLAIN
    with pytest.warns(LatentDiffusionWarning, match=r"LATENT_DIFFUSION_CPU_LEVEL=avx512 has no effect: .* is avx2"):
        assert named("avx512") == Level.AVX2
    with pytest.raises(ConfigError, match=r"LATENT_DIFFUSION_CPU_LEVEL=AVX-2: .* plain, avx2, avx512, avx512_vnni"):
        named("AVX-2")


def test_a_kernel_is_that_of_the_highest_level_that_has_it(named):
    named("")
    assert (library.find("norm"), library.find("gate"), library.find("other")) == (2, 3, None)
    named("plain")
    assert library.find("norm") == 1


def test_a_library_of_an_older_version_is_not_used(tmp_path, monkeypatch):
    data = b"older"
    (tmp_path / "kernels.so").write_bytes(data + hashlib.sha256(data).digest())
    monkeypatch.setattr(ctypes, "CDLL", lambda file: type("Old", (), {"abilities": lambda self: 3})())
    with pytest.warns(LatentDiffusionWarning, match=r"older version .* run `python hatch_build\.py`"):
        assert open_library(tmp_path / "kernels.so") is None
