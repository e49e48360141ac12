"""ComfyUI graphs are read by their links: sides, sizes, passes, texts and numbers that come from other nodes."""

import json

import pytest

from latent_diffusion.pipeline.regenerate import plan_of_found
from latent_diffusion.provenance.foreign import read_found
from latent_diffusion.provenance.late_start import late_start


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**changes):
    """A text-to-image graph; `changes` replace or add nodes by id, or inputs of a node where they are plain values."""
    nodes = {
        "3": node(
            "KSampler", seed=5, steps=20, cfg=7.0, sampler_name="euler", scheduler="normal", denoise=1.0,
            model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "5": node("EmptyLatentImage", width=1024, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
        "22": node("LoadImage", image="a.png"),
    }  # fmt: skip
    for name, change in changes.items():
        key = name.removeprefix("n")
        if "class_type" in change:
            nodes[key] = change
        else:
            nodes[key]["inputs"].update(change)
    return nodes


def read(**changes):
    return read_found({"prompt": json.dumps(graph(**changes))}, None)


SIDES = {"positive": ["20", 0], "negative": ["20", 1]}


@pytest.mark.parametrize(
    "between",
    [
        node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], control_net=["21", 0], image=["22", 0]),
        node("InpaintModelConditioning", positive=["6", 0], negative=["7", 0], pixels=["22", 0], mask=["22", 1]),
    ],
    ids=lambda one: one["class_type"],
)
def test_behind_a_node_with_both_sides_each_output_is_one_side(between):
    """The nodes declare (positive, negative) as their first two outputs."""
    found = read(n3=SIDES, n20=between, n21=node("ControlNetLoader", control_net_name="c.safetensors"))
    assert (found.prompt, found.negative_prompt) == ("a cat", "blurry")
    swapped = read(n3={"positive": ["20", 1], "negative": ["20", 0]}, n20=between)
    assert (swapped.prompt, swapped.negative_prompt) == ("blurry", "a cat")


def test_zeroed_conditioning_has_no_text():
    assert read(n7=node("ConditioningZeroOut", conditioning=["6", 0])).negative_prompt == ""


def test_repainting_needs_picture_and_mask():
    between = node("InpaintModelConditioning", positive=["6", 0], negative=["7", 0], pixels=["22", 0], mask=["22", 1])
    plan = plan_of_found(read(n3={**SIDES, "latent_image": ["20", 2]}, n20=between))
    assert (plan.method, plan.inputs) == ("inpaint", ("image", "mask_image"))
    assert plan.arguments["strength"] == 1.0 and not plan.missing


def test_the_size_is_that_of_the_latents_and_sdxl_has_numbers_of_its_own():
    text = {"width": 4096, "height": 2048, "crop_w": 8, "crop_h": 16, "target_width": 1000, "target_height": 900}
    found = read(n6=node("CLIPTextEncodeSDXL", **text, text_g="a cat, in oil", text_l="a cat", clip=["4", 1]))
    assert (found.options["width"], found.options["height"]) == (1024, 768)
    assert found.options["original_size"] == (2048, 4096) and found.options["crops_coords_top_left"] == (16, 8)
    assert found.options["target_size"] == (900, 1000)
    assert (found.prompt, found.options["prompt_2"]) == ("a cat", "a cat, in oil")


def test_steps_of_a_start_in_the_middle():
    """20 steps at denoise 0.7 are the end of int(20 / 0.7) = 28: comfy/samplers.py, KSampler.set_steps."""
    plan = plan_of_found(read(n3={"denoise": 0.7}, n5=node("VAEEncode", pixels=["22", 0], vae=["4", 2])))
    assert plan.method == "image_to_image" and plan.arguments["num_inference_steps"] == 28
    assert int(28 * plan.arguments["strength"] + 1e-6) == 20


@pytest.mark.parametrize(
    ("tool", "steps", "strength", "second", "path", "run"),
    [
        ("A1111", 20, 0.7, True, 28, 20),
        ("A1111", 20, 0.5, False, 20, 11),
        ("A1111", 20, 0.75, False, 20, 16),
        ("A1111", 20, 1.0, False, 20, 20),
        ("A1111", 20, 1.0, True, 20, 20),
        ("ComfyUI", 20, 0.7, False, 28, 20),
        ("ComfyUI", 30, 0.3, True, 100, 30),
        ("ComfyUI", 30, 1.0, False, 30, 30),
        ("ComfyUI", 20, 0.01, False, 1000, 10),  # a path of 2000 steps; the model has 1000 levels
        ("InvokeAI", 20, 0.7, False, 20, 14),
    ],
)
def test_every_tool_has_its_own_count_of_steps(tool, steps, strength, second, path, run):
    """Sources of the counts: see `provenance.late_start`."""
    count, share = late_start(tool, steps, strength, second=second)
    assert (count, int(count * share + 1e-6)) == (path, run)


ADVANCED = {
    "cfg": 8.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "steps": 25,
    "positive": ["6", 0],
    "negative": ["7", 0],
}


def advanced(**inputs):
    return node("KSamplerAdvanced", **{**ADVANCED, "model": ["4", 0], "latent_image": ["5", 0], **inputs})


def test_the_seed_is_that_of_the_sampler_that_adds_noise():
    first = advanced(add_noise="enable", noise_seed=111, start_at_step=0, end_at_step=20)
    second = advanced(
        add_noise="disable", noise_seed=222, start_at_step=20, end_at_step=10000, model=["12", 0], latent_image=["3", 0]
    )
    refiner = node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")
    changes = {"n3": first, "n10": second, "n12": refiner, "n8": {"samples": ["10", 0]}}
    found = read(**changes)
    assert found.options["seed"] == 111 and found.options["model"] == "m.safetensors"
    plan = plan_of_found(found)
    assert (plan.refiner, plan.refined_after, plan.missing) == ("refiner.safetensors", 20, ())
    second["inputs"]["positive"] = ["13", 0]
    other = read(**changes, n13=node("CLIPTextEncode", text="a cat, refined", clip=["12", 1]))
    assert other.prompt == "a cat" and other.other == {"positive prompt of the last sampler": "a cat, refined"}


def test_a_part_of_the_path_is_followed_or_named():
    part = advanced(add_noise="enable", noise_seed=1, start_at_step=5, end_at_step=20)
    of_nothing = plan_of_found(read(n3=part))
    assert of_nothing.method == "__call__"
    assert any("from step 5" in line for line in of_nothing.missing)
    assert "end_at_step: 20 of 25" in of_nothing.missing
    of_a_picture = plan_of_found(read(n3=part, n5=node("VAEEncode", pixels=["22", 0], vae=["4", 2])))
    assert of_a_picture.method == "image_to_image"
    assert (of_a_picture.arguments["num_inference_steps"], of_a_picture.arguments["strength"]) == (25, 0.8)


@pytest.mark.parametrize(
    ("larger", "scale", "upscaler"),
    [
        (node("LatentUpscaleBy", upscale_method="bicubic", scale_by=1.5, samples=["60", 0]), 1.5, "latent_bicubic"),
        (node("LatentUpscale", upscale_method="bilinear", width=2048, height=1536, samples=["60", 0]), 2.0, "latent"),
    ],
)
def test_two_passes_are_hires(larger, scale, upscaler):
    second = {"denoise": 0.5, "seed": 9, "latent_image": ["61", 0]}
    plan = plan_of_found(read(n3=second, n60=graph()["3"], n61=larger))
    assert (plan.method, plan.inputs) == ("hires", ())
    assert (plan.arguments["scale"], plan.arguments["upscaler"]) == (scale, upscaler)
    assert plan.arguments["hires_steps"] == 40 and plan.arguments["hires_strength"] == 0.5  # 20 at 0.5: the end of 40
    assert plan.arguments["seed"] == [5] and plan.arguments["num_inference_steps"] == 20
    assert any("seed 9" in line for line in plan.missing)


def test_a_second_pass_of_the_same_size_is_named_and_needs_no_picture():
    plan = plan_of_found(read(n3={"denoise": 0.5, "latent_image": ["60", 0]}, n60=graph()["3"]))
    assert (plan.method, plan.inputs) == ("__call__", ())
    assert any("second pass" in line for line in plan.missing)


def test_texts_and_numbers_that_other_nodes_hold():
    join = node("StringConcatenate", string_a="a red apple", string_b=["61", 0], delimiter=", ")
    found = read(
        n6={"text": ["60", 0]}, n60=join, n61=node("PrimitiveString", value="on a table"),
        n3={"seed": ["62", 0]}, n62=node("PrimitiveInt", value=99),
    )  # fmt: skip
    assert (found.prompt, found.options["seed"]) == ("a red apple, on a table", 99)
    loader = node(
        "Efficient Loader", ckpt_name="some.safetensors", lora_name="None", positive="a red apple", negative="ugly",
        empty_latent_width=512, empty_latent_height=768,
    )  # fmt: skip
    side = {"model": ["60", 0], "positive": ["60", 1], "negative": ["60", 2], "latent_image": ["60", 3]}
    found = read(n3=side, n60=loader)
    assert (found.prompt, found.negative_prompt, found.other) == ("a red apple", "ugly", {})
    assert [found.options[name] for name in ("width", "height", "model")] == [512, 768, "some.safetensors"]


def test_what_cannot_be_followed_is_named():
    found = read(n6={"text": ["60", 0]}, n60=node("WildcardNode", pattern="x"), n3={"seed": ["60", 0]})
    plan = plan_of_found(found)
    assert plan.prompt == "" and any("positive prompt" in line for line in plan.missing)
    assert any(line.startswith("seed") for line in plan.missing)
    assert any("WildcardNode" in line for line in plan.missing)


def test_a_seed_of_64_bits_is_the_noise_of_its_low_32_bits():
    """torch's CPU generator, which makes ComfyUI's noise, reads no more of it."""
    seed = 812_345_678_901_234_567
    assert read(n3={"seed": seed}).options["seed"] == seed
    assert plan_of_found(read(n3={"seed": seed})).arguments["seed"] == [seed % 2**32]


def test_square_brackets_and_weights_mean_what_they_mean_there():
    plan = plan_of_found(read(n6={"text": "a [red] cat, embedding:bad-hands, ((b:1.3) c)"}))
    assert plan.prompt == r"a \[red\] cat, bad-hands, (b:1.3)( c:1.1)"
    assert any("--embedding" in line for line in plan.missing)


def test_the_last_layers_that_a_text_encoder_leaves_out():
    found = read(n6={"clip": ["30", 0]}, n30=node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1]))
    assert found.options["clip_skip"] == 1
