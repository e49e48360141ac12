"""Caches on disk change no bit, go on after a kill, and are made again where they are damaged."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.data import tensor_cache
from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.checks import checking
from latent_diffusion.data.opening import Part
from latent_diffusion.data.tensor_cache import TensorCache, key_of
from latent_diffusion.models.text_encoder import Encoded, TextEncoder
from latent_diffusion.training.networks.frozen_states import Latents, TextStates
from latent_diffusion.training.networks.preparing import with_progress
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text", "text_alt"], "caption_dropout": 0.3, "flip": True}
WEIGHTS = "diffusion_pytorch_model.safetensors"
NO_CACHE = {"latent_cache_bytes": 0, "text_cache_bytes": 0}


@pytest.fixture
def trained(tiny_folder, make_run, tmp_path):
    """Return a function that trains `steps` updates and returns the weights."""

    def train(steps, data=None, **objective):
        run = make_run(
            {"name": "unet", "init": str(tiny_folder)} | objective, {**CAPTIONED, **(data or {})}, steps=steps
        )
        torch.manual_seed(run.seed)
        trainer = Trainer(build_objective(run), run, build_accelerator())
        trainer.fit()
        return torch.cat([p.detach().flatten() for p in trainer.objective.components.unet.parameters()])

    return train


@pytest.fixture
def counted(monkeypatch):
    """Count the pictures decoded and encoded, and the captions encoded."""
    counts = {"decoded": 0, "encoded": 0, "texts": 0}

    def counting(target, name, key, size):
        plain = getattr(target, name)

        def count(*arguments):
            counts[key] += size(arguments)
            return plain(*arguments)

        monkeypatch.setattr(target, name, count)

    counting(checking, "decode_row", "decoded", lambda a: 1)
    counting(Latents, "_encode", "encoded", lambda a: len(a[1]))
    counting(TextStates, "_encode", "texts", lambda a: len(a[1]))
    return counts


def test_updates_are_the_same_bits_with_and_without_caches(trained, tmp_path):
    cache = {"cache": {"folder": str(tmp_path / "cache")}}
    wanted = trained(12, **NO_CACHE)
    assert torch.equal(trained(12), wanted)
    assert torch.equal(trained(12, cache, **NO_CACHE), wanted)  # filled, then read from disk in every step
    assert torch.equal(trained(12, cache), wanted)  # filled before


def test_a_second_start_decodes_and_encodes_nothing(trained, counted, tmp_path):
    cache = {"cache": {"folder": str(tmp_path / "cache")}}
    first = trained(1, cache)
    assert counted["decoded"] and counted["encoded"] and counted["texts"]
    counted.update(decoded=0, encoded=0, texts=0)
    assert torch.equal(trained(1, cache), first)
    assert counted == {"decoded": 0, "encoded": 0, "texts": 0}
    for other in ({"fit": "pad"}, {"decode": "fast"}):  # another transform: texts stay
        counted.update(encoded=0)
        trained(1, {**cache, **other})
        assert counted["encoded"] and counted["texts"] == 0


def test_another_decoder_finds_the_latents_and_another_encoder_does_not(tiny_folder, trained, counted, tmp_path):
    cache = {"cache": {"folder": str(tmp_path / "cache")}}
    trained(1, cache)
    for part, again in (("decoder", False), ("encoder", True)):
        folder = shutil.copytree(tiny_folder, tmp_path / part)
        file = folder / "vae" / WEIGHTS
        write_tensors(file, {name: t * 1.5 if name.startswith(part) else t for name, t in read_tensors(file).items()})
        counted.update(encoded=0)
        trained(1, cache, init=str(folder))
        assert bool(counted["encoded"]) is again


def test_a_kill_in_mid_fill_loses_the_unfinished_shard_alone(trained, counted, tmp_path, monkeypatch):
    cache = {"cache": {"folder": str(tmp_path / "cache")}}
    wanted = trained(3)
    total = counted["encoded"]
    monkeypatch.setattr(tensor_cache, "SHARD", 1)  # a shard for every tensor
    plain, calls = TensorCache.put, []

    def killed(self, key, tensor):
        calls.append(key)
        if len(calls) == 8:
            raise KeyboardInterrupt
        plain(self, key, tensor)

    monkeypatch.setattr(TensorCache, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(3, cache)
    monkeypatch.setattr(TensorCache, "put", plain)
    done = sum(tensor.suffix == ".safetensors" for tensor in (tmp_path / "cache").iterdir())
    assert done == 7
    counted.update(encoded=0)
    assert torch.equal(trained(3, cache), wanted)
    assert 0 < counted["encoded"] < total


@pytest.mark.parametrize("damage", ["bit", "half", "empty"])
def test_what_is_damaged_is_made_again(trained, tmp_path, damage):
    cache = {"cache": {"folder": str(tmp_path / "cache")}}
    wanted = trained(3, cache)
    for file in (tmp_path / "cache").iterdir():
        data = bytearray(file.read_bytes())
        if damage == "bit":
            data[-1] ^= 1
        file.write_bytes({"bit": bytes(data), "half": bytes(data[: len(data) // 2]), "empty": b""}[damage])
    assert torch.equal(trained(3, cache), wanted)


def test_pictures_that_are_not_checked_are_read_once_for_their_keys_and_once_to_encode(trained, monkeypatch, tmp_path):
    plain, reads = Part.read, []
    monkeypatch.setattr(Part, "read", lambda part, k: (reads.append(k), plain(part, k))[1])
    data = {"cache": {"folder": str(tmp_path / "cache")}, "check": "none", "flip": False}
    first = trained(1, data)
    most = max(reads.count(k) for k in set(reads))
    assert most == 2, reads
    reads.clear()
    assert torch.equal(trained(1, data), first)
    assert max(reads.count(k) for k in set(reads)) == 1, reads


def test_what_is_new_is_written_after_two_minutes_however_small(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    cache = TensorCache(tmp_path, 10**9)
    for key, seconds in (("a", 60.0), ("b", 130.0), ("c", 140.0)):
        now[0] = seconds
        cache.put(key, torch.ones(2))
    others = TensorCache(tmp_path, 10**9)  # what a run after a kill finds
    assert [key in others for key in "abc"] == [True, True, False]


def test_the_checksums_of_a_shard_are_read_once_however_many_tensors_it_has(tmp_path, monkeypatch):
    # safetensors makes a dict of all of them at every call: reading n tensors took n * n steps
    calls = []

    class Counted:
        def __init__(self, *place):
            self.file = safe_open(*place)

        def metadata(self):
            calls.append(1)
            return self.file.metadata()

        def get_tensor(self, key):
            return self.file.get_tensor(key)

    monkeypatch.setattr(tensor_cache, "safe_open", Counted)
    cache = TensorCache(tmp_path, 10**9)
    for key in "abcde":
        cache.put(key, torch.ones(2))
    cache.flush()
    assert all(torch.equal(cache.get(key), torch.ones(2)) for key in "abcde")
    assert len(calls) == 1


def test_encoding_logs_its_progress_and_the_time_left(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with caplog.at_level("INFO"):
        for group in with_progress([range(32)] * 20, 640, len, "encoding pictures"):
            now[0] += 8.0
            assert len(group) == 32
    assert caplog.messages == [
        "encoding pictures: 64 of 640, 0:02:24 left",
        "encoding pictures: 320 of 640, 0:01:20 left",
        "encoding pictures: 576 of 640, 0:00:16 left",
    ]


def test_the_cache_is_pruned_by_last_use_and_what_a_run_uses_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cache, "SHARD", 1)
    first = TensorCache(tmp_path, 10**9)
    keys = [key_of("x", k) for k in range(6)]
    for k, key in enumerate(keys):
        first.put(key, torch.full((1000,), float(k)))
    size = next(tmp_path.iterdir()).stat().st_size
    again = TensorCache(tmp_path, 3 * size)
    assert again.get(keys[0])[0] == 0.0
    again.prune(keys[:2])
    left = TensorCache(tmp_path, 0)
    assert [key in left for key in keys[:2]] == [True, True] and sum(key in left for key in keys) == 3


def test_a_kill_in_mid_write_leaves_whole_shards_and_nothing_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cache, "SHARD", 1)
    keys = [key_of("x", k) for k in range(5)]
    child = os.fork()
    if child == 0:
        replaced = []

        def killed(*paths):
            replaced.append(paths)
            if len(replaced) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            os.rename(*paths)

        tensor_cache.os.replace = killed
        cache = TensorCache(tmp_path, 10**9)
        for k, key in enumerate(keys):
            cache.put(key, torch.full((10,), float(k)))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = tmp_path.glob(".*")
    again = TensorCache(tmp_path, 10**9)
    assert [key in again for key in keys] == [True, True, True, False, False] and again.get(keys[2])[0] == 2.0
    again.prune([])
    assert left.exists(), "another process may be writing it"
    foreign = [tmp_path / ".gitlab-ci.yml", tmp_path / ".kept.d"]
    foreign[0].touch()
    foreign[1].mkdir()
    for path in (left, *foreign):
        os.utime(path, (0, 0))
    again.prune([])
    assert not left.exists() and all(path.exists() for path in foreign) and len(list(tmp_path.iterdir())) == 5


def test_two_processes_prune_one_cache_at_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tensor_cache, "SHARD", 1)
    keys = [key_of("x", k) for k in range(4)]
    first = TensorCache(tmp_path, 10**9)
    for key in keys:
        first.put(key, torch.ones(1000))
    plain, other = Path.stat, TensorCache(tmp_path, 0)

    def removed(path, **more):  # the other one removes what was just seen
        found = plain(path, **more)
        if path == first._shards[keys[3]]:
            monkeypatch.setattr(Path, "stat", plain)
            other.prune(keys[:1])
        return found

    monkeypatch.setattr(Path, "stat", removed)
    first.prune(keys[:2])
    assert [key in TensorCache(tmp_path, 0) for key in keys] == [True, False, False, False]
    assert "damaged" not in caplog.text and first.get(keys[1]) is None  # it is made again


def test_long_captions_are_read_in_chunks_as_in_drawing(tiny_pipeline):
    from latent_diffusion.prompts.states import Reading, Text, encode_texts

    encoder = tiny_pipeline.components.text_encoder
    captions = ["a cat", "red, " * 60 + "end", "blue " * 400]
    states = TextStates(encoder, torch.float32, chunks=3)
    states.fill(captions, 10**9)
    drawn = encode_texts(encoder, [Text(text) for text in captions], Reading("none", "chunk", None))
    for caption, wanted in zip(captions, drawn, strict=True):
        made = states([caption]).context
        assert made.shape[1] == min(wanted.context.shape[1], 3 * 77)
        torch.testing.assert_close(made, wanted.context[:, : made.shape[1]], rtol=1e-5, atol=1e-5)
    assert states.rows.groups([captions[1], captions[0], captions[2], captions[0]]) == [[1, 3], [0], [2]]


WORDS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "car", "house")]


@pytest.mark.parametrize("family", ["tiny", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_have_the_same_bits_in_any_batch_of_any_process_and_after_a_restart(
    tiny_folder, tiny_family, tmp_path, family, dtype
):
    encoder = load_folder(tiny_folder if family == "tiny" else tiny_family(family)).text_encoder
    batch = ["", *WORDS, "", WORDS[0]]

    def started(stored=None):
        return TextStates(encoder, dtype, chunks=3, stored=stored)

    def assert_same(made, wanted):
        assert made.context.dtype == dtype and torch.equal(made.context, wanted.context)
        assert (made.pooled is None) == (wanted.pooled is None) == (family == "tiny")
        assert made.pooled is None or torch.equal(made.pooled, wanted.pooled)

    one = started()
    alone = Conditioning.cat([one([caption]) for caption in batch])
    first = started()
    assert_same(first(batch), alone)
    assert_same(first(batch), alone)  # in a later update
    assert_same(started()(batch[5:]), alone[5:])  # after a restart, or the second process's share
    assert_same(started()(batch[:5]), alone[:5])
    assert_same(started()(batch[::-1]), Conditioning.cat([one([caption]) for caption in batch[::-1]]))
    for stored in (None, TensorCache(tmp_path / "cache", 10**9)):
        kept = started(stored)
        kept.fill(batch, 10**9)
        assert kept.cached
        assert_same(kept(batch), alone)
    long = ["red, " * 60 + word for word in WORDS]
    assert_same(started()(long), Conditioning.cat([one([caption]) for caption in long]))


@pytest.mark.parametrize("same", [True, False])
def test_captions_are_encoded_together_where_that_gives_the_bits_of_each_alone(tiny_pipeline, monkeypatch, same):
    encoder, calls = tiny_pipeline.components.text_encoder, []

    def run(self, ids):
        calls.append(len(ids))
        states = ids.float()[..., None].expand(-1, -1, self.width) / 3
        return Encoded(states if same else states + len(ids) * 1e-3, None)

    monkeypatch.setattr(TextEncoder, "run", run)
    states = TextStates(encoder, torch.float32)
    alone = torch.cat([states([caption]).context for caption in [*WORDS, WORDS[0]]])
    calls.clear()
    assert torch.equal(states([*WORDS, WORDS[0]]).context, alone)
    assert calls == [4, 1, 1, 1, 1, *([4, 1] if same else [1] * 5)]  # nine captions: the first four are the trial
    calls.clear()
    states.fill(WORDS, 10**9)
    assert calls == ([4, 4, 1] if same else [1] * 9)
    assert torch.equal(states([*WORDS, WORDS[0]]).context, alone)


def test_captions_are_not_listed_where_no_states_are_kept(trained, monkeypatch):
    monkeypatch.setattr(ImageFolder, "all_captions", lambda self: pytest.fail("the captions were listed"))
    trained(1, text_cache_bytes=0)
