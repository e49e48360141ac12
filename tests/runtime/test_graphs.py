"""Recordings of forward passes: everything but the CUDA calls themselves, with a stand-in that replays Python."""

import gc
import threading
import warnings
from contextlib import contextmanager

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import LatentDiffusionWarning
from latent_diffusion.families import tiny
from latent_diffusion.guidance.pag import look_nowhere, self_attentions, with_kernels
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.runtime.cuda.graphs import GraphedUNet, Graphs, decoded


class Replayed:
    """Runs the same closure on the same buffers, as a graph does; its output has one place."""

    def __init__(self, work, recorder):
        self.work, self.recorder = work, recorder
        self.output = torch.full_like(work(), float("nan"))  # recording computes nothing

    def replay(self):
        assert self.recorder.turns == 1, "two recordings of one pool at a time"
        self.recorder.replays += 1
        self.output.copy_(self.work())


class StandIn:
    """A recorder for tests; counts, and fails on demand."""

    def __init__(self):
        self.records = self.replays = self.turns = self.warmed = 0
        self.error = self.warm_error = None

    def warm(self, work):
        if self.warm_error is not None:
            raise self.warm_error
        self.warmed += 1
        work()

    def record(self, work):
        if self.error is not None:
            raise self.error
        self.records += 1
        return Replayed(work, self)

    @contextmanager
    def turn(self):
        self.turns += 1
        yield
        self.turns -= 1


def make_unet(seed=0):
    torch.manual_seed(seed)
    return UNet(tiny.UNET).eval()


def told(unet, rows=2, length=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(rows, length, unet.config.cross_attention_dim, generator=generator))


def latents(rows=2, side=8, seed=2):
    return torch.randn(rows, 4, side, side, generator=torch.Generator().manual_seed(seed))


def times(rows=2, t=500.0):
    return torch.full((rows,), t)


@pytest.fixture
def stand_in():
    return StandIn()


@pytest.fixture
def graphs(stand_in):
    return Graphs(stand_in, most=3)


@torch.no_grad()
def test_every_step_equals_the_plain_network_bit_for_bit(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    for prompt in range(2):
        cond = told(unet, seed=prompt)
        mine, plain = graphed.project(cond), unet.project(cond)
        for step in range(3):
            x, t = latents(seed=10 * prompt + step), times(t=900.0 - 100 * step)
            assert torch.equal(graphed(x, t, mine), unet(x, t, plain))
    assert (stand_in.records, stand_in.replays, len(graphs)) == (1, 6, 1)


@torch.no_grad()
def test_results_are_nobody_elses_memory(graphs):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    projected = graphed.project(told(unet))
    first = graphed(latents(), times(), projected)
    kept = first.clone()
    graphed(latents(seed=5), times(t=1.0), projected)
    assert torch.equal(first, kept)


@torch.no_grad()
def test_keys_and_values_are_copied_once_a_prompt(graphs, monkeypatch):
    unet, copies = make_unet(), []
    graphed = GraphedUNet(unet, graphs)
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda a, b: (copies.append(len(a)), copy(a, b)))
    one, two = graphed.project(told(unet, seed=1)), graphed.project(told(unet, seed=2))
    for projected in (one, one, one, two, two, one):
        assert torch.equal(graphed(latents(), times(), projected), unet(latents(), times(), projected))
    assert len(copies) == 3
    assert copies[0] == 2 * len(one.keys_values)


@torch.no_grad()
def test_a_size_a_batch_a_prompt_length_and_a_format_are_recordings_of_their_own(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    cases = [dict(), dict(side=12), dict(rows=1), dict(length=9)]
    for case in cases:
        rows = case.get("rows", 2)
        projected = graphed.project(told(unet, rows, case.get("length", 7)))
        x = latents(rows, case.get("side", 8))
        assert torch.equal(graphed(x, times(rows), projected), unet(x, times(rows), projected))
    assert stand_in.records == 4
    assert len(graphs) == 3  # the one used longest ago is gone
    projected = graphed.project(told(unet, 2, 9))
    graphed(latents(), times(), projected)
    assert stand_in.records == 4
    projected = graphed.project(told(unet))
    graphed(latents(), times(), projected)
    assert stand_in.records == 5


@torch.no_grad()
def test_inpainting_channels_and_sdxl_vectors_reach_the_recording(graphs):
    from dataclasses import replace

    torch.manual_seed(0)
    config = replace(tiny.UNET, in_channels=9, added_width=8 + 6 * 4, size_width=4)
    unet = UNet(config).eval()
    graphed = GraphedUNet(unet, graphs)
    for seed in range(2):
        torch.manual_seed(seed)
        cond = replace(
            told(unet, seed=seed),
            pooled=torch.randn(2, 8),
            size_ids=torch.rand(2, 6) * 100,
            concat=torch.randn(2, 5, 8, 8),
        )
        projected = graphed.project(cond)
        assert torch.equal(graphed(latents(), times(), projected), unet(latents(), times(), projected))
    assert len(graphs) == 1


@torch.no_grad()
def test_another_tree_has_its_own_recordings_and_takes_them_along(graphs, stand_in):
    unet = make_unet()
    other = shared_copy(unet)  # what adapters make
    other.conv_in.weight = torch.nn.Parameter(unet.conv_in.weight * 2)
    cond = told(unet)
    for tree in (unet, other, unet, other):
        graphed = GraphedUNet(tree, graphs)  # one a call
        projected = graphed.project(cond)
        assert torch.equal(graphed(latents(), times(), projected), tree(latents(), times(), projected))
    assert (stand_in.records, len(graphs)) == (2, 2)
    del other, tree, graphed
    gc.collect()
    graphed = GraphedUNet(unet, graphs)
    graphed(latents(side=4), times(), graphed.project(cond))  # room is made where something new is recorded
    assert len(graphs) == 2


@torch.no_grad()
def test_copies_that_guidance_changes_run_as_they_are(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    projected = graphed.project(told(unet))
    plain = graphed(latents(), times(), projected)
    found = self_attentions("pag", graphed, "")
    perturbed = with_kernels(graphed, found, lambda kernel: look_nowhere)
    wanted = with_kernels(unet, self_attentions("pag", unet, ""), lambda kernel: look_nowhere)
    changed = perturbed(latents(), times(), perturbed.project(told(unet)))
    assert torch.equal(changed, wanted(latents(), times(), projected))
    assert not torch.equal(changed, plain)
    assert stand_in.records == 1


def test_gradients_are_never_replayed(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    x = latents().requires_grad_()
    graphed(x, times(), graphed.project(told(unet))).sum().backward()
    assert x.grad is not None
    assert stand_in.records == 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        graphed(latents(), times(), graphed.project(told(unet)))
    assert stand_in.records == 0


@torch.no_grad()
def test_hooks_run_in_every_call(graphs, stand_in):
    unet, seen = make_unet(), []
    graphed = GraphedUNet(unet, graphs)
    handle = unet.mid_block.register_forward_hook(lambda *_: seen.append(1))
    projected = graphed.project(told(unet))
    for _ in range(2):
        graphed(latents(), times(), projected)
    assert (len(seen), stand_in.records) == (2, 0)
    handle.remove()
    projected = graphed.project(told(unet))
    graphed(latents(), times(), projected)
    assert stand_in.records == 1


@torch.no_grad()
def test_changed_weights_are_recorded_anew(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    graphed(latents(), times(), graphed.project(told(unet)))
    unet.conv_in.weight.mul_(2)
    graphed(latents(), times(), graphed.project(told(unet)))
    unet.conv_in.weight.data = unet.conv_in.weight.data.clone()
    graphed(latents(), times(), graphed.project(told(unet)))
    assert (stand_in.records, len(graphs)) == (3, 1)


@torch.no_grad()
def test_what_cannot_be_recorded_runs_and_is_said_once(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    stand_in.error = RuntimeError("operation not permitted when stream is capturing\nmore")
    with pytest.warns(LatentDiffusionWarning, match="slower.*not permitted when stream is capturing$"):
        projected = graphed.project(told(unet))
        assert torch.equal(graphed(latents(), times(), projected), unet(latents(), times(), projected))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphed(latents(), times(), projected)
        graphed(latents(side=4), times(), projected)
    assert len(graphs) == 0
    stand_in.error = None
    graphed(latents(side=12), times(), projected)
    assert len(graphs) == 1


@torch.no_grad()
def test_short_memory_lets_go_of_all_recordings(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    projected = graphed.project(told(unet))
    graphed(latents(), times(), projected)
    assert len(graphs) == 1
    stand_in.warm_error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.warns(LatentDiffusionWarning, match="out of memory"):
        graphed(latents(side=12), times(), projected)
    assert len(graphs) == 0


def test_an_error_of_the_work_itself_is_the_callers(graphs):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="channels"):
            graphed(torch.randn(2, 5, 8, 8), times(), graphed.project(told(unet)))


def test_inference_mode_and_no_grad_share_a_recording(graphs, stand_in):
    unet = make_unet()
    graphed = GraphedUNet(unet, graphs)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            projected = graphed.project(told(unet))
            assert torch.equal(graphed(latents(), times(), projected), unet(latents(), times(), projected))
    assert stand_in.records == 1


@torch.no_grad()
def test_two_threads_draw_with_one_recording(graphs, stand_in):
    unet = make_unet()
    wanted, found, failed = {}, {}, []
    prompts = {k: unet.project(told(unet, seed=k)) for k in range(2)}
    for k, projected in prompts.items():
        wanted[k] = [unet(latents(seed=s), times(), projected) for s in range(8)]

    @torch.no_grad()
    def draw(k):
        try:
            graphed = GraphedUNet(unet, graphs)
            found[k] = [graphed(latents(seed=s), times(), prompts[k]) for s in range(8)]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=draw, args=(k,)) for k in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for k in prompts:
        assert all(map(torch.equal, found[k], wanted[k]))
    assert stand_in.records == 1


@torch.no_grad()
def test_the_decoder_is_replayed_too(graphs, stand_in):
    torch.manual_seed(0)
    model = AutoencoderKL(tiny.AUTOENCODER).eval()
    for seed in range(3):
        z = torch.randn(1, model.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(decoded(graphs, model, z), model.decode(z))
    assert stand_in.records == 1
