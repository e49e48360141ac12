"""A picture made with a model that was said to be another than it says is made again so."""

from dataclasses import replace

import pytest
from PIL import Image

from latent_diffusion.checkpoint.files.checkpoint_file import open_checkpoint
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.checkpoint.single import single_file
from latent_diffusion.checkpoint.single.single_header import plan_of
from latent_diffusion.cli.main import main
from latent_diffusion.provenance.picture_file import read_texts

DRAW = ["--steps", "2", "--seed", "7", "--device", "cpu", "--height", "32", "--width", "32"]


@pytest.fixture
def averaged(tiny_family, here):
    """A single file of our own with a moving average beside the plain weights."""
    assert main(["convert", str(tiny_family("sd1")), "m.safetensors"]) == 0
    tensors, metadata = read_tensors(here / "m.safetensors"), open_checkpoint(here / "m.safetensors").metadata
    start = "model.diffusion_model."
    average = {
        "model_ema.diffusion_model" + name.removeprefix(start).replace(".", ""): tensor + 0.01
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
    write_tensors(here / "m.safetensors", tensors | average, metadata)
    return "m.safetensors"


@pytest.mark.parametrize(
    ("told", "recorded"),
    [
        (["--prediction-type", "v_prediction"], {"prediction_type": "v_prediction"}),
        (["--ema"], {"averaged": True}),
        (["--vae-dtype", "bfloat16"], {"vae_dtype": "bfloat16"}),
    ],
)
def test_what_the_model_was_said_to_be(averaged, here, capsys, told, recorded):
    assert main(["generate", "a cat", "--model", averaged, *DRAW, "-o", "plain.png"]) == 0
    assert main(["generate", "a cat", "--model", averaged, *DRAW, *told, "-o", "a.png"]) == 0
    assert Image.open("plain.png").tobytes() != Image.open("a.png").tobytes()
    record = read_texts(here / "a.png")[1]
    assert {name: getattr(record, name) for name in recorded} == recorded
    capsys.readouterr()
    assert main(["regenerate", "a.png", "--model", averaged, "-o", "b.png"]) == 0
    assert "bit for bit" in capsys.readouterr().err
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()


def test_the_family_that_the_file_was_said_to_be(averaged, here, capsys, monkeypatch):
    def another(file, family, places):
        plan = plan_of(file.metadata, file.source)
        return replace(plan, scheduler={**plan.scheduler, "beta_end": 0.02})

    monkeypatch.setattr(single_file, "_plan_of_family", another)
    assert main(["generate", "a cat", "--model", averaged, *DRAW, "--family", "sd1", "-o", "a.png"]) == 0
    assert main(["regenerate", "a.png", "--model", averaged, "-o", "b.png"]) == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert main(["convert", averaged, "folder"]) == 0
    capsys.readouterr()
    assert main(["regenerate", "a.png", "--model", "folder", "-o", "c.png"]) == 0  # which says itself what it is
    assert "not as it was: family was 'sd1', now None" in capsys.readouterr().err


def test_what_is_said_now_counts_more(averaged, here, capsys):
    told = ["--prediction-type", "v_prediction"]
    assert main(["generate", "a cat", "--model", averaged, *DRAW, *told, "-o", "a.png"]) == 0
    capsys.readouterr()
    now = ["--prediction-type", "epsilon", "--ema"]
    assert main(["regenerate", "a.png", "--model", averaged, *now, "-o", "b.png"]) == 0
    said = capsys.readouterr().err
    assert "not as it was: prediction type was 'v_prediction', now 'epsilon'" in said
    assert "not as it was: averaged was False, now True" in said
    assert main(["regenerate", "b.png", "--model", averaged, "--vae-dtype", "bfloat16", "-o", "d.png"]) == 0
    assert "not as it was: vae dtype was 'float32', now 'bfloat16'" in capsys.readouterr().err
    assert main(["regenerate", "b.png", "--model", averaged, "--no-ema", "-o", "c.png"]) == 0
    assert "not as it was: averaged was True, now False" in capsys.readouterr().err
