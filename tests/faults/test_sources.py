"""Files that would fill the memory, and YAML that makes its parser stumble."""

import os
import struct
import zipfile

import pytest

from latent_diffusion.config import read_config
from latent_diffusion.data.pictures.images import load_image
from latent_diffusion.data.places.files import MAX_BYTES, open_files
from latent_diffusion.errors import ConfigError, DataError


@pytest.fixture
def small_limit(monkeypatch):
    """A limit of 1000 bytes, so that no test needs a real bomb."""
    monkeypatch.setattr("latent_diffusion.data.places.files.MAX_BYTES", 1000)


def test_a_huge_file_is_refused_unread(tmp_path):
    huge = tmp_path / "a.png"
    huge.touch()
    os.truncate(huge, 100 * MAX_BYTES)  # a hole, not bytes
    for read in (lambda: open_files(tmp_path).read("a.png"), lambda: load_image(huge)):
        with pytest.raises(DataError, match="at most"):
            read()


def test_a_zip_bomb_is_refused_unpacked_or_not(tmp_path, small_limit):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1_000_000))
        archive.writestr("b.png", bytes(1000))
    assert open_files(bomb).read("b.png") == bytes(1000)
    with pytest.raises(DataError, match="at most 1000"):
        open_files(bomb).read("a.png")
    size = struct.pack("<I", 1_000_000)
    bomb.write_bytes(bomb.read_bytes().replace(size, struct.pack("<I", 900)))  # an archive that lies
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        open_files(bomb).read("a.png")


@pytest.mark.parametrize("text", ["a: !!bool maybe", "a: !!timestamp x", "a: !!int x", "a: !!float", "a: !!set [1]"])
def test_yaml_tags_that_do_not_fit(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError):
        read_config(tmp_path / "run.yaml", [f"b={text}"])
