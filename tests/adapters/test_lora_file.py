"""One set of changes in the keys of every writer; what is not used, does not fit or is damaged is said."""

import hashlib
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_diffusion.adapters.keys import TEXT_MODEL, flat, spellings
from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import original_paths, parts_of
from latent_diffusion.adapters.writing import write_lora
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.errors import CheckpointError, ConfigError, LatentDiffusionWarning

OLD = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out", "to_out.0": "to_out"}


def old_name(path):
    return next((path.removesuffix(ours) + old for ours, old in OLD.items() if path.endswith(ours)), path)


def key(writer, part, path, half, original):
    """A key as `writer` would spell it; `half` is down or up."""
    name = path if part == "unet" else TEXT_MODEL + path
    peft = {"down": "A", "up": "B"}[half]
    if writer == "kohya":
        return f"{'lora_unet' if part == 'unet' else 'lora_te'}_{flat(name)}.lora_{half}.weight"
    if writer == "kohya-original":
        name = original.get(path, name) if part == "unet" else name
        return f"{'lora_unet' if part == 'unet' else 'lora_te1'}_{flat(name)}.lora_{half}.weight"
    if writer == "peft":
        return f"{part}.{name}.lora_{peft}.weight"
    if writer == "peft-flattened":  # as transformers 5 names the text model
        return f"{part}.{path}.lora_{peft}.default.weight"
    if writer == "old-processor":
        middle = ".processor" if part == "unet" else ""
        start, _, end = old_name(name).rpartition(".")
        return f"{part}.{start}{middle}.{end}_lora.{half}.weight"
    if writer == "old-layer":
        return f"{part}.{name}.lora_linear_layer.{half}.weight"
    if writer == "old-patched":
        return f"{part}.{name}.lora.{half}.weight"
    assert writer == "comfy"
    start = "diffusion_model." if part == "unet" else "text_encoder."
    return f"{start}{original.get(path, name)}.lora_{half}.weight"


def factors(updates):
    return {
        (part, path, half): getattr(update.weight.factors, side)
        for part, changes in updates.items()
        for path, update in changes.items()
        for half, side in (("down", "right"), ("up", "left"))
    }


@pytest.mark.parametrize(
    ("writer", "called"),
    [
        ("kohya", "kohya"),
        ("kohya-original", "kohya"),
        ("comfy", "kohya"),
        ("peft", "PEFT"),
        ("peft-flattened", "PEFT"),
        ("old-processor", "old diffusers"),
        ("old-layer", "old diffusers"),
        ("old-patched", "old diffusers"),
    ],
)
def test_every_writers_keys(writer, called, tiny_components, random_lora, tmp_path):
    only = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
    updates, original = random_lora(layers=only), original_paths(tiny_components)
    wanted = factors(updates)
    save_file(
        {key(writer, *place, original): tensor.contiguous() for place, tensor in wanted.items()},
        tmp_path / "a.safetensors",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", LatentDiffusionWarning)
        adapter = read_lora(tmp_path / "a.safetensors", tiny_components)
    found = factors(adapter.updates)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[place], wanted[place]) for place in wanted)
    report = adapter.report
    assert (report.name, report.format, report.unmatched) == ("a", called, ())
    assert report.forms == {"LoRA": len(wanted) // 2} and len(report.matched) == len(wanted) // 2


def test_no_two_layers_are_spelled_alike_in_the_true_families():
    """Each layer of SD 1, SD 2 and SDXL has names of its own in every spelling."""
    import torch.nn as nn

    from latent_diffusion.checkpoint.single.compvis_names import unet_names
    from latent_diffusion.families import sd1, sd2, sdxl
    from latent_diffusion.models.unet import UNet

    for family in (sd1, sd2, sdxl):
        with torch.device("meta"):
            unet = UNet(family.UNET)
        layers = [path for path, layer in unet.named_modules() if hasattr(layer, "weight")]
        original = unet_names(family.UNET, layers)
        known = spellings({"unet": unet, "text_encoder": nn.Module()}, original)
        for path in layers:
            for name in (path, original[path]):
                assert known["lora_unet_" + flat(name)].path == path
                assert known[flat(f"diffusion_model.{name}")].path == path


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_written_and_read_back(layout, tiny_components, random_lora, tmp_path):
    updates = random_lora(layers=("to_q", "conv1", "proj_in", "fc1"))
    write_lora(tmp_path / "x.safetensors", updates, layout, {"ss_base_model_version": "sd_v1"})
    adapter = read_lora(tmp_path / "x.safetensors", tiny_components)
    assert adapter.report.family == "Stable Diffusion 1"
    for part, changes in updates.items():
        assert adapter.updates[part].keys() == changes.keys()
        for path, update in changes.items():
            weight = parts_of(tiny_components)[part].get_submodule(path).weight.flatten(1)
            torch.testing.assert_close(adapter.updates[part][path].weight.matrix(weight), update.weight.matrix(weight))


def test_the_hash_is_that_of_the_bytes_after_the_header(tiny_components, random_lora, tmp_path):
    for metadata in ({}, {"note": "longer header"}):
        write_lora(tmp_path / "x.safetensors", random_lora(), metadata=metadata)
        raw = (tmp_path / "x.safetensors").read_bytes()
        wanted = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()[:12]
        assert read_lora(tmp_path / "x.safetensors", tiny_components).report.hash == wanted


def test_old_pickles_are_read_and_run_no_code(tiny_components, random_lora, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    write_lora(tmp_path / "x.safetensors", random_lora())
    torch.save(load_file(tmp_path / "x.safetensors"), tmp_path / "x.pt")
    wanted, found = (read_lora(tmp_path / name, tiny_components) for name in ("x.safetensors", "x.pt"))
    assert found.report.matched == wanted.report.matched
    assert found.report.hash == hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()[:12]
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"lora_unet_conv_in.lora_up.weight": Bomb()}))
    with pytest.raises(CheckpointError, match=r"bomb\.pt"):
        read_lora(tmp_path / "bomb.pt", tiny_components)
    assert not (tmp_path / "ran").exists()


def test_lycoris_files(tiny_components, tmp_path):
    """One file with every form, norms and biases among them, as LyCORIS writes it."""
    draw = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=draw)

    unet = "lycoris_mid_block_"
    file = {
        f"{unet}resnets_0_conv1.hada_w1_a": rand(32, 2),
        f"{unet}resnets_0_conv1.hada_w1_b": rand(2, 32 * 9),
        f"{unet}resnets_0_conv1.hada_w2_a": rand(32, 2),
        f"{unet}resnets_0_conv1.hada_w2_b": rand(2, 32 * 9),
        f"{unet}resnets_0_conv1.alpha": torch.tensor(1.0),
        f"{unet}attentions_0_proj_in.lokr_w1": rand(4, 4),
        f"{unet}attentions_0_proj_in.lokr_w2_a": rand(8, 2),
        f"{unet}attentions_0_proj_in.lokr_w2_b": rand(2, 8),
        f"{unet}attentions_0_proj_in.alpha": torch.tensor(1.0),
        f"{unet}attentions_0_proj_in.dora_scale": rand(1, 32, 1, 1).abs(),
        f"{unet}resnets_0_norm1.w_norm": rand(32),
        f"{unet}resnets_0_norm1.b_norm": rand(32),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.diff": rand(64, 32),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.diff_b": rand(64),
    }
    save_file(file, tmp_path / "x.safetensors")
    adapter = read_lora(tmp_path / "x.safetensors", tiny_components)
    assert adapter.report.forms == {"LoHa": 1, "DoRA LoKr": 1, "full": 2}
    assert adapter.report.format == "LyCORIS" and not adapter.report.unmatched
    unet = tiny_components.unet
    changed = adapted(unet, [(adapter.updates["unet"], 0.5)]).mid_block
    norm = unet.mid_block.resnets[0].norm1
    shift = file["lycoris_mid_block_resnets_0_norm1.b_norm"]
    torch.testing.assert_close(changed.resnets[0].norm1.bias, norm.bias + 0.5 * shift)
    assert not torch.equal(changed.resnets[0].conv1.weight, unet.mid_block.resnets[0].conv1.weight)
    assert not torch.equal(changed.attentions[0].proj_in.weight, unet.mid_block.attentions[0].proj_in.weight)


def test_what_is_left_over_is_a_warning_with_names(tiny_components, random_lora, tmp_path):
    write_lora(tmp_path / "x.safetensors", random_lora())
    more = {f"lora_unet_down_blocks_9_{k}.lora_up.weight": torch.ones(2, 2) for k in range(7)}
    save_file({**load_file(tmp_path / "x.safetensors"), **more}, tmp_path / "y.safetensors")
    with pytest.warns(LatentDiffusionWarning, match=r"7 of \d+ tensors are not used: lora_unet_down.*2 more"):
        adapter = read_lora(tmp_path / "y.safetensors", tiny_components)
    assert set(adapter.report.unmatched) == set(more)
    assert "7 keys not used" in str(adapter.report)


@pytest.mark.parametrize("ending", ["lora_B.bias", "lora.up.bias"])
def test_the_bias_of_lora_bias_is_scaled_as_the_change_is(tiny_components, tmp_path, ending):
    """PEFT's name of `lora_bias=True`, and the one that diffusers writes; PEFT adds alpha / r times it."""
    key, width = "unet.conv_in", tiny_components.unet.conv_in.out_channels
    added = torch.arange(width).float()
    factors = {f"{key}.lora_A.weight": torch.ones(2, 4, 3, 3), f"{key}.lora_B.weight": torch.ones(width, 2, 1, 1)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 8, "unet.lora_bias": True})}
    save_file({**factors, f"{key}.{ending}": added}, tmp_path / "x.safetensors", metadata)
    adapter = read_lora(tmp_path / "x.safetensors", tiny_components)
    assert not adapter.report.unmatched
    changed = adapted(tiny_components.unet, [(adapter.updates["unet"], 0.5)]).conv_in
    torch.testing.assert_close(changed.bias, tiny_components.unet.conv_in.bias + 0.5 * 4 * added)


@pytest.mark.parametrize(
    ("layer", "more", "words"),
    [
        ("attn1.to_q", {}, r"attn1\.to_q: its lora_B\.bias .*this layer has none"),
        ("attn1.to_out.0", {"lora_magnitude_vector": torch.ones(32)}, "beside another form than LoRA"),
        ("attn1.to_out.0", {"lora_B.bias": torch.ones(5)}, "its change of the bias has 5 numbers"),
    ],
)
def test_a_lora_bias_that_cannot_be_honoured_is_refused(tiny_components, tmp_path, layer, more, words):
    key = f"unet.mid_block.attentions.0.transformer_blocks.0.{layer}"
    factors = {"lora_A.weight": torch.ones(2, 32), "lora_B.weight": torch.ones(32, 2), "lora_B.bias": torch.ones(32)}
    save_file({f"{key}.{name}": tensor for name, tensor in (factors | more).items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_lora(tmp_path / "x.safetensors", tiny_components)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(2, 2)}, "made for Flux"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)}, "made for SDXL"),
        ({"lora_unet_x_attn2_to_k.lora_down.weight": torch.ones(2, 1024)}, "made for Stable Diffusion 2"),
        ({"something.weight": torch.ones(2, 2)}, "none of its 1 tensors.*something.weight"),
        ({}, "none of its 0 tensors"),
        ({"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)}, "unet.conv_in: .*no up"),
        (
            {"unet.conv_out.lora_A.weight": torch.ones(2, 4, 3, 3), "unet.conv_out.lora_B.weight": torch.ones(4, 2)},
            r"unet.conv_out: its change has shape \(4, 36\), the model's weight \(4, 144\)",
        ),
        (
            {"lora_unet_conv_in.alpha": torch.ones(()), "lora_unet_conv_in.lambda_layer": torch.ones(1, 2)},
            "unet.conv_in: it has alpha without the other factors; not read: lora_unet_conv_in.lambda_layer",
        ),
        (
            {"unet.conv_in.lora_A.weight": torch.ones(2, 2), "lora_unet_conv_in.lora_down.weight": torch.ones(2, 2)},
            "two tensors for `down`",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_why(tensors, words, tiny_components, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_lora(tmp_path / "x.safetensors", tiny_components)


def test_no_file_no_folder_no_tensors(tiny_components, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_lora(tmp_path / "absent.safetensors", tiny_components)
    with pytest.raises(CheckpointError, match="holds none of"):
        read_lora(tmp_path, tiny_components)
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04 no tensors here")
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_lora(tmp_path / "x.safetensors", tiny_components)


def test_only_lora_is_written(random_lora, tmp_path):
    from latent_diffusion.adapters.delta import Full
    from latent_diffusion.adapters.forms import Update

    with pytest.raises(ConfigError, match="form full"):
        write_lora(tmp_path / "x.safetensors", {"unet": {"conv_in": Update("full", Full(torch.ones(2, 2)), None)}})
    with pytest.raises(ConfigError, match="layout 'other'"):
        write_lora(tmp_path / "x.safetensors", random_lora(), "other")


def test_comfyui_s_text_half(tiny_family, tmp_path):
    """ComfyUI's own node saves text encoders under `text_encoders.clip_l.transformer` and `clip_g`."""
    components = load_folder(tiny_family("sdxl"))
    tensors, layer = {}, "text_model.encoder.layers.0.self_attn.q_proj"
    for name, tower in (("clip_l", components.text_encoder.towers[0]), ("clip_g", components.text_encoder.towers[1])):
        for ending, shape in (("lora_up.weight", (tower.width, 2)), ("lora_down.weight", (2, tower.width))):
            tensors[f"text_encoders.{name}.transformer.{layer}.{ending}"] = torch.randn(shape)
    save_file(tensors, tmp_path / "comfy.safetensors")
    found = read_lora(tmp_path / "comfy.safetensors", components)
    assert set(found.updates) == {"text_encoder", "text_encoder_2"} and not found.report.unmatched
