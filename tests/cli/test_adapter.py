"""`adapter extract | resize | merge | average`: files that draw, figures of what was lost, mistakes in one line."""

import pytest
import torch

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of, with_parts
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.cli.main import main


@pytest.fixture
def tuned(tiny_folder, tmp_path):
    """A folder of the tiny model whose cross-attention is changed by rank 2."""
    base = load_folder(tiny_folder)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, layer in base.unet.named_modules():
            if path.endswith("attn2.to_q"):
                up, down = (torch.randn(n, 2, generator=draw) / 4 for n in layer.weight.shape)
                layer.weight.copy_(layer.weight + up @ down.T)
    save_folder(base, tmp_path / "tuned")
    return tmp_path / "tuned"


def test_extract_resize_and_merge(tiny_folder, tuned, tmp_path, capsys):
    one, small, both = (tmp_path / f"{name}.safetensors" for name in ("one", "small", "both"))
    assert main(["adapter", "extract", str(tiny_folder), str(tuned), "--rank", "2", "--output", str(one)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(one)
    base, wanted = load_folder(tiny_folder), load_folder(tuned)
    read = read_lora(one, base)
    parts = {name: adapted(part, [(read.updates.get(name, {}), 1.0)]) for name, part in parts_of(base).items()}
    for ours, theirs in zip(with_parts(base, parts).unet.parameters(), wanted.unet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    model = ["--model", str(tiny_folder)]
    assert main(["adapter", "resize", str(one), "--rank", "1", "--output", str(small), *model]) == 0
    assert "rank 1 to 1" in capsys.readouterr().out
    assert main(["adapter", "merge", f"{one}:0.5", str(small), "--output", str(both), *model]) == 0
    assert both.is_file()
    mean, halves = tmp_path / "mean.safetensors", tmp_path / "halves.safetensors"
    assert main(["adapter", "average", f"{one}:3", f"{small}:1", "--output", str(mean), *model]) == 0
    assert main(["adapter", "merge", f"{one}:0.75", f"{small}:0.25", "--output", str(halves), *model]) == 0
    assert mean.read_bytes() == halves.read_bytes()
    assert main(["adapter", "average", f"{one}:-1", str(small), "--output", str(tmp_path / "x.safetensors")]) == 2
    assert "none may be below 0" in capsys.readouterr().err
    drawn = tmp_path / "a.png"
    assert main(["generate", "a cat", *model, "--lora", str(both), "--steps", "1", "--output", str(drawn)]) == 0


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_half_numbers_make_half_a_file(layout, tiny_folder, tuned, tmp_path):
    files = {dtype: tmp_path / f"{dtype}.safetensors" for dtype in ("float32", "float16")}
    for dtype, file in files.items():
        told = ["--rank", "2", "--layout", layout, "--dtype", dtype, "--output", str(file)]
        assert main(["adapter", "extract", str(tiny_folder), str(tuned), *told]) == 0
    whole, half = (read_tensors(file) for file in files.values())
    assert {tensor.dtype for tensor in half.values() if tensor.ndim} == {torch.float16}
    assert sum(t.nbytes for t in half.values() if t.ndim) * 2 == sum(t.nbytes for t in whole.values() if t.ndim)
    assert whole.keys() == half.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(half[name].float(), tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["extract", "emoji", "emoji", "--output", "a.ckpt"], 2, "written as .safetensors"),
        (["resize", "gone.safetensors", "--output", "a.safetensors"], 4, "no such file"),
        (["resize", "gone.safetensors", "--output", "no/a.safetensors"], 6, "no such folder"),
        (["merge", "gone.safetensors", "--output", "a.safetensors", "--rank", "0"], 2, "--rank"),
        (["merge", "gone.safetensors", "--output", "a.safetensors", "--dtype", "half"], 2, "--dtype"),
    ],
)
def test_mistakes(arguments, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["adapter", *arguments]) == code
    error = capsys.readouterr().err
    assert words in error and not list(tmp_path.iterdir())
