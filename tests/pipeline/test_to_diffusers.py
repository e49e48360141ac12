"""What `to_diffusers()` hands over feeds other pipelines of diffusers: ControlNet's and IP-Adapter's."""

import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline

CALL = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
TOKENS = 4  # that an IP-Adapter adds to the context
IMAGE_WIDTH = 12  # channels of the image vector an IP-Adapter reads


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def ours(request, tiny_family):
    return LatentDiffusionPipeline.from_pretrained(tiny_family(request.param), device="cpu", dtype="float32")


def draw(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red apple", generator=torch.Generator().manual_seed(3), **CALL, **arguments).images


def random_controlnet(unet):
    """A ControlNet with the U-Net's sizes; none of its zero convolutions is zero."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    wanted = ControlNetModel.from_unet(unet, load_weights_from_unet=False).config
    config = {name: value for name, value in config.items() if name in wanted}
    net = ControlNetModel.from_config(wanted | config, conditioning_embedding_out_channels=(8, 8, 16))  # 4 px a cell
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return net.eval()


def test_controlnet(ours):
    import diffusers

    pipe = ours.to_diffusers()
    xl = "XL" if ours.components.size_count else ""
    kind = getattr(diffusers, f"StableDiffusion{xl}ControlNetPipeline")
    told = {} if xl else {"requires_safety_checker": False}
    controlled = kind(**pipe.components, controlnet=random_controlnet(pipe.unet), **told)
    image = torch.rand(1, 3, 32, 32)
    plain = draw(pipe)
    assert torch.allclose(draw(controlled, image=image, controlnet_conditioning_scale=0.0), plain, atol=1e-4)
    assert (draw(controlled, image=image) - plain).abs().max() > 0.05
    assert controlled.unet.conv_in.weight.data_ptr() == ours.components.unet.conv_in.weight.data_ptr()


def random_ip_adapter(unet) -> dict:
    """The two dictionaries of an IP-Adapter file."""
    torch.manual_seed(0)
    width, layers = unet.config.cross_attention_dim, {}
    places = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for index, name in enumerate(places):
        channels = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for kind in ("k", "v"):
            layers[f"{2 * index + 1}.to_{kind}_ip.weight"] = torch.randn(channels, width)
    projection = {
        "proj.weight": torch.randn(TOKENS * width, IMAGE_WIDTH),
        "proj.bias": torch.zeros(TOKENS * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def test_ip_adapter(ours):
    before = ours("a red apple", seed=3, output_type="latent", num_inference_steps=2).images
    pipe = ours.to_diffusers()
    plain = draw(pipe)
    pipe.load_ip_adapter(random_ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    embeds = [torch.randn(2, 1, IMAGE_WIDTH)]  # for the negative and for the prompt
    pipe.set_ip_adapter_scale(0.0)
    assert torch.allclose(draw(pipe, ip_adapter_image_embeds=embeds), plain, atol=1e-4)
    pipe.set_ip_adapter_scale(1.0)
    assert (draw(pipe, ip_adapter_image_embeds=embeds) - plain).abs().max() > 0.05
    after = ours("a red apple", seed=3, output_type="latent", num_inference_steps=2).images
    assert torch.equal(before, after), "ours is none the wiser"
