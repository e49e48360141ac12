"""Trained changes written to a file and read again: the same weights, whatever the form, the layer and the layout."""

import copy

import pytest
import torch

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.writing import write_factors, write_lora
from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.low_rank import Adapted, DoRA, Hadamard, Kronecker, LowRank

FORMS = {"LoRA": LowRank, "LoHa": Hadamard, "LoKr": Kronecker}
LAYERS = ("to_q", "to_out.0", "proj_in", "conv1", "ff.net.2", "downsamplers.0.conv")
RANK, SCALE = 3, 0.5


def trained(unet, form, dora):
    """Return a copy of the U-Net with random changes in place, and their factors by layer."""
    unet, factors, draw = copy.deepcopy(unet), {}, torch.Generator().manual_seed(0)
    for path, layer in list(unet.named_modules()):
        if not path.endswith(LAYERS):
            continue
        change = FORMS[form](layer, RANK, SCALE, draw)
        change = DoRA(layer, change) if dora else change
        with torch.no_grad():
            for name, parameter in change.named_parameters():
                parameter.mul_(1.3) if "dora" in name else parameter.add_(
                    torch.randn(parameter.shape, generator=draw) / 5
                )
        unet.set_submodule(path, Adapted(layer, change))
        fields = {name.rpartition(".")[2]: tensor.detach() for name, tensor in change.named_parameters()}
        fields["alpha"] = torch.tensor(change.scale * RANK)
        if dora:
            fields["dora_scale"] = fields["dora_scale"].reshape(-1, *[1] * (layer.weight.ndim - 1))
        factors[path] = fields
    return unet, factors


@torch.no_grad()
def output(unet, components):
    from latent_diffusion.conditioning import Conditioning

    states = components.text_encoder(["a cat"]).context
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    return unet(x, t, unet.project(Conditioning(states)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_what_was_trained_is_what_is_read(tiny_components, tmp_path, form, dora, layout):
    unet, factors = trained(tiny_components.unet, form, dora)
    if layout == "peft" and form != "LoRA":
        with pytest.raises(ConfigError, match="write it in kohya's"):
            write_factors(tmp_path / "a.safetensors", {"unet": factors}, layout)
        return
    write_factors(tmp_path / "a.safetensors", {"unet": factors}, layout)
    read = read_lora(tmp_path / "a.safetensors", tiny_components)
    assert not read.report.unmatched and set(read.report.forms) == {f"DoRA {form}" if dora else form}
    wanted, plain = output(unet, tiny_components), output(tiny_components.unet, tiny_components)
    found = output(adapted(tiny_components.unet, [(read.updates["unet"], 1.0)]), tiny_components)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - plain).abs().max() > 1e-3
    if layout == "kohya":
        write_lora(tmp_path / "b.safetensors", read.updates, layout)
        again = read_lora(tmp_path / "b.safetensors", tiny_components)
        second = output(adapted(tiny_components.unet, [(again.updates["unet"], 1.0)]), tiny_components)
        assert torch.equal(second, found)
