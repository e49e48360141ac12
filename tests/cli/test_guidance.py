"""`--guidance` and its kin on the command line: read, recorded in the file, and refused in one line."""

import pytest

from latent_diffusion.cli.main import main
from latent_diffusion.provenance.picture_file import read_texts


@pytest.fixture
def generate(tiny_folder, tmp_path, monkeypatch):
    """Run `generate` with the tiny model, four steps, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    base = ["generate", "the sun", "--model", str(tiny_folder), "--steps", "4", "--seed", "1", "--output", "a.png"]
    return lambda *arguments: main([*base, *arguments])


def test_guidances_are_combined_and_recorded(generate):
    asked = ["--guidance", "apg:scale=9,eta=0.5", "--guidance", "pag:scale=2,stop=0.5"]
    rest = ["--guidance-interval", "0.25", "1", "--guidance-rescale", "0.5", "--guidance-slicing"]
    assert generate(*asked, *rest) == 0
    record = read_texts("a.png")[1]
    assert record is not None
    assert record.guidance == ("apg:scale=9.0,eta=0.5,max_norm=15.0,momentum=0.0", "pag:scale=2.0,layers=mid,stop=0.5")
    assert (record.guidance_scale, record.guidance_rescale, record.guidance_interval) == (9.0, 0.5, (0.25, 1.0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--guidance", "cgf"], "did you mean 'cfg'?"),
        (["--guidance", "pag:scale=lots"], "pag: scale 'lots' is not a number"),
        (["--guidance", "classifier"], "needs model=FOLDER and label=CLASS"),
        (["--guidance", "noised_clip"], "guidance 'noised_clip' needs model=FOLDER"),
        (["--guidance-interval", "0.8", "0.2"], "use 0 <= start < stop <= 1"),
        (["--guidance-rescale", "2"], "guidance_rescale 2.0 is not a number from 0 to 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_2(generate, tmp_path, capsys, arguments, said):
    assert generate(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
