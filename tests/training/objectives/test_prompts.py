"""A trained model reads prompts as it was trained: its folder, its sample pictures and `generate` agree."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.prompt_forms import PromptForms, read_prompt_forms, write_prompt_forms
from latent_diffusion.errors import ConfigError
from latent_diffusion.prompts.caption_forms import forms_for_captions
from latent_diffusion.training.run import build_objective, train

FORMS = PromptForms({"a 3d render of": ("3d",), "a flat icon of": ("flat",)}, "a 3d render of", {"apple": "apple"})


@pytest.fixture
def base(tiny_folder, tmp_path):
    """The tiny model with prompt forms of its own."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    write_prompt_forms(FORMS, folder)
    return str(folder)


def test_a_fine_tuned_model_reads_the_words_it_was_taught(base, make_run, tmp_path):
    assert train(make_run({"name": "unet", "init": base}, {"captions": ["text"]}, steps=1)) == 0
    trained = tmp_path / "run" / "model"
    assert not (trained / "prompts.json").exists() and not (trained / "names.txt").exists()
    pipe = LatentDiffusionPipeline.from_pretrained(trained, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = pipe("a red disc", num_inference_steps=1, height=32, width=32, seed=0)
    assert output.records[0].read_as is None


def test_captions_in_the_forms_keep_them_and_add_their_names(base, make_run, tmp_path, pictures):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    rows = [{"file_name": f"{k}.png", "text": f"a flat icon of a {w}"} for k, w in enumerate(("disc", "apple"))]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = make_run({"name": "unet", "init": base}, {"path": str(data), "where": {}}, steps=1)
    assert train(run) == 0
    assert read_prompt_forms(tmp_path / "run" / "model").names == {"apple": "apple", "disc": "disc"}


def test_which_captions_are_in_the_forms():
    assert forms_for_captions(None, ["a red disc"]) is None
    assert forms_for_captions(FORMS, []) == FORMS
    for words in (
        "a red disc",
        "3d of an apple",
        "a 3d render of",
        "a 3d render of an apple with " + "many words " * 9,
    ):
        assert forms_for_captions(FORMS, ["a 3d render of an apple", words]) is None, words
    rest = iter(["a red disc", "a 3d render of a disc"])
    assert forms_for_captions(FORMS, rest) is None
    assert [*rest] == ["a 3d render of a disc"], "captions cost time to list: none is read once one has no form"


@pytest.mark.filterwarnings("ignore:prompt 'many words")
def test_a_sample_picture_is_that_of_generate(base, make_run, tmp_path):
    prompts = ["apple, 3d", "a (red:1.4) disc", "many words " * 60]
    sample = {"every": 1, "prompts": prompts, "steps": 2, "guidance_scale": 4.0, "seed": 7}
    for forms, captions in ((False, {"captions": ["text"]}), (True, {"captions": []})):
        run = make_run({"name": "unet", "init": base}, captions, steps=1, sample=sample, output=str(tmp_path / "out"))
        assert train(run) == 0
        sheet = Image.open(tmp_path / "out" / "samples" / "step-00000001-0.png")
        pipe = LatentDiffusionPipeline.from_pretrained(tmp_path / "out" / "model", device="cpu", fast=False)
        assert (pipe.components.prompt_forms is not None) == forms
        for k, prompt in enumerate(prompts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                drawn = pipe(
                    prompt, num_inference_steps=2, guidance_scale=4.0, seed=7 + k, height=32, width=32,
                    sampler="dpmpp_2m", spacing="karras",
                ).images[0]  # fmt: skip
            cell = sheet.crop((32 * k, 0, 32 * k + 32, 32))
            difference = np.abs(np.asarray(cell, float) - np.asarray(drawn, float))
            assert difference.max() <= 1, prompt
        noted = json.loads(sheet.text["pictures"])
        assert [one["prompt"] for one in noted] == prompts and [one["seed"] for one in noted] == [7, 8, 9]
        assert sheet.text["update"] == "1" and sheet.height > 32
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("prompt", ["a [red:blue:0.5] disc", "a disc AND a square", "a disc <lora:x:1>"])
def test_sample_prompts_that_sheets_do_not_draw_are_refused_at_the_start(base, make_run, prompt):
    run = make_run({"name": "unet", "init": base}, {"captions": ["text"]}, sample={"prompts": [prompt], "steps": 4})
    with pytest.raises(ConfigError, match=r"sample\.prompts"):
        build_objective(run)
