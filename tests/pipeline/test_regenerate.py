"""A picture made again from what it says of itself is the same picture; what cannot be honoured is said."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.components import Applied
from latent_diffusion.cli.main import main
from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionWarning
from latent_diffusion.pipeline.regenerate import Plan, differences, plan_of_found, plan_of_record
from latent_diffusion.provenance.foreign import read_found
from latent_diffusion.provenance.infotext import write_infotext
from latent_diffusion.provenance.late_start import late_start
from latent_diffusion.provenance.picture_file import read_texts, write_picture
from latent_diffusion.provenance.record import Record, RefinerRecord

COMMON = {"num_inference_steps": 4, "seed": 11}


def picture(seed=0, size=(40, 32)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def mask():
    pixels = np.zeros((32, 40), np.uint8)
    pixels[5:20, 8:30] = 255
    return Image.fromarray(pixels)


CALLS = {
    "plain": ("__call__", {}),
    "all of it": (
        "__call__",
        {
            "prompt": "a (red:1.4) [apple|cat] AND the sun :0.3", "negative_prompt": "[old:new:2]", "clip_skip": 1,
            "sampler": "DPM++ 2M SDE Karras", "guidance_scale": 3.0, "guidance_rescale": 0.5, "emphasis": "no-norm",
            "guidance": ["apg:scale=3", "pag:scale=2"], "guidance_interval": (0.2, 0.9), "height": 24, "width": 40,
        },
    ),
    "times": ("__call__", {"timesteps": [900, 500, 100], "num_inference_steps": None, "sampler": "ddim", "eta": 0.5}),
    "sigmas": ("__call__", {"sigmas": [9.5, 2.5, 0.25], "num_inference_steps": None, "sampler": "euler"}),
    "fields": ("__call__", {"sampler": "restart:repeats=2", "spacing": "karras", "spacing_rho": 5.0}),
    "brackets": ("__call__", {"prompt": "a (red) [apple:cat:0.5]", "emphasis": "none", "long_prompt": "truncate"}),
    "variation": ("__call__", {"variation_seed": 5, "variation_strength": 0.4}),
    "hires": ("hires", {"scale": 1.5, "upscaler": "latent_bicubic", "hires_strength": 0.6, "hires_steps": 5}),
    "img2img": ("image_to_image", {"image": picture(), "strength": 0.7, "resize_mode": "pad", "exact_steps": True}),
    "inpaint": (
        "inpaint",
        {"image": picture(), "mask_image": mask(), "strength": 0.8, "masked_content": "fill", "feather": 3,
         "mask_mode": "soft", "mask_grow": 2, "mask_blur": 3, "resample": 1, "jump_length": 2, "color_match": True},
    ),
    "outpaint": ("outpaint", {"image": picture(), "right": 8, "top": 16}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_record_makes_the_same_picture(tiny_pipeline, name):
    method, arguments = CALLS[name]
    out = getattr(tiny_pipeline, method)(**{"prompt": "a red apple", **COMMON, **arguments})
    record = Record.from_json(out.records[0].to_json())
    assert record == out.records[0]
    plan = plan_of_record(record)
    assert plan.method == method and not plan.missing
    pictures = {key: arguments[key] for key in ("image", "mask_image") if key in arguments}
    again = plan.draw(tiny_pipeline, pictures)
    assert differences(record, again.records[0]) == []
    assert again.images[0].tobytes() == out.images[0].tobytes()


def test_an_image_of_a_batch_is_made_again_alone(tiny_pipeline):
    prompts = ["a cat", "a cat, " * 30, "[a|b] AND c"]
    out = tiny_pipeline(prompts, **COMMON, output_type="pt")
    for k, record in enumerate(out.records):
        again = plan_of_record(record).draw(tiny_pipeline, {}, output_type="pt")
        assert differences(record, again.records[0]) == []
        assert (again.images[0] - out.images[k]).abs().max() <= 1e-4


def test_a_stopped_picture_stops_again(tiny_pipeline):
    out = tiny_pipeline("a cat", **COMMON, output_type="latent", on_step=lambda step: step.index < 1)
    again = plan_of_record(out.records[0]).draw(tiny_pipeline, {}, output_type="latent")
    assert again.records[0].stopped_after == 2 and torch.equal(again.images, out.images)


def test_a_second_pass_that_was_stopped_stops_again(tiny_pipeline):
    call = {"scale": 1.5, "hires_strength": 1.0, "output_type": "latent", "on_step": lambda step: step.index < 6}
    out = tiny_pipeline.hires("a cat", **COMMON, **call)
    again = plan_of_record(out.records[0]).draw(tiny_pipeline, {}, output_type="latent")
    assert out.records[0].stopped_after == 7 and out.records[0].hires.steps_run == 3
    assert differences(out.records[0], again.records[0]) == [] and torch.equal(again.images, out.images)


@pytest.mark.parametrize("sizes", [{}, {"original_size": (32, 32), "negative_target_size": (24, 24)}])
def test_each_pass_is_told_its_own_size(tiny_family, sizes):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_family("sdxl"), device="cpu")
    call = {"num_inference_steps": 2, "seed": 1, "height": 32, "width": 32, "scale": 1.5, "output_type": "latent"}
    out = pipe.hires("a cat", **call, **sizes)
    record = Record.from_json(out.records[0].to_json())
    assert record == out.records[0] and record.hires.size_ids[4:] == (48, 48) and record.size_ids[4:] == (32, 32)
    again = plan_of_record(record).draw(pipe, {}, output_type="latent")
    assert differences(record, again.records[0]) == [] and torch.equal(again.images, out.images)


def test_the_ends_of_a_walk_are_made_again(tiny_pipeline):
    call = {"num_inference_steps": 2, "frames": 3, "sampler": "ddpm", "output_type": "pt"}
    out = tiny_pipeline.interpolate(["a cat", "a dog"], seed=[1, 2], **call)
    for k in (0, 2):
        again = plan_of_record(out.records[k]).draw(tiny_pipeline, {}, output_type="pt")
        assert (again.images[0] - out.images[k]).abs().max() <= 1e-4
    assert ["Variation seed" in write_infotext(record) for record in out.records] == [False, True, True]


def test_a_generator_of_a_large_seed_is_followed(tiny_pipeline):
    generator = torch.Generator().manual_seed(2**40 + 3)
    out = tiny_pipeline("a cat", num_inference_steps=2, generator=generator, output_type="latent")
    plan = plan_of_record(out.records[0])
    assert "generator" in plan.missing[0] and torch.equal(
        plan.draw(tiny_pipeline, {}, output_type="latent").images, out.images
    )


def test_a_prompt_rewritten_beside_adapters_is_rewritten_again(tiny_pipeline):
    (record,) = tiny_pipeline("a cat", **COMMON, output_type="latent").records
    rewritten = dataclasses.replace(record, read_as="a 3d render of a cat")
    beside = dataclasses.replace(rewritten, adapters=(Applied("lora", "ink", "0" * 12),))
    asked = [plan_of_record(one).arguments.get("rewrite") for one in (record, rewritten, beside)]
    assert asked == [False, None, True]
    again = plan_of_record(beside).draw(tiny_pipeline, {}, output_type="latent")  # a model that has no forms
    assert any(line.startswith("read as was") for line in differences(beside, again.records[0]))


def test_nothing_is_said_of_how_a_refiner_was_loaded_where_one_record_does_not_say_it(tiny_pipeline):
    (record,) = tiny_pipeline("a cat", **COMMON, output_type="latent").records
    told = RefinerRecord("0" * 64, "float32")
    refined = dataclasses.replace(record, refiner="r", refined_below=500, refined_by=told)
    older = dataclasses.replace(refined, refined_by=None)
    assert differences(older, refined) == []
    assert [line.split(" was ")[0] for line in differences(refined, record)] == ["refiner", "refined below"]
    half = dataclasses.replace(refined, refined_by=dataclasses.replace(told, dtype="bfloat16"))
    assert differences(half, refined) == ["refined by dtype was 'bfloat16', now 'float32'"]


def test_what_cannot_be_honoured_is_said(tiny_pipeline):
    (record,) = tiny_pipeline("a cat", **COMMON, output_type="latent").records
    given = plan_of_record(dataclasses.replace(record, initial="latents"))
    assert "given as latents" in given.missing[0]
    assert "negative prompt" in plan_of_record(dataclasses.replace(record, negative_prompt=None)).missing[0]
    with pytest.raises(DataError, match="embeddings"):
        plan_of_record(dataclasses.replace(record, prompt=None))
    other = dataclasses.replace(record, model_hash="0" * 64, dtype="bfloat16", sampler="euler")
    found = differences(other, record)
    assert [line.split(" was ")[0] for line in found] == ["sampler", "dtype", "model hash"]
    out = tiny_pipeline.inpaint("a cat", image=picture(), mask_image=mask(), **COMMON)
    plan = plan_of_record(out.records[0])
    with pytest.raises(ConfigError, match="needs `"):
        plan.draw(tiny_pipeline, {"image": picture()})
    another = plan.draw(tiny_pipeline, {"image": picture(1), "mask_image": mask()})
    assert differences(out.records[0], another.records[0])[0].startswith("inpaint image sha256 was")


def test_an_a1111_text_is_followed_as_far_as_it_goes(tiny_pipeline):
    text = (
        "a (red:1.3) apple\nNegative prompt: blurry\nSteps: 4, Sampler: Euler, Schedule type: Automatic, CFG scale: 3, "
        "Seed: 11, Size: 40x24, Model hash: 0123456789, Model: sd, Clip skip: 2, RNG: CPU, Version: v1.10.1"
    )
    plan = plan_of_found(read_found({}, text))
    assert plan.method == "__call__" and not plan.missing
    assert (plan.model, plan.model_hash) == ("sd", "0123456789")
    again = plan.draw(tiny_pipeline, {}, output_type="latent").images
    ours = tiny_pipeline(
        "a (red:1.3) apple", negative_prompt="blurry", sampler="euler", spacing="linspace", guidance_scale=3.0,
        width=40, height=24, clip_skip=1, **COMMON, output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(again, ours)
    other = plan_of_found(read_found({}, text.replace("RNG: CPU", "ENSD: 31337")))
    assert any("GPU" in line for line in other.missing) and "ENSD: 31337" in other.missing
    redrawn = plan_of_found(read_found({}, text.replace("Clip skip: 2", "Denoising strength: 0.5")))
    assert (redrawn.method, redrawn.inputs) == ("image_to_image", ("image",))
    assert redrawn.arguments["strength"] == 0.75  # int(0.5 x 4) + 1 = 3 of 4 steps, as A1111 counts
    masked = plan_of_found(read_found({}, text.replace("Clip skip: 2", "Denoising strength: 0.5, Mask blur: 4")))
    assert masked.inputs == ("image", "mask_image") and "Mask blur: 4" in masked.missing
    twice = text.replace("Clip skip: 2", "Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: Latent")
    hires = plan_of_found(read_found({}, twice))
    assert (hires.method, hires.arguments["scale"]) == ("hires", 2.0)
    assert (hires.arguments["hires_steps"], hires.arguments["hires_strength"]) == (6, 4 / 6)  # 4 of int(4 / 0.6)
    assert hires.draw(tiny_pipeline, {}).images[0].size == (80, 48)


def test_the_command_makes_the_same_file(tiny_folder, here, capsys):
    model = ("--model", str(tiny_folder))
    for name in ("a.png", "a.jpg", "a.webp"):
        assert main(["generate", "a (cat:1.2) BREAK [sun|moon]", *model, "--steps", "3", "-s", "4", "-o", name]) == 0
        assert main(["regenerate", name, *model, "-o", f"again-{name}"]) == 0
        assert (here / name).read_bytes() == (here / f"again-{name}").read_bytes()
        out, err = capsys.readouterr()
        assert out.split() == [name, f"again-{name}"] and "bit for bit" in err and "not" not in err
    assert main(["regenerate", "a.png"]) == 4
    assert "made with the model 'tiny'" in capsys.readouterr().err


def test_the_command_asks_for_the_pictures_and_says_when_they_are_others(tiny_folder, here, capsys):
    picture().save(here / "i.png")
    mask().save(here / "m.png")
    picture(1).save(here / "other.png")
    model = ("--model", str(tiny_folder))
    assert main(["inpaint", "a cat", "-i", "i.png", "--mask", "m.png", *model, "--steps", "2", "-o", "a.png"]) == 0
    assert main(["regenerate", "a.png", *model]) == 2
    assert "give --image and --mask" in capsys.readouterr().err
    assert main(["regenerate", "a.png", *model, "-i", "i.png", "--mask", "m.png", "-o", "b.png"]) == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert main(["regenerate", "a.png", *model, "-i", "other.png", "--mask", "m.png", "-o", "c.png"]) == 0
    assert "not as it was: inpaint image sha256" in capsys.readouterr().err


def with_text(path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    picture().save(path, pnginfo=info)


def test_info_shows_other_tools_and_escapes_strangers(here, capsys):
    with_text(here / "a.png", parameters="a \x1b[31m[red]cat[/red]\nSteps: 4, Sampler: Euler a, Seed: 1, ENSD: \x07")
    assert main(["info", "a.png"]) == 0
    out = capsys.readouterr().out
    assert "A1111" in out and "[red]cat[/red]" in out and "\x1b" not in out and "\x07" not in out
    assert main(["info", "a.png", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["made by"], facts["sampler"], facts["seed"]) == ("A1111", "euler_ancestral", 1)
    with_text(here / "b.png", latent_diffusion="{broken")
    assert main(["info", "b.png"]) == 3
    with_text(here / "c.png", parameters="<html>")
    assert main(["info", "c.png"]) == 0 and "<html>" in capsys.readouterr().out
    assert main(["regenerate", "c.png"]) == 3
    assert "has no record of how it was made" in capsys.readouterr().err


def test_tokens_shows_how_a_prompt_is_read(tiny_folder, here, capsys):
    prompt = "a (cat:1.5) BREAK [apple:\x1b:2] AND sun :0.5 <lora:ink:0.8>"
    assert main(["tokens", prompt, "--model", str(tiny_folder), "--steps", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [line[0] for line in report["lines"]] == [0, 2]
    (first, second), tower = report["lines"][0][1], 0
    assert (second["text"], second["weight"]) == ("sun", 0.5)
    assert len(first["towers"][tower][0]) == 2
    assert first["towers"][tower][0][1] == ["cat ", 1.5] and report["adapters"][0]["name"] == "ink"
    assert main(["tokens", prompt, "--model", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert "in 2 chunks of 75" in out and "cat:1.5" in out and "\x1b" not in out


def foreign_plan(fields, prompt="a cat"):
    return plan_of_found(
        read_found({}, f"{prompt}\nSteps: 4, Sampler: Euler, Seed: 1, Size: 16x16, RNG: CPU, {fields}")
    )


def parts(tiny_family, name):
    return LatentDiffusionPipeline.from_pretrained(tiny_family(name), device="cpu").components


def test_clip_skip_is_read_for_stable_diffusion_1_alone_in_a1111(tiny_family):
    """modules/sd_hijack_clip.py reads the setting; the classes of SDXL and of OpenCLIP's towers do not."""
    plan = foreign_plan("Clip skip: 2")
    assert plan.fitted(parts(tiny_family, "sd1")).arguments["clip_skip"] == 1
    for family in ("sd2", "sdxl"):
        fitted = plan.fitted(parts(tiny_family, family))
        assert "clip_skip" not in fitted.arguments and not fitted.missing


def test_the_a1111_text_has_clip_skip_for_stable_diffusion_1_alone(tiny_family, tmp_path):
    for family, expected in (("sd1", True), ("sd2", False), ("sdxl", False)):
        pipe = LatentDiffusionPipeline.from_pretrained(tiny_family(family), device="cpu")
        out = pipe("a cat", num_inference_steps=1, height=32, width=32, clip_skip=1, seed=1)
        picture = out.images[0]
        assert isinstance(picture, Image.Image)
        write_picture(picture, tmp_path / f"{family}.png", out.records[0])
        text, record = read_texts(tmp_path / f"{family}.png")
        assert text is not None and record == out.records[0] and out.records[0].clip_skip == 1
        assert ("Clip skip: 2" in text) == expected


def test_clip_skip_of_comfyui_is_counted_from_the_last_layer_of_every_model(tiny_family):
    """SDXL and Stable Diffusion 2 leave one layer out anyway: -2 there is no more than what the model does."""
    text = {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["5", 0]}}
    sampler = {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 4, "positive": ["6", 0], "negative": ["6", 0]}}
    for layer, expected in ((-2, {"sd1": 1, "sd2": None, "sdxl": None}), (-3, {"sd1": 2, "sd2": 1, "sdxl": 1})):
        skip = {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": layer}}
        plan = plan_of_found(read_found({"prompt": json.dumps({"3": sampler, "5": skip, "6": text})}, None))
        for family, skipped in expected.items():
            assert plan.fitted(parts(tiny_family, family)).arguments.get("clip_skip") == skipped


def test_a_plan_that_is_drawn_is_fitted_to_the_model_once(tiny_family):
    """ComfyUI counts the last layer that SDXL leaves out anyway; what a model cannot follow is named."""
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_family("sdxl"), device="cpu")
    plan = Plan(
        "__call__", "a cat", {"clip_skip": 2, **COMMON, "num_inference_steps": 1}, None, None, None, tool="ComfyUI"
    )
    fitted = plan.fitted(pipe.components)
    assert fitted.fitted(pipe.components) == fitted and fitted.arguments["clip_skip"] == 1
    for one in (plan, fitted):
        assert one.draw(pipe, {}, output_type="latent").records[0].clip_skip == 1
    of_a1111 = replace(plan, tool="A1111").draw(pipe, {}, output_type="latent")
    assert of_a1111.records[0].clip_skip in (0, None)
    small = LatentDiffusionPipeline.from_pretrained(tiny_family("sd1"), device="cpu")
    sized = replace(plan, arguments={**plan.arguments, "original_size": (32, 64)})
    with pytest.warns(LatentDiffusionWarning, match=r"not honoured: original size: \(32, 64\); this model is not SDXL"):
        sized.draw(small, {}, output_type="latent")


def test_numbers_of_sdxl_are_named_for_another_model(tiny_family):
    text = {
        "class_type": "CLIPTextEncodeSDXL",
        "inputs": {"text_g": "in oil", "text_l": "a cat", "width": 64, "height": 32},
    }
    sampler = {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 4, "positive": ["6", 0], "negative": ["6", 0]}}
    plan = plan_of_found(read_found({"prompt": json.dumps({"3": sampler, "6": text})}, None))
    assert plan.fitted(parts(tiny_family, "sdxl")).arguments["original_size"] == (32, 64)
    other = plan.fitted(parts(tiny_family, "sd1"))
    assert not {"original_size", "prompt_2"} & other.arguments.keys()
    assert any("prompt 2: in oil" in line for line in other.missing)


def test_every_step_is_run_at_any_strength_and_count():
    for steps in range(1, 151):
        for percent in range(5, 100, 5):
            path, share = late_start("ComfyUI", steps, percent / 100, second=False)
            expected = steps if path < 1000 or int(steps / (percent / 100)) == 1000 else None
            assert expected is None or int(path * share) == steps
