"""A pipeline that replays its networks draws what it draws without, bit for bit; the recorder is a stand-in."""

import threading
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.runtime.cuda.graphs import GraphedUNet, Graphs

STEPS = dict(num_inference_steps=2, output_type="latent")


class Recording:
    def __init__(self, work, counts):
        self.work, self.counts, self.output = work, counts, work()

    def replay(self):
        self.counts["replays"] += 1
        self.output.copy_(self.work())


class StandIn:
    def __init__(self):
        self.counts = {"records": 0, "replays": 0}

    def warm(self, work):
        work()

    def record(self, work):
        self.counts["records"] += 1
        return Recording(work, self.counts)

    def turn(self):
        return nullcontext()


@pytest.fixture
def pair(tiny_folder):
    """The same model plain, and with recordings; and what was recorded."""
    plain = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", tiling=False)
    graphed = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", tiling=False)
    recorder = StandIn()
    graphs = Graphs(recorder)
    engine = graphed.engine
    graphed.engine = replace(engine, machine=replace(engine.machine, graphs=graphs))
    graphed.components.autoencoder.graphs = graphs
    return plain, graphed, recorder.counts


def same(plain, graphed, *args, **options):
    one, two = plain(*args, **options).images, graphed(*args, **options).images
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, two, strict=True))


def test_pictures_are_the_same(pair):
    plain, graphed, counts = pair
    assert same(plain, graphed, "a red apple", seed=1, num_inference_steps=3)
    assert counts == {"records": 2, "replays": 4}  # U-Net and decoder
    assert same(plain, graphed, ["a cat", "the sun"], seed=2, num_inference_steps=3)
    assert same(plain, graphed, "a cat", seed=3, num_inference_steps=3)
    assert counts["records"] == 4  # another batch, then none


@pytest.mark.parametrize("guidance", ["cfg", "pag", "seg:sigma=2", "apg"])
def test_guidance_that_changes_the_network_gets_its_own(pair, guidance):
    plain, graphed, counts = pair
    for interval in (None, (0.0, 0.5)):
        assert same(plain, graphed, "a cat", seed=1, guidance=guidance, guidance_interval=interval, **STEPS)
    assert counts["records"] >= 1


def test_rows_one_after_the_other(pair):
    plain, graphed, counts = pair
    assert same(plain, graphed, "a cat", seed=1, guidance_slicing=True, **STEPS)
    assert counts["records"] == 1


def test_an_approximation_cuts_up_a_copy(pair):
    plain, graphed, _ = pair
    options = dict(seed=1, approximate="deepcache:interval=2", num_inference_steps=4, output_type="latent")
    assert same(plain, graphed, "a cat", **options)
    assert same(plain, graphed, "a cat", seed=1, **STEPS)


def test_a_new_engine_brings_new_recordings(pair):
    plain, graphed, counts = pair
    graphed("a cat", seed=1, **STEPS)
    unet = graphed.engine.components.unet
    changed = replace(graphed.engine.components, unet=type(unet)(unet.config).eval())
    graphed.engine = replace(graphed.engine, components=changed)
    plain.engine = replace(plain.engine, components=replace(plain.engine.components, unet=changed.unet))
    assert same(plain, graphed, "a cat", seed=1, **STEPS)
    assert counts["records"] == 2


def test_two_threads_share_a_pipeline(pair):
    plain, graphed, _ = pair
    wanted = {seed: plain("a cat", seed=seed, **STEPS).images for seed in range(4)}
    found = {}

    def draw(seeds):
        for seed in seeds:
            found[seed] = graphed("a cat", seed=seed, **STEPS).images

    threads = [threading.Thread(target=draw, args=(seeds,)) for seeds in ((0, 1), (2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(torch.as_tensor(found[seed]), torch.as_tensor(wanted[seed])) for seed in wanted)


def test_saving_and_slow_machines_know_nothing_of_it(pair, tmp_path):
    _, graphed, _ = pair
    graphed("a cat", seed=1, **STEPS)
    graphed.save_pretrained(tmp_path / "saved")
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    for name, value in graphed.components.unet.state_dict().items():
        assert torch.equal(again.components.unet.state_dict()[name], value)
    engine = Engine.plain(graphed.engine)
    assert not isinstance(engine.machine.at_work(engine.components.unet), GraphedUNet)
    assert isinstance(graphed.engine.machine.at_work(graphed.components.unet), GraphedUNet)


@pytest.mark.gpu
def test_replayed_pictures_on_a_gpu(tiny_folder):
    options = dict(seed=1, num_inference_steps=3, output_type="latent")
    slow = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cuda", fast=False)
    fast = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cuda")
    one, two, again = (torch.as_tensor(p("a cat", **options).images).float() for p in (slow, fast, fast))
    assert len(fast.engine.machine.graphs) == 1
    assert torch.equal(two, again)
    assert torch.allclose(one, two, atol=1e-3)
