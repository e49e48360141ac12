"""Faults of weights and checkpoints: rows W01 to W20 of docs/reliability.md that no other file tests.

W01 W02: tests/checkpoint/test_safetensors_file.py. W03 to W08: tests/checkpoint/test_pickle_file.py. W09 to W11:
tests/checkpoint/test_diffusers_folder.py and test_single_file.py. W12: test_diffusers_folder.py and here. W13: here.
W14: test_single_file.py. W15: test_safetensors_file.py and here. W16: test_safetensors_file.py and
tests/training/test_training_state.py. W17 W20: test_training_state.py, test_text_folder.py and here. W18:
test_single_file.py and here. W19: tests/training/test_processes.py.
"""

import contextlib
import errno
import json
import os
import pickle
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.files.safetensors_file import open_tensors, read_tensors, write_tensors
from latent_diffusion.checkpoint.files.weights import Weights, fill
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, load_unet, save_folder
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.checkpoint.prompt_forms import PromptForms, write_prompt_forms
from latent_diffusion.checkpoint.single.single_file import load_single_file, save_single_file
from latent_diffusion.cli.main import main
from latent_diffusion.errors import CheckpointError, LatentDiffusionWarning, ResourceError
from latent_diffusion.training.state.training_state import _cannot_write

NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_folder, tmp_path):
    """A model of one's own to spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def same(first, second) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def sharded(folder):
    """Cut the weights of a folder in two shards and return the index."""
    tensors = read_tensors(folder / NAME)
    names = sorted(tensors)
    places = {name: f"part-{index < len(names) // 2:d}.safetensors" for index, name in enumerate(names)}
    for place in set(places.values()):
        write_tensors(folder / place, {name: tensors[name] for name in names if places[name] == place})
    (folder / NAME).unlink()
    (folder / f"{NAME}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / f"{NAME}.index.json"


def test_w12_a_shard_that_is_absent(model):
    expected = load_unet(model / "unet")
    sharded(model / "unet")
    assert same(load_unet(model / "unet"), expected)
    (model / "unet" / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors: cannot be read"):
        load_unet(model / "unet")


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", ""])
def test_w12_no_shard_is_looked_for_outside(place, model, monkeypatch):
    index = sharded(model / "unet")
    values = json.loads(index.read_text())
    values["weight_map"]["conv_in.weight"] = place
    index.write_text(json.dumps(values))
    monkeypatch.setattr(
        "latent_diffusion.checkpoint.folder.network_weights.open_tensors", lambda *_: pytest.fail("opened")
    )
    with pytest.raises(CheckpointError, match="in the same folder"):
        load_unet(model / "unet")


def test_w13_links_of_a_download_cache(model, tmp_path):
    """Every file of a cache's snapshot is a link to a blob."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for index, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        shutil.move(file, blobs / str(index))
        file.symlink_to(os.path.relpath(blobs / str(index), file.parent))
    assert load_folder(model).unet is not None


@pytest.mark.parametrize("file", [f"unet/{NAME}", "unet/config.json", "text_encoder/model.safetensors"])
@pytest.mark.parametrize("target", ["../../blobs/gone", "loop"])
def test_w13_links_that_lead_nowhere(file, target, model):
    path = model / file
    path.unlink()
    path.symlink_to(path.name if target == "loop" else target)
    with pytest.raises(CheckpointError, match=r"a link to .* leads nowhere") as caught:
        load_folder(model)
    assert str(path) in str(caught.value) and (target in str(caught.value) or target == "loop")


def test_w13_a_model_that_is_a_broken_link(tmp_path, capsys):
    (tmp_path / "m.safetensors").symlink_to("gone")
    assert main(["generate", "a cat", "--model", str(tmp_path / "m.safetensors")]) == 4
    assert "a link to 'gone'" in capsys.readouterr().err


def test_w10_a_model_of_another_family(tiny_family, tmp_path):
    """An inpainting U-Net in the place of a plain one, SD 2's file read as SD 1: both shapes, a cause."""
    folder = shutil.copytree(tiny_family("sd1"), tmp_path / "m")
    shutil.copy(tiny_family("sd1_inpaint") / "unet" / NAME, folder / "unet" / NAME)
    with pytest.raises(CheckpointError, match=r"conv_in.weight is \(16, 9, 3, 3\).*\(16, 4, 3, 3\).*inpainting"):
        load_folder(folder)
    save_single_file(load_folder(tiny_family("sd2")), tmp_path / "sd2.safetensors")
    with pytest.raises(CheckpointError, match=r"text encoders are cond_stage_model\.model\.|missing|requires"):
        load_single_file(tmp_path / "sd2.safetensors", family="sd1")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_w11_casts_are_listed(dtype, model):
    tensors = read_tensors(model / "unet" / NAME)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(dtype)
    write_tensors(model / "unet" / NAME, tensors)
    found = load_folder(model)
    assert found.notes == (f"unet: 1 tensors cast, {str(dtype).removeprefix('torch.')} -> float32",)


def test_w11_a_number_beyond_half_precision_is_no_silent_infinity(model):
    tensors = read_tensors(model / "unet" / NAME)
    tensors["conv_in.weight"][0] = 70_000.0
    write_tensors(model / "unet" / NAME, tensors)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight .* beyond the range of float16; use bfloat16"):
        load_folder(model, torch.float16)
    assert load_folder(model, torch.bfloat16).unet.conv_in.weight.max() == 70_144


def test_w15_saving_over_the_file_that_is_read(model):
    """A load that has begun ends with the old file, whole, whatever takes its name meanwhile."""
    file = model / "unet" / NAME
    old = read_tensors(file)
    opened = open_tensors(file)
    write_tensors(file, {name: tensor + 1 for name, tensor in old.items()})
    assert all(torch.equal(opened[name].fetch(), tensor) for name, tensor in old.items())


def test_w15_saving_a_pipeline_over_its_own_folder(model, tiny_folder):
    from latent_diffusion import LatentDiffusionPipeline

    pipe = LatentDiffusionPipeline.from_pretrained(model, device="cpu")
    pipe.save_pretrained(model)
    pipe.save_single_file(model.parent / "a.safetensors")
    again = LatentDiffusionPipeline.from_pretrained(model.parent / "a.safetensors", device="cpu")
    again.save_single_file(model.parent / "a.safetensors")
    expected = load_folder(tiny_folder)
    for found in (load_folder(model), load_single_file(model.parent / "a.safetensors")):
        assert same(found.unet, expected.unet) and same(found.autoencoder, expected.autoencoder)


def test_w15_a_file_that_becomes_shorter(model):
    opened = open_tensors(model / "unet" / NAME)
    os.truncate(model / "unet" / NAME, 20_000)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        for stored in opened.values():
            stored.fetch()


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_w16_a_full_disk_keeps_the_old_single_file(call, tiny_family, tmp_path, monkeypatch):
    parts = load_folder(tiny_family("sd1"))
    save_single_file(parts, tmp_path / "a.safetensors")
    old = (tmp_path / "a.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ResourceError, match=r"No space left.*bytes needed.*free"):
        save_single_file(parts, tmp_path / "a.safetensors")
    monkeypatch.undo()
    assert (tmp_path / "a.safetensors").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


@contextlib.contextmanager
def room_for(count):
    """Let no file of this process grow beyond `count` bytes: the system refuses the write itself."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_w16_the_systems_own_error_comes_through_the_weights_library(tmp_path):
    tensors = {"a": torch.zeros(10_000)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    old = (tmp_path / "a.safetensors").read_bytes()
    words = r"File too large \(40000 bytes needed, .* free\)"
    with room_for(20_000), pytest.raises(ResourceError, match=words) as caught:
        write_tensors(tmp_path / "a.safetensors", tensors)
    assert caught.value.__cause__.errno == errno.EFBIG and caught.value.exit_code == 6
    assert (tmp_path / "a.safetensors").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_w16_the_advice_is_that_of_the_error(tmp_path, monkeypatch, number):
    def fails(*_):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr("latent_diffusion.checkpoint.files.safetensors_file.save_file", fails)
    advice = "free some space" if number in (errno.ENOSPC, errno.EDQUOT) else "make the folder writable"
    with pytest.raises(ResourceError, match=rf"{os.strerror(number)} \(.*\); {advice}, or choose another place"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    with pytest.raises(ResourceError, match=rf"{os.strerror(number)}.*earlier checkpoints are untouched; {advice}"):
        raise _cannot_write(tmp_path / "step-1", _caught(tmp_path), 100)


def _caught(folder) -> Exception:
    try:
        write_tensors(folder / "a.safetensors", {"a": torch.zeros(3)})
    except ResourceError as error:
        return error
    raise AssertionError("written")


@pytest.mark.parametrize("command", ["folder", "m.safetensors"])
def test_w16_convert_without_room_ends_with_6_and_leaves_nothing(tiny_folder, tmp_path, capsys, command):
    with room_for(50_000):
        assert main(["convert", str(tiny_folder), str(tmp_path / command)]) == 6
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "bytes needed" in told and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_w18_round_trips_in_half_precision_and_shards(dtype, tiny_family, tmp_path):
    first = load_folder(tiny_family("sd1"))
    save_folder(first, tmp_path / "half", dtype)
    for part in ("unet", "vae"):
        sharded(tmp_path / "half" / part)
    half = load_model(tmp_path / "half", None)
    save_single_file(half, tmp_path / "a.safetensors")
    again = load_model(tmp_path / "a.safetensors", None)
    assert {p.dtype for p in again.unet.parameters()} == {dtype}
    assert same(half.unet, again.unet) and same(half.autoencoder, again.autoencoder)
    assert same(half.text_encoder, again.text_encoder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_w20_a_tokenizer_without_its_files(name, model):
    (model / "tokenizer" / "tokenizer.json").unlink()
    (model / "tokenizer" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_folder(model)


FILES = (
    *("model_index.json", "prompts.json", "names.txt", "scheduler/scheduler_config.json"),
    *("unet/config.json", f"unet/{NAME}", "vae/config.json", f"vae/{NAME}"),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"),
)


def test_the_list_above_has_every_file_of_a_model(model):
    found = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert found <= set(FILES)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("file", FILES)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(model, file):
    write_prompt_forms(PromptForms({"a photo of": ("photo",)}, "a photo of", {"cat": "cat"}), model)
    (model / file).unlink()
    os.mkfifo(model / file)
    if file in ("tokenizer/vocab.json", "tokenizer/merges.txt"):  # tokenizer.json stands in for these
        (model / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=re.escape(Path(file).name)):
        load_model(model, None)
    assert main(["info", str(model)]) in (0, 4)


def test_a_text_file_of_any_size_is_not_read(model, monkeypatch):
    monkeypatch.setattr("latent_diffusion.checkpoint.files.text_file.MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"bytes, but at most 1000 are read"):
        load_folder(model)


def edited_vocabulary(model, change):
    """Change the vocabulary of a model on disk."""
    (model / "tokenizer" / "tokenizer.json").unlink()
    file = model / "tokenizer" / "vocab.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_w20_a_vocabulary_that_has_ids_beyond_the_embedding(model, capsys):
    edited_vocabulary(model, lambda values: values.update({next(iter(values)): 50_000}))
    with pytest.raises(CheckpointError, match=r"do not belong together: the tokenizer's largest id is 50000, .* rows"):
        load_folder(model)
    assert main(["generate", "a cat", "--model", str(model)]) == 4
    assert "a bug in this package" not in capsys.readouterr().err


def test_w20_a_vocabulary_larger_than_the_embedding(model):
    edited_vocabulary(model, lambda values: values.update({f"new{k}": len(values) + k for k in range(3)}))
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ ids, the text model only \d+ rows"):
        load_folder(model)


def test_w20_two_symbols_with_one_id(model):
    edited_vocabulary(model, lambda values: values.update({list(values)[5]: 6}))
    with pytest.raises(CheckpointError, match=r"tokenizer: its vocabulary has the id 6 twice, for ."):
        load_folder(model)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_w04_a_refusal_passes_on_no_advice_to_allow_it(tmp_path, protocol):
    for number, content in enumerate(({"a": os.system}, {"a": print}, {"a": Path("x")}, {"state_dict": range(3)})):
        file = tmp_path / f"{number}.ckpt"
        file.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(CheckpointError) as caught:
            load_model(file, None)
        told = str(caught.value)
        assert not any(word in told for word in ("Please", "safe_glob", "weights_only", "allowlist")), told
        assert "\n" not in told and str(file) in told and not told.endswith(("operand", "`", ","))


def test_g13_a_decoder_that_overflows_in_half_precision_draws_in_single(tiny_folder):
    """Activations beyond 65504 in a decoder whose weights all fit: never a black picture."""
    parts = load_folder(tiny_folder)
    with torch.no_grad():
        parts.autoencoder.decoder.conv_in.weight.mul_(2e4)
        parts.autoencoder.decoder.conv_in.bias.mul_(2e4)
    assert all(p.abs().max() < 65504 for p in parts.autoencoder.parameters())
    options = {"num_inference_steps": 2, "seed": 1, "output_type": "pt"}
    wanted = LatentDiffusionPipeline(parts, device="cpu")("a cat", **options).images
    half = LatentDiffusionPipeline(parts, device="cpu", vae_dtype="float16")
    with pytest.warns(LatentDiffusionWarning, match="the decoder overflowed in float16; it is run again in float32"):
        found = half("a cat", **options).images
    assert found.isfinite().all() and (found - wanted).abs().max() <= 0.02 and found.std() > 0


def test_nothing_is_filled_before_everything_fits(model):
    """Names and shapes are checked on headers alone: a wrong file costs no reading."""
    unet = load_unet(model / "unet")
    opened = open_tensors(model / "unet" / NAME)
    opened["conv_in.bias"] = opened["conv_out.bias"]
    fetched = []
    spied = {
        name: stored.viewed(stored.shape, lambda tensor, name=name: fetched.append(name) or tensor)
        for name, stored in opened.items()
    }
    with pytest.raises(CheckpointError, match=r"conv_in\.bias is"):
        fill(unet, Weights(model, spied), torch.float32)
    assert not fetched
