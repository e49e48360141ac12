"""Composed pictures: keyed by their row, true to their captions, never a combination that is held out."""

import json
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.batches.loader import batches
from latent_diffusion.data.batches.picture_masks import warn_of_unused_masks
from latent_diffusion.data.composed.colours import TARGETS, from_oklab, name_shares, to_oklab
from latent_diffusion.data.composed.cutout import cut_out, recolour
from latent_diffusion.data.composed.drawing import GROUNDS, PLACES
from latent_diffusion.data.composed.painting import paint_ground
from latent_diffusion.data.composed.regions import label, mask_of_things, things
from latent_diffusion.data.composed.rows import ComposedSource
from latent_diffusion.data.composed.scene import Ground, HeldOut
from latent_diffusion.data.composed.words import false_scenes, plural, with_article
from latent_diffusion.errors import ConfigError
from latent_diffusion.randomness import generator

SHAPES = {"disc": (200, 60, 60), "box": (70, 110, 220), "plate": (120, 120, 125)}
STYLES = {"flat": "a flat drawing of", "": ""}
SIDE = 64


def drawn(name: str) -> Image.Image:
    """One thing on white, with a dark line around it."""
    picture = Image.new("RGB", (96, 96), "white")
    shape = ImageDraw.Draw(picture)
    box = (18, 14, 78, 74) if name != "box" else (12, 22, 84, 70)
    outline = shape.ellipse if name == "disc" else shape.rectangle
    outline(box, fill=SHAPES[name], outline=(40, 40, 40), width=3)
    return picture


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A function that opens composed pictures of three things in two styles."""
    folder = tmp_path_factory.mktemp("things")
    rows = []
    for style, opening in STYLES.items():
        for name in SHAPES:
            drawn(name).save(folder / f"{style}{name}.png")
            text = f"{opening} a {name}".strip()
            rows.append({"file_name": f"{style}{name}.png", "text": text, "name": name, "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def open_data(**composed: object) -> ImageFolder:
        section = {"rows": 500, **composed}
        return ImageFolder(DataConfig(path=str(folder), size=SIDE, check="none", composed=section), 0)

    return open_data


def scenes(data: ImageFolder, count: int):
    source = data.parts[0].source
    return [(k, source.scene(k)) for k in range(count)]


@pytest.mark.parametrize(
    ("css", "name"),
    [
        ("crimson", "red"), ("darkorange", "orange"), ("gold", "yellow"), ("forestgreen", "green"),
        ("limegreen", "green"), ("royalblue", "blue"), ("dodgerblue", "blue"), ("navy", "blue"),
        ("rebeccapurple", "purple"), ("hotpink", "pink"), ("pink", "pink"), ("saddlebrown", "brown"),
        ("black", "black"), ("gray", "grey"), ("white", "white"),
    ],
)  # fmt: skip
def test_a_colour_has_the_name_that_css_gives_it(css, name):
    pixel = np.asarray(Image.new("RGB", (1, 1), css)).reshape(1, 3)
    assert next(iter(name_shares(to_oklab(pixel)))) == name


def test_oklab_there_and_back_is_the_same_colour():
    rgb = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(-1, 3).astype(np.uint8)
    assert np.abs(from_oklab(to_oklab(rgb)).astype(int) - rgb).max() <= 1


def test_parts_of_a_mask_are_those_that_touch():
    mask = np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], bool)
    numbers, count = label(mask)
    assert count == 3
    assert numbers[0, 0] == numbers[1, 1] == numbers[2, 0] == numbers[2, 2]  # by their corners
    assert len({numbers[0, 0], numbers[0, 3], numbers[3, 4]}) == 3 and (numbers[~mask] == 0).all()


@pytest.mark.parametrize("thing", SHAPES)
def test_a_given_colour_is_the_colour_that_is_measured(thing):
    cut = cut_out(drawn(thing))
    assert cut is not None and cut.clean and cut.parts == 1
    for colour in TARGETS:
        made = recolour(cut, colour)
        assert made is not None
        pixels = np.asarray(made)
        assert next(iter(name_shares(to_oklab(pixels[pixels[..., 3] > 200][:, :3])))) == colour


def test_the_edge_of_a_thing_keeps_no_white():
    cut = cut_out(drawn("disc").resize((64, 64), Image.Resampling.LANCZOS))
    assert cut is not None
    canvas = Image.new("RGBA", cut.image.size, (20, 20, 160, 255))
    canvas.alpha_composite(cut.image)
    assert np.asarray(canvas)[..., :2].min(axis=-1).max() < 130  # nothing nearly white is left: the disc's red is 60


@pytest.mark.parametrize("form", ["plain", "gradient"])
def test_every_shade_of_a_ground_has_its_name(form):
    for colour in GROUNDS:
        for k in range(8):
            ground = np.asarray(paint_ground(Ground(form, colour), 16, generator(0, "shade", k)))
            assert next(iter(name_shares(to_oklab(ground.reshape(-1, 3))))) == colour


def test_a_row_is_the_same_picture_in_any_order_and_after_a_restart(data):
    first, again = data(), data()
    numbers = [7, 3, 11]
    pixels = {n: first.sample(n).image for n in numbers}
    for n in reversed(numbers):
        assert (again.sample(n).image == pixels[n]).all() and again.sample(n).caption == first.sample(n).caption
    assert first.digest == again.digest != data(rows=499).digest
    other = data(seed=5).parts[0].source
    assert [other.row(k)["text"] for k in range(20)] != [first.parts[0].source.row(k)["text"] for k in range(20)]
    resumed = next(iter(batches(again, [[4, 5, 6]], 0)))
    whole = [*batches(first, [[0, 1, 2, 3], [4, 5, 6]], 1)][1]
    assert resumed.captions == whole.captions and (resumed.images == whole.images).all()


def test_captions_are_true_of_the_pictures(data):
    folder = data(shares={"colour": 1, "ground": 1, "place": 1, "count": 1}, rows=200)
    source = folder.parts[0].source
    judged = {"colour": 0, "ground": 0, "count": 0, "place": 0}
    for k, scene in scenes(folder, 160):
        if scene is None:
            continue
        rgb = folder.image(k).permute(1, 2, 0).numpy()
        caption = source.row(k)["text"]
        mask = mask_of_things(rgb)
        plain = scene.ground.form == "plain"
        colour = scene.things[0].colour
        if colour is not None and plain:
            assert colour in caption or (colour == "purple" and "violet" in caption)
            assert next(iter(name_shares(to_oklab(rgb[mask])))) == colour, caption
            judged["colour"] += 1
        if plain and scene.ground.colour != "white":
            border = to_oklab(rgb[:2].reshape(-1, 3))
            assert next(iter(name_shares(border))) == scene.ground.colour, caption
            judged["ground"] += 1
        if plain and len(scene.things) > 1:
            assert len(things(mask)) == len(scene.things), caption
            judged["count"] += 1
        if plain and scene.place:
            y, x = (float(part.mean()) / SIDE for part in np.nonzero(mask))
            wanted = PLACES[scene.place]
            assert abs(y - wanted[0]) < 0.12 and abs(x - wanted[1]) < 0.12, caption
            judged["place"] += 1
    assert min(judged.values()) >= 10, judged


def test_pairs_stand_as_their_captions_name_them(data):
    source = data(shares={"pair": 1}).parts[0].source
    orders = {
        "left of": (r"(.*?),? (?:to the )?left of (.*)", "x"),
        "right of": (r"(.*?),? (?:to the )?right of (.*)", "x"),
        "above": (r"(.*?) (?:above|over) (.*)", "y"),
        "below": (r"(.*?) (?:below|under) (.*)", "y"),
        "on": (r"(.*?) on (?:top of )?((?:a )?(?:\w+ )?(?:disc|box|plate)\b.*)", "y"),
    }
    seen = dict.fromkeys(orders, 0)
    for k in range(300):
        scene, text = source.scene(k), source.row(k)["text"]
        if scene is None or scene.ground != Ground():
            continue
        for word, (pattern, axis) in orders.items():
            found = re.fullmatch(pattern, text)
            if found is not None:
                one, two = (next(t for t in scene.things if t.name in found[part]) for part in (1, 2))
                before = getattr(one, axis) < getattr(two, axis)
                assert before == (word not in ("right of", "below")), (text, scene)
                seen[word] += 1
    assert min(seen.values()) >= 5, seen


def test_false_captions_differ_from_the_true_one(data):
    source = data(shares={"colour": 1, "ground": 1, "place": 1, "count": 1, "pair": 1}).parts[0].source
    for k in range(60):
        row = source.row(k)
        assert row["false"] and row["text"] not in row["false"], row


def test_two_things_alone_have_false_captions_too(data):
    source = data(shares={"pair": 1}).parts[0].source
    draw, names = np.random.default_rng(0), list(SHAPES)[:2]
    pairs = [scene for scene in map(source.scene, range(60)) if {thing.name for thing in scene.things} == set(names)]
    assert pairs
    for scene in pairs:
        assert all(false != scene for false in false_scenes(scene, names, ("red", "blue", "green"), draw))


def test_what_is_held_out_is_never_drawn(data, tmp_path):
    held = [
        *({"kind": "colour", "value": c, "names": ["disc"]} for c in TARGETS if c != "red"),
        *({"kind": "ground", "value": c, "names": ["box"]} for c in (*GROUNDS, "white") if c != "green"),
        {"kind": "pair", "value": "", "names": ["disc", "box"]},
        {"kind": "count", "value": "3", "names": ["plate"]},
    ]
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in held))
    free, kept = data(), data(held_out=str(file))
    out = HeldOut.read(str(file))
    drawn_free, drawn_kept = ([scene for _, scene in scenes(one, 300) if scene] for one in (free, kept))
    assert sum(map(out.has, drawn_free)) > 20
    assert not any(map(out.has, drawn_kept))
    called = data(held_out=str(file), shares={"colour": 1}, synonyms={"plate": ["disc", "dish"]})
    colours = {scene.things[0].colour for _, scene in scenes(called, 200) if scene and scene.things[0].name == "plate"}
    assert colours == {"red"}  # the captions call a plate a disc, which is held out in all other colours
    found = {combination for scene in drawn_kept for combination in scene.combinations()}
    assert ("colour", "red", "disc") in found and ("ground", "green", "box") in found


def test_plain_pictures_have_the_share_that_is_set(data):
    rows = [scene is None for _, scene in scenes(data(shares={"plain": 1, "colour": 3}), 400)]
    assert 0.19 < np.mean(rows) < 0.31
    folder = data(shares={"plain": 1})
    assert {row["kind"] for row in folder.rows[:20]} == {"plain"}
    assert folder.sample(0).caption in {f"{opening} a {name}".strip() for opening in STYLES.values() for name in SHAPES}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"check": "all"}, "check: none"),
        ({"flip": True}, "left and right"),
        ({"buckets": {}}, "squares"),
        ({"composed": {"shares": {"plain": 0}}}, "one of them is more"),
    ],
)
def test_settings_that_would_make_captions_false_are_refused(changed, words):
    values = {"path": "p", "size": 64, "check": "none", "composed": {}, **changed}
    with pytest.raises(ValueError, match=words):
        DataConfig(**values)


def test_a_source_without_names_is_refused(make_folder):
    with pytest.raises(ConfigError, match="ends with an article"):
        ImageFolder(DataConfig(path=str(make_folder()), size=32, check="none", composed={}), 0)


def test_held_out_pictures_of_validation_are_read_as_they_are():
    config = DataConfig(path="p", size=64, check="none", composed={"rows": 9})
    assert config.held_out({"split": "test"}).composed is None
    for by_share in (config.held_out, config.trained_on):
        with pytest.raises(ConfigError, match="hold some out by"):
            by_share(0.1)


def test_a_run_is_opened_without_composing(data, monkeypatch):
    asked: list[int] = []
    row = ComposedSource.row
    monkeypatch.setattr(ComposedSource, "row", lambda self, k: asked.append(k) or row(self, k))
    warn_of_unused_masks(data(rows=10**6))
    assert len(asked) <= 1


def test_a_picture_is_read_without_writing_its_captions(data, monkeypatch):
    names = [data(rows=60).rows[row]["file_name"] for row in range(60)]
    assert any(name.startswith("7: ") or name == "7.png" for name in names)
    assert 0 < sum(": " in name for name in names) < 60, "some are plain pictures"
    monkeypatch.setattr(ComposedSource, "_write", lambda *_: pytest.fail("the captions were written"))
    folder = data(rows=60)
    assert [folder.parts[0].source.name(row) for row in range(60)] == names
    for row in range(20):
        assert folder.content(row) and folder.image(row).shape == (3, SIDE, SIDE)


def test_names_have_their_articles_and_plurals():
    words = ["orange car", "umbrella", "unicorn", "hour", "ewe", "X-ray", "red apple"]
    assert [with_article(word).split()[0] for word in words] == ["an", "an", "a", "an", "a", "an", "a"]
    names = ["cat", "mouse", "cherry", "bus", "fox", "toy", "grinning face", "knife", "potato"]
    plurals = ["cats", "mice", "cherries", "buses", "foxes", "toys", "grinning faces", "knives", "potatoes"]
    assert [plural(name) for name in names] == plurals
