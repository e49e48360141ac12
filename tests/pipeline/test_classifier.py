"""A classifier guides a pipeline: named in a text, recorded, made again bit for bit, refused where it does not fit."""

import pytest
import torch

from latent_diffusion.checkpoint.folder.classifier_folder import load_classifier
from latent_diffusion.checkpoint.folder.latent_tower_folder import save_tower
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.latent_classifier import LatentClassifier, LatentClassifierConfig
from latent_diffusion.pipeline.regenerate import differences, plan_of_record

SMALL = {"num_inference_steps": 4, "seed": 3}
FIELDS = {"style": ("flat", "round"), "group": ("food", "sky", "tool")}


@pytest.fixture(scope="module")
def folder(tiny_pipeline, tmp_path_factory):
    """A classifier of the tiny model's latents with random weights."""
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("classifier") / "saved"
    made.mkdir()
    channels = tiny_pipeline.components.autoencoder.config.latent_channels
    config = LatentClassifierConfig(channels, (8, 16), groups=4, fields=FIELDS)
    save_tower(LatentClassifier(config), tiny_pipeline.components, made)
    return made


def test_what_is_read_back_is_what_was_saved(folder):
    stored = load_classifier(folder)
    assert stored.network.config.fields == FIELDS
    found = stored.network(torch.randn(2, 4, 5, 7), torch.tensor([0.0, 900.0]))
    assert {field: tuple(one.shape) for field, one in found.items()} == {"style": (2, 2), "group": (2, 3)}
    assert torch.allclose(found["group"].exp().sum(1), torch.ones(2))


def test_fields_may_have_any_name(tiny_pipeline, tmp_path):
    """Those of attributes of a network too, and dots; outputs stay with their field."""
    names = ("type", "keys", "training", "float", "a.b", "")
    fields = {name: tuple(f"{name} {k}" for k in range(place)) for place, name in enumerate(names, 2)}
    network = LatentClassifier(LatentClassifierConfig(4, (8,), groups=4, fields=fields))
    save_tower(network, tiny_pipeline.components, tmp_path)
    x, t = torch.randn(2, 4, 5, 7), torch.tensor([0.0, 900.0])
    wanted, found = network(x, t), load_classifier(tmp_path).network(x, t)
    assert list(found) == list(names) and all(torch.equal(wanted[name], found[name]) for name in names)
    assert [one.shape[1] for one in found.values()] == [2, 3, 4, 5, 6, 7]


def test_a_picture_is_recorded_and_made_again_bit_for_bit(tiny_pipeline, folder):
    guidance = f"classifier:model={folder},label=sky,scale=40,stop=0.8"
    out = tiny_pipeline("a red disc", guidance=["pag", guidance], **SMALL)
    assert out.records[0].guidance[1] == f"classifier:scale=40.0,model={folder},label=sky,stop=0.8"
    plan = plan_of_record(out.records[0])
    again = plan.draw(tiny_pipeline, {})
    assert again.images[0].tobytes() == out.images[0].tobytes() and differences(out.records[0], again.records[0]) == []
    assert tiny_pipeline("a red disc", guidance="pag", **SMALL).images[0].tobytes() != out.images[0].tobytes()


def test_the_class_becomes_more_probable(tiny_pipeline, folder):
    """With and without classifier-free guidance, for every picture of a batch; scale 0 changes nothing."""
    network = load_classifier(folder).network
    for scale in (1.0, 5.0):
        options = {**SMALL, "guidance_scale": scale, "output_type": "latent", "num_images_per_prompt": 3}
        seen = {}
        for strength in (0, 300):
            guidance = f"classifier:model={folder},label=tool,scale={strength}"
            latents = tiny_pipeline("a red disc", guidance=guidance, **options).images
            seen[strength] = network(latents, torch.zeros(3))["group"][:, 2]
        assert (seen[300] > seen[0]).all()
        plain = tiny_pipeline("a red disc", **options).images
        assert torch.equal(seen[0], network(plain, torch.zeros(3))["group"][:, 2])


def test_one_that_does_not_fit_is_refused(tiny_pipeline, folder, changed, tmp_path):
    with pytest.raises(ConfigError, match="has no class 'sea'; it has style: flat, round; group: food, sky, tool"):
        tiny_pipeline("", guidance=f"classifier:model={folder},label=sea", **SMALL)
    other = changed(folder, scaling_factor=0.5)
    with pytest.raises(ConfigError, match=r"latents with scaling factor 0.5, but those of tiny have .*; train one"):
        tiny_pipeline("", guidance=f"classifier:model={other},label=sky", **SMALL)
    with pytest.raises(CheckpointError):
        tiny_pipeline("", guidance=f"classifier:model={tmp_path / 'none'},label=sky", **SMALL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "UNet"}, "_class_name is 'UNet'"),
        ({"fields": {"style": ["flat"]}}, "two classes or more"),
        ({"fields": {"a": ["x", "y"], "b": ["y", "z"]}}, "one name: y"),
        ({"channels": [8, 16, 10**9]}, "integers from 1 to 4096"),
        ({"groups": 3}, "multiples of groups, 3"),
        ({"channels": [8, 12]}, "config.json requires"),
        ({"scaling_factor": "much"}, "a number was expected"),
        ({"scheduler": {"beta_schedule": "no such"}}, "unknown beta_schedule"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_folder_is_refused_in_one_line(folder, changed, values, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_classifier(changed(folder, **values))
    assert "\n" not in str(caught.value)
