"""Stage offload: parts wait on the host and work on copies; the numbers are the same."""

import dataclasses
import gc
import weakref

import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.errors import ConfigError, LatentDiffusionWarning
from latent_diffusion.models.unet import UNet
from latent_diffusion.pipeline.engine import machine
from latent_diffusion.runtime.residency import moved, offloaded_text


def test_a_moved_copy_leaves_the_original_where_it_is(tiny_pipeline):
    unet = tiny_pipeline.components.unet
    before = {name: t.clone() for name, t in unet.state_dict().items()}
    copy = moved(unet, torch.device("cpu"), torch.bfloat16)
    assert type(copy) is UNet and {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert copy.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in unet.state_dict().items())
    there = moved(unet, torch.device("meta"))
    assert {p.device.type for p in there.parameters()} == {"meta"}
    assert {p.device.type for p in unet.parameters()} == {"cpu"}


def test_tied_weights_stay_tied():
    layer = torch.nn.Linear(2, 2)
    pair = torch.nn.ModuleDict({"a": layer, "b": torch.nn.Linear(2, 2)})
    pair["b"].weight = layer.weight
    copy = moved(pair, torch.device("cpu"), torch.float16)
    assert copy["a"].weight is copy["b"].weight and copy["a"].weight is not layer.weight


def test_text_states_are_the_same(tiny_pipeline):
    encoder = tiny_pipeline.components.text_encoder
    waiting = offloaded_text(encoder, torch.device("cpu"))
    prompts = ["a red apple", ""]
    assert torch.equal(waiting(prompts).context, encoder(prompts).context)
    assert torch.equal(waiting(prompts, clip_skip=1).context, encoder(prompts, clip_skip=1).context)
    assert waiting.state_dict().keys() == encoder.state_dict().keys()


@pytest.fixture
def offloaded(tiny_folder, monkeypatch):
    """A pipeline that offloads although its device is the CPU: the copies are real, only the place is the same."""
    choose = machine.Machine.choose
    monkeypatch.setattr(machine.Machine, "choose", lambda *a: dataclasses.replace(choose(*a), offload=True))
    return LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def short_collections():
    """What is alive already is not looked through at every collection of garbage."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("short_collections")
def test_pictures_are_the_same_and_one_part_works_at_a_time(tiny_pipeline, offloaded, monkeypatch):
    alive: list[tuple[str, weakref.ref]] = []
    at_decode = []

    def watched(module, *args, **kwargs):
        gc.collect()
        at_decode.append([name for name, ref in alive if ref() is not None])
        copy = moved(module, *args, **kwargs)
        alive.append((type(module).__name__, weakref.ref(copy)))
        return copy

    for place in ("pipeline.engine.machine", "runtime.residency", "runtime.working_autoencoder"):
        monkeypatch.setattr(f"latent_diffusion.{place}.moved", watched)
    options = {"num_inference_steps": 3, "seed": 5, "output_type": "pt"}
    found = offloaded(["a red apple", "a cat"], **options).images
    # parts that travel are not rearranged for speed
    assert torch.allclose(found, tiny_pipeline(["a red apple", "a cat"], **options).images, atol=1e-5)
    names = [name for name, _ in alive]
    assert names[-2:] == ["UNet", "WorkingAutoencoder"] and "OffloadedTextEncoder" in names
    assert all(not others for others in at_decode), "each part had the device for itself"
    gc.collect()
    assert all(ref() is None for _, ref in alive), "nothing stays"


def test_a_saved_model_is_the_model(offloaded, tiny_pipeline, tmp_path):
    offloaded.save_pretrained(tmp_path / "copy")
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    for part in ("unet", "autoencoder", "text_encoder"):
        mine, theirs = (getattr(p.components, part).state_dict() for p in (again, tiny_pipeline))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_on_a_cpu_it_is_said_to_be_ignored(tiny_folder):
    with pytest.warns(LatentDiffusionWarning, match="offload has no meaning on a CPU"):
        pipe = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", offload=True)
    assert not pipe.engine.machine.offload


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"offload": "yes"}, "offload 'yes'"),
        ({"tiling": "yes"}, "tiling 'yes'"),
        ({"attention": "flash"}, "unknown attention 'flash'"),
        ({"vae_dtype": "int8"}, "unknown dtype 'int8'"),
        ({"atention": "auto"}, "did you mean 'attention'"),
    ],
)
def test_options_that_cannot_be(tiny_folder, option, words):
    with pytest.raises(ConfigError, match=words):
        LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", **option)


@pytest.mark.parametrize("options", [{"tiling": True}, {"attention": "math"}, {"attention": "sdpa", "tiling": True}])
def test_choices_of_the_machine_do_not_change_pictures(tiny_folder, tiny_pipeline, options):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", **options)
    arguments = {"num_inference_steps": 3, "seed": 5, "output_type": "pt"}
    difference = pipe("a cat", **arguments).images - tiny_pipeline("a cat", **arguments).images
    assert difference.abs().max() <= 1e-4
    assert pipe.attention == options.get("attention", tiny_pipeline.attention)
