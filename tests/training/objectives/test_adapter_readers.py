"""A trained adapter and its files in every reader: the network gives the same numbers in all of them."""

import pytest
import torch

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of, with_parts
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.training.losses.conditions import whole_picture
from latent_diffusion.training.objectives.lora import LoraObjective
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

PROMPTS = ["a red disc", "blue circle"]
SAME = {"rtol": 1e-5, "atol": 1e-5}
KINDS = {
    "LoRA": {"rank": 3, "alpha": 5},
    "rsLoRA": {"rank": 4, "alpha": 3, "rank_stabilised": True},
    "DoRA": {"rank": 3, "dora": True},
    "LoHa": {"form": "loha", "rank": 2, "alpha": 3},
    "LoKr": {"form": "lokr", "rank": 2, "alpha": 3},
    "DoRA of the U-Net": {"rank": 3, "dora": True, "parts": ["unet"]},
}
QUICK = {
    "sd1": ("LoRA", "DoRA", "LoKr", "DoRA of the U-Net"),
    "sdxl": ("rsLoRA", "LoHa", "LoRA"),
}
EVERY = [
    (family, kind) if kind in QUICK[family] else pytest.param(family, kind, marks=pytest.mark.slow)
    for family in QUICK
    for kind in KINDS
]
"""Each kind in one family, each family with kinds of every sort; the rest of the pairs are slow."""
LEFT_OUT = {"match": "add_embedding", "rank": 0}
"""diffusers 0.42 reads `lora_unet_add_embedding_linear_1` as the layer `add.embedding.linear.1`."""


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])


@torch.no_grad()
def our_output(components):
    cond = components.text_encoder(PROMPTS)
    whole = whole_picture(components, cond, 32)
    if whole.size_ids is not None:
        whole = type(whole)(whole.context, whole.pooled, whole.size_ids.expand(2, -1))
    return components.unet(*inputs(), components.unet.project(whole))


@torch.no_grad()
def their_output(pipe):
    x, t = inputs()
    if not hasattr(pipe, "text_encoder_2"):
        states, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
        return pipe.unet(x, t, states).sample
    states, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2, -1)
    return pipe.unet(x, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample


def pipeline(folder):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)


@pytest.fixture(scope="module")
def trained(tiny_family, pictures, tmp_path_factory):
    """Return a function from family and kind to a trained objective and the folder of its files, each made once."""
    from functools import cache

    from latent_diffusion.config import RunConfig

    @cache
    def make(family: str, kind: str) -> tuple[LoraObjective, object]:
        folder = tmp_path_factory.mktemp("adapter")
        parts = ["unet", "text_encoder"] + (["text_encoder_2"] if family == "sdxl" else [])
        rules = [LEFT_OUT] if family == "sdxl" else []
        adapter = {"parts": parts, **KINDS[kind], "layers": "all", "rules": rules}
        values = {
            "output": str(folder / "style"), "steps": 5, "batch_size": 2, "threads": 1,
            "optimizer": {"learning_rate": 5e-3},
            "objective": {"name": "lora", "init": str(tiny_family(family)), "adapter": adapter},
            "data": {"path": str(pictures), "size": 32, "captions": ["text"]},
        }  # fmt: skip
        run = RunConfig.model_validate(values)
        torch.manual_seed(0)
        trainer = Trainer(build_objective(run), run, build_accelerator())
        trainer.fit()
        made = trainer.objective
        assert isinstance(made, LoraObjective)
        made.export(folder, averaged=False)
        assert (our_output(made.components) - our_output(made.base)).abs().max() > 1e-3
        return made, folder

    return make


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_we_read_our_file(trained, family, kind):
    made, folder = trained(family, kind)
    for file in sorted(folder.glob("*.safetensors")):
        read = read_lora(file, made.base)
        assert not read.report.unmatched
        parts = {name: adapted(part, [(read.updates.get(name, {}), 1.0)]) for name, part in parts_of(made.base).items()}
        torch.testing.assert_close(our_output(with_parts(made.base, parts)), our_output(made.components), **SAME)


@pytest.mark.parametrize(
    ("family", "kind", "file"),
    [
        ("sd1", "LoRA", "style.safetensors"),
        ("sdxl", "LoRA", "pytorch_lora_weights.safetensors"),
        ("sdxl", "rsLoRA", "style.safetensors"),
        # diffusers 0.42 drops the lengths of kohya's keys, and those of text encoders
        ("sd1", "DoRA of the U-Net", "pytorch_lora_weights.safetensors"),
    ],
)
def test_diffusers_and_peft_read_our_file(trained, tiny_family, family, kind, file):
    pytest.importorskip("peft")
    made, folder = trained(family, kind)
    pipe = pipeline(tiny_family(family))
    torch.testing.assert_close(their_output(pipe), our_output(made.base), **SAME)
    pipe.load_lora_weights(folder / file)
    torch.testing.assert_close(their_output(pipe), our_output(made.components), **SAME)


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_lycoris_reads_our_file(trained, tiny_family, family, kind):
    modules = pytest.importorskip("lycoris.modules")
    made, folder = trained(family, kind)
    tensors = read_tensors(folder / "style.safetensors")
    pipe = pipeline(tiny_family(family))
    towers = {"lora_te1" if family == "sdxl" else "lora_te": pipe.text_encoder}
    towers |= {"lora_te2": pipe.text_encoder_2} if family == "sdxl" else {}
    count = 0
    for prefix, network in {"lora_unet": pipe.unet, **towers}.items():
        flat = prefix == "lora_unet" or hasattr(network, "text_model")  # transformers 5 has no such level
        for path, layer in list(network.named_modules()):
            name = f"{prefix}_{'' if flat else 'text_model_'}{path.replace('.', '_')}"
            found, factors = modules.get_module(tensors, name)
            if found is None:
                continue
            count += 1
            if kind == "LoKr":
                add_lokr(layer, *factors)
            else:
                modules.make_module(found, factors, name, layer).apply_to()
    assert count == sum(len(changes) for changes in made.adapter.changes.values())
    torch.testing.assert_close(their_output(pipe), our_output(made.components), **SAME)


@torch.no_grad()
def add_lokr(layer, w1, w1a, w1b, w2, w2a, w2b, _, t2, alpha, *rest) -> None:
    """Add LyCORIS's own product to a layer; its module guesses the factor of a convolution, and not always well."""
    from lycoris.functional.lokr import diff_weight

    change = diff_weight(w1, w1a, w1b, w2, w2a, w2b, t2, gamma=float(alpha))
    layer.weight += change.reshape(layer.weight.shape)
