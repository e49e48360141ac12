"""Prompts as people type them are read in the form of the model's captions, and nothing fails."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.prompt_forms import (
    FORMS,
    NAMES,
    PromptForms,
    read_prompt_forms,
    write_prompt_forms,
)
from latent_diffusion.cli.main import main
from latent_diffusion.errors import CheckpointError, ConfigError, LatentDiffusionWarning
from latent_diffusion.evaluation.pictures import read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.pipeline.regenerate import differences, plan_of_record
from latent_diffusion.prompts.rewrite import Rewritten, rewrite
from latent_diffusion.provenance.infotext import write_infotext
from latent_diffusion.provenance.record import Record

ASSETS = Path(__file__).parents[2] / "assets"
EMOJI = ASSETS / "emoji-first"  # the bundled model's first version, whose folder has prompt forms
PICTURES = ASSETS / "emoji-128.zip"
STYLES = {
    "a 3d render of": ("3d render", "3d"),
    "a flat vector illustration of": ("flat illustration", "flat"),
    "a black and white icon of": ("black and white", "monochrome"),
}
NAMES_KNOWN = {"red apple": "red apple", "apple": "red apple", "cat": "cat", "flat shoe": "flat shoe", "ship": "ship"}
NAMES_KNOWN |= {name: name for name in ("sea", "robot", "flower", "house", "owl", "scissors", "cup")}
NAMES_KNOWN |= {"flat": "flat shoe", "pirate": "ship", "coffee": "cup"}
FORMS_KNOWN = PromptForms(STYLES, "a 3d render of", NAMES_KNOWN)
STRANGE = (
    "", " ", "\n", ".,!?", "a", "3d", "emoji", "zorblatt", "🍎", "👩‍🚀", "😀😀😀", "🫠", "красное яблоко", "リンゴ",
    "苹果", "تفاحة حمراء", "सेब", "e\u0301clair", "\u200d\ufe0f", "apple\x00pear", "A" * 9000, "apple " * 1500, "((((",
    "[a:b", "A AND B",
)  # fmt: skip


def read(prompt):
    found = rewrite(prompt, FORMS_KNOWN)
    return None if found is None else found.text


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("apple", "a 3d render of a red apple"),
        ("An OWL.", "a 3d render of an owl"),
        ("scissors", "a 3d render of scissors"),
        ("emoji of a cat", "a 3d render of a cat"),
        ("Please draw me a red apple in 3D style!", "a 3d render of a red apple"),
        ("cat, flat", "a flat vector illustration of a cat"),
        ("flat cat", "a flat vector illustration of a cat"),
        ("a flat shoe", "a 3d render of a flat shoe"),  # the name takes the word
        ("black and white owl", "a black and white icon of an owl"),
        ("two cats", "a 3d render of a cat"),
        ("🐈 monochrome", "a black and white icon of a cat"),
        ("a pirate ship on the sea", "a 3d render of a ship"),
        ("a robot holding a flower", "a 3d render of a robot"),
        ("a cup of coffee, flat", "a flat vector illustration of a cup"),
        ("a 3d render of a coffee", "a 3d render of a cup"),
        ("a pirate cat", "a 3d render of a cat"),  # a name before another word for one
        ("a cat house", "a 3d render of a house"),
        ("a big red apple with a cat", "a 3d render of a red apple"),
        ("une pomme, flat", "a flat vector illustration of une pomme"),
    ],
)
def test_typed_prompts_are_read_as_captions(typed, text):
    assert read(typed) == text
    assert read(text) is None


@pytest.mark.parametrize(
    "typed",
    ["", " ", "?", "a (red:1.3) apple", "a cat AND a robot", "[cat:robot:0.5]", "cat <lora:ink:1>", "cat BREAK robot"],
)
def test_nothing_and_syntax_are_read_as_they_are(typed):
    assert rewrite(typed, FORMS_KNOWN) is None


@pytest.mark.parametrize("typed", ["A 3D Render of a cat", "a 3d render of cat", "A flat vector illustration of owl"])
def test_captions_are_read_as_they_are(typed):
    assert rewrite(typed, FORMS_KNOWN) == Rewritten(None)


def test_what_is_left_out_is_named():
    assert rewrite("a blue robot in 3d", FORMS_KNOWN) == Rewritten("a 3d render of a robot", ("blue",))
    assert rewrite("zorblatt", FORMS_KNOWN) == Rewritten("a 3d render of zorblatt", known=False)


@pytest.mark.parametrize(
    "typed", ["cat, cat", "cats, a cat", "a pirate ship, ship", "red apple, apple, red", "flat cat, flat illustration"]
)
def test_words_said_twice_are_not_left_out(typed):
    found = rewrite(typed, FORMS_KNOWN)
    assert found.text and not found.left_out


def test_what_is_said_beside_a_repetition_is_named():
    assert rewrite("cat, a blue cat", FORMS_KNOWN).left_out == ("blue",)
    assert rewrite("flat cat in 3d", FORMS_KNOWN).left_out == ("3d",)
    assert rewrite("a 3d render of a cat, cat", FORMS_KNOWN) == Rewritten("a 3d render of a cat")


@pytest.mark.parametrize("word", ["zorblatt", "apple", "red", "flat", "with"])
def test_the_work_grows_with_the_length(word):
    class Counting(dict):
        asked = 0

        def __contains__(self, key):
            Counting.asked += 1
            return super().__contains__(key)

    rewrite(" ".join([word] * 2000), replace(FORMS_KNOWN, names=Counting(NAMES_KNOWN)))
    assert Counting.asked <= 2 * 3 * 2000  # names of up to two words, each as it is and without "s" and "es"


def test_forms_are_written_and_read(tmp_path):
    write_prompt_forms(FORMS_KNOWN, tmp_path)
    assert read_prompt_forms(tmp_path) == FORMS_KNOWN
    assert read_prompt_forms(tmp_path / "other") is None


@pytest.mark.parametrize("broken", ["[]", "{}", '{"styles": {"a": [1]}, "default_style": "a"}', "{", "\xff"])
def test_damaged_forms_are_named(tmp_path, broken):
    write_prompt_forms(FORMS_KNOWN, tmp_path)
    (tmp_path / FORMS).write_text(broken, "latin-1")
    with pytest.raises(CheckpointError, match=FORMS):
        read_prompt_forms(tmp_path)


def test_a_default_style_that_is_no_text_is_named(tmp_path):
    (tmp_path / FORMS).write_text(json.dumps({"styles": {"a": []}, "default_style": ["a"]}))
    with pytest.raises(CheckpointError, match="default_style"):
        read_prompt_forms(tmp_path)


def test_missing_names_are_named(tmp_path):
    write_prompt_forms(FORMS_KNOWN, tmp_path)
    (tmp_path / NAMES).unlink()
    with pytest.raises(CheckpointError, match=NAMES):
        read_prompt_forms(tmp_path)


@pytest.fixture(scope="module")
def pipe(tiny_pipeline):
    return LatentDiffusionPipeline(replace(tiny_pipeline.components, prompt_forms=FORMS_KNOWN), device="cpu")


def draw(pipe, prompt, **options):
    return pipe(prompt, num_inference_steps=2, seed=5, output_type="np", **options)


@pytest.mark.filterwarnings("ignore::latent_diffusion.errors.LatentDiffusionWarning")
def test_a_picture_is_that_of_the_text_read(pipe):
    both = draw(pipe, ["a blue robot, flat", "a 3d render of a cat"])
    plain = draw(pipe, ["a flat vector illustration of a robot", "a 3d render of a cat"], rewrite=False)
    assert np.array_equal(both.images, plain.images)
    assert [record.read_as for record in both.records] == ["a flat vector illustration of a robot", None]
    assert [record.prompt for record in both.records] == ["a blue robot, flat", "a 3d render of a cat"]
    assert not np.array_equal(draw(pipe, "a blue robot, flat", rewrite=False).images[0], both.images[0])


def test_left_out_words_are_warned_of(pipe):
    with pytest.warns(LatentDiffusionWarning, match="without blue"):
        draw(pipe, "a blue robot")
    with pytest.warns(LatentDiffusionWarning, match="may show anything"):
        draw(pipe, "zorblatt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LatentDiffusionWarning)
        draw(pipe, "CAT, flat", negative_prompt="a blue zorblatt")


def test_the_negative_prompt_is_read_as_it_is(pipe):
    record = draw(pipe, "cat", negative_prompt="apple").records[0]
    assert (record.negative_prompt, record.read_as) == ("apple", "a 3d render of a cat")
    assert not np.array_equal(
        draw(pipe, "cat", negative_prompt="apple").images,
        draw(pipe, "cat", negative_prompt="a 3d render of a red apple").images,
    )


def test_a_record_makes_the_picture_again(pipe, tiny_pipeline):
    for options in ({}, {"rewrite": False}):
        out = draw(pipe, "apple", **options)
        record = Record.from_json(out.records[0].to_json())
        again = plan_of_record(record).draw(pipe, {}, output_type="np")
        assert np.array_equal(again.images, out.images)
        assert not differences(record, again.records[0])
    other = plan_of_record(draw(pipe, "apple").records[0]).draw(tiny_pipeline, {}, output_type="np").records[0]
    assert any("read as" in line for line in differences(draw(pipe, "apple").records[0], other))


def test_other_programs_are_told_the_text_read(pipe):
    text = write_infotext(draw(pipe, "apple").records[0])
    assert text.startswith("a 3d render of a red apple\n")
    assert "Template: apple" in text


def test_walks_read_the_same(pipe):
    out = pipe.interpolate(["apple", "cat"], frames=3, num_inference_steps=2, seed=5, output_type="np")
    assert np.abs(out.images[0] - draw(pipe, "apple").images[0]).max() < 1e-4
    read_as = ["a 3d render of a red apple", None, "a 3d render of a cat"]
    assert [record.read_as for record in out.records] == read_as


def test_tokens_say_what_is_read(pipe):
    assert pipe.tokens("apple").read_as == "a 3d render of a red apple"
    assert pipe.tokens("apple", rewrite=False).read_as is None


def test_rewrite_is_for_models_that_say_how(pipe, tiny_pipeline):
    with pytest.raises(ConfigError, match="has no prompt forms"):
        draw(tiny_pipeline, "apple", rewrite=True)
    with pytest.raises(ConfigError, match="neither True nor False"):
        draw(pipe, "apple", rewrite="yes")
    assert draw(tiny_pipeline, "apple").records[0].read_as is None


def test_an_adapter_turns_it_off(pipe):
    adapted = replace(pipe.components, adapters=("anything",))
    assert pipe.engine.settings({}).prompt_forms is FORMS_KNOWN
    changed = replace(pipe.engine, components=adapted)
    assert changed.settings({}).prompt_forms is None
    assert changed.settings({"rewrite": True}).prompt_forms is FORMS_KNOWN


@pytest.fixture(scope="module")
def emoji():
    return LatentDiffusionPipeline.from_pretrained(EMOJI, device="cpu", dtype="float32")


def test_every_caption_of_the_model_is_read_as_it_is(emoji):
    rows = select(read_pictures(PICTURES).rows, read_trained_on(EMOJI).where)
    changed = [row.text for row in rows if rewrite(row.text, emoji.components.prompt_forms) != Rewritten(None)]
    assert not changed
    shouted = [rewrite(row.text.upper(), emoji.components.prompt_forms) for row in rows]
    assert [found.text for found in shouted] == [row.text.lower() for row in rows]


@pytest.mark.parametrize(
    ("typed", "wrong"), [("❤️", "black"), ("🇫🇷", "envelope"), ("🅰", "envelope")], ids=["heart", "flag", "letter"]
)
def test_an_emoji_is_not_read_as_what_a_word_of_its_unicode_name_means(emoji, typed, wrong):
    found = rewrite(typed, emoji.components.prompt_forms)
    assert found is None or wrong not in (found.text or "")
    assert typed != "❤️" or (found and "heart" in (found.text or ""))


@pytest.mark.filterwarnings("ignore::latent_diffusion.errors.LatentDiffusionWarning")
@pytest.mark.parametrize("rewritten", [None, False])
def test_no_prompt_fails(emoji, rewritten):
    out = emoji(list(STRANGE), num_inference_steps=1, seed=1, output_type="np", rewrite=rewritten)
    assert np.isfinite(out.images).all()
    for record in out.records:
        assert Record.from_json(record.to_json()) == record
        assert write_infotext(record)


@pytest.mark.filterwarnings("ignore::latent_diffusion.errors.LatentDiffusionWarning")
def test_case_blanks_and_full_stops_change_nothing(emoji):
    ways = [
        "a 3d render of a red apple",
        "A 3D RENDER OF A RED APPLE",
        "  a 3d  render of a red apple ",
        "Apple",
        "🍎!",
    ]
    pictures = emoji(ways, num_inference_steps=1, seed=[1] * len(ways), output_type="np").images
    assert all(np.abs(picture - pictures[0]).max() < 1e-4 for picture in pictures)


def test_the_command_line_says_what_is_read(capsys):
    model = ["--model", str(EMOJI)]
    assert main(["tokens", "a blue FISH, flat", *model]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("rewritten: a flat vector illustration of a fish\n")
    assert "without blue" in said.err
    assert main(["tokens", "a blue FISH, flat", "--no-rewrite", *model]) == 0
    assert "rewritten" not in capsys.readouterr().out
    assert main(["info", str(EMOJI)]) == 0
    assert "names.txt" in capsys.readouterr().out
