"""Approximations in the pipeline: told in words, recorded, made again, one image like many."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.approximations.deepcache import DeepCache
from latent_diffusion.approximations.taesd import TAESD
from latent_diffusion.approximations.tome import ToMe
from latent_diffusion.checkpoint.folder.tiny_folder import open_tiny
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.pipeline.regenerate import differences, plan_of_record
from latent_diffusion.provenance.record import Record

BOTH = ("deepcache:interval=2", "tome:ratio=0.5,levels=2")
SMALL = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "latent"}


def draw(pipe, prompt="a red apple", seed=3, **options):
    return pipe(prompt, seed=seed, **{**SMALL, **options})


def picture(size=(40, 32)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


def mask():
    pixels = np.zeros((32, 40), np.uint8)
    pixels[5:20, 8:30] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def taesd(tiny_pipeline, tmp_path_factory):
    """A folder of a tiny autoencoder with random weights for the tiny model's latents."""
    from diffusers import AutoencoderTiny

    stages = tiny_pipeline.components.autoencoder.factor.bit_length()
    sides = ("encoder", "decoder")
    sizes = {f"{side}_block_out_channels": [8] * stages for side in sides} | {
        f"num_{s}_blocks": [1] * stages for s in sides
    }
    folder = tmp_path_factory.mktemp("models") / "taesd"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderTiny(**sizes).save_pretrained(folder)
    return folder


def resolved(pipe, asked):
    return pipe.engine.settings({"approximate": asked}).approximate


def test_words_make_the_objects(tiny_pipeline):
    assert resolved(tiny_pipeline, None).parts == resolved(tiny_pipeline, []).parts == ()
    assert resolved(tiny_pipeline, "deepcache").parts == (DeepCache(3, 0),)
    assert resolved(tiny_pipeline, "deepcache: interval=5 , branch=1").parts == (DeepCache(5, 1),)
    assert resolved(tiny_pipeline, ["tome", DeepCache(2)]).parts == (ToMe(0.5, 1), DeepCache(2))
    assert resolved(tiny_pipeline, None).texts is None


@pytest.mark.parametrize("asked", ["deepcache", "tome:ratio=0.3", [*BOTH], (ToMe(0.25), DeepCache(4, 1))], ids=str)
def test_written_out_and_read_again_it_is_the_same(tiny_pipeline, asked):
    first = resolved(tiny_pipeline, asked)
    again = resolved(tiny_pipeline, first.texts)
    assert again == first and again.texts == first.texts


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("deepcash", r"unknown approximation 'deepcash'.*did you mean 'deepcache'"),
        (
            "deepcache:intervall=3",
            r"approximation 'deepcache' has no 'intervall' \(did you mean 'interval'\?\); it has",
        ),
        ("deepcache:interval", r"'interval' is no key=value; write deepcache:key=value"),
        ("deepcache:interval=2.5", r"deepcache: interval '2.5' is not an integer"),
        ("deepcache:interval=0", r"deepcache: interval 0 is not an integer from 1"),
        ("deepcache:branch=9", r"branch 9; this U-Net has 3 layers on its way down"),
        ("tome:ratio=much", r"tome: ratio 'much' is not a number"),
        ("tome:ratio=0.9", r"tome: ratio 0.9 is not a number from 0 to 0.75"),
        (["tome", "tome:ratio=0.2"], r"'tome' is named 2 times"),
        ("taesd", r"'taesd' needs model=FOLDER"),
        ("", r"unknown approximation ''"),
        (5, r"approximation \[5\]; give a name, a list of names, or an Approximation"),
        (["tome", None], r"give a name"),
        (["tome"] * 17, r"17 approximations; at most 16"),
        ("../guidance/pag", r"unknown approximation '../guidance/pag'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_said_in_one_line(tiny_pipeline, asked, message):
    with pytest.raises(ConfigError, match=message) as caught:
        draw(tiny_pipeline, approximate=asked)
    assert "\n" not in str(caught.value)


def test_neutral_is_the_exact_picture_bit_for_bit(tiny_pipeline):
    exact = draw(tiny_pipeline, sampler="heun").images
    asked = ["deepcache:interval=1", "tome:ratio=0"]
    assert torch.equal(draw(tiny_pipeline, sampler="heun", approximate=asked).images, exact)
    assert not torch.equal(draw(tiny_pipeline, sampler="heun", approximate=BOTH).images, exact)


def test_an_image_alone_is_that_image_in_a_batch(tiny_pipeline):
    prompts = ["a cat", "a cat, " * 30, "a red apple AND the sun", "[a|b] car"]
    options = {
        "approximate": BOTH,
        "guidance": "pag:stop=0.6",
        "guidance_interval": (0.2, 0.8),
        "height": 24,
        "width": 40,
        "num_inference_steps": 3,
    }
    together = draw(tiny_pipeline, prompts, **options).images
    for k, prompt in enumerate(prompts):
        alone = draw(tiny_pipeline, prompt, seed=3 + k, **options).images[0]
        assert (alone - together[k]).abs().max() <= 1e-4 * max(1.0, float(alone.abs().max()))


def test_threads_share_a_pipeline(tiny_pipeline):
    solo = [draw(tiny_pipeline, seed=seed, approximate=BOTH).images for seed in (3, 30)]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda seed: draw(tiny_pipeline, seed=seed, approximate=BOTH).images, (3, 30)))
    assert all(torch.equal(a, b) for a, b in zip(solo, both, strict=True))


CALLS = {
    "plain": ("__call__", {"sampler": "dpmpp_sde"}),
    "guided for a part": ("__call__", {"guidance_interval": (0.3, 0.7), "prompt": "a [cat:dog:3] AND the sun"}),
    "hires": ("hires", {"scale": 1.5, "hires_strength": 0.6}),
    "img2img": ("image_to_image", {"image": picture(), "strength": 0.7}),
    "inpaint": ("inpaint", {"image": picture(), "mask_image": mask(), "resample": 1, "jump_length": 2}),
    "outpaint": ("outpaint", {"image": picture(), "right": 8}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_record_makes_the_same_picture(tiny_pipeline, taesd, name):
    method, arguments = CALLS[name]
    asked = [*BOTH, f"taesd:model={taesd}"]
    common = {"prompt": "a red apple", "seed": 11, "num_inference_steps": 4, **arguments}
    out = getattr(tiny_pipeline, method)(**common, approximate=asked)
    record = Record.from_json(out.records[0].to_json())
    assert record.approximate == ("deepcache:interval=2,branch=0", "tome:ratio=0.5,levels=2", f"taesd:model={taesd}")
    again = plan_of_record(record).draw(tiny_pipeline, {k: v for k, v in arguments.items() if "image" in k})
    assert differences(record, again.records[0]) == []
    assert again.images[0].tobytes() == out.images[0].tobytes()
    assert getattr(tiny_pipeline, method)(**common).images[0].tobytes() != out.images[0].tobytes()


def test_records_of_exact_pictures_say_nothing(tiny_pipeline):
    assert draw(tiny_pipeline).records[0].approximate is None


def test_pixels_outside_the_mask_stay(tiny_pipeline, taesd):
    asked = [*BOTH, f"taesd:model={taesd}"]
    image = picture()
    out = tiny_pipeline.inpaint(
        "a cat", image=image, mask_image=mask(), seed=1, num_inference_steps=4, approximate=asked
    )
    kept = np.asarray(mask()) < 128
    assert np.array_equal(np.asarray(out.images[0])[kept], np.asarray(image)[kept])


def test_taesd_decodes_the_exact_latents(tiny_pipeline, taesd):
    latents = draw(tiny_pipeline).images
    asked = f"taesd:model={taesd}"
    assert torch.equal(draw(tiny_pipeline, approximate=asked).images, latents)
    tiny = open_tiny(taesd, tiny_pipeline.components.autoencoder)
    with torch.no_grad():
        wanted = tiny.to_images(latents).clamp(-1, 1) / 2 + 0.5
    found = draw(tiny_pipeline, approximate=asked, output_type="pt").images
    assert (found - wanted).abs().max() <= 1e-5  # its weights are packed
    out = draw(tiny_pipeline, approximate=TAESD(tiny), output_type="pt")
    assert torch.equal(out.images, found) and out.records[0].approximate == ("taesd",)
    with torch.no_grad():  # the caller's own is as it was
        assert torch.equal(tiny.to_images(latents).clamp(-1, 1) / 2 + 0.5, wanted)


def test_a_folder_that_is_no_tiny_autoencoder(tiny_pipeline, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        draw(tiny_pipeline, approximate=f"taesd:model={tmp_path}")
    with pytest.raises(ConfigError, match="a str is no tiny autoencoder"):
        TAESD("there")


def test_the_coarser_the_further_off():
    """On the bundled model: the distance from the exact latents grows with interval and ratio, falls with branch."""
    pipe = LatentDiffusionPipeline.from_pretrained("emoji", device="cpu")
    told = {"prompt": "a 3d render of a red apple", "seed": 1, "sampler": "ddim", "num_inference_steps": 8}

    def off(asked):
        near = pipe(**told, output_type="latent", approximate=asked).images
        return float((near - exact).norm() / exact.norm())

    exact = pipe(**told, output_type="latent").images
    for asked in (
        ["deepcache:interval=1", "deepcache:interval=2", "deepcache:interval=4", "deepcache:interval=8"],
        ["deepcache:interval=4,branch=2", "deepcache:interval=4,branch=1", "deepcache:interval=4"],
        ["tome:ratio=0", "tome:ratio=0.25", "tome:ratio=0.75"],
    ):
        errors = [off(each) for each in asked]
        assert errors == sorted(errors) and errors[-1] < 0.3, errors
