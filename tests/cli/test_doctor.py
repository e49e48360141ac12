"""The examination of a run: a folder with every fault, named; a report page; a list that the run then reads."""

import html
import re

import numpy as np
import pytest
from PIL import Image, ImageFilter

from latent_diffusion.cli.main import main

RUN = """
output: {root}/run
objective: {{name: unet, init: {model}}}
data: {{path: {root}/set, size: 32, buckets: {{step: 8, min_side: 16}}}}
steps: 4
batch_size: 2
threads: 1
"""


@pytest.fixture
def run(tiny_folder, tmp_path):
    """A run on seven pictures: one cut, two equal, two that look alike, one small, one without a caption."""
    folder = tmp_path / "set"
    folder.mkdir()
    draw = np.random.default_rng(0)

    def noise(width, height):
        rough = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        return rough.resize((width, height), Image.Resampling.BICUBIC)

    pictures = {"a": noise(64, 64), "b": noise(96, 48), "c": noise(20, 20), "d": noise(64, 64)}
    pictures["e"] = pictures["a"].filter(ImageFilter.GaussianBlur(1))
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
        if name != "d":
            (folder / f"{name}.txt").write_text(f"a cat, {name}")
    (folder / "f.png").write_bytes((folder / "b.png").read_bytes())
    (folder / "f.txt").write_text("a cat, again")
    (folder / "g.png").write_bytes((folder / "b.png").read_bytes()[:500])
    (folder / "g.txt").write_text("broken")
    Image.new("L", (30, 60)).save(folder / "a.mask.png")
    file = tmp_path / "my run.yaml"
    file.write_text(RUN.format(root=tmp_path, model=tiny_folder))
    return file


def test_every_fault_is_named_and_the_list_leaves_out_what_is_broken(run, tmp_path, capsys):
    fix, report = tmp_path / "bad.txt", tmp_path / "report.html"
    assert main(["doctor", str(run), "--fix", str(fix), "--report", str(report)]) == 1
    told = capsys.readouterr().out
    for words in (
        r"1 broken: .*--fix: 'g\.png'", r"1 without a caption: .*: 'd\.png'", r"1 mask that does not fit: .*: 'a\.png'",
        r"1 copy: .*: 'f\.png'", r"1 near-duplicate: .*: 'e\.png'", r"1 small: .*: 'c\.png'",
        r"most frequent tags: 'a cat' 5", r"tokens of a caption: \d", r"plan: \d+ pictures / batch_size 2",
        r"40x24 +2 +1 +2 +16\.7%", r"peak memory: ", r"expected end: ",
    ):  # fmt: skip
        assert re.search(words, told), words
    assert not (tmp_path / "run").exists()
    page = report.read_text()
    assert page.count("<img ") >= 5 and "data:image/jpeg;base64," in page and "http" not in page
    before, _, after = page.partition("To look at; the run can start as it is")
    assert re.findall(r'<a href="#k\d">([^<]*)</a>', before) == ["1 broken", "1 without a caption"]
    assert after.count("<li>") == 4
    assert f"latent-diffusion train '{run}' data.quarantine=bad.txt" in html.unescape(before)
    assert "<figcaption>g.png<br>damaged: " in page, "a name is there once"
    assert not re.search(r"(src|href)=[\"'](?!data:|#)|url\(|@import|<script|<link", page)  # nothing is fetched
    assert re.search(r"f\.png<br>.*\n<figure>.*b\.png<br>.*the same file as the one before", page)
    assert re.search(r"e\.png<br>.*\n<figure>.*a\.png<br>.*looks like the one before", page)
    assert [line.split("\t")[1] for line in fix.read_text().splitlines() if not line.startswith("#")] == ["g.png"]
    repaired = [f"data.quarantine={fix}", "data.missing_captions=empty"]
    assert main(["doctor", str(run), *repaired, "--no-measure"]) == 0
    assert main(["train", str(run), *repaired]) == 0


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "here.html").write_text("mine")
    assert main(["doctor", str(run), "--report", str(tmp_path / "here.html")]) == 6
    assert (
        "exists; nothing is overwritten" in capsys.readouterr().err and (tmp_path / "here.html").read_text() == "mine"
    )


def test_a_sound_set_has_nothing_to_mend(tiny_folder, pictures, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(RUN.format(root=tmp_path, model=tiny_folder))
    assert main(["doctor", str(file), f"data.path={pictures}", "data.buckets=null", "--no-measure"]) == 0
    told = capsys.readouterr().out
    assert not re.search(r"\d+ (broken|without a caption|cop(y|ies)|masks?)", told) and "plan: " in told
