"""Places that `convert` must not write to: refused by one line before a model is read, with nothing left behind."""

import pytest

from latent_diffusion.cli.main import main


@pytest.fixture
def refused(tiny_folder, capsys):
    """Convert to this place; return exit code and the one line, having read no model."""

    def convert(target, *more, source=tiny_folder):
        code = main(["convert", str(source), str(target), *more])
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and line.startswith("error: ")
        return code, line

    return convert


@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_a_name_too_long_for_any_file(refused, tmp_path, ending):
    code, line = refused(tmp_path / ("n" * 300 + ending))
    assert code == 6 and "too long" in line


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_link_to_nothing_is_somebody_s(refused, tmp_path, name):
    (tmp_path / name).symlink_to("elsewhere")
    code, line = refused(tmp_path / name)
    assert code == 2 and "exists" in line
    assert (tmp_path / name).is_symlink()


def test_a_link_is_not_replaced_by_a_folder(refused, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    code, line = refused(tmp_path / "link", "--overwrite")
    assert code == 2 and "is a link to 'real'" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_folder_that_holds_the_source(refused, tmp_path, tiny_folder):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "outer")
    inner = shutil.copytree(tiny_folder, tmp_path / "outer" / "inner")
    code, line = refused(tmp_path / "outer", "--overwrite", source=inner)
    assert code == 2 and "would be removed" in line
    assert inner.is_dir()


def test_ctrl_c_leaves_nothing(tiny_folder, tmp_path, monkeypatch):
    from latent_diffusion.checkpoint.folder import diffusers_folder

    def interrupted(model, folder, dtype):
        assert folder.parent.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(diffusers_folder, "save_autoencoder", interrupted)
    assert main(["convert", str(tiny_folder), str(tmp_path / "model")]) == 130
    assert not list(tmp_path.iterdir())
