"""SDXL, its refiner and an inpainting model from the command line, and a picture made again from its record."""

import numpy as np
from PIL import Image

from latent_diffusion.checkpoint.model_hash import model_hash
from latent_diffusion.cli.main import main
from latent_diffusion.provenance.picture_file import read_texts

DRAW = ["--steps", "3", "--seed", "7", "--device", "cpu", "--dtype", "float32"]


def test_sdxl_is_told_what_the_options_say(here, tiny_family, capsys):
    model = ["--model", str(tiny_family("sdxl")), *DRAW]
    told = ["--prompt-2", "a cat", "--original-size", "64", "48", "--crop", "8", "0", "--target-size", "40", "40"]
    assert main(["generate", "a red apple", *model, *told, "--output", "a.png"]) == 0
    assert main(["generate", "a red apple", *model, "--output", "b.png"]) == 0
    record = read_texts(here / "a.png")[1]
    assert record.prompt_2 == "a cat" and record.size_ids == record.negative_size_ids == (64, 48, 8, 0, 40, 40)
    assert not np.array_equal(Image.open("a.png"), Image.open("b.png"))
    assert main(["regenerate", "a.png", "--model", str(tiny_family("sdxl")), "--output", "again.png"]) == 0
    assert np.array_equal(Image.open("a.png"), Image.open("again.png"))


def test_the_refiner_takes_over(here, tiny_family, capsys):
    pair = ["--model", str(tiny_family("sdxl")), "--refiner", str(tiny_family("sdxl_refiner")), *DRAW]
    assert main(["generate", "the sun", *pair, "--refiner-switch", "0.5", "--output", "a.png"]) == 0
    record = read_texts(here / "a.png")[1]
    assert record.refiner == "sdxl_refiner" and record.refined_below == 500
    capsys.readouterr()
    assert main(["generate", "the sun", "--refiner-switch", "0.5", *pair[:2], "--output", "b.png"]) == 2
    assert "refiner_switch has no effect without a refiner" in capsys.readouterr().err


def test_a_refined_picture_is_made_again(here, tiny_family, capsys):
    pair = ["--model", str(tiny_family("sdxl")), "--refiner", str(tiny_family("sdxl_refiner"))]
    told = ["--refiner-switch", "0.37", "--aesthetic-score", "9", "--negative-aesthetic-score", "1", "--crop", "8", "0"]
    assert main(["generate", "the sun", *pair, *DRAW, *told, "--output", "a.png"]) == 0
    record = read_texts(here / "a.png")[1]
    assert record.refined_by.size_ids[2:] == (8, 0, 9) and record.refined_by.negative_size_ids[4] == 1
    assert record.refined_by.model_hash == model_hash(tiny_family("sdxl_refiner")) != record.model_hash
    capsys.readouterr()
    assert main(["regenerate", "a.png", *pair, "--output", "b.png"]) == 0
    said = capsys.readouterr().err
    assert "bit for bit" in said and "not" not in said
    assert main(["regenerate", "a.png", *pair[:2], "--output", "c.png"]) == 0
    said = capsys.readouterr().err
    assert "not honoured: the refiner 'sdxl_refiner'" in said and "not as it was: refiner was 'sdxl_refiner'" in said
    assert main(["regenerate", "c.png", *pair, "--output", "d.png"]) == 2
    assert "--refiner: this picture was drawn by one model" in capsys.readouterr().err


def test_an_inpainting_model(here, tiny_family, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 3), np.uint8)
    hole = np.zeros((37, 51), np.uint8)
    hole[5:20, 10:30] = 255
    Image.fromarray(pixels).save("image.png")
    Image.fromarray(hole).save("mask.png")
    model = ["--model", str(tiny_family("sdxl_inpaint")), *DRAW]
    assert main(["inpaint", "a cat", "--image", "image.png", "--mask", "mask.png", *model, "--output", "a.png"]) == 0
    found = np.asarray(Image.open("a.png").convert("RGB"))
    changed = (found != pixels).any(-1)
    assert changed.any() and not changed[hole == 0].any()
    capsys.readouterr()
    assert main(["generate", "a cat", *model, "--output", "b.png"]) == 2
    assert "use `inpaint`" in capsys.readouterr().err
