"""Memory predicted from shapes: against what autograd really keeps, and the settings that make a run fit."""

import re

import pytest
import torch

from latent_diffusion.cli.main import main
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.config import RunConfig
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.attention import Attention, sdpa
from latent_diffusion.registry import find
from latent_diffusion.runtime.cpu.training_kernels import PLAIN
from latent_diffusion.training.plan import memory_plan
from latent_diffusion.training.plan.memory_need import MemoryNeed, memory_need
from latent_diffusion.training.plan.memory_plan import plan_memory
from latent_diffusion.training.plan.step_memory import step_peak

CPU = torch.device("cpu")


def network(device, *, checkpointing=False, frozen=False):
    with torch.device(device):
        unet = UNet(tiny.UNET)
    unet.enable_gradient_checkpointing(checkpointing)
    for name, weight in unet.named_parameters():
        weight.requires_grad_(not frozen or name.startswith("conv_in"))
    for layer in unet.modules():
        if isinstance(layer, Attention):
            layer.kernel = sdpa
    return unet


def really_kept(unet, batch, side):
    """Return the bytes that a forward pass keeps for the backward pass, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in unet.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = unet(
            torch.randn(batch, 4, side, side),
            torch.zeros(batch),
            unet.project(Conditioning(torch.randn(batch, 77, 32))),
        )
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("frozen", [False, True])
def test_counted_activations_are_those_that_autograd_keeps(frozen):
    counted = step_peak(network("meta", frozen=frozen), 8, 32, 32, pooled=0, precision="float32")
    kept = really_kept(network("cpu", frozen=frozen), 8, 32)
    assert 0.95 < counted / kept < 1.3


def test_activations_grow_with_pictures_and_shrink_with_checkpointing_and_precision():
    def peak(batch=2, precision="float32", **how):
        return step_peak(network("meta", **how), batch, 16, 16, pooled=0, precision=precision)

    assert peak(4, frozen=True) == pytest.approx(2 * peak(frozen=True), rel=0.01)
    assert peak(checkpointing=True) < 0.5 * peak()
    assert peak(precision="bfloat16", frozen=True) == pytest.approx(peak(frozen=True) / 2, rel=0.01)


def run_of(objective, **keys):
    values = {"output": "x", "objective": objective, "data": {"path": "x", "size": 32}, "batch_size": 8, "steps": 4}
    return RunConfig.model_validate({**values, **keys})


def test_every_setting_changes_its_own_term(tiny_folder):
    def terms(name="lora", **keys):
        run = run_of({"name": name, "init": str(tiny_folder)}, **keys)
        kind = find("latent_diffusion.training.objectives", name)
        found = memory_need(run, kind.settings_type(init=str(tiny_folder)), 100, 32, CPU, PLAIN)
        assert found is not None
        return found.updates

    def changed(before, after):
        return {name for name in before if before[name] != after[name]} - {"libraries"}

    lora, whole = terms(), terms("unet")
    memory = {"drop_encoders": True, "base": "int8"}
    assert changed(lora, terms(ema={"decay": 0.9}, memory=memory)) == {"moving average", "encoders", "U-Net"}
    assert changed(lora, terms(accumulation=4)) == {"activations and gradients"}
    assert changed(whole, terms("unet", optimizer={"name": "adafactor"})) == {"optimizer"}
    numbers = sum(weight.numel() for weight in UNet(tiny.UNET).parameters())
    assert whole["U-Net"] == 4 * numbers and whole["optimizer"] == 8 * numbers
    assert lora["optimizer"] < whole["optimizer"] and lora["pictures"] == 100 * 3 * 32 * 32


@pytest.fixture
def counted(monkeypatch, tiny_folder, pictures):
    """Return a function: the plan of a run whose need is 100 a picture, 200 for the encoders, half if checkpointed."""

    def need(run, *_):
        step = 100 * run.batch_size // run.accumulation // (1 + run.gradient_checkpointing)
        encoders = 0 if run.memory is not None and run.memory.drop_encoders else 200
        return MemoryNeed({}, {"step": step, "encoders": encoders})

    def plan(free, **keys):
        monkeypatch.setattr(memory_plan, "memory_need", need)
        monkeypatch.setattr(memory_plan, "free_memory", lambda _: free)
        monkeypatch.setattr(memory_plan, "bfloat16_is_fast", lambda _: False)
        run = run_of({"name": "unet", "init": str(tiny_folder)}, data={"path": str(pictures), "size": 32}, **keys)
        made = plan_memory(find("latent_diffusion.training.objectives", "unet"), run, torch.device("meta"), PLAIN)
        assert made is not None
        return made

    return plan


def test_the_cheapest_settings_that_fit_are_found(counted):
    assert counted(1000).fits and counted(1000).changes == ()
    assert counted(800).changes == ("memory.drop_encoders=true",)
    assert counted(600).changes == ("accumulation=2",)  # the encoders may stay
    assert counted(150).changes == ("memory.drop_encoders=true", "accumulation=8")
    assert counted(60).changes == ("memory.drop_encoders=true", "accumulation=8", "gradient_checkpointing=true")
    none = counted(20)
    assert none.missing == 30 and "are missing; lower data.size" in none.trouble()
    assert none.run.accumulation == 8 and none.run.memory.drop_encoders


RUN = """
output: {root}/run
objective: {{name: unet, init: {model}}}
data: {{path: {pictures}, size: 32}}
steps: 2
batch_size: 2
threads: 1
"""


def test_doctor_and_plan_predict_and_refuse_what_does_not_fit(tiny_folder, pictures, tmp_path, capsys, monkeypatch):
    file = tmp_path / "run.yaml"
    file.write_text(RUN.format(root=tmp_path, model=tiny_folder, pictures=pictures))
    assert main(["doctor", str(file), "--no-measure"]) == 0
    assert re.search(r"predicted peak memory: \d.*libraries.* are free\n", capsys.readouterr().out)
    monkeypatch.setattr(memory_plan, "free_memory", lambda _: -(10**12))
    assert main(["doctor", str(file)]) == 1
    assert re.search(
        r"does not fit in memory: .*even with memory.drop_encoders=true accumulation=2", capsys.readouterr().out
    )
    assert main(["train", str(file), "--plan"]) == 6
    assert "GiB are missing; lower data.size" in capsys.readouterr().err
