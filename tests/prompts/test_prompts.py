"""Prompts on their way into the network: chunks, weights, schedules, AND; no prompt changes its neighbour."""

import warnings

import pytest
import torch

from latent_diffusion.conditioning import Blend
from latent_diffusion.errors import ConfigError, LatentDiffusionWarning
from latent_diffusion.prompts.chunks import read_chunks
from latent_diffusion.prompts.emphasis import weigh
from latent_diffusion.prompts.script import read_script
from latent_diffusion.prompts.states import Reading, Text, encode_texts

LONG = "a red apple, " * 20 + "a cat"  # 4 tokens a time


@pytest.fixture(scope="module")
def tower(tiny_pipeline):
    return tiny_pipeline.components.text_encoder


def draw(pipe, prompts, **arguments):
    return pipe(prompts, **({"num_inference_steps": 4, "seed": 3, "output_type": "latent"} | arguments)).images


def sizes(tower, text, **how):
    return [len(chunk) for chunk in read_chunks(tower, text, **how).chunks]


def test_a_plain_prompt_is_read_as_before(tower):
    for text in ("a red apple", "", "a black and white drawing of the sun, a blue car"):
        ids, weights = read_chunks(tower, text).rows(1)
        assert torch.equal(ids, tower.tokenize([text])) and torch.equal(weights, torch.ones(1, 77))
        (cond,) = encode_texts(tower, [Text(text)], Reading("a1111", "chunk", None))
        assert torch.equal(cond.context, tower([text]).context)


def test_chunks_end_after_a_comma_near_their_end(tower):
    assert len(tower.token_ids("cat")) == 1 == len(tower.token_ids(","))
    assert sizes(tower, "cat " * 75) == [75]
    assert sizes(tower, "cat " * 76) == [75, 1]
    assert sizes(tower, "cat " * 55 + ", " + "cat " * 30) == [56, 30]  # 19 tokens would move
    assert sizes(tower, "cat " * 54 + ", " + "cat " * 30) == [75, 10]  # 20 would
    assert sizes(tower, "cat " * 74 + ", cat") == [75, 1]
    assert sizes(tower, "cat " * 60 + ", " + "cat " * 14 + ", cat") == [75, 2]  # the phrase ends at the edge anyway
    with pytest.warns(LatentDiffusionWarning, match="91 tokens"):
        assert sizes(tower, "cat " * 60 + ", " + "cat " * 30, long_prompt="truncate") == [75]


def test_break_starts_a_chunk(tower):
    assert sizes(tower, "cat BREAK a cat") == [1, 2]
    assert sizes(tower, "cat BREAK") == [1]
    assert sizes(tower, "BREAK cat") == [0, 1]
    assert sizes(tower, "BREAK") == [0]
    assert sizes(tower, "cat BREAK cat", syntax=False) == [len(tower.token_ids("cat BREAK cat"))]


def test_weights_lie_on_their_tokens(tower):
    _, weights = read_chunks(tower, "a (cat:1.5) [apple]").rows(1)
    apple = len(tower.token_ids("apple"))
    assert torch.equal(weights[0, :3], torch.tensor([1.0, 1.0, 1.5]))
    assert torch.allclose(weights[0, 3 : 3 + apple], torch.tensor(1 / 1.1)) and (weights[0, 3 + apple :] == 1).all()


def test_long_prompts_are_chunked_cut_or_refused_but_never_silently(tower):
    long = "cat " * 76 + "apple"
    with pytest.warns(LatentDiffusionWarning, match="in 2 chunks; this model reads 75 at once; not read: .*cat.*apple"):
        assert sizes(tower, long, long_prompt="truncate") == [75]
    with pytest.raises(ConfigError, match="in 2 chunks"):
        read_chunks(tower, long, long_prompt="error")


def test_the_rules_of_emphasis():
    torch.manual_seed(0)
    states, empty = torch.randn(2, 5, 8) + 0.3, torch.randn(1, 5, 8)
    weights = torch.ones(2, 5)
    assert all(weigh(states, weights, name, empty) is states for name in ("a1111", "no-norm", "comfy", "none"))
    weights[0, 2], weights[1, 1:3] = 1.5, 0.0
    assert torch.equal(weigh(states, weights, "no-norm", empty), states * weights[..., None])
    assert weigh(states, weights, "none", empty) is states
    restored = weigh(states, weights, "a1111", empty)
    assert torch.allclose(restored.mean((1, 2)), states.mean((1, 2)), atol=1e-6)
    ratio = restored[0] / (states * weights[..., None])[0]
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)
    assert torch.allclose(weigh(states[:1], weights[:1], "a1111", empty), restored[:1])  # by chunk, not by batch
    comfy = weigh(states, weights, "comfy", empty)
    assert torch.allclose(comfy[1, 1:3], empty[0, 1:3]) and torch.equal(comfy[1, 3:], states[1, 3:])
    assert torch.allclose(comfy[0, 2], empty[0, 2] + 1.5 * (states[0, 2] - empty[0, 2]))


def test_a_mean_that_is_rounding_noise_is_left_alone():
    states = torch.randn(1, 77, 64)
    states -= states.mean(-1, keepdim=True)
    weights = torch.ones(1, 77)
    weights[0, 3] = 2.0
    assert torch.equal(weigh(states, weights, "a1111", None), weigh(states, weights, "no-norm", None))


def test_chunks_of_a_long_prompt_lie_behind_each_other(tower):
    long, short = Text("cat " * 80), Text("a cat")
    conds = encode_texts(tower, [long, short], Reading("a1111", "chunk", None))
    assert [cond.context.shape for cond in conds] == [(1, 154, 32), (1, 77, 32)]
    rows = read_chunks(tower, long.first).rows(2)[0]
    assert (conds[0].context - tower.encode(rows).flatten(0, 1)).abs().max() < 1e-5


MIXED = ["a cat", LONG, "(a cat:1.4), [apple]", "[a cat:the sun:2]", "a cat AND an apple :0.5", "[a|b] cat", ""]


@pytest.mark.parametrize("emphasis", ["a1111", "no-norm", "comfy", "none"])
def test_no_prompt_changes_its_neighbours_picture(tiny_pipeline, emphasis):
    batch = draw(tiny_pipeline, MIXED, emphasis=emphasis, negative_prompt=["blurry"] * 6 + [LONG])
    for k, prompt in enumerate(MIXED):
        negative = LONG if k == 6 else "blurry"
        alone = draw(tiny_pipeline, prompt, seed=3 + k, emphasis=emphasis, negative_prompt=negative)
        assert (alone - batch[k]).abs().max() <= 1e-4, prompt


def test_images_of_one_prompt_stay_together_among_groups(tiny_pipeline):
    out = tiny_pipeline([LONG, "a cat"], num_images_per_prompt=2, seed=3, num_inference_steps=2, output_type="latent")
    assert [record.prompt for record in out.records] == [LONG, LONG, "a cat", "a cat"]
    second = draw(tiny_pipeline, "a cat", seed=6, num_inference_steps=2)
    assert (out.images[3] - second[0]).abs().max() <= 1e-4


def test_schedules_switch_at_their_step(tiny_pipeline):
    cat, sun = draw(tiny_pipeline, "a cat"), draw(tiny_pipeline, "the sun")
    assert torch.equal(draw(tiny_pipeline, "[a cat:the sun:4]"), cat)
    assert torch.equal(draw(tiny_pipeline, "[a cat:the sun:0]"), sun)
    seen = {}

    def keep(prompt):
        return lambda step: seen.update({(prompt, step.index): step.x.clone()})

    for prompt in ("a cat", "[a cat:the sun:0.5]"):
        draw(tiny_pipeline, prompt, sampler="ddim", on_step=keep(prompt))
    for index in range(4):
        same = torch.equal(seen["a cat", index], seen["[a cat:the sun:0.5]", index])
        assert same == (index < 2)


def test_a_schedule_counts_the_steps_that_are_run(tiny_pipeline):
    from PIL import Image

    picture, mask = Image.new("RGB", (32, 32), (90, 120, 30)), Image.new("L", (32, 32), 255)

    def repaint(prompt):
        arguments = {"strength": 0.5, "num_inference_steps": 8, "seed": 1, "image": picture, "mask_image": mask}
        return tiny_pipeline.inpaint(prompt, **arguments).images[0].tobytes()

    assert repaint("[a cat:the sun:4]") == repaint("a cat") != repaint("[a cat:the sun:0.5]") != repaint("the sun")


def test_and_adds_the_directions_of_its_prompts(tiny_pipeline):
    plain = draw(tiny_pipeline, "a cat", guidance_scale=3.0)
    assert (draw(tiny_pipeline, "a cat AND the sun :0", guidance_scale=3.0) - plain).abs().max() < 1e-4
    twice = draw(tiny_pipeline, "a cat AND a cat", guidance_scale=1.5)
    assert (twice - plain).abs().max() < 1e-3 * plain.abs().max()
    negative = draw(tiny_pipeline, "a cat", guidance_scale=3.0, negative_prompt="a AND b")
    assert negative.isfinite().all()  # text there


def test_emphasis_changes_the_picture_and_none_reads_brackets(tiny_pipeline):
    pictures = {name: draw(tiny_pipeline, "a (red:1.6) apple", emphasis=name) for name in ("a1111", "comfy", "none")}
    plain = draw(tiny_pipeline, "a red apple")
    assert all((picture - plain).abs().max() > 1e-3 for picture in pictures.values())
    assert torch.equal(draw(tiny_pipeline, "a (red:1.0) apple"), plain)
    assert torch.equal(draw(tiny_pipeline, "plain", emphasis="comfy"), draw(tiny_pipeline, "plain", emphasis="none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"emphasis": "A1111"}, "unknown emphasis 'A1111'; there are a1111, no-norm, comfy, none"),
        ({"long_prompt": "cut"}, "unknown long_prompt 'cut'; there are chunk, truncate, error"),
        ({"prompts": LONG, "long_prompt": "error"}, "in 2 chunks"),
        ({"prompts": "a AND " * 40}, "41 prompts with AND"),
        ({"prompts": "<lora:x:many>"}, "has the weight 'many'"),
    ],
)
def test_what_cannot_be_is_refused(tiny_pipeline, arguments, message):
    with pytest.raises(ConfigError, match=message):
        draw(tiny_pipeline, **({"prompts": "a"} | arguments))


def test_adapters_in_a_negative_prompt_are_said_to_be_nothing(tiny_pipeline):
    with pytest.warns(LatentDiffusionWarning, match="negative prompt have no effect: ink"):
        draw(tiny_pipeline, "a", negative_prompt="<lora:ink:1>blurry")


@pytest.mark.parametrize("prompt", ["a cat <lora:good:1", "<lora:good:1 a cat", "<lora:>", "<lyco:a<b"])
def test_a_tag_that_is_not_closed_is_said_to_be_text(prompt):
    with pytest.warns(LatentDiffusionWarning, match="is an incomplete tag and is read as text") as told:
        script = read_script(prompt, None, 2, syntax=True, negative=False)
    assert len(told) == 1 and not script.tags
    with warnings.catch_warnings():
        warnings.simplefilter("error", LatentDiffusionWarning)
        read_script("a cat <lora:good:1> <3 lora:", None, 2, syntax=True, negative=False)
        read_script(prompt, None, 2, syntax=False, negative=False)


def test_a_blend_takes_terms_of_different_lengths(tiny_pipeline):
    job = tiny_pipeline.engine
    settings = job.settings({"seed": 1})
    (group,) = job.start(f"a cat AND {LONG}", settings, {"seed": 1}).prompts.groups
    (conditions,) = group.conditions
    assert isinstance(conditions.prompt, Blend)
    assert [cond.context.shape[1] for cond, _ in conditions.prompt.terms] == [77, 154]
    assert draw(tiny_pipeline, f"a cat AND {LONG}").isfinite().all()


@pytest.fixture(scope="module")
def sdxl(tiny_family):
    from latent_diffusion import LatentDiffusionPipeline

    return LatentDiffusionPipeline.from_pretrained(tiny_family("sdxl"), device="cpu")


def test_two_encoders_read_the_same_chunks(sdxl):
    encoder = sdxl.components.text_encoder
    long = "cat " * 80
    cond, short = encode_texts(encoder, [Text(long), Text("a cat")], Reading("a1111", "chunk", None))
    assert cond.context.shape == (1, 154, encoder.width) and short.context.shape == (1, 77, encoder.width)
    first = encoder(["cat " * 75])
    assert (cond.pooled - first.pooled).abs().max() < 1e-5  # the first chunk's
    assert (cond.context[:, :77] - first.context).abs().max() < 1e-5
    assert torch.equal(short.context, encoder(["a cat"]).context)
    mixed = encode_texts(encoder, [Text("a cat", "sun " * 80)], Reading("a1111", "chunk", None))[0]
    assert mixed.context.shape == (1, 154, encoder.width)  # the first tower's second chunk is empty


def test_prompts_of_two_encoders_do_not_change_each_other(sdxl):
    prompts, seconds = ["a cat", LONG, "a (red:1.4) apple AND sun"], ["[a|b]", "apple", "a cat"]
    arguments = {"num_inference_steps": 3, "output_type": "latent"}
    batch = sdxl(prompts, prompt_2=seconds, seed=3, **arguments).images
    for k in range(3):
        alone = sdxl(prompts[k], prompt_2=seconds[k], seed=3 + k, **arguments).images
        assert (alone[0] - batch[k]).abs().max() <= 1e-4


def test_a_prompt_of_a_thousand_texts_is_refused(tiny_pipeline):
    options = "|".join(map(str, range(300)))
    with pytest.raises(ConfigError, match="300 texts in 300 steps; at most 200"):
        draw(tiny_pipeline, f"[{options}]", num_inference_steps=300)
