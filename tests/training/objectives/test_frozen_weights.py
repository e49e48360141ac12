"""In bfloat16 the frozen base of an adapter is kept once, rounded; every bit of the run and of its files stays."""

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.runtime.cpu.training_kernels import choose_kernels
from latent_diffusion.training.networks import frozen_weights
from latent_diffusion.training.networks.frozen_weights import frozen_layers
from latent_diffusion.training.objectives import concepts, unet
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text"]}
WORD = {"token": "disc", "start": "sun", "vectors": 3}
OBJECTIVES = {
    "LoRA": {"name": "lora", "adapter": {"rank": 3, "layers": "all"}, "preserve": {"replace": {"disc": "thing"}}},
    "DoRA": {"name": "lora", "adapter": {"rank": 3, "dora": True}},
    "LoKr": {"name": "lora", "adapter": {"form": "lokr", "rank": 2}},
    "word": {"name": "textual_inversion", "words": [WORD]},
    "concept": {"name": "concepts", "adapter": {"rank": 2}, "concepts": [{"prompt": "a red disc", "toward": "a disc"}]},
}


def run_of(make_run, tiny_folder, kind, **values):
    objective = {**OBJECTIVES[kind], "init": str(tiny_folder)}
    run = make_run(objective, CAPTIONED, precision="bfloat16", optimizer={"learning_rate": 1e-2}, **values)
    return run.model_copy(update={"data": {"size": 32}}) if kind == "concept" else run


def weights(objective):
    return [tensor.clone() for player in objective.players.values() for tensor in player.state_dict().values()]


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_trained_weights_have_the_bits_of_a_base_in_float32(tiny_folder, make_run, monkeypatch, kind):
    run = run_of(make_run, tiny_folder, kind)

    def trained():
        torch.manual_seed(run.seed)
        accelerator = build_accelerator()
        trainer = Trainer(build_objective(run), run, accelerator, choose_kernels("bfloat16", accelerator.device))
        trainer.fit()
        return trainer.objective

    made = trained()
    layers = list(frozen_layers(made.components.unet))
    assert layers and all(layer.weight.dtype == torch.bfloat16 for layer in layers)
    held = {id(p) for p in made.base.unet.parameters()}
    assert all(id(layer.weight) in held for layer in layers), "one copy"
    for module in (unet, concepts):
        monkeypatch.setattr(module, "round_frozen", lambda network: None)
    plain = trained()
    assert plain.base.unet.mid_block.resnets[0].conv1.weight.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(plain), strict=True))


def test_a_whole_run_draws_and_reads_its_files_back(tiny_folder, make_run, tmp_path):
    sample = {"prompts": ["a red disc"], "every": 2, "steps": 2}
    assert train(run_of(make_run, tiny_folder, "LoRA", steps=2, sample=sample, output=str(tmp_path / "style"))) == 0
    assert (tmp_path / "style" / "model" / "style.safetensors").is_file()
    assert list((tmp_path / "style" / "samples").glob("*.png"))


def test_a_result_that_holds_frozen_weights_has_them_exact(tiny_folder, make_run):
    objective = {"name": "unet", "init": str(tiny_folder), "train": {"layers": "cross_attention"}}
    run = make_run(objective, CAPTIONED, precision="bfloat16")
    trainer = Trainer(build_objective(run), run, build_accelerator())
    assert {parameter.dtype for parameter in trainer.objective.components.unet.parameters()} == {torch.float32}


def test_each_layer_computes_in_float32_alone_with_the_rounded_weights(tiny_folder, make_run):
    made = build_objective(run_of(make_run, tiny_folder, "LoRA")).components.unet
    frozen_weights.round_frozen(made)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    rounded = [name for name, tensor in before.items() if tensor.dtype == torch.bfloat16]
    x, t, states = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 2.0]), torch.randn(2, 7, made.config.cross_attention_dim)
    wide: list[set[str]] = []

    def count(module, *_):
        wide.append({name for name in rounded if made.get_parameter(name).dtype == torch.float32})

    with torch.no_grad(), frozen_weights.each_in_float32(made):
        watched = [m.register_forward_pre_hook(count) for m in made.modules() if isinstance(m, torch.nn.Linear)]
        found = made(x, t, made.project(Conditioning(states)))
        with pytest.raises(RuntimeError):
            made(x, t, made.project(Conditioning(states[..., :3])))
    assert max(len(names) for names in wide) == 2, "the weight and the bias of one layer"
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in before.items()), "its bits again"
    for one in watched:
        one.remove()
    whole = made.float()
    with torch.no_grad():
        assert torch.equal(found, whole(x, t, whole.project(Conditioning(states))))
