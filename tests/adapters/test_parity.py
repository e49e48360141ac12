"""Files written by diffusers and PEFT read by us, and the other way round: the networks give the same numbers."""

import json

import pytest
import torch

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of, with_parts
from latent_diffusion.adapters.writing import write_lora
from latent_diffusion.conditioning import Conditioning

PROMPTS = ["a 3d render of a red apple", "a blue car"]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # theirs adds a second product at run time; 1.5e-6 is seen


@pytest.fixture
def theirs(tiny_folder):
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)


@torch.no_grad()
def their_outputs(pipe):
    ids = pipe.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    states = pipe.text_encoder(ids).last_hidden_state
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    return states, pipe.unet(x, t, states).sample


@torch.no_grad()
def our_outputs(components, loaded=()):
    parts = {
        part: adapted(module, [(adapter.updates.get(part, {}), strength) for adapter, strength in loaded])
        for part, module in parts_of(components).items()
    }
    changed = with_parts(components, parts)
    states = changed.text_encoder(PROMPTS).context
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    return states, changed.unet(x, t, changed.unet.project(Conditioning(states)))


def check(found, wanted, plain):
    for ours, theirs, without in zip(found, wanted, plain, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
        assert (ours - without).abs().max() > 100 * TOLERANCE["atol"]  # the change is one


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_diffusers_reads_what_we_write(layout, theirs, tiny_components, random_lora, tmp_path):
    plain = our_outputs(tiny_components)
    layers = ("to_q", "to_v", "to_out.0", "proj_in", "conv1", "time_emb_proj", "q_proj", "out_proj")
    write_lora(tmp_path / "a.safetensors", random_lora(1, layers=layers), layout)
    write_lora(tmp_path / "b.safetensors", random_lora(2, rank=3), layout)
    loaded = []
    for name, strength in (("a", 0.7), ("b", -0.4)):
        theirs.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
        loaded.append((read_lora(tmp_path / f"{name}.safetensors", tiny_components), strength))
    theirs.set_adapters(["a", "b"], [0.7, -0.4])
    check(our_outputs(tiny_components, loaded), their_outputs(theirs), plain)
    report = loaded[0][0].report
    assert report.format == {"kohya": "kohya", "peft": "PEFT"}[layout] and not report.unmatched


def make_theirs(pipe, **settings):
    """Give diffusers' pipeline a LoRA with random factors."""
    from peft import LoraConfig, inject_adapter_in_model

    unet = LoraConfig(target_modules=["to_q", "to_k", "to_out.0", "proj_in", "ff.net.2"], **settings)
    text = LoraConfig(target_modules=["q_proj", "v_proj"], **settings)
    inject_adapter_in_model(unet, pipe.unet)
    inject_adapter_in_model(text, pipe.text_encoder)
    draw = torch.Generator().manual_seed(3)
    for module in (pipe.unet, pipe.text_encoder):
        for name, parameter in module.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
            if "magnitude" in name:
                parameter.data.mul_(1 + torch.rand(parameter.shape, generator=draw))
    return unet, text


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 2, "q_proj": 9}, "rank_pattern": {"to_k": 2}},
    ],
)
def test_we_read_what_diffusers_writes(settings, theirs, tiny_components, tmp_path):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    plain = their_outputs(theirs)
    configs = make_theirs(theirs, **settings)
    theirs.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(theirs.unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(theirs.text_encoder)),
        unet_lora_adapter_metadata=configs[0].to_dict(),
        text_encoder_lora_adapter_metadata=configs[1].to_dict(),
    )
    adapter = read_lora(tmp_path, tiny_components)  # the folder
    assert not adapter.report.unmatched
    check(our_outputs(tiny_components, [(adapter, 1.0)]), their_outputs(theirs), plain)


def test_we_read_what_peft_writes_with_dora(theirs, tiny_components, tmp_path):
    from peft import LoraConfig, get_peft_model

    plain = their_outputs(theirs)
    wrapped = get_peft_model(
        theirs.unet, LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["to_q", "proj_in", "conv1"])
    )
    draw = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
        if "magnitude" in name:
            parameter.data.mul_(1 + torch.rand(parameter.shape, generator=draw))
    wrapped.save_pretrained(tmp_path / "style")
    theirs.unet = wrapped
    adapter = read_lora(tmp_path / "style", tiny_components)
    assert adapter.name == "style" and set(adapter.report.forms) == {"DoRA LoRA"}
    found, wanted = our_outputs(tiny_components, [(adapter, 1.0)]), their_outputs(theirs)
    check(found[1:], wanted[1:], plain[1:])


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("LoHa", {"r": 2, "alpha": 3}),
        ("LoHa", {"r": 2, "alpha": 3, "use_effective_conv2d": True}),
        ("LoKr", {"r": 2, "alpha": 3}),
        ("LoKr", {"r": 2, "alpha": 3, "use_effective_conv2d": True, "decompose_both": True}),
        ("LoKr", {"r": 64, "alpha": 16}),  # both factors whole: the rank is in the settings only
    ],
)
def test_we_read_what_peft_writes_of_lycoris(form, settings, theirs, tiny_components, tmp_path):
    import peft

    plain = their_outputs(theirs)
    config = getattr(peft, f"{form}Config")(target_modules=["to_q", "to_k", "conv1", "ff.net.0.proj"], **settings)
    wrapped = peft.get_peft_model(theirs.unet, config)
    draw = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "hada_" in name or "lokr_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    wrapped.save_pretrained(tmp_path)
    theirs.unet = wrapped
    adapter = read_lora(tmp_path, tiny_components)
    assert set(adapter.report.forms) == {form} and adapter.report.format == "LyCORIS"
    found, wanted = our_outputs(tiny_components, [(adapter, 1.0)]), their_outputs(theirs)
    check(found[1:], wanted[1:], plain[1:])


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("IA3", {"feedforward_modules": []}),
        ("IA3", {"feedforward_modules": ["ff.net.2"]}),
        ("OFT", {"r": 2, "oft_block_size": 0}),
        ("OFT", {"oft_block_size": 8, "num_cayley_neumann_terms": 3}),
        ("OFT", {"oft_block_size": 8, "num_cayley_neumann_terms": 4}),
        ("OFT", {"oft_block_size": 8, "num_cayley_neumann_terms": 2}),
        ("OFT", {"oft_block_size": 8, "block_share": True, "use_cayley_neumann": False}),
    ],
)
def test_we_read_what_peft_writes_that_multiplies(form, settings, theirs, tiny_components, tmp_path):
    import peft

    plain = their_outputs(theirs)
    layers = ["to_q", "to_k", "ff.net.2"] + (["proj_in"] if form == "OFT" else [])
    wrapped = peft.get_peft_model(theirs.unet, getattr(peft, f"{form}Config")(target_modules=layers, **settings))
    draw = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "ia3_l" in name or "oft_R" in name:  # small: the series of a large rotation rounds by its last power
            parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    wrapped.save_pretrained(tmp_path)
    theirs.unet = wrapped
    adapter = read_lora(tmp_path, tiny_components)
    assert set(adapter.report.forms) == {"(IA)3" if form == "IA3" else form} and not adapter.report.unmatched
    found, wanted = our_outputs(tiny_components, [(adapter, 1.0)]), their_outputs(theirs)
    check(found[1:], wanted[1:], plain[1:])


def test_what_is_not_known_of_a_rotation_is_refused(tiny_components, tmp_path):
    from safetensors.torch import save_file

    from latent_diffusion.errors import CheckpointError

    key = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.oft_R.weight"
    save_file({key: torch.zeros(2, 28)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="needs its settings"):
        read_lora(tmp_path, tiny_components)
    for settings, words in (({"coft": True}, "constrained"), ({"num_cayley_neumann_terms": 0}, "1 to 100")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT", **settings}))
        with pytest.raises(CheckpointError, match=words):
            read_lora(tmp_path, tiny_components)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT", "num_cayley_neumann_terms": 5}))
    save_file({key: torch.zeros(3, 28)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="do not cover"):
        read_lora(tmp_path, tiny_components)


def test_the_settings_of_peft_are_checked(tiny_components, random_lora, tmp_path):
    from latent_diffusion.errors import CheckpointError

    for values, words in (
        ({"unet.lora_alpha": "much"}, "lora_alpha 'much'"),
        ({"unet.alpha_pattern": {"(a+)+$": 1}}, "only names of layers"),
        ({"unet.alpha_pattern": 3}, "alpha_pattern 3"),
    ):
        metadata = {"lora_adapter_metadata": json.dumps(values)}
        write_lora(tmp_path / "x.safetensors", random_lora(parts=("unet",)), "peft", metadata)
        with pytest.raises(CheckpointError, match=words.replace("(", r"\(")):
            read_lora(tmp_path / "x.safetensors", tiny_components)
    write_lora(tmp_path / "x.safetensors", random_lora(parts=("unet",)), "peft", {"lora_adapter_metadata": "{"})
    with pytest.raises(CheckpointError, match="no JSON"):
        read_lora(tmp_path / "x.safetensors", tiny_components)
