"""The judges of the composition test on pictures whose truth is known, and the test as a whole."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_diffusion.data.composed.stock import Stock
from latent_diffusion.data.settings import ComposedConfig, ReadingConfig
from latent_diffusion.data.sources.imagefolder import FolderSource
from latent_diffusion.errors import DataError
from latent_diffusion.evaluation.composition.judge import colour_of_ground, colour_of_thing, place_of, see
from latent_diffusion.evaluation.composition.prompts import KINDS, answer, read_asked
from latent_diffusion.evaluation.composition.score import make_judge, score_composition
from latent_diffusion.evaluation.evaluate import Examined
from latent_diffusion.evaluation.pictures import read_pictures

ASSETS = Path(__file__).parents[2] / "assets"
FILE, DATA = ASSETS / "composition.jsonl", ASSETS / "emoji-128.zip"
EACH = 5


@pytest.fixture(scope="module")
def asked():
    return read_asked(FILE)


@pytest.fixture(scope="module")
def answered(asked):
    """The first prompts of each kind, and the pictures composed for them at 64 px."""
    chosen = [one for kind in KINDS for one in [one for one in asked if one.kind == kind][:EACH]]
    names = {name for one in chosen for name in one.names}
    source = FolderSource.open(str(DATA), ReadingConfig())
    kept = [k for k in range(len(source)) if source.row(k)["name"] in names and source.row(k)["split"] == "train"]
    stock = Stock(source, np.array(kept), ComposedConfig(), 64)
    openings = {"fluent-flat": "a flat vector illustration of"}
    made = [(one, answer(one, stock, 64, openings.get(one.style, "a 3d render of"))) for one in chosen]
    return [(one, image) for one, image in made if image is not None]


def test_the_list_is_five_hundred_different_prompts(asked):
    assert Counter(one.kind for one in asked) == {kind: 100 for kind in KINDS}
    assert len({one.prompt for one in asked}) == len(asked) == 500
    assert len({name for one in asked for name in one.names}) > 200


def test_no_prompt_is_a_caption_of_the_training_pictures(asked):
    source = FolderSource.open(str(DATA), ReadingConfig())
    captions = {str(source.row(k)["text"]).lower() for k in range(len(source))}
    assert not captions & {one.prompt.lower() for one in asked}


def test_what_is_measured_is_what_was_composed(answered):
    measured = {
        "colour": lambda seen: colour_of_thing(seen),
        "ground": lambda seen: colour_of_ground(seen),
        "count": lambda seen: str(len(seen.things)),
        "place": lambda seen: place_of(seen),
    }
    assert len(answered) >= 0.9 * EACH * len(KINDS)
    right = [measured[one.kind](see(image)) == one.value for one, image in answered if one.kind in measured]
    assert np.mean(right) >= 0.95
    white = torch.ones(3, 64, 64)
    assert colour_of_thing(see(white)) is None and place_of(see(white)) == "" and not see(white).things


@pytest.fixture(scope="module")
def judge(answered, network):
    """The judge that searches among the things of the pictures alone."""
    pictures = read_pictures(DATA)
    names = {name for one, _ in answered for name in one.names}
    styles = {"fluent-3d", "fluent-flat"}
    rows = [row for row in pictures.rows if row.table["name"] in names and row.style in styles and row.split == "train"]
    return make_judge(network, pictures, rows)


def test_pairs_and_things_are_named_by_search(answered, judge):
    pairs = [(one, image) for one, image in answered if one.kind == "pair"]
    assert np.mean([judge.shows(one, image)["right"] for one, image in pairs]) >= 0.8
    others = [judge.shows(one, image)["right"] for (one, _), (_, image) in pairwise(pairs)]
    assert np.mean(others) <= 0.2  # the picture of another pair


def test_a_model_that_composes_scores_what_the_reference_does(answered, judge):
    by_prompt = {one.prompt: image for one, image in answered}
    chosen = [one for one, _ in answered if one.kind in ("colour", "count")]
    model = Examined("composer", 64, lambda prompts, seeds: torch.stack([by_prompt[prompt] for prompt in prompts]))
    report = score_composition(model, chosen, judge, str(DATA))
    assert report.drawn == report.real
    blank = Examined("blank", 64, lambda prompts, seeds: torch.ones(len(prompts), 3, 64, 64))
    report = score_composition(blank, chosen, judge, str(DATA))
    assert all(score.right == score.named == 0 for score in report.drawn)


@pytest.mark.parametrize("text", ["", "{", json.dumps({"kind": "smell", "prompt": "a cat"})])
def test_a_broken_list_is_refused(tmp_path, text):
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(DataError):
        read_asked(tmp_path / "list.jsonl")
