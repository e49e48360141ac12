"""`convert` and `info` on models: both forms, nothing overwritten, whole or not at all."""

import json

import pytest
import torch

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.cli.main import main


def same(first, second):
    files = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in (first, second)]
    assert files[0] == files[1]
    for file in files[0]:
        if file.suffix == ".safetensors":
            ours, theirs = read_tensors(first / file), read_tensors(second / file)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
        else:
            assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_there_and_back(tiny_family, tmp_path, capsys):
    folder, file, again = tiny_family("sd1_inpaint"), tmp_path / "m.safetensors", tmp_path / "again"
    assert main(["convert", str(folder), str(file)]) == 0
    assert main(["convert", str(file), str(again)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(file), str(again)]
    same(folder, again)
    assert main(["info", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "StableDiffusionInpaintPipeline" and facts["input channels"] == 9
    assert facts["prediction type"] == "epsilon" and "float32" in facts["unet"]
    assert main(["info", str(again)]) == 0
    assert main(["generate", "a cat", "--model", str(file)]) == 2  # an inpainting model wants a picture


def test_dtype_and_overrides(tiny_family, tmp_path, capsys):
    file = tmp_path / "m.safetensors"
    arguments = ["--dtype", "float16", "--prediction-type", "v_prediction"]
    assert main(["convert", str(tiny_family("sd1")), str(file), *arguments]) == 0
    out = capsys.readouterr().out
    assert "float32 -> float16" in out and "prediction: v_prediction, from the option prediction_type" in out
    assert {t.dtype for name, t in read_tensors(file).items() if name != "v_pred"} == {torch.float16}
    assert main(["convert", str(file), str(tmp_path / "half")]) == 0  # keeps float16
    assert {t.dtype for t in read_tensors(tmp_path / "half/unet/diffusion_pytorch_model.safetensors").values()} == {
        torch.float16
    }


@pytest.mark.parametrize(
    ("target", "words"),
    [("m.ckpt", "pickles are not written"), ("there", "exists"), ("other.safetensors", "exists")],
)
def test_refusals(target, words, tiny_family, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("dear")
    (tmp_path / "other.safetensors").write_text("x")
    assert main(["convert", str(tiny_family("sd1")), str(tmp_path / target)]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "there" / "letter.txt").read_text() == "dear"


def test_overwrite_only_models(tiny_family, tmp_path, capsys):
    folder = tiny_family("sd1")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("dear")
    assert main(["convert", str(folder), str(tmp_path / "there"), "--overwrite"]) == 2
    assert "a folder without a model" in capsys.readouterr().err
    (tmp_path / "a.safetensors").write_text("x")
    assert main(["convert", str(folder), str(tmp_path / "a.safetensors"), "--overwrite"]) == 0
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "model")]) == 0
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "model"), "--overwrite"]) == 0
    same(folder, tmp_path / "model")
    assert main(["convert", str(folder), str(tmp_path / "nowhere" / "m.safetensors")]) == 6
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "m")]) == 4
    assert not list(tmp_path.glob(".tmp-*"))


def test_info_names_what_is_no_model(tmp_path, capsys):
    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, {"ss_steps": "9"})
    assert main(["info", str(tmp_path / "l.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"].startswith("a LoRA") and facts["ss_steps"] == "9"
    assert main(["convert", str(tmp_path / "l.safetensors"), str(tmp_path / "m")]) == 4
    assert "it looks like a LoRA" in capsys.readouterr().err
    (tmp_path / "bad.safetensors").write_text("<html>")
    assert main(["info", str(tmp_path / "bad.safetensors")]) == 4
    assert "web page" in capsys.readouterr().err


def test_drawing_with_what_the_file_does_not_say(tiny_family, tmp_path, capsys):
    file = tmp_path / "m.safetensors"
    assert main(["convert", str(tiny_family("sd1")), str(file)]) == 0
    small = ["--steps", "1", "--height", "32", "--width", "32", "--seed", "1", "--model", str(file)]
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    assert main(["generate", "a cat", *small, "--output", str(pictures[0])]) == 0
    arguments = ["--prediction-type", "v_prediction", "--output", str(pictures[1])]
    assert main(["generate", "a cat", *small, *arguments]) == 0
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    capsys.readouterr()
    assert main(["generate", "a cat", *small, "--ema"]) == 4
    assert "no averaged (EMA) weights" in capsys.readouterr().err
    assert main(["generate", "a cat", *small, "--family", "sd9"]) == 2
    assert main(["generate", "a cat", "--family", "sd1"]) == 2  # the bundled model is a folder
