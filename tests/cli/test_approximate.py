"""`--approximate` on the command line: read, recorded in the file, made again, and refused in one line."""

import pytest

from latent_diffusion.cli.main import main
from latent_diffusion.provenance.picture_file import read_texts


@pytest.fixture
def generate(tiny_folder, tmp_path, monkeypatch):
    """Run `generate` with the tiny model, four steps, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    base = ["generate", "the sun", "--model", str(tiny_folder), "--steps", "4", "--seed", "1", "--output", "a.png"]
    return lambda *arguments: main([*base, *arguments])


def test_approximations_are_recorded_and_made_again(generate, tiny_folder, capsys):
    assert generate("--approximate", "deepcache:interval=2", "--approximate", "tome") == 0
    record = read_texts("a.png")[1]
    assert record is not None and record.approximate == ("deepcache:interval=2,branch=0", "tome:ratio=0.5,levels=1")
    assert main(["regenerate", "a.png", "--model", str(tiny_folder), "--output", "b.png"]) == 0
    assert "the same picture, bit for bit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "said", "code"),
    [
        ("deepcash", "did you mean 'deepcache'?", 2),
        ("tome:ratio=2", "tome: ratio 2.0 is not a number from 0 to 0.75", 2),
        ("taesd", "needs model=FOLDER", 2),
        ("taesd:model=nowhere", "nowhere/config.json", 4),
    ],
)
def test_a_mistake_is_one_line(generate, tmp_path, capsys, asked, said, code):
    assert generate("--approximate", asked) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
