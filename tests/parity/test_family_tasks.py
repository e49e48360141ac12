"""Families whose U-Net is told of a picture, against diffusers: inpainting models, and SDXL's refiner on latents.

The posterior of the picture is not drawn from in either: both get the same latents. Bound as for drawing.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.errors import ConfigError
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.inpainting.canvas import Canvas
from latent_diffusion.inpainting.repainting import Repainting
from latent_diffusion.pipeline.tasks.strength import late_levels

WHOLE = 1e-4
PROMPT, NEGATIVE, SEED = "a red apple", "a blue car", 21
CALL = {"num_inference_steps": 5, "guidance_scale": 6.0}


def pair(folder):
    """Ours and diffusers' of one folder, with one scheduler."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    theirs = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    law = {k: theirs.scheduler.config[k] for k in ("beta_start", "beta_end", "beta_schedule", "prediction_type")}
    theirs.scheduler = DDIMScheduler(**law, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32"), theirs


@torch.no_grad()
def sample(pipe, *, strength=1.0, latents=None, concat=None, **options):
    """Draw latents as the pipeline's tasks do, from noise or from noised `latents`."""
    options = {"negative_prompt": NEGATIVE, "seed": SEED, "height": 32, "width": 32, **CALL, **options}
    engine = pipe.engine
    settings = engine.settings({**options, "sampler": "ddim", "spacing": "leading"})
    levels = late_levels(engine.components, settings, strength)
    job = engine.start(PROMPT, settings, options, levels=levels)
    job = replace(job, concat=concat)
    x = job.initial_noise()
    x = x if latents is None else add_noise(latents, x, levels[0].alpha, levels[0].sigma)
    return job.draw(x, None).latents


def apart(found, expected) -> float:
    assert found.shape == expected.shape and expected.std() > 0.5
    return ((found - expected).abs().max() / expected.std().clamp_min(1)).item()


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def mask():
    """Edges on the cells of the latent, where all ways to shrink a mask agree."""
    values = np.zeros((32, 32), dtype=np.uint8)
    values[8:24, 4:20] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize("family", ["sd1_inpaint", "sd2_inpaint", "sdxl_inpaint"])
def test_inpainting_unets(family, tiny_family, picture, mask):
    ours, theirs = pair(tiny_family(family))
    canvas = Canvas.read(picture, mask, Repainting(inpaint_area="whole"), (32, 32))
    concat = canvas.encode(ours.components.autoencoder, channels=True).channels
    image = theirs.image_processor.preprocess(picture)
    hole = theirs.mask_processor.preprocess(mask)
    with torch.no_grad():
        encoded = theirs.vae.encode(image * (hole < 0.5)).latent_dist.mean * theirs.vae.config.scaling_factor
    assert (concat[:, 1:] - encoded).norm() <= 1e-5 * encoded.norm()
    expected = theirs(
        PROMPT,
        image=image,
        mask_image=hole,
        masked_image_latents=encoded,
        height=32,
        width=32,
        strength=1.0,
        negative_prompt=NEGATIVE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **CALL,
    ).images
    found = sample(ours, concat=concat)
    assert apart(found, expected) <= WHOLE
    assert apart(sample(ours, concat=concat.flip(-1)), found) > 100 * WHOLE, "the picture is told"


@pytest.mark.parametrize("family", ["sd1_inpaint", "sdxl_inpaint"])
def test_a_plain_call_of_an_inpainting_model_says_what_to_use(family, tiny_family):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_family(family), device="cpu")
    with pytest.raises(ConfigError, match=r"reads 9 channels.*use `inpaint`"):
        pipe(PROMPT, **CALL)


@pytest.mark.parametrize("scores", [{}, {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.0}])
def test_refiner(scores, tiny_family):
    ours, theirs = pair(tiny_family("sdxl_refiner"))
    torch.manual_seed(1)
    latents = torch.randn(1, 4, 8, 8)
    expected = theirs(
        PROMPT,
        image=latents,
        strength=0.6,
        negative_prompt=NEGATIVE,
        original_size=(32, 32),
        target_size=(32, 32),
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **CALL,
        **scores,
    ).images
    found = sample(ours, latents=latents, strength=0.6, **scores)
    assert apart(found, expected) <= WHOLE
    assert apart(sample(ours, latents=latents, strength=0.6, aesthetic_score=1.0), found) > 100 * WHOLE


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        ("sdxl", "aesthetic_score", 6.0),
        ("sdxl_refiner", "target_size", (32, 32)),
        ("sd1", "original_size", (32, 32)),
        ("sd1", "prompt_2", "a cat"),
        ("sdxl", "original_size", (32,)),
        ("sdxl", "original_size", "32x32"),
        ("sdxl", "original_size", (-1, 3)),
        ("sdxl", "crops_coords_top_left", (10**9, 0)),
        ("sdxl_refiner", "aesthetic_score", float("nan")),
        ("sdxl_refiner", "aesthetic_score", "high"),
        ("sdxl", "pooled_prompt_embeds", torch.zeros(1, 16)),
    ],
)
def test_what_cannot_be_told_is_refused(family, option, value, tiny_family):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_family(family), device="cpu")
    with pytest.raises(ConfigError, match=option):
        pipe(PROMPT, **CALL, **{option: value})


@torch.no_grad()
def test_base_and_refiner_on_one_path(tiny_family):
    """As diffusers does it in two calls, `denoising_end` of one and `denoising_start` of the other."""
    (base, their_base), (refiner, their_refiner) = (pair(tiny_family(name)) for name in ("sdxl", "sdxl_refiner"))
    call = CALL | {"num_inference_steps": 10, "negative_prompt": NEGATIVE, "output_type": "latent"}
    sizes = {"original_size": (32, 32), "target_size": (32, 32)}
    generator = torch.Generator().manual_seed(SEED)
    half = their_base(PROMPT, height=32, width=32, denoising_end=0.6, generator=generator, **call).images
    expected = their_refiner(PROMPT, image=half, denoising_start=0.6, aesthetic_score=7.0, **sizes, **call).images

    def draw(**arguments):
        return base(PROMPT, seed=SEED, height=32, width=32, sampler="ddim", spacing="leading", **call, **arguments)

    found = draw(refiner=refiner, refiner_switch=0.6, aesthetic_score=7.0)
    assert apart(found.images, expected) <= WHOLE
    assert found.records[0].refiner == "sdxl_refiner" and found.records[0].refined_below == 400
    assert apart(draw(refiner=refiner, refiner_switch=1.0).images, draw().images) == 0


def test_base_and_refiner_share_a_guidance_object(tiny_family):
    base = LatentDiffusionPipeline.from_pretrained(tiny_family("sdxl"), device="cpu")
    call = {"num_inference_steps": 3, "seed": SEED, "height": 32, "width": 32, "output_type": "latent"}
    told = [
        base(PROMPT, refiner=base, **call, **how).images for how in ({"guidance": CFG(3.0)}, {"guidance_scale": 3.0})
    ]
    assert torch.equal(*told)


def test_a_refiner_that_does_not_fit_is_refused(tiny_family, tiny_pipeline):
    base = LatentDiffusionPipeline.from_pretrained(tiny_family("sdxl"), device="cpu")
    for refiner, words in (("sdxl_refiner", "is not a pipeline"), (tiny_pipeline, "its scaling_factor is")):
        with pytest.raises(ConfigError, match=words):
            base(PROMPT, refiner=refiner, **CALL)
    with pytest.raises(ConfigError, match="refiner_switch has no effect"):
        base(PROMPT, refiner_switch=0.5, **CALL)
