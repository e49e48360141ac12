"""Image to image, outpainting, hires, variations and walks: what each promises, and what each refuses."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionWarning
from latent_diffusion.pipeline.tasks.fit import fit, size_for
from latent_diffusion.provenance.infotext import write_infotext
from latent_diffusion.provenance.record import Record

STEPS = {"num_inference_steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 53, 3), np.uint8))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


def apart(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


# image to image


def test_strength_zero_returns_the_picture(tiny_pipeline, photo):
    """G06: at the working size, in every form, with a warning."""
    pipe, size = tiny_pipeline, {"height": 40, "width": 48}
    with pytest.warns(LatentDiffusionWarning, match="strength is 0"):
        out = pipe.image_to_image("a cat", image=photo, strength=0, num_images_per_prompt=2, **size, **STEPS)
    assert all(same(image, fit(photo, 40, 48, "crop")) for image in out.images) and len(out.images) == 2
    with pytest.warns(LatentDiffusionWarning):
        pixels = pipe.image_to_image("a cat", image=photo, strength=0, output_type="pt", **size, **STEPS).images
    assert torch.allclose(pixels[0].permute(1, 2, 0) * 255, torch.tensor(np.asarray(out.images[0])).float(), atol=1e-3)
    with pytest.warns(LatentDiffusionWarning):
        latents = pipe.image_to_image("a cat", image=photo, strength=0, output_type="latent", **size, **STEPS).images
    assert latents.shape == (1, 4, 10, 12)


@pytest.mark.filterwarnings("ignore:strength is 0")
def test_strength_zero_loses_nothing_to_an_autoencoder_in_half_precision(tiny_folder, photo):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", vae_dtype="bfloat16")
    call = {"image": photo, "strength": 0, "height": 40, "width": 48, **STEPS}
    assert same(pipe.image_to_image("a cat", **call).images[0], fit(photo, 40, 48, "crop"))
    assert pipe.image_to_image("a cat", output_type="latent", **call).images.dtype == torch.float32


@pytest.mark.parametrize(("strength", "exact", "run"), [(0.34, False, 1), (0.99, False, 2), (1.0, False, 3),
                                                        (0.34, True, 3), (0.01, True, 3), (1.0, True, 3)])  # fmt: skip
def test_steps_that_are_run(tiny_pipeline, photo, strength, exact, run):
    levels = []
    out = tiny_pipeline.image_to_image(
        "a cat", image=photo, strength=strength, exact_steps=exact, on_step=lambda step: levels.append(step.index),
        **STEPS,
    )  # fmt: skip
    task = out.records[0].image_to_image
    assert len(levels) == task.steps_run == run
    assert (task.strength, task.exact_steps) == (strength, exact)
    assert Record.from_json(out.records[0].to_json()) == out.records[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -0.1}, "strength -0.1"),
        ({"strength": 1.1}, "strength 1.1"),
        ({"strength": float("nan")}, "strength nan"),
        ({"strength": "high"}, "strength 'high'"),
        ({"strength": 0.1}, "less than one step; use at least 0.334"),
        ({"strength": 0.002, "exact_steps": True}, "exact_steps: 3 steps at strength 0.002 are the end of 1500"),
        ({"strength": 0.0001, "exact_steps": True}, "less than one step"),
        ({"resize_mode": "crap"}, r"unknown resize_mode 'crap'.*did you mean 'crop'"),
        ({"height": 500}, "use 496 or 504"),
        ({"width": "512"}, "width '512' is not an integer"),
        ({"output_type": "jpg"}, "unknown output_type"),
    ],
)
def test_impossible_arguments_of_image_to_image(tiny_pipeline, photo, arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_pipeline.image_to_image("a cat", image=photo, **(STEPS | arguments))


def test_more_strength_keeps_less(tiny_pipeline, photo):
    kept = []
    for strength in (0.1, 0.5, 1.0):
        out = tiny_pipeline.image_to_image("a cat", image=photo, strength=strength, num_inference_steps=20, seed=1,
                                           output_type="latent", guidance_scale=1.0)  # fmt: skip
        with pytest.warns(LatentDiffusionWarning):
            start = tiny_pipeline.image_to_image("a cat", image=photo, strength=0, seed=1, output_type="latent")
        kept.append(float((out.images - start.images).square().mean()))
    assert kept[0] < kept[1] < kept[2]


def test_a_batch_of_redrawn_pictures_equals_its_pictures_alone(tiny_pipeline, photo):
    call = {"image": photo, "num_inference_steps": 3, "sampler": "ddpm"}
    together = tiny_pipeline.image_to_image("a cat", num_images_per_prompt=4, seed=7, **call)
    for seed, found in zip(together.seeds, together.images, strict=True):
        assert apart(tiny_pipeline.image_to_image("a cat", seed=seed, **call).images[0], found) <= 1


@pytest.mark.parametrize(
    ("picture", "asked", "found"),
    [
        ((512, 512), (None, None), (512, 512)),
        ((512, 768), (None, None), (768, 512)),  # once to one and a half times the model's px: its own size
        ((515, 509), (None, None), (512, 512)),
        ((1024, 1024), (None, None), (512, 512)),
        ((4000, 1000), (None, None), (256, 1024)),
        ((64, 64), (None, None), (512, 512)),
        ((1, 8000), (None, None), (45792, 8)),
        ((1000, 500), (None, 256), (128, 256)),
        ((1000, 500), (256, None), (256, 512)),
        ((1000, 500), (64, 72), (64, 72)),
    ],
)
def test_the_size_that_is_worked_at(tiny_pipeline, picture, asked, found):
    """I05: one rule for sizes that are no multiple of 8."""
    from dataclasses import replace

    model = replace(tiny_pipeline.defaults, height=512, width=512)
    assert size_for(picture, model, *asked) == found


def test_ways_to_fit():
    picture = Image.new("RGB", (80, 40), (200, 0, 0))
    assert all(fit(picture, 64, 64, mode).size == (64, 64) for mode in ("crop", "stretch", "pad"))
    assert np.asarray(fit(picture, 64, 64, "pad"))[0, 0].tolist() == [128, 128, 128]
    assert (np.asarray(fit(picture, 64, 64, "crop")) == (200, 0, 0)).all()


# outpainting


@pytest.mark.parametrize(
    "sides", [{"right": 9}, {"left": 5, "bottom": 31}, dict.fromkeys(("left", "right", "top", "bottom"), 3)]
)
@pytest.mark.parametrize("arguments", [{}, {"masked_content": "noise"}, {"mask_mode": "soft", "resample": 1}])
def test_the_picture_stays_and_the_borders_are_drawn(tiny_pipeline, photo, sides, arguments):
    image = photo.convert("RGBA") if "right" in sides else photo
    out = tiny_pipeline.outpaint("a cat", image=image, **sides, **arguments, **STEPS)
    left, top, right, bottom = (sides.get(side, 0) for side in ("left", "top", "right", "bottom"))
    found = out.images[0]
    assert found.size == (53 + left + right, 40 + top + bottom) and found.mode == image.mode
    assert same(found.crop((left, top, left + 53, top + 40)), image)
    border = np.asarray(found.convert("RGB")).astype(int).copy()
    border[top : top + 40, left : left + 53] = 0
    assert border.any(), "the border is not black"
    task = out.records[0].inpaint
    assert task.added == (left, right, top, bottom)
    assert task.image_sha256 == hashlib.sha256(photo.tobytes()).hexdigest(), "of the picture without its borders"
    assert task.masked_content == arguments.get("masked_content", "fill")
    assert Record.from_json(out.records[0].to_json()) == out.records[0]


def test_no_line_is_left_at_the_seam(tiny_pipeline):
    """The fade from old to new starts from the picture's last pixels, not from the black beyond them."""
    image = Image.new("RGB", (40, 40), (200, 200, 200))
    out = tiny_pipeline.outpaint("a cat", image=image, right=20, feather=5, **STEPS).images[0]
    assert np.asarray(out)[:, 40].min() >= 160  # 5/6 of the old, 1/6 of the new


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to add"),
        ({"left": -1}, "left -1"),
        ({"top": 1.5}, "top 1.5"),
        ({"right": 10**9}, "right 1000000000"),
        ({"right": 5, "mask_grow": 2}, "mask_grow would repaint a part of the picture"),
    ],
)
def test_impossible_borders(tiny_pipeline, photo, arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_pipeline.outpaint("a cat", image=photo, **arguments, **STEPS)


# hires


@pytest.mark.parametrize("upscaler", ["latent", "latent_bicubic", "latent_nearest", "lanczos"])
def test_two_passes(tiny_pipeline, upscaler):
    seen = []
    out = tiny_pipeline.hires("a cat", scale=1.5, upscaler=upscaler, hires_strength=0.7,
                              on_step=lambda step: seen.append((step.index, step.x.shape[-1])), **STEPS)  # fmt: skip
    assert out.images[0].size == (48, 48)
    assert seen == [(0, 8), (1, 8), (2, 8), (3, 12), (4, 12)], "steps are numbered through"
    record = out.records[0]
    assert (record.width, record.work_width, record.hires.steps_run) == (48, 32, 2)
    assert Record.from_json(record.to_json()) == record
    assert "Hires upscale: 1.5" in write_infotext(record) and "Denoising strength: 0.7" in write_infotext(record)


def test_the_first_pass_is_the_picture_without_hires(tiny_pipeline):
    """Stopped at the end of the first pass it is the small picture; and a batch is as its pictures alone."""
    latents = []
    tiny_pipeline.hires("a cat", sampler="ddpm", on_step=lambda step: latents.append(step.x), **STEPS)
    small = tiny_pipeline("a cat", sampler="ddpm", output_type="latent", **STEPS)
    assert torch.allclose(latents[2], small.images, atol=1e-5)
    stopped = tiny_pipeline.hires("a cat", sampler="ddpm", on_step=lambda step: step.index < 1, **STEPS)
    assert stopped.stopped and stopped.images[0].size == (32, 32)
    together = tiny_pipeline.hires("a cat", sampler="ddpm", num_images_per_prompt=2, **STEPS)
    alone = tiny_pipeline.hires("a cat", sampler="ddpm", num_inference_steps=3, seed=6)
    assert apart(together.images[1], alone.images[0]) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 1.0}, "scale 1 does not enlarge"),
        ({"scale": 9}, "scale 9"),
        ({"upscaler": "latents"}, "did you mean 'latent'"),
        ({"hires_strength": 0}, "only enlarge"),
        ({"hires_strength": 0.1}, "less than one step"),
        ({"hires_steps": 0}, "hires_steps 0 is not an integer from 1"),
    ],
)
def test_impossible_second_passes(tiny_pipeline, arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_pipeline.hires("a cat", **arguments, **STEPS)


# variations and walks


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_variation_lies_between_two_pictures(tiny_pipeline, sampler):
    def draw(seed, **arguments):
        return tiny_pipeline("a cat", seed=seed, sampler=sampler, num_inference_steps=3, **arguments)

    varied = draw(5, variation_seed=9, variation_strength=1.0)
    assert same(varied.images[0], draw(9).images[0])
    little = draw(5, variation_seed=9, variation_strength=1e-4)
    assert apart(little.images[0], draw(5).images[0]) <= 2
    four = draw(5, variation_seed=9, variation_strength=0.3, num_images_per_prompt=4)
    assert four.seeds == [5] * 4
    assert [record.variation_seed for record in four.records] == [9, 10, 11, 12]
    assert len({image.tobytes() for image in four.images}) == 4
    alone = draw(5, variation_seed=11, variation_strength=0.3)
    assert apart(alone.images[0], four.images[2]) <= 1
    assert "Variation seed: 11, Variation seed strength: 0.3" in write_infotext(alone.records[0])


def test_variations_of_drawn_seeds_are_reported(tiny_pipeline):
    out = tiny_pipeline("a cat", variation_strength=0.5, num_inference_steps=1, num_images_per_prompt=2)
    again = tiny_pipeline("a cat", seed=out.seeds, variation_seed=[r.variation_seed for r in out.records],
                          variation_strength=0.5, num_inference_steps=1, num_images_per_prompt=2)  # fmt: skip
    assert out.seeds[0] == out.seeds[1]
    assert all(same(a, b) for a, b in zip(out.images, again.images, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variation_seed": 3}, "variation_seed without variation_strength"),
        ({"variation_strength": 1.5}, "variation_strength 1.5"),
        ({"variation_strength": -0.1}, "variation_strength -0.1"),
        ({"variation_strength": 0.5, "variation_seed": -1}, "seed -1 is out of range"),
        ({"variation_strength": 0.5, "seed": None, "generator": torch.Generator()}, "made of seeds"),
    ],
)
def test_impossible_variations(tiny_pipeline, arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_pipeline("a cat", **(STEPS | arguments))


def test_a_walk_begins_and_ends_on_its_keys(tiny_pipeline):
    call = {"num_inference_steps": 3, "sampler": "ddpm"}
    out = tiny_pipeline.interpolate(["a cat", "a blue car", "a red apple"], seed=[1, 2, 3], frames=5, **call)
    assert [record.prompt for record in out.records] == ["a cat", None, "a blue car", None, "a red apple"]
    assert out.seeds == [1, 1, 2, 2, 2]
    for frame, prompt, seed in ((0, "a cat", 1), (2, "a blue car", 2), (4, "a red apple", 3)):
        assert apart(tiny_pipeline(prompt, seed=seed, **call).images[0], out.images[frame]) <= 1
    assert len({image.tobytes() for image in out.images}) == 5


def test_a_walk_between_seeds_keeps_its_prompt(tiny_pipeline):
    out = tiny_pipeline.interpolate("a cat", seed=[1, 2], frames=3, num_inference_steps=2)
    assert [record.prompt for record in out.records] == ["a cat"] * 3
    middle = out.records[1]
    assert (middle.seed, middle.variation_seed, middle.variation_strength) == (1, 2, 0.5)
    again = tiny_pipeline("a cat", seed=1, variation_seed=2, variation_strength=0.5, num_inference_steps=2)
    assert apart(again.images[0], out.images[1]) <= 1, "its record says how to make it"


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ("a cat", {"seed": 1}, "two prompts or two seeds"),
        (["a cat", "a dog"], {"seed": [1, 2, 3]}, "found 2 and 3"),
        (["a cat", "a dog"], {"frames": 1}, "frames 1"),
        (["a cat", "a dog"], {"num_images_per_prompt": 2}, "num_images_per_prompt cannot be used"),
        (["a cat", 3], {}, "must be text"),
        (None, {"seed": [1, 2]}, "interpolate needs a text"),
        (["a cat", "a" * 10_001], {}, "at most 10000"),
        (["a cat", "a dog"], {"refiner": 1}, "refiner cannot be used"),
        (["a cat", "a dog AND a bird"], {}, "cannot be used with interpolate"),
        (["a cat", "[a dog:a bird:0.5]"], {"num_inference_steps": 4}, "cannot be used with interpolate"),
        (["a cat", "a dog <lora:x:1>"], {}, "cannot be used with interpolate"),
    ],
)
def test_impossible_walks(tiny_pipeline, prompts, arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_pipeline.interpolate(prompts, **({"num_inference_steps": 1} | arguments))


# sources


@pytest.mark.parametrize("address", ["http://169.254.169.254/a.png", "file:///etc/passwd", "data:text/html,<b>",
                                     "\\\\host\\share\\a.png"])  # fmt: skip
@pytest.mark.parametrize("task", ["image_to_image", "outpaint", "inpaint"])
def test_addresses_are_no_files_and_nothing_is_fetched(tiny_pipeline, photo, address, task, monkeypatch):
    """I09."""
    import socket

    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a connection was opened"))
    more = {"outpaint": {"left": 8}, "inpaint": {"mask_image": photo}}.get(task, {})
    with pytest.raises(DataError, match="cannot be read"):
        getattr(tiny_pipeline, task)("a cat", image=address, **more, **STEPS)


def test_broken_bytes_are_named_by_their_file(tiny_pipeline, tmp_path):
    """I10: no address of a Python object in the message."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match=r"broken\.png") as caught:
        tiny_pipeline.image_to_image("a cat", image=tmp_path / "broken.png", **STEPS)
    assert "0x" not in str(caught.value)
