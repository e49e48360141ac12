"""A CLIP of noisy latents guides a pipeline: recorded, made again bit for bit, refused where it does not fit."""

import pytest
import torch

from latent_diffusion.checkpoint.folder.latent_clip_folder import load_latent_clip
from latent_diffusion.checkpoint.folder.latent_tower_folder import save_tower
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.latent_clip import LatentCLIP, LatentCLIPConfig
from latent_diffusion.pipeline.regenerate import differences, plan_of_record

SMALL = {"num_inference_steps": 4, "seed": 3}
PROMPTS = ["a red disc", "a blue car", "the sun"]


@pytest.fixture(scope="module")
def folder(tiny_pipeline, tmp_path_factory):
    """A CLIP of the tiny model's latents with random weights."""
    torch.manual_seed(0)
    made, parts = tmp_path_factory.mktemp("clip") / "saved", tiny_pipeline.components
    made.mkdir()
    config = LatentCLIPConfig(
        parts.autoencoder.config.latent_channels, (8, 16), groups=4, text_width=parts.text_encoder.width, embed_dim=8
    )
    save_tower(LatentCLIP(config), parts, made)
    return made


def test_a_picture_is_recorded_and_made_again_bit_for_bit(tiny_pipeline, folder):
    out = tiny_pipeline("a red disc", guidance=["pag", f"noised_clip:model={folder},scale=40,stop=0.8"], **SMALL)
    assert out.records[0].guidance[1] == f"noised_clip:scale=40.0,model={folder},stop=0.8"
    again = plan_of_record(out.records[0]).draw(tiny_pipeline, {})
    assert again.images[0].tobytes() == out.images[0].tobytes() and differences(out.records[0], again.records[0]) == []
    assert tiny_pipeline("a red disc", guidance="pag", **SMALL).images[0].tobytes() != out.images[0].tobytes()


@pytest.mark.parametrize(("scale", "sampler"), [(0.0, "ddim"), (1.0, "dpmpp_2m"), (5.0, "ddpm")])
def test_each_picture_fits_its_own_prompt_better(tiny_pipeline, folder, scale, sampler):
    """Alone (guidance scale 0 is the empty negative prompt) and beside classifier-free guidance; scale 0 is off."""
    network = load_latent_clip(folder).network
    with torch.no_grad():
        text = network.text_features(tiny_pipeline.components.text_encoder(PROMPTS).context)
    options = {**SMALL, "guidance_scale": scale, "sampler": sampler, "output_type": "latent"}

    def drawn(prompts, **guidance):
        return tiny_pipeline(prompts, **guidance, **options).images

    def fits(latents):
        return network.score(network.image_features(latents, torch.zeros(3)), text)

    guided = drawn(PROMPTS, guidance=f"noised_clip:model={folder},scale=100")
    plain = drawn(PROMPTS)
    assert (fits(guided) > fits(plain)).all()
    assert torch.equal(drawn(PROMPTS, guidance=f"noised_clip:model={folder},scale=0"), plain)


def test_a_picture_is_the_same_alone_and_among_others(tiny_pipeline, folder):
    options = {**SMALL, "guidance": f"noised_clip:model={folder},scale=100", "output_type": "latent"}
    together = tiny_pipeline(PROMPTS, **options).images
    alone = tiny_pipeline(PROMPTS[1], **{**options, "seed": 4}).images
    assert (together[1:2] - alone).abs().max() <= 1e-4 * alone.abs().max()


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"_class_name": "LatentClassifier"}, CheckpointError, "'LatentCLIP' was expected"),
        ({"text_width": 10**9}, CheckpointError, "text_width is 1000000000; integers from 1 to 4096"),
        ({"embed_dim": 9}, CheckpointError, "config.json requires"),
        ({"scaling_factor": 0.5}, ConfigError, "latents with scaling factor 0.5, but those of tiny have .*; train one"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_one_that_does_not_fit_is_refused(tiny_pipeline, folder, changed, values, kind, message):
    with pytest.raises(kind, match=message) as caught:
        tiny_pipeline("", guidance=f"noised_clip:model={changed(folder, **values)}", **SMALL)
    assert "\n" not in str(caught.value)


def test_one_of_other_text_states_is_refused(tiny_pipeline, tmp_path):
    parts = tiny_pipeline.components
    config = LatentCLIPConfig(parts.autoencoder.config.latent_channels, (8,), groups=4, text_width=5, embed_dim=8)
    save_tower(LatentCLIP(config), parts, tmp_path)
    with pytest.raises(ConfigError, match="text states of width 5, but those of tiny have 32; train one"):
        tiny_pipeline("", guidance=f"noised_clip:model={tmp_path}", **SMALL)
