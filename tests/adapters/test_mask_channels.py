"""Inpainting adapters: an inpainting U-Net is made of a plain model for `inpaint`, and for nothing else."""

import shutil

import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.adapters.decompose import merge
from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.mask_channels import MODEL_ADAPTER, with_mask_channels
from latent_diffusion.adapters.stack import Stack
from latent_diffusion.adapters.writing import factors_of, write_factors
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.guidance.autoguidance import Autoguidance
from latent_diffusion.pipeline.regenerate import differences, plan_of_record
from latent_diffusion.provenance.record import Record

CALL = {"seed": 3, "num_inference_steps": 2}


def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((32, 32)).convert("RGB")


def hole() -> Image.Image:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 20, 24))
    return mask


@pytest.fixture(scope="module")
def adapters(random_lora, tiny_components, tmp_path_factory):
    """A folder with an inpainting adapter in both layouts, a second one, one of zeros and an ordinary one."""
    folder = tmp_path_factory.mktemp("inpainting")
    wide = with_mask_channels(tiny_components).unet.conv_in.weight

    def write(name, layout="kohya", seed=0, size=0.1):
        updates = random_lora(seed, size=size, parts=["unet"])["unet"]
        diff = torch.randn(wide.shape, generator=torch.Generator().manual_seed(seed)) * size
        layers = {path: factors_of(path, update) for path, update in updates.items()} | {"conv_in": {"diff": diff}}
        write_factors(folder / f"{name}.safetensors", {"unet": layers}, layout)

    write("hole")
    write("peft", "peft")
    write("other", seed=1)
    write("zeros", size=0.0)
    ordinary = random_lora(2, layers=("to_q", "conv_in"), parts=["unet"])["unet"]
    write_factors(folder / "ink.safetensors", {"unet": {p: factors_of(p, u) for p, u in ordinary.items()}})
    return folder


@pytest.fixture(scope="module")
def with_file(tiny_folder, adapters, tmp_path_factory):
    """The tiny model's folder with an inpainting adapter in it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(tiny_folder, folder)
    shutil.copyfile(adapters / "hole.safetensors", folder / MODEL_ADAPTER)
    return folder


def opened(folder) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", fast=False)


def repaint(pipe, **options) -> torch.Tensor:
    return torch.frombuffer(bytearray(repainted(pipe, **options).images[0].tobytes()), dtype=torch.uint8)


def repainted(pipe, **options):
    return pipe.inpaint("a cat", image=picture(), mask_image=hole(), **CALL, **options)


@torch.no_grad()
def test_an_adapter_of_zeros_gives_the_plain_network_bit_for_bit(adapters, tiny_components):
    made = Stack().load(read_lora(adapters / "zeros.safetensors", tiny_components)).apply(tiny_components)
    assert made.for_inpainting and not tiny_components.for_inpainting
    draw = torch.Generator().manual_seed(0)
    x, extra = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, 8, 8, generator=draw)
    states, t = tiny_components.text_encoder(["a red disc", ""]).context, torch.tensor([3.0, 900.0])
    plain = tiny_components.unet(x, t, tiny_components.unet.project(Conditioning(states)))
    assert torch.equal(made.unet(x, t, made.unet.project(Conditioning(states, concat=extra))), plain)


def test_both_layouts_hold_the_same_changes_bit_for_bit(adapters, tiny_components):
    kohya, peft = (read_lora(adapters / f"{name}.safetensors", tiny_components) for name in ("hole", "peft"))
    assert kohya.report.inpainting and peft.report.inpainting and ", for inpainting" in str(kohya.report)
    wide = with_mask_channels(tiny_components).unet
    assert kohya.updates["unet"].keys() == peft.updates["unet"].keys()
    for path, update in kohya.updates["unet"].items():
        weight = wide.get_submodule(path).weight.detach().flatten(1)
        ours, theirs = update.weight.matrix(weight), peft.updates["unet"][path].weight.matrix(weight)
        assert torch.equal(ours, theirs) if path == "conv_in" else torch.allclose(ours, theirs, atol=1e-6)


def test_the_strength_moves_all_channels_and_an_ordinary_adapter_those_of_the_latents(adapters, tiny_components):
    hole, ink = (read_lora(adapters / f"{name}.safetensors", tiny_components) for name in ("hole", "ink"))
    assert not ink.report.inpainting
    weight = tiny_components.unet.conv_in.weight.detach()
    diff = hole.updates["unet"]["conv_in"].weight.matrix(weight).view(weight.shape[0], 9, 3, 3)
    change = ink.updates["unet"]["conv_in"].weight.matrix(weight.flatten(1)).view_as(weight)
    made = Stack().load(hole, 0.5).load(ink, 2.0).apply(tiny_components).unet.conv_in.weight
    torch.testing.assert_close(made[:, :4], weight + 0.5 * diff[:, :4] + 2.0 * change)
    torch.testing.assert_close(made[:, 4:], 0.5 * diff[:, 4:])


def test_inpaint_chooses_the_file_in_the_models_folder_and_generate_does_not(tiny_folder, with_file, adapters):
    plain, pipe = opened(tiny_folder), opened(with_file)
    draw = {**CALL, "output_type": "latent"}
    before, without, drawn = plain("a cat", **draw).images, repaint(plain), repaint(pipe)
    assert torch.equal(pipe("a cat", **draw).images, before) and not pipe.components.for_inpainting
    assert not torch.equal(drawn, without) and torch.equal(repaint(pipe, inpainting_adapter=False), without)
    plain.load_lora_weights(adapters / "hole.safetensors")
    assert torch.equal(repaint(plain), drawn)
    for one in (plain, pipe):
        one.load_lora_weights(adapters / "ink.safetensors")
    assert torch.equal(repaint(plain), repaint(pipe)) and not torch.equal(repaint(pipe), drawn)


def test_the_record_holds_the_file_in_the_models_folder(tiny_folder, with_file):
    out = repainted(opened(with_file), latent_blend=False)
    (record,) = out.records
    assert record.inpaint.inpainting_adapter and len(record.inpaint.adapter_hash) == 12 and not record.adapters
    plan = plan_of_record(Record.from_json(record.to_json()))
    again = plan.draw(opened(with_file), {"image": picture(), "mask_image": hole()})
    assert again.images[0].tobytes() == out.images[0].tobytes()
    assert "inpaint adapter hash was" in " ".join(differences(record, repainted(opened(tiny_folder)).records[0]))


def test_a_picture_of_before_there_was_a_file_is_drawn_again_without_it(tiny_folder, with_file):
    out = repainted(opened(tiny_folder))
    record = Record.from_json(out.records[0].to_json())
    assert "inpainting_adapter" not in out.records[0].to_json() and not record.inpaint.inpainting_adapter
    again = plan_of_record(record).draw(opened(with_file), {"image": picture(), "mask_image": hole()})
    assert again.images[0].tobytes() == out.images[0].tobytes()


def test_a_weaker_model_without_a_mask_guides_one_that_reads_it(tiny_folder, with_file, tiny_components):
    """By its folder or as an object; it is a U-Net whose weights of mask and picture are zero."""
    pipe, text = opened(with_file), f"autoguidance:scale=3,model={tiny_folder}"
    drawn = repaint(pipe, guidance=text, guidance_scale=1.0)
    assert not torch.equal(drawn, repaint(pipe, guidance_scale=1.0))
    zeros = LatentDiffusionPipeline(with_mask_channels(tiny_components), device="cpu", fast=False)
    for weak in (opened(tiny_folder), zeros):
        assert torch.equal(repaint(pipe, guidance=Autoguidance(3.0, weak.denoiser)), drawn)
    out = repainted(pipe, guidance=text, inpainting_adapter=False)
    assert out.records[0].guidance == (text.replace("scale=3", "scale=3.0"),)


def test_fused_and_saved_it_is_an_inpainting_model(tiny_folder, adapters, tmp_path):
    pipe = opened(tiny_folder)
    pipe.load_lora_weights(adapters / "hole.safetensors")
    drawn = repaint(pipe)
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "model")
    saved = opened(tmp_path / "model")
    assert saved.components.for_inpainting and torch.equal(repaint(saved), drawn)


def test_strength_zero_is_no_change(tiny_folder, adapters):
    pipe = opened(tiny_folder)
    draw = {**CALL, "output_type": "latent"}
    before, without = pipe("a cat", **draw).images, repaint(pipe)
    pipe.load_lora_weights(adapters / "hole.safetensors", weight=0.0)
    assert torch.equal(pipe("a cat", **draw).images, before) and torch.equal(repaint(pipe), without)


def test_what_cannot_be_is_refused(tiny_folder, adapters, tiny_components, tmp_path):
    pipe = opened(tiny_folder)
    pipe.load_lora_weights(adapters / "hole.safetensors")
    with pytest.raises(ConfigError, match=r"the adapter 'hole' is for inpainting: it needs a picture and a mask"):
        pipe("a cat", **CALL)
    with pytest.raises(ConfigError, match="the adapters 'hole' and 'other' are for inpainting; use one of them"):
        pipe.load_lora_weights(adapters / "other.safetensors")
    assert pipe.get_list_adapters() == ["hole"]
    for asked in ("a cat <lora:other:1>", "a cat <lora:hole:0>"):
        with pytest.raises(ConfigError, match="for inpainting"):
            pipe.inpaint(asked, image=picture(), mask_image=hole(), lora_folder=adapters, **CALL)
    with pytest.raises(ConfigError, match="'other' is for inpainting, which a prompt does not choose"):
        opened(tiny_folder)("a cat <lora:other:1>", lora_folder=adapters, **CALL)
    with pytest.raises(ConfigError, match="hole is an inpainting adapter"):
        merge(tiny_components, [(read_lora(adapters / "hole.safetensors", tiny_components), 1.0)], 8)
    shapes = {"small": {"diff": torch.ones(8, 9, 3, 3)}, "narrow": {"diff": torch.ones(16, 8, 3, 3)}}
    shapes["low"] = {"up": torch.ones(16, 4, 1, 1), "down": torch.ones(4, 9, 3, 3), "alpha": torch.tensor(4.0)}
    for name, change in shapes.items():
        write_factors(tmp_path / f"{name}.safetensors", {"unet": {"conv_in": change}})
        with pytest.raises(CheckpointError, match=r"unet\.conv_in: its change has shape .* the model's weight"):
            read_lora(tmp_path / f"{name}.safetensors", tiny_components)
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    shutil.copyfile(adapters / "ink.safetensors", folder / MODEL_ADAPTER)
    with pytest.raises(CheckpointError, match=r"inpainting_adapter\.safetensors: is no inpainting adapter"):
        repainted(opened(folder))
