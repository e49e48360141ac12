"""Every case on the tiny family, in this process: all tools make the same, and the operations are counted."""

import functools
import sys

import pytest
import torch

from benchmarks import model
from benchmarks.agreement import agreement
from benchmarks.case import OURS, PLAIN
from benchmarks.model import RandomModel, StoredModel, open_model, random_weights
from benchmarks.plan import AbsentError, Plan, half_or_full
from benchmarks.worker import case_of
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet

NETWORKS = ("text-encoder", "unet-step", "vae-decode", "vae-encode")


@pytest.fixture(scope="module", autouse=True)
def one_vocabulary():
    """CLIP's tokenizer is made once: it keeps no state, and takes half of the time to build a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "clip_vocabulary", functools.cache(model.clip_vocabulary))
        yield


def plan(case: str, dtype: str = "float32", model: str = "tiny", **values) -> Plan:
    return Plan(case, model, dtype, "cpu", **values)


def made(asked: Plan, tool: str):
    ready = case_of(asked).build(tool)
    assert min(ready.seconds.values(), default=0) >= 0
    return ready.call(), ready


@pytest.mark.parametrize("case", [*NETWORKS, "generate"])
def test_tools_make_the_same_in_float32(case):
    asked = plan(case, steps=2)
    wanted, _ = made(asked, "diffusers")
    assert next(iter(wanted.values())).std() > 0.01, "a dead network proves nothing"
    for tool in (OURS, PLAIN, "diffusers-best") if case == "generate" else (OURS,):  # which goes through all networks
        found, ready = made(asked, tool)
        assert ready.dtype == torch.float32
        assert agreement(found, wanted).error <= 1e-4, tool


@pytest.mark.parametrize("case", ["first-picture", "new-size", "new-adapter", "kernels"])
def test_what_waits_for_a_change_makes_the_same(case):
    """Cases that matter on a GPU; on a CPU they run to their end and prove no speed."""
    asked = plan(case, steps=1)
    (found, ours), (wanted, theirs) = made(asked, OURS), made(asked, "diffusers")
    assert agreement(found, wanted).error <= 1e-4
    for ready in (ours, theirs):
        assert ready.warm_up is None, "the first call is the one that counts"
        if case.startswith("new"):
            assert set(ready.split) == {"first", "second"} and min(ready.split.values()) > 0
        if case == "kernels":
            assert {"norm decoder", "attention decoder", "GEGLU U-Net level 1"} <= set(ready.split)


def test_a_new_size_is_new_at_every_call():
    case = case_of(plan("new-size", steps=1))
    ready, sizes = case.build(OURS), []
    for _ in range(2):
        ready.call()
        sizes.append(case.size)
    assert sizes == [32 + 64, 32 + 128]


def test_kernels_of_a_compiler_are_absent():
    with pytest.raises(AbsentError, match="no kernels of its own"):
        case_of(plan("kernels")).build("compile")


@pytest.mark.parametrize("case", ["vae-decode", "generate"])
def test_bfloat16_is_as_near_as_diffusers(case):
    wanted, _ = made(plan(case, steps=2), "diffusers")
    found, ready = made(plan(case, "bfloat16", steps=2), OURS)
    theirs, _ = made(plan(case, "bfloat16", steps=2), "diffusers")
    assert ready.dtype == torch.bfloat16
    assert agreement(found, wanted).error <= 2 * agreement(theirs, wanted).error


def test_auto_is_what_each_takes_by_itself():
    asked = plan("unet-step", "auto")
    assert made(asked, "diffusers")[1].dtype == torch.float32
    assert made(asked, "diffusers-best")[1].dtype == half_or_full("cpu")
    assert made(asked, OURS)[1].dtype == torch.float32  # small models gain nothing from less


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_losses_are_the_same(dtype):
    losses = {}
    for tool in (OURS, "diffusers"):
        ready = case_of(plan("train-step", dtype, batch=4)).build(tool)
        for _ in range(3):
            losses[tool] = ready.call()["losses"]
        assert len(losses[tool]) == 3, "a call is one update"
        assert set(ready.split) >= {"data", "gradients", "update"}
    assert torch.allclose(losses[OURS], losses["diffusers"], rtol=1e-5 if dtype == "float32" else 1e-2)
    assert losses[OURS][-1] < losses[OURS][0], "it learns"


def test_losses_of_a_lora_are_those_of_peft():
    losses = {}
    for tool in (OURS, "diffusers", "diffusers-checkpointed"):
        ready = case_of(plan("lora-step", batch=2)).build(tool)
        for _ in range(3):
            losses[tool] = ready.call()["losses"]
    assert torch.allclose(losses[OURS], losses["diffusers"], rtol=1e-5)
    assert torch.allclose(losses["diffusers-checkpointed"], losses["diffusers"], rtol=1e-5)


def test_training_says_what_it_cannot():
    with pytest.raises(AbsentError, match="does not train"):
        case_of(plan("train-step")).build("openvino")
    with pytest.raises(AbsentError, match="float32 or bfloat16"):
        case_of(plan("train-step", "auto")).build(OURS)


@pytest.mark.parametrize(
    "case,gflop",
    [("text-encoder", 26.6), ("unet-step", 1600.6), ("vae-decode", 2514.5), ("vae-encode", 1116.7)],
)
def test_operations_of_stable_diffusion(case, gflop):
    """Counted by hand from the sizes of SD 1.5, in the study of its speed; without K/V, which `project` makes."""
    assert case_of(plan(case, model="sd1")).flops() / 1e9 == pytest.approx(gflop, abs=0.1)


def test_operations_of_a_picture_are_those_of_its_parts():
    step, whole = (case_of(plan(c, model="sd1", steps=20)).flops() / 1e9 for c in ("unet-step", "generate"))
    assert whole == pytest.approx(20 * step + 26.6 + 2514.5 + 5.9, abs=0.5)


def test_sdxl_is_told_its_sizes():
    case = case_of(plan("unet-step", model="sdxl"))
    assert case.size == 1024
    assert case.flops() / 1e9 == pytest.approx(13522.5 - 105.0, abs=1)


def test_openvino_makes_the_same():
    pytest.importorskip("openvino")
    asked = plan("vae-decode")
    found, ready = made(asked, "openvino")
    assert {"convert", "compile"} <= ready.seconds.keys()
    assert agreement(found, made(asked, "diffusers")[0]).error <= 1e-4


def test_openvino_in_8_bits_is_near():
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    asked = plan("unet-step")
    found, ready = made(asked, "openvino-int8")
    assert {"convert", "quantise", "compile"} <= ready.seconds.keys()
    assert 1e-4 < agreement(found, made(asked, "diffusers")[0]).error < 0.2


@pytest.mark.parametrize("tool", ["openvino", "openvino-int8"])
def test_openvino_is_skipped_where_it_is_not(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(AbsentError, match="pip install openvino"):
        case_of(plan("vae-decode")).build(tool)


def test_lossy_ways_are_near_but_not_the_same():
    asked = plan("generate", steps=4)
    exact, _ = made(asked, OURS)
    for tool in ("lossy:guidance-interval", "lossy:deepcache:interval=2"):
        found, _ = made(asked, tool)
        assert 1e-5 < agreement(found, exact).error < 1, tool
    exact, _ = made(plan("unet-step"), OURS)
    found, _ = made(plan("unet-step"), "lossy:int8:layers=most")
    assert 1e-5 < agreement(found, exact).error < 0.1
    for case, tool in (
        ("unet-step", "lossy:deepcache"),
        ("unet-step", "lossy:guidance-interval"),
        ("vae-decode", "lossy:int8"),
    ):
        with pytest.raises(AbsentError, match=r"depends on the steps before|is no way to compute"):
            made(plan(case), tool)


def test_pictures_have_the_size_asked_for():
    found, _ = made(plan("generate", steps=1, size=24), OURS)
    assert found["images"].shape[-2:] == (24, 24)


def test_random_weights_are_the_same_in_every_process():
    def unet(dtype):
        with torch.device("meta"):
            return random_weights(UNet(tiny.UNET), dtype).state_dict()

    first, half = unet(torch.float32), unet(torch.bfloat16)
    assert all(torch.equal(weight.bfloat16(), half[name]) for name, weight in first.items())
    # what every process must find again: a number known from before
    assert first["conv_in.weight"].flatten()[:2].tolist() == pytest.approx(KNOWN, abs=1e-7)


KNOWN = [0.0038070480804890394, 0.04622793197631836]


def test_models():
    assert isinstance(open_model("emoji"), StoredModel)  # the bundled one, with its weights
    assert isinstance(open_model("sd2"), RandomModel)
    with pytest.raises(CheckpointError, match="no model"):
        case_of(plan("unet-step", model="nowhere")).flops()
    with pytest.raises(ConfigError, match="did you mean"):
        case_of(plan("unet-stop"))
