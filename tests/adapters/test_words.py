"""Learned words: files of every writer; the states are those of a table that has the vectors as rows."""

import pytest
import torch
from safetensors.torch import save_file

from latent_diffusion.adapters.word_file import read_words
from latent_diffusion.adapters.words import with_words
from latent_diffusion.errors import CheckpointError, ConfigError

WIDTH = 32


def vectors(count, width=WIDTH, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def write(folder, kind, rows):
    """One word in the layout of a writer."""
    if kind == "a1111":
        file = folder / "my-style.pt"
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "x", "step": 7}, file)
    elif kind == "a1111-parameter":
        file = folder / "my-style.pt"
        torch.save({"string_to_param": {"*": torch.nn.Parameter(rows)}}, file)
    elif kind == "kohya":
        file = folder / "my-style.safetensors"
        save_file({"emb_params": rows}, file)
    elif kind == "diffusers":
        file = folder / "learned_embeds.safetensors"
        save_file({"my-style": rows[0] if len(rows) == 1 else rows}, file)
    else:
        file = folder / "learned_embeds.bin"
        torch.save({"my-style": rows}, file)
    return file


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["a1111", "a1111-parameter", "kohya", "diffusers", "diffusers-bin"])
def test_every_writers_file(kind, count, tiny_components, tmp_path):
    (word,) = read_words(write(tmp_path, kind, vectors(count)), tiny_components)
    assert word.token == "my-style"
    assert torch.equal(word.vectors["text_encoder"], vectors(count))
    assert len(word.hash) == 12


def test_a_word_stands_for_its_vectors_and_the_model_stays(tiny_components, tmp_path):
    rows = vectors(3)
    words = read_words(write(tmp_path, "kohya", rows), tiny_components)
    before = tiny_components.text_encoder.tokenize(["a my-style cat"])
    changed = with_words(tiny_components, words)
    encoder, plain = changed.text_encoder, tiny_components.text_encoder
    size = plain.config.vocab_size
    ids = encoder.tokenize(["a My-Style cat, my-stylesheet"])[0].tolist()
    assert [i for i in ids if i >= size] == [size, size + 1, size + 2]  # in any case of letters, not within words
    assert encoder.token_ids("my-style") == [(size, size + 1, size + 2)]
    assert encoder.token_counts(["my-style"]) == [3]
    table = encoder.model.embeddings.token_embedding.weight
    assert torch.equal(table[size:], rows) and torch.equal(table[:size], plain.model.embeddings.token_embedding.weight)
    assert plain.config.vocab_size == size and torch.equal(plain.tokenize(["a my-style cat"]), before)
    with torch.no_grad():  # the states are those of the vectors in these places
        found = encoder(["a my-style cat"]).context
        ids = encoder.tokenize(["a my-style cat"])
        known = torch.where(ids >= size, torch.zeros_like(ids), ids)
        hook = plain.model.embeddings.token_embedding.register_forward_hook(
            lambda _, __, out: torch.where((ids >= size)[..., None], rows[(ids - size).clamp(0, 2)], out)
        )
        wanted = plain.encode(known)
        hook.remove()
        others = plain(["a blue car"]).context
        assert torch.equal(encoder(["a blue car"]).context, others)
    torch.testing.assert_close(found, wanted)


def test_diffusers_makes_the_same_states(tiny_components, tiny_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    file = write(tmp_path, "a1111", vectors(2))
    theirs = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    theirs.load_textual_inversion(str(file), token="my-style")
    prompt = "a my-style cat"
    with torch.no_grad():
        wanted = theirs.encode_prompt(prompt, "cpu", 1, False)[0]
        found = with_words(tiny_components, read_words(file, tiny_components)).text_encoder([prompt]).context
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_pooled_vector_is_still_that_of_the_end(tiny_components, tmp_path):
    """Old configs say the text ends at the largest id; a learned word's is larger than the end's."""
    import copy
    from dataclasses import replace

    from latent_diffusion.models.text_encoder import TextEncoder

    tower = tiny_components.text_encoder
    model = copy.deepcopy(tower.model)
    model.config, model.eos_token_id = replace(model.config, eos_token_id=2), 2
    old = type(tiny_components)(**{**vars(tiny_components), "text_encoder": TextEncoder(model, tower.tokenizer)})
    changed = with_words(old, read_words(write(tmp_path, "kohya", vectors(1)), old)).text_encoder
    ids = changed.tokenize(["a my-style cat"])
    with torch.no_grad():
        out = changed.model(input_ids=ids)
    end = ids[0].tolist().index(changed.end_id)
    assert torch.equal(out.pooler_output[0], out.last_hidden_state[0, end])
    assert model.eos_token_id == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"emb_params": vectors(2, 768)}, "made for Stable Diffusion 1"),
        ({"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)}, "made for SDXL"),
        ({"emb_params": vectors(2) / 0}, "NaN"),
        ({"emb_params": vectors(2).to(torch.int32)}, "1 to 1000 vectors"),
        ({"emb_params": vectors(2)[None]}, "1 to 1000 vectors"),
        ({}, "no learned word"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_says_why(values, words, tiny_components, tmp_path):
    save_file(values, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_words(tmp_path / "x.safetensors", tiny_components)


def test_a_file_with_a_blank_in_its_name(tiny_components, tmp_path):
    """A prompt holds its name as it is, as the web UI has it."""
    file = write(tmp_path, "kohya", vectors(2)).rename(tmp_path / "bad dream.safetensors")
    taught = with_words(tiny_components, read_words(file, tiny_components))
    ids = taught.text_encoder.tokenize(["a cat, bad dream", "a cat, bad dreams"])
    first = taught.text_encoder.config.vocab_size - 2
    assert ids[0].tolist().count(first) == 1 and ids[0].tolist().count(first + 1) == 1
    assert first not in ids[1].tolist()


def test_words_that_cannot_be(tiny_components, tmp_path):
    file = write(tmp_path, "kohya", vectors(1))
    for token in ("", " ", " word", "two  words", "two\nwords", "x" * 101):
        with pytest.raises(ConfigError, match=f"{file.name}: its token .* cannot be used in a prompt"):
            read_words(file, tiny_components, token)
    known = read_words(file, tiny_components, "a")
    with pytest.raises(ConfigError, match=f"{file.name}: .*already has the word 'a'; rename the file"):
        with_words(tiny_components, known)
    save_file({"one": vectors(1), "two": vectors(1)}, tmp_path / "pair.safetensors")
    assert [w.token for w in read_words(tmp_path / "pair.safetensors", tiny_components)] == ["one", "two"]
    with pytest.raises(ConfigError, match="holds 2 words"):
        read_words(tmp_path / "pair.safetensors", tiny_components, "x")


def test_code_in_a_pickle_never_runs(tiny_components, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "x.pt").write_bytes(pickle.dumps({"string_to_param": {"*": Bomb()}}))
    with pytest.raises(CheckpointError, match=r"could run code|not a valid"):
        read_words(tmp_path / "x.pt", tiny_components)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match="no such file"):
        read_words(tmp_path / "absent.pt", tiny_components)
