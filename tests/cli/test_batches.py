"""Many pictures from one command: the same in any batch, each batch on disk as soon as it is done; previews."""

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.cli.main import main
from latent_diffusion.errors import DivergedError
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.provenance.picture_file import read_texts
from latent_diffusion.runtime import memory


@pytest.fixture
def generate(tiny_folder, here):
    return lambda *arguments: main(["generate", "--model", str(tiny_folder), "--steps", "2", *arguments])


@pytest.fixture
def calls(monkeypatch):
    """How many prompts each call of the pipeline had."""
    seen, draw = [], LatentDiffusionPipeline.__call__
    monkeypatch.setattr(
        LatentDiffusionPipeline,
        "__call__",
        lambda self, prompt, **o: seen.append(len(prompt)) or draw(self, prompt, **o),
    )
    return seen


def pixels(file):
    return np.asarray(Image.open(file)).astype(int)


def test_the_same_pictures_in_any_batch(generate, here, calls, capsys):
    arguments = ["a cat", "a dog", "-k", "3", "--seed", "4"]
    for size in ("1", "4", "6"):
        assert generate(*arguments, "--batch-size", size, "-o", f"of{size}.png") == 0
    assert calls == [1] * 6 + [4, 2] + [6]
    for k in range(1, 7):
        one, four, six = (here / f"of{size}-000{k}.png" for size in (1, 4, 6))
        assert np.abs(pixels(one) - pixels(six)).max() <= 1 and np.abs(pixels(four) - pixels(six)).max() <= 1
        record = read_texts(four)[1]
        assert record and (record.seed, record.prompt) == (3 + k, "a cat" if k <= 3 else "a dog")
    assert len(capsys.readouterr().out.split()) == 18


def test_memory_decides_without_the_option(generate, calls, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert generate("a cat", "-k", "3", "-o", "a.png") == 0
    assert calls == [1, 1, 1]
    monkeypatch.undo()


def test_what_was_drawn_is_kept_when_the_rest_fails(generate, here, monkeypatch, capsys):
    draw = LatentDiffusionPipeline.__call__

    def breaks(self, prompt, **options):
        if options["seed"] == [3]:
            raise DivergedError("the latents are not finite")
        return draw(self, prompt, **options)

    monkeypatch.setattr(LatentDiffusionPipeline, "__call__", breaks)
    assert generate("a cat", "-k", "3", "--seed", "1", "--batch-size", "1", "-o", "a.png") == 5
    out, err = capsys.readouterr()
    assert out.split() == ["a-0001.png", "a-0002.png"] and err.count("\n") == 1
    assert sorted(file.name for file in here.iterdir()) == ["a-0001.png", "a-0002.png"]


def test_variations_count_on_across_batches(generate, here):
    arguments = ["a cat", "-k", "3", "--seed", "4", "--variation-seed", "8", "--variation-strength", "0.3"]
    for size in ("2", "3"):
        assert generate(*arguments, "--batch-size", size, "-o", f"of{size}.png") == 0
    for k in (1, 2, 3):
        assert np.abs(pixels(here / f"of2-000{k}.png") - pixels(here / f"of3-000{k}.png")).max() <= 1
    assert not np.array_equal(pixels(here / "of2-0001.png"), pixels(here / "of2-0003.png"))


def test_inpainting_in_batches(tiny_folder, here):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save("image.png")
    mask = np.zeros((50, 70), np.uint8)
    mask[10:20, 30:60] = 255
    Image.fromarray(mask).save("mask.png")
    base = ["inpaint", "a cat", "--image", "image.png", "--mask", "mask.png", "--model", str(tiny_folder)]
    for size in ("1", "2"):
        arguments = ["--steps", "2", "-k", "2", "--seed", "1", "--batch-size", size, "-o", f"of{size}.png"]
        assert main([*base, *arguments]) == 0
    for k in (1, 2):
        one, two = pixels(f"of1-000{k}.png"), pixels(f"of2-000{k}.png")
        assert np.abs(one - two).max() <= 1
        assert np.array_equal(one[mask == 0], pixels("image.png")[mask == 0])


def test_the_preview_lives_while_the_picture_is_drawn(generate, here, monkeypatch):
    sizes, draw = [], LatentDiffusionPipeline.__call__

    def watched(self, prompt, *, on_step, **options):
        def look(step):
            on_step(step)
            sizes.append(Image.open(here / "now.png").size)

        return draw(self, prompt, on_step=look, **options)

    monkeypatch.setattr(LatentDiffusionPipeline, "__call__", watched)
    assert generate("a cat", "-k", "2", "--preview", "now.png", "-o", "a.png", "--height", "24", "--width", "40") == 0
    assert sizes == [(80, 24)] * 2
    assert sorted(file.name for file in here.iterdir()) == ["a-0001.png", "a-0002.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--preview", "mine.png"], 6, "nothing is overwritten"),
        (["--preview", "now.gif"], 2, "cannot write '.gif'"),
        (["--preview", "nowhere/now.png"], 6, "nowhere"),
        (["--preview", "now.png", "--preview-kind", "tased"], 2, "did you mean 'taesd'"),
        (["--preview", "now.png", "--preview-kind", "taesd"], 2, "needs the folder"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--attention", "flash"], 2, "unknown attention 'flash'"),
        (["--vae-dtype", "int8"], 2, "unknown dtype 'int8'"),
    ],
    ids=str,
)
def test_mistakes(generate, here, capsys, arguments, code, words):
    (here / "mine.png").write_bytes(b"mine")
    assert generate("a cat", "-o", "a.png", *arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err
    assert [file.name for file in here.iterdir()] == ["mine.png"] and (here / "mine.png").read_bytes() == b"mine"


def test_options_of_the_machine(generate, here, capsys):
    assert generate("a cat", "-o", "plain.png", "--seed", "1") == 0
    assert generate("a cat", "-o", "other.png", "--seed", "1", "--attention", "math", "--tiling") == 0
    assert np.abs(pixels("plain.png") - pixels("other.png")).max() <= 1
    capsys.readouterr()
    assert generate("a cat", "-o", "off.png", "--offload", "--no-tiling", "--device", "cpu") == 0
    assert capsys.readouterr().err == "warning: offload has no meaning on a CPU and is ignored\n"
