"""Guidance in the pipeline: told in words, recorded, equal to diffusers' PAG pipeline, one image like many."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.guidance import Combined
from latent_diffusion.diffusion.interval import Interval
from latent_diffusion.errors import ConfigError
from latent_diffusion.guidance.apg import APG
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.classifier import ClassifierGuidance
from latent_diffusion.guidance.pag import PAG
from latent_diffusion.guidance.rescale import Rescale
from latent_diffusion.pipeline.call.guidance import choose_guidance
from latent_diffusion.provenance.record import Record

EVERY = ["cfg", "apg", "cfg_zero", "perp_neg", "pag", "seg:sigma=1", "rescale", "threshold:mimic_scale=3"]
SMALL = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 6.0, "negative_prompt": "a blue car"}


class NoModels:
    def denoiser(self, model):
        raise AssertionError("no other model was named")

    def log_prob(self, classifier, label):
        raise AssertionError("no classifier was named")

    def text_score(self, clip):
        raise AssertionError("no CLIP was named")


def choose(asked=None, scale=None, rescale=0.0, interval=None):
    return choose_guidance(asked, scale, 7.5, rescale, interval, NoModels())


def draw(pipe, prompts=("a red apple", "the sun"), seed=3, **options):
    return pipe(list(prompts), seed=seed, **{**SMALL, **options})


def close(a, b, tolerance=1e-4):
    assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


def test_words_make_the_objects():
    assert choose().guidance == CFG(7.5)
    assert choose("cfg:scale=3,rescale=0.2").guidance == CFG(3.0, rescale=0.2)
    assert choose("apg", scale=9.0).guidance == APG(9.0)
    assert choose("apg: max_norm=inf , momentum=0").guidance == APG(7.5, max_norm=math.inf, momentum=0.0)
    assert choose("pag:layers=up_blocks.1").guidance == Combined((CFG(7.5), PAG(layers="up_blocks.1")))
    both = choose(["pag:scale=2,stop=0.6", "apg"], rescale=0.7, interval=(0.1, 0.9)).guidance
    inner = Combined((Combined((Interval(PAG(2.0), stop=0.6), APG(7.5))), Rescale(0.7)))
    assert both == Interval(inner, 0.1, 0.9)


def test_an_object_is_the_whole_truth():
    assert choose(PAG(3.0)).guidance == PAG(3.0)
    assert choose(PAG(3.0)).scale == 1.0
    assert choose(CFG(4.0) + PAG(3.0)).scale == 4.0
    with pytest.raises(ConfigError, match="leave out `guidance_scale`"):
        choose(CFG(4.0), scale=5.0)


@pytest.mark.parametrize("asked", [*EVERY, ["cfg:stop=0.5", "apg:start=0.5"], ["seg:sigma_high=4", "pag"]], ids=str)
def test_written_out_and_read_again_it_is_the_same(asked):
    first = choose(asked, scale=4.0)
    again = choose(list(first.texts), scale=4.0)
    assert again.texts == first.texts and again.guidance == first.guidance


def test_an_object_is_written_as_words_where_words_can_say_it():
    texts = choose(Interval(CFG(4.0) + Interval(PAG(2.0), stop=0.8), start=0.2)).texts
    assert texts == ("cfg:scale=4.0,rescale=0.0,start=0.2", "pag:scale=2.0,layers=mid,start=0.2,stop=0.8")
    texts = choose(ClassifierGuidance(2.0, lambda x, t: x.sum((1, 2, 3)))).texts
    assert texts == ("classifier:scale=2.0",)
    with pytest.raises(ConfigError, match="'classifier' needs model=FOLDER and label=CLASS"):
        choose(list(texts))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cgf", r"unknown guidance 'cgf'; there are .*did you mean 'cfg'"),
        ("pag:skale=3", r"guidance 'pag' has no 'skale' \(did you mean 'scale'\?\); it has scale, layers, start"),
        ("pag:scale", r"'scale' is no key=value; write"),
        ("pag:scale=much", r"pag: scale 'much' is not a number"),
        ("pag:scale=nan", r"pag: scale 'nan' is not a number"),
        ("pag:scale=1e9", r"pag: scale 1000000000.0 is not a number from 0 to 100"),
        ("cfg_zero:zero_steps=1.5", r"zero_steps '1.5' is not an integer"),
        ("pag:start=0.9,stop=0.1", r"interval of guidance from 0.9 to 0.1 of the steps"),
        ("autoguidance", r"needs model=NAME\|PATH"),
        (["cfg"] * 17, r"17 guidances; at most 16"),
        (3, r"guidance 3; give a name"),
        ([CFG(3.0)], r"give a name, a list of names, or a Guidance"),
        ("../samplers/ddim", r"unknown guidance '../samplers/ddim'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_said_in_one_line(asked, message):
    with pytest.raises(ConfigError, match=message) as caught:
        choose(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("interval", [(0.5,), "half", (0.5, "x"), (0.9, 0.1), (0, 2)], ids=str)
def test_an_interval_that_cannot_be(interval):
    with pytest.raises(ConfigError):
        choose(interval=interval)


def test_the_pipeline_takes_every_kind_and_records_it(tiny_pipeline):
    plain = draw(tiny_pipeline)
    assert plain.records[0].guidance is None and plain.records[0].guidance_scale == 6.0
    for asked in EVERY[1:]:
        out = draw(tiny_pipeline, guidance=asked, guidance_interval=(0.0, 0.75))
        record = Record.from_json(out.records[0].to_json())
        assert record == out.records[0] and record.guidance_interval == (0.0, 0.75)
        again = draw(
            tiny_pipeline,
            guidance=list(record.guidance),
            guidance_interval=record.guidance_interval,
            guidance_scale=record.guidance_scale,
        )
        assert torch.equal(again.images, out.images)
        assert (out.images - plain.images).abs().max() > 1e-3, asked


def test_one_image_is_like_many(tiny_pipeline):
    options = {"guidance": ["apg", "pag:scale=2", "threshold:mimic_scale=4"], "guidance_rescale": 0.5}
    prompts = ["a red apple", "the sun", "a flat icon of a cat", "a blue car"]
    together = draw(tiny_pipeline, prompts, **options).images
    alone = [draw(tiny_pipeline, [prompt], seed=3 + k, **options).images for k, prompt in enumerate(prompts)]
    close(torch.cat(alone), together)
    close(draw(tiny_pipeline, prompts, guidance_slicing=True, **options).images, together)


def test_prompts_joined_by_and_are_guided(tiny_pipeline):
    """The prompt language's AND reaches guidance as a blend."""
    same = draw(tiny_pipeline, ["the sun :0.5 AND the sun :0.5"], guidance="apg").images
    close(same, draw(tiny_pipeline, ["the sun"], guidance="apg").images)


def test_an_interval_saves_half_the_rows(tiny_pipeline):
    rows = []
    unet = tiny_pipeline.components.unet
    hook = unet.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    try:
        draw(tiny_pipeline, guidance_interval=(0.25, 0.75))
    finally:
        hook.remove()
    assert rows == [2, 4, 4, 2]


def test_a_weaker_checkpoint_guides(tiny_folder, tiny_pipeline):
    """By oneself it changes nothing; by its name it is recorded."""
    out = draw(tiny_pipeline, guidance=f"autoguidance:scale=3,model={tiny_folder}")
    close(out.images, draw(tiny_pipeline).images)
    assert out.records[0].guidance == (f"autoguidance:scale=3.0,model={tiny_folder}",)
    with pytest.raises(ConfigError, match="cannot guide tiny: cross_attention_dim"):
        draw(tiny_pipeline, guidance="autoguidance:model=emoji")


@pytest.mark.parametrize(("layers", "scale"), [("mid", 1.0), ("up_blocks.1", 6.0)])
def test_pag_equals_diffusers_pipeline(tiny_folder, layers, scale):
    """Latents within 1e-4 of `StableDiffusionPAGPipeline`, with and without CFG."""
    from diffusers import StableDiffusionPAGPipeline

    theirs = StableDiffusionPAGPipeline.from_pretrained(
        tiny_folder, safety_checker=None, local_files_only=True, pag_applied_layers=[layers]
    )
    theirs.set_progress_bar_config(disable=True)
    ours = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    side = ours.defaults.height
    wanted = theirs(
        ["a red apple", "the sun"],
        negative_prompt=["a blue car"] * 2,
        height=side,
        width=side,
        num_inference_steps=5,
        guidance_scale=scale,
        pag_scale=2.5,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        output_type="latent",
    ).images
    got = draw(
        ours,
        guidance=f"pag:scale=2.5,layers={layers}",
        guidance_scale=scale,
        num_inference_steps=5,
        sampler="ddim",
        spacing="leading",
    ).images
    error = (got - wanted).abs().max() / wanted.std().clamp_min(1)
    assert error <= 1e-4


MIXED = ["apg", "pag:scale=2", "seg:sigma=1"]


@pytest.mark.parametrize(("family", "asked"), [("sd2_v", MIXED), ("sdxl", "perp_neg"), ("sdxl_refiner", MIXED)])
def test_every_family_is_guided(tiny_family, family, asked):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_family(family), device="cpu", dtype="float32")
    together = draw(pipe, guidance=asked, num_inference_steps=2).images
    alone = draw(pipe, ["the sun"], seed=4, guidance=asked, num_inference_steps=2).images
    assert together.isfinite().all()
    close(alone, together[1:])


@pytest.mark.parametrize(
    ("family", "asked"), [("sd1_inpaint", "perp_neg"), ("sdxl_inpaint", "pag:scale=2,layers=up")], ids=str
)
def test_inpainting_models_are_guided(tiny_family, family, asked):
    """The extra input channels reach every prediction; outside the mask nothing changes."""
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_family(family), device="cpu", dtype="float32")
    side = pipe.defaults.height
    picture = Image.effect_mandelbrot((side, side), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    mask = Image.new("L", picture.size)
    mask.paste(255, (side // 4, side // 4, side // 2, side // 2))
    said = {"num_inference_steps": 2, "seed": 1, "guidance_scale": 6.0, "negative_prompt": "a blue car"}
    drawn = {}  # latents: a random decoder shows no difference

    def inpainted(guidance):
        drawn[guidance] = steps = []
        said["on_step"] = steps.append
        return pipe.inpaint("the sun", image=picture, mask_image=mask, guidance=guidance, **said).images[0]

    before, after, inside = (np.asarray(image) for image in (picture, inpainted(asked), mask))
    inpainted(None)
    assert (before == after)[inside == 0].all()
    assert (drawn[asked][0].x0 - drawn[None][0].x0).abs().max() > 1e-3


def test_threads_share_a_pipeline(tiny_pipeline):
    """Steps of two calls interleave; each gives what it gives alone, also with a guidance that remembers."""
    asked = ["apg:momentum=-0.5", "seg:sigma=1"]
    solo = [draw(tiny_pipeline, seed=seed, guidance=asked).images for seed in (3, 30)]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda seed: draw(tiny_pipeline, seed=seed, guidance=asked).images, (3, 30)))
    assert all(torch.equal(a, b) for a, b in zip(solo, both, strict=True))
