"""Changes to captions: drawn with a key, nothing written."""

import pytest

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.rows.captions import Wording
from latent_diffusion.data.settings import WordingConfig
from latent_diffusion.randomness import generator


def drawn(text: str, count: int = 200, **settings) -> list[str]:
    wording = Wording(WordingConfig(**settings))
    return [wording(text, generator(1, "wording", n)) for n in range(count)]


@pytest.mark.parametrize(
    ("settings", "text", "wanted"),
    [
        ({}, "a  cat\non a mat", "a cat on a mat"),
        ({"lines": "first"}, "a cat\non a mat", "a cat"),
        ({"replace": {"1girl": "a girl", "girl": "woman"}}, "1girl, hat", "a woman, hat"),
        ({"prefix": "photo of", "suffix": "in rain"}, "a cat", "photo of a cat in rain"),
        ({"trigger": "sks"}, "a cat", "sks, a cat"),
        ({"trigger": "sks"}, "an SKS cat", "an SKS cat"),
        ({"trigger": "sks"}, "", "sks"),
        ({"second_separator": ";;"}, "red;;blue, cat", "red,blue, cat"),
        ({"keep_separator": "|||"}, "a, b ||| c, d", "a, b, c, d"),
    ],
)
def test_fixed_changes(settings, text, wanted):
    assert drawn(text, 1, **settings) == [wanted]
    assert not Wording(WordingConfig(**settings)).draws


def test_tags_are_shuffled_and_dropped_behind_those_that_are_kept():
    found = drawn("sks, cat, red, small, old", shuffle=True, drop_tags=0.25, keep=2)
    assert all(text.startswith("sks, cat") for text in found)
    assert {tag for text in found for tag in text.split(", ")} == {"sks", "cat", "red", "small", "old"}
    assert len({text for text in found if text.count(",") == 4}) == 6
    kept = sum(text.count(",") - 1 for text in found) / (3 * len(found))
    assert abs(kept - 0.75) < 0.05
    ends = drawn("sks, cat ||| red, small, old ||| end", shuffle=True, keep_separator="|||")
    assert all(text.startswith("sks, cat, ") and text.endswith(", end") for text in ends) and len(set(ends)) == 6
    joined = drawn("a, red;;blue, c", shuffle=True, second_separator=";;")
    assert all("red,blue" in text for text in joined) and len(set(joined)) == 6


def test_choices_and_lines_are_drawn():
    assert set(drawn("a {red|green|{light|dark} blue} {{x}} cat", wildcards=True)) == {
        f"a {colour} {{x}} cat" for colour in ("red", "green", "light blue", "dark blue")
    }
    assert set(drawn("one\n\ntwo", lines="draw")) == {"one", "two"}


def test_equal_keys_draw_equal_captions_and_weights_choose_fields(make_folder):
    folder = make_folder(5, text_alt=["x", "y"])
    config = DataConfig(path=str(folder), size=16, captions={"text": 1, "text_alt": 3}, wording={"suffix": "z"})
    data, again = ImageFolder(config, 7), ImageFolder(config, 7)
    found = [data.caption_of(n, data.row_of(n)) for n in range(2000)]
    assert found == [again.caption_of(n, again.row_of(n)) for n in range(2000)]
    assert abs(sum(text in ("x z", "y z") for text in found) / 2000 - 0.75) < 0.03
    assert set(found) <= set(data.all_captions())
    shuffled = DataConfig(path=str(folder), size=16, wording={"shuffle": True})
    assert ImageFolder(shuffled, 7).all_captions() is None


def test_a_field_that_is_listed_several_times_is_drawn_so_often(make_folder):
    folder = make_folder(2, other="else")
    listed, weighted = (
        ImageFolder(DataConfig(path=str(folder), size=16, captions=captions), 0)
        for captions in (["text", "text", "text", "other"], {"text": 3, "other": 1})
    )
    drawn = [listed.caption_of(n, 1) for n in range(400)]
    assert drawn == [weighted.caption_of(n, 1) for n in range(400)]
    assert 70 < drawn.count("else") < 130


def test_a_default_caption_stands_where_there_is_none(tmp_path, encoded):
    (tmp_path / "a.png").write_bytes(encoded())
    data = ImageFolder(DataConfig(path=str(tmp_path), size=16, default_caption="a thing"), 7)
    assert data.caption_of(0, 0) == "a thing" and list(data.all_captions()) == ["a thing"]
