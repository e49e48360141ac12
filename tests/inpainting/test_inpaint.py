"""Inpainting: not one pixel outside the mask changes, for any mask on a photograph of odd size."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionWarning
from latent_diffusion.inpainting.fill import fill_hole

WIDTH, HEIGHT = 451, 299  # the astronaut's are 512 x 512; odd on purpose


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut()).crop((0, 0, WIDTH, HEIGHT))


def masks() -> dict[str, np.ndarray]:
    """Twenty masks (H, W) bool."""
    made = {}

    def mask(name, *boxes):
        made[name] = np.zeros((HEIGHT, WIDTH), bool)
        for box in boxes:
            made[name][box] = True

    s = np.s_
    mask("everything", s[:])
    mask("one point", s[150, 200])
    mask("four corner points", s[0, 0], s[0, -1], s[-1, 0], s[-1, -1])
    mask("top left corner", s[:40, :40])
    mask("bottom right corner", s[-33:, -47:])
    mask("left border", s[:, 0])
    mask("right border", s[:, -1])
    mask("top border", s[0])
    mask("bottom border", s[-1])
    mask("frame", s[:5], s[-5:], s[:, :5], s[:, -5:])
    mask("horizontal hair", s[151, 20:400])
    mask("vertical hair", s[10:280, 301])
    mask("box of the model's size", s[100:132, 100:132])
    mask("odd box", s[77:178, 33:220])
    mask("two far points", s[3, 5], s[290, 440])
    mask("left half", s[:, :225])
    mask("all but one point", s[:])
    made["all but one point"][100, 100] = False
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    made["disc"] = (yy - 140) ** 2 + (xx - 210) ** 2 < 60**2
    made["diagonal hair"] = np.abs(yy - xx) < 1
    made["scattered"] = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.99
    return made


MASKS = masks()


def as_picture(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def repaint(pipe, image, mask, **arguments):
    mask = as_picture(mask) if isinstance(mask, np.ndarray) else mask
    return pipe.inpaint("a cat", image=image, mask_image=mask, **({"num_inference_steps": 2, "seed": 1} | arguments))


def changed(image: Image.Image, out: Image.Image) -> np.ndarray:
    assert out.size == image.size and out.mode == image.mode
    return (np.asarray(image) != np.asarray(out)).any(-1)


def test_there_are_twenty_masks():
    assert len(MASKS) == 20


@pytest.mark.parametrize("name", MASKS)
def test_nothing_outside_the_mask_changes(tiny_pipeline, photo, name):
    out = repaint(tiny_pipeline, photo, MASKS[name]).images[0]
    moved = changed(photo, out)
    assert not moved[~MASKS[name]].any()
    assert moved[MASKS[name]].any(), "something inside was repainted"


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("content", ["original", "fill", "noise", "nothing"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_every_sampler_content_and_strength_keeps_the_rest(tiny_pipeline, photo, sampler, content, strength):
    mask = MASKS["disc"]
    out = repaint(tiny_pipeline, photo, mask, sampler=sampler, masked_content=content, strength=strength)
    assert not changed(photo, out.images[0])[~mask].any()
    details = out.records[0].inpaint
    assert details is not None
    assert details.steps_run == (1 if strength == 0.5 else 2)
    assert details.start_from == ("noise" if content in ("noise", "nothing") and strength == 1 else "noised_image")


@pytest.mark.parametrize("size", [(7, 5), (16, 16), (17, 90), (1, 1), (33, 31)])
def test_any_size_comes_back(tiny_pipeline, photo, size):
    image = photo.crop((100, 50, 100 + size[0], 50 + size[1]))
    mask = np.zeros((size[1], size[0]), bool)
    mask[size[1] // 2 :, size[0] // 2 :] = True
    assert not changed(image, repaint(tiny_pipeline, image, mask).images[0])[~mask].any()


def test_an_empty_mask_returns_the_input_with_a_warning(tiny_pipeline, photo):
    with pytest.warns(LatentDiffusionWarning, match="no white"):
        out = repaint(tiny_pipeline, photo, np.zeros((HEIGHT, WIDTH), bool), num_images_per_prompt=2)
    assert len(out.images) == 2 and not any(changed(photo, image).any() for image in out.images)
    with pytest.warns(LatentDiffusionWarning, match="strength is 0"):
        out = repaint(tiny_pipeline, photo, MASKS["disc"], strength=0)
    assert not changed(photo, out.images[0]).any()


def test_transparency_is_handed_back(tiny_pipeline, photo):
    image = photo.copy()
    image.putalpha(Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8)))
    out = repaint(tiny_pipeline, image, MASKS["disc"]).images[0]
    assert not changed(image, out)[~MASKS["disc"]].any()
    assert np.array_equal(np.asarray(image.getchannel("A")), np.asarray(out.getchannel("A")))


def test_exif_rotation_is_applied_to_picture_and_size(tiny_pipeline, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.save(tmp_path / "turned.png", exif=exif)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    mask = np.zeros((WIDTH, HEIGHT), bool)
    mask[:30, :30] = True
    out = repaint(tiny_pipeline, tmp_path / "turned.png", mask).images[0]
    assert not changed(upright, out)[~mask].any()
    with pytest.raises(DataError, match="451x299 px but the picture is 299x451 px"):
        repaint(tiny_pipeline, tmp_path / "turned.png", MASKS["disc"])


def test_a_batch_equals_its_images_alone(tiny_pipeline, photo):
    batch = repaint(tiny_pipeline, photo, MASKS["disc"], num_images_per_prompt=3, sampler="ddpm")
    for seed, image in zip(batch.seeds, batch.images, strict=True):
        alone = repaint(tiny_pipeline, photo, MASKS["disc"], seed=seed, sampler="ddpm").images[0]
        assert np.abs(np.asarray(alone).astype(int) - np.asarray(image)).max() <= 1


def test_two_threads_repaint_with_one_pipeline(tiny_pipeline, photo):
    alone = [np.asarray(repaint(tiny_pipeline, photo, MASKS[m]).images[0]) for m in ("disc", "odd box")]
    found = {}

    def work(k, name):
        found[k] = np.asarray(repaint(tiny_pipeline, photo, MASKS[name]).images[0])

    threads = [threading.Thread(target=work, args=item) for item in enumerate(("disc", "odd box"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[k], alone[k]) for k in (0, 1))


def test_the_known_part_steers_the_sampler(tiny_pipeline, photo):
    """The decoded known part is the encoded picture, not something the network drew."""
    tiny = tiny_pipeline.components.autoencoder
    side = tiny_pipeline.defaults.height
    image = photo.resize((side, side))
    latents = []
    mask = np.zeros((side, side), bool)
    mask[: side // 2] = True
    repaint(tiny_pipeline, image, mask, sampler="ddim", on_step=lambda step: latents.append(step.x0))
    with torch.no_grad():
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        known = tiny.to_latents(pixels)
    half = latents[-1].shape[-2] // 2
    assert torch.allclose(latents[-1][:, :, half:], known[:, :, half:], atol=1e-5)
    assert not torch.allclose(latents[-1][:, :, :half], known[:, :, :half], atol=1e-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -0.1}, "strength -0.1"),
        ({"strength": 1.1}, "strength 1.1"),
        ({"strength": 0.1}, "less than one step; use at least 0.5"),
        ({"masked_content": "latent"}, "unknown masked_content 'latent'; there are original, fill, noise, nothing"),
        ({"start_from": "image"}, "unknown start_from 'image'; there are noise, noised_image"),
        ({"start_from": "noise", "strength": 0.5}, "needs strength 1"),
        ({"padding_mask_crop": -1}, "padding_mask_crop -1"),
        ({"feather": 65}, "feather 65"),
        ({"height": 500}, "use 496 or 504"),
    ],
)
def test_impossible_arguments_are_refused(tiny_pipeline, photo, arguments, message):
    with pytest.raises(ConfigError, match=message):
        repaint(tiny_pipeline, photo, MASKS["disc"], **arguments)


def test_pictures_and_masks_that_do_not_fit(tiny_pipeline, photo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for image, mask in ((tmp_path / "none.png", MASKS["disc"]), (tmp_path / "broken.png", MASKS["disc"])):
        with pytest.raises(DataError, match=image.name):
            repaint(tiny_pipeline, image, mask)
    with pytest.raises(DataError, match="4x4 px but the picture is 451x299 px"):
        repaint(tiny_pipeline, photo, np.ones((4, 4), bool))


def test_a_hole_is_filled_from_around_and_the_rest_is_kept():
    image = torch.full((1, 3, 33, 47), -0.5)
    image[..., 20:] = 0.5
    mask = torch.zeros(1, 1, 33, 47)
    mask[..., 5:20, 8:40] = 1
    broken = torch.where(mask.bool(), torch.tensor(9.0), image)
    filled = fill_hole(broken, mask)
    assert torch.equal(filled[mask.expand_as(filled) == 0], image[mask.expand_as(image) == 0])
    assert filled.abs().max() <= 0.5 + 1e-5
    assert filled[0, 0, 12, 9] < 0 < filled[0, 0, 12, 38]
    assert (fill_hole(broken, torch.ones_like(mask)) == 0).all()
    assert len(to_pil(filled)) == 1
    one_of_four = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])  # the smallest map that has surroundings
    assert torch.allclose(fill_hole(torch.full((1, 3, 2, 2), 0.5), one_of_four), torch.tensor(0.5))
