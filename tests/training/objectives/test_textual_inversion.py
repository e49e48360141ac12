"""Words that are learned: only their vectors move, and other tools read the files."""

import pytest
import torch
from safetensors.torch import load_file

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of, with_parts
from latent_diffusion.adapters.word_file import read_words
from latent_diffusion.adapters.words import with_words
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text"], "caption_dropout": 0.2, "flip": True}
DISC = {"token": "disc", "start": "sun", "vectors": 3}
RATE = {"learning_rate": 1e-2, "weight_decay": 0.0}


def section(folder, *words, **more) -> dict:
    return {"name": "textual_inversion", "init": str(folder), "words": list(words or [DISC]), **more}


@pytest.mark.parametrize("family", ["sd1", "sd2_v", "sdxl"])
def test_diffusers_reads_the_word_and_makes_the_same_states(tiny_family, make_run, tmp_path, family):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    folder = tiny_family(family)
    words = [DISC, {"token": "red", "start": "blue"}]
    run = make_run(section(folder, *words), CAPTIONED, steps=6, optimizer=RATE, ema={"decay": 0.5})
    assert train(run) == 0
    base, model = load_folder(folder), run.output / "model"
    (disc,) = read_words(model / "disc.safetensors", base)
    (red,) = read_words(model / "red.safetensors", base)
    assert {len(rows) for rows in disc.vectors.values()} == {3} and {len(r) for r in red.vectors.values()} == {1}
    for tower, rows in disc.vectors.items():
        start = base.text_encoder.towers[tower == "text_encoder_2"]
        body = getattr(start.model, "text_model", start.model)
        (first,) = start.token_ids("sun")[0]
        moved = (rows - body.embeddings.token_embedding.weight[first]).norm(dim=1)
        assert (moved > 1e-3).all() and len(set(moved.tolist())) == 3  # each vector goes its own way
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    theirs = kind.from_pretrained(folder)
    if family == "sdxl":
        tensors = load_file(model / "disc.safetensors")
        theirs.load_textual_inversion(tensors["clip_l"], "disc", text_encoder=theirs.text_encoder)
        more = {"text_encoder": theirs.text_encoder_2, "tokenizer": theirs.tokenizer_2}
        theirs.load_textual_inversion(tensors["clip_g"], "disc", **more)
    else:
        theirs.load_textual_inversion(str(model / "disc"))
    prompt = "a blue disc on a car"
    with torch.no_grad():
        given = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        wanted = theirs.encode_prompt(prompt, **given)[0]
        ours = with_words(base, [disc]).text_encoder([prompt]).context
        assert (ours - base.text_encoder([prompt]).context).abs().max() > 1e-3
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_words_beside_an_adapter(tiny_folder, make_run, tmp_path):
    adapter = {"rank": 2, "parts": ["unet", "text_encoder"], "rules": [{"match": "unet", "learning_rate": 2e-3}]}
    objective = {"name": "lora", "init": str(tiny_folder), "adapter": adapter, "words": [DISC]}
    run = make_run(objective | {"words_learning_rate": 5e-3}, CAPTIONED, steps=6)
    torch.manual_seed(run.seed)
    made = Trainer(build_objective(run), run, build_accelerator())
    before = weights_digest(made.objective.base.unet, made.objective.base.text_encoder)
    made.fit()
    assert weights_digest(made.objective.base.unet, made.objective.base.text_encoder) == before
    rates = made.objective.players["unet"].learning_rates()
    assert rates["words.text_encoder"] == 5e-3 and set(rates.values()) == {2e-3, 5e-3}
    made.objective.export(tmp_path, averaged=False)
    base, prompt = made.objective.base, ["a red disc"]
    (word,) = read_words(tmp_path / "disc" / "learned_embeds.safetensors", base)
    taught = with_words(base, [word])
    read = read_lora(tmp_path / "run.safetensors", taught)
    changed = adapted(parts_of(taught)["text_encoder"], [(read.updates["text_encoder"], 1.0)])
    with torch.no_grad():
        wanted = made.objective.components.text_encoder(prompt).context
        assert not torch.allclose(taught.text_encoder(prompt).context, wanted)
        both = with_parts(taught, {"text_encoder": changed}).text_encoder(prompt).context
    torch.testing.assert_close(both, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([{"token": "my-cat", "start": "cat"}], "no caption has 'my-cat'"),
        ([{"token": "a", "start": "cat"}], "already has the word 'a'"),
        ([{"token": "disc", "start": "a red apple", "vectors": 2}], "with 2 vectors; use one vector a token"),
        ([{"token": "di/sc", "start": "sun"}], "must consist of letters"),
        ([DISC, DISC], "has one twice"),
        ([{"token": "disc", "start": "sun", "vector": 2}], "did you mean 'vectors'"),
        ([], "words"),
    ],
)
def test_words_that_cannot_be_learned_are_refused(tiny_folder, make_run, words, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(make_run({"name": "textual_inversion", "init": str(tiny_folder), "words": words}, CAPTIONED))
