"""Long, weighted prompts against diffusers, which takes any text states: made here by hand, with transformers alone."""

import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline

PROMPT, NEGATIVE = "cat " * 76 + "a (red:1.5) apple", "sun " * 80
STEPS = 4


@pytest.fixture(scope="module")
def theirs(tiny_folder):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@torch.no_grad()
def states_by_hand(pipe, words, weights):
    """Text states (1, n * 77, D) of words whose chunks of 75 tokens are encoded one by one, each token weighed."""
    ids = [pipe.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    tokens = [(token, weight) for word, weight in zip(ids, weights, strict=True) for token in word]
    parts = []
    for start in range(0, len(tokens), 75):
        chunk = tokens[start : start + 75]
        row = [pipe.tokenizer.bos_token_id, *(token for token, _ in chunk)]
        row += [pipe.tokenizer.eos_token_id] + [pipe.tokenizer.pad_token_id] * (75 - len(chunk))
        factors = torch.tensor([1.0, *(weight for _, weight in chunk), *[1.0] * (76 - len(chunk))])
        parts.append(pipe.text_encoder(torch.tensor([row])).last_hidden_state * factors[None, :, None])
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("sampler", ["ddim"])
def test_a_long_weighted_prompt(tiny_pipeline: LatentDiffusionPipeline, theirs, sampler):
    positive = states_by_hand(theirs, ["cat"] * 76 + ["a", "red", "apple"], [1.0] * 77 + [1.5, 1.0])
    negative = states_by_hand(theirs, ["sun"] * 80, [1.0] * 80)
    assert positive.shape == negative.shape == (1, 154, 32)
    expected = theirs(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        height=32,
        width=32,
        output_type="latent",
    ).images
    found = tiny_pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        emphasis="no-norm",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        sampler=sampler,
        seed=3,
        output_type="latent",
    ).images
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
