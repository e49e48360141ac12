"""Folders: ours and back, ours in diffusers, diffusers' in ours, and every fault by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_diffusion.checkpoint.folder.diffusers_folder import (
    load_autoencoder,
    load_folder,
    load_unet,
    save_autoencoder,
    save_folder,
    save_unet,
)
from latent_diffusion.checkpoint.model_hash import model_hash
from latent_diffusion.cli.main import main
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import CheckpointError, ResourceError
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet, UNetConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_folder, tmp_path):
    """A copy of the tiny model to break."""
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


def parts(components):
    return components.unet, components.autoencoder, components.text_encoder.model


def same(first, second) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


def test_folder_ours_folder(tiny_folder, tmp_path):
    first = load_folder(tiny_folder)
    save_folder(first, tmp_path / "again")
    second = load_folder(tmp_path / "again")
    for a, b in zip(parts(first), parts(second), strict=True):
        assert same(a, b)
    assert (first.unet.config, first.autoencoder.config) == (second.unet.config, second.autoencoder.config)
    assert (first.schedule, first.prediction) == (second.schedule, second.prediction)
    for file in sorted(tiny_folder.rglob("*")):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(tiny_folder)).read_bytes() == file.read_bytes(), file


def test_ours_opens_in_diffusers_and_theirs_in_ours(tiny_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    ours = load_folder(tiny_folder)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True)
    assert same(pipe.unet, ours.unet) and same(pipe.vae, ours.autoencoder)
    pipe.save_pretrained(tmp_path / "theirs")
    back = load_folder(tmp_path / "theirs")
    for a, b in zip(parts(ours), parts(back), strict=True):
        assert same(a, b)
    assert back.schedule == ours.schedule
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 77, 32)
    with torch.no_grad():
        found = back.unet(x, t, back.unet.project(Conditioning(context)))
        expected = pipe.unet(x, t, context).sample
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights(dtype, tiny_folder, tmp_path):
    save_folder(load_folder(tiny_folder), tmp_path / "narrow", dtype)
    assert load_file(tmp_path / "narrow" / "unet" / WEIGHTS)["conv_in.weight"].dtype == dtype
    narrow, wide = load_folder(tmp_path / "narrow", dtype), load_folder(tmp_path / "narrow")
    assert narrow.unet.conv_in.weight.dtype == dtype and wide.unet.conv_in.weight.dtype == torch.float32
    assert torch.equal(narrow.unet.conv_in.weight.float(), wide.unet.conv_in.weight)


def test_variant_and_shards(model, tmp_path):
    from diffusers import UNet2DConditionModel

    expected = load_unet(model / "unet")
    theirs = UNet2DConditionModel.from_pretrained(model / "unet")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="300KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert same(load_unet(tmp_path / "sharded"), expected)
    theirs.save_pretrained(tmp_path / "variant", variant="fp16")
    assert same(load_unet(tmp_path / "variant"), expected)
    index = tmp_path / "sharded" / f"{WEIGHTS}.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for bad in ("../x.safetensors", "/etc/x.safetensors", "x.bin"):
        edit(index, weight_map=places | {"conv_in.weight": bad})
        with pytest.raises(CheckpointError, match=r"must be a \.safetensors file in the same folder"):
            load_unet(tmp_path / "sharded")
    edit(index, weight_map={name: place for name, place in places.items() if name != "conv_in.weight"})
    with pytest.raises(CheckpointError, match=r"disagree on 1: conv_in\.weight"):
        load_unet(tmp_path / "sharded")


def test_old_names_of_the_autoencoders_attention(model):
    expected = load_autoencoder(model / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name in [name for name in tensors if ".attentions." in name and "norm" not in name]:
            tensor = tensors.pop(name)
            for new, before in old.items():
                name = name.replace(f".{new}.", f".{before}.")
            tensors[name] = tensor[:, :, None, None] if tensor.dim() == 2 else tensor

    edit_tensors(model / "vae" / WEIGHTS, rename)
    assert same(load_autoencoder(model / "vae"), expected)


def rename_all(prefix):
    def change(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return change


def put(name, make):
    def change(tensors):
        tensors[name] = make(tensors[name])

    return change


def poison(value):
    def make(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return make


TENSOR_FAULTS = {
    "one missing": (lambda t: t.pop("conv_in.bias"), r"1 missing: conv_in\.bias"),
    "one extra": (lambda t: t.update(extra=torch.ones(1)), "1 unknown: extra"),
    "from DDP": (rename_all("module."), r"286 missing: .*, \.\.\.; 286 unknown: .*'module\.'.*without its wrapper"),
    "from compile": (rename_all("_orig_mod."), "'_orig_mod.'"),
    "wrong shape": (put("conv_out.bias", lambda w: w[:3]), r"conv_out\.bias is \(3,\), config\.json requires \(4,\)"),
    "inpainting": (put("conv_in.weight", lambda w: torch.ones(16, 9, 3, 3)), "conv_in.weight is .*9 input channels"),
    "other text width": (
        put("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", lambda w: torch.ones(32, 64)),
        "attn2.to_k.weight is .*text encoders",
    ),
    "NaN": (put("conv_in.weight", poison(float("nan"))), "conv_in.weight holds NaN"),
    "infinity": (put("conv_in.weight", poison(float("-inf"))), "conv_in.weight holds NaN or infinity"),
    "half infinity": (put("conv_in.weight", lambda w: poison(float("inf"))(w.half())), "conv_in.weight holds NaN or"),
    "integers": (put("conv_in.weight", lambda w: w.int()), "conv_in.weight is int32"),
    "zeros": (lambda t: t.update({name: torch.zeros_like(w) for name, w in t.items()}), "every weight is 0"),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_faults_of_tensors(fault, model):
    change, words = TENSOR_FAULTS[fault]
    file = model / "unet" / WEIGHTS
    edit_tensors(file, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_folder(model)
    assert str(file) in str(caught.value) and caught.value.exit_code == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_other_floats_are_cast(dtype, model):
    edit_tensors(model / "unet" / WEIGHTS, put("conv_in.weight", lambda w: w.to(dtype)))
    assert load_unet(model / "unet").conv_in.weight.dtype == torch.float32


UNET, VAE, SCHEDULER, INDEX = (
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
)
CONFIG_FAULTS = [
    (UNET, {"_class_name": "UNet3DConditionModel"}, "_class_name is 'UNet3DConditionModel'"),
    (UNET, {"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu'"),
    (UNET, {"addition_embed_type": "text_time"}, "addition_embed_type"),
    (UNET, {"block_out_channels": "many"}, "block_out_channels is 'many', of the wrong type"),
    (UNET, {"down_block_types": ["AttnDownBlock2D"] * 2}, "down_block_types"),
    (UNET, {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}, "up_block_types .* mirror"),
    (UNET, {"layers_per_block": [1, 2]}, r"layers_per_block is \[1, 2\]"),
    (UNET, {"norm_num_groups": 7}, "norm_num_groups 7"),
    (UNET, {"sample_size": None}, "sample_size"),
    (VAE, {"latents_mean": [0.1]}, "latents_mean"),
    (VAE, {"down_block_types": ["DownBlock2D"]}, "down_block_types"),
    (VAE, {"latent_channels": 8}, "encoder.conv_out.weight is"),
    (SCHEDULER, {"prediction_type": "curl_prediction"}, "unknown prediction 'curl_prediction'"),
    (SCHEDULER, {"beta_schedule": "sigmoid"}, "unknown beta_schedule 'sigmoid'"),
    (SCHEDULER, {"trained_betas": [0.1]}, "trained_betas"),
    (SCHEDULER, {"beta_end": "0.012"}, "beta_end is '0.012'"),
    (INDEX, {"_class_name": "FluxPipeline"}, "'FluxPipeline'; supported are"),
    (INDEX, {"unet": ["os", "system"]}, r"unet is \['os', 'system'\]; only"),
]


@pytest.mark.parametrize(("name", "values", "words"), CONFIG_FAULTS, ids=lambda v: str(v)[:40])
def test_faults_of_configurations(name, values, words, model):
    edit(model / name, **values)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_folder(model)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize("name", [UNET, VAE, SCHEDULER, INDEX, f"unet/{WEIGHTS}", f"vae/{WEIGHTS}"])
def test_missing_and_cut_files(name, model):
    file = model / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError) as caught:
        load_folder(model)
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_folder(model)
    assert str(file.parent) in str(caught.value)


def test_code_in_a_pickle_is_refused(model):
    (model / "unet" / WEIGHTS).unlink()
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin"):
        load_folder(model)


def test_a_folder_of_2022_whose_weights_are_bin(model, tmp_path):
    """Read without running code, converted, and with a hash of its own."""
    wanted = load_folder(model)
    parts = {"unet": WEIGHTS, "vae": WEIGHTS, "text_encoder": "model.safetensors"}
    for part, name in parts.items():
        file = model / part / name
        target = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(file), file.with_name(target))
        file.unlink()
    found = load_folder(model)
    for one, other in ((wanted.unet, found.unet), (wanted.autoencoder, found.autoencoder)):
        assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())
    assert main(["convert", str(model), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "unet" / WEIGHTS).is_file()
    before = model_hash(model)
    file = model / "unet" / "diffusion_pytorch_model.bin"
    torch.save({name: weight + 1 for name, weight in load_file(tmp_path / "new" / "unet" / WEIGHTS).items()}, file)
    assert model_hash(model) != before


def test_heads_are_called_head_dim(tmp_path):
    """The published config.json says attention_head_dim 8 and means 8 heads."""
    config = UNetConfig(8, (32, 64), 1, (True, True), (4, 4), 8)
    save_unet(UNet(config), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_head_dim"] == 4
    assert load_unet(tmp_path).config == config


def test_parts_alone(tmp_path, model):
    autoencoder = load_autoencoder(model / "vae")
    save_autoencoder(autoencoder, tmp_path / "vae", torch.float16)
    assert load_autoencoder(tmp_path / "vae").config == autoencoder.config == tiny.AUTOENCODER


def test_a_target_that_cannot_be_written(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        save_folder(load_folder(tiny_folder), tmp_path / "file")
