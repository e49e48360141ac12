"""Adapters trained on a model: only they move, and the files that a run writes hold what was trained."""

import json

import pytest
import torch

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of, with_parts
from latent_diffusion.checkpoint.files.safetensors_file import open_file, read_tensors, write_tensors
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objectives.lora import LoraObjective
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text", "text_alt"], "caption_dropout": 0.3, "flip": True}
BOTH = ["unet", "text_encoder"]
KINDS = {
    "LoRA": {"rank": 3, "layers": "all", "parts": BOTH},
    "rsLoRA": {"rank": 4, "alpha": 3, "rank_stabilised": True},
    "DoRA": {"rank": 3, "layers": "all", "dora": True},
    "LoHa": {"form": "loha", "rank": 2, "alpha": 1, "layers": "all"},
    "LoKr": {"form": "lokr", "rank": 2, "layers": "all"},
    "LoKr with DoRA": {"form": "lokr", "rank": 2, "factor": 4, "dora": True, "parts": BOTH},
}


def lora(folder, adapter=None, **settings) -> dict:
    return {"name": "lora", "init": str(folder), "adapter": adapter or {}, **settings}


def fitted(run) -> LoraObjective:
    torch.manual_seed(run.seed)
    trainer = Trainer(build_objective(run), run, build_accelerator())
    trainer.fit()
    assert isinstance(trainer.objective, LoraObjective)
    return trainer.objective


@torch.no_grad()
def output(components):
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
    states = components.text_encoder(["a red disc", ""]).context
    return components.unet(x, t, components.unet.project(Conditioning(states)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_what_was_trained(tiny_folder, make_run, tmp_path, kind):
    rate = {"learning_rate": 1e-2}
    run = make_run(lora(tiny_folder, KINDS[kind]), CAPTIONED, steps=6, optimizer=rate, output=str(tmp_path / "style"))
    made = fitted(run)
    before = weights_digest(made.base.unet, made.base.text_encoder)
    made.export(tmp_path, averaged=False)
    files = [tmp_path / "style.safetensors"]
    files += [tmp_path / "pytorch_lora_weights.safetensors"] if "Lo" not in kind.replace("LoRA", "") else []
    wanted, plain = output(made.components), output(made.base)
    assert (wanted - plain).abs().max() > 1e-3
    for file in files:
        read = read_lora(file, made.base)
        assert not read.report.unmatched
        parts = {name: adapted(part, [(read.updates.get(name, {}), 1.0)]) for name, part in parts_of(made.base).items()}
        torch.testing.assert_close(output(with_parts(made.base, parts)), wanted, rtol=1e-5, atol=1e-5)
    assert weights_digest(made.base.unet, made.base.text_encoder) == before


def test_a_run_writes_an_adapter_that_draws(tiny_folder, make_run, tmp_path):
    from latent_diffusion import LatentDiffusionPipeline

    adapter = {"rank": 2, "parts": BOTH}
    run = make_run(lora(tiny_folder, adapter), {"captions": ["text"]}, steps=6, output=str(tmp_path / "red disc"))
    assert train(run) == 0
    file = run.output / "model" / "red disc.safetensors"
    header = open_file(file)[1]
    assert header["ss_network_dim"] == "2" and header["ss_output_name"] == "red disc"
    assert header["modelspec.architecture"].endswith("/lora")
    assert json.loads((run.output / "status.json").read_text())["state"] == "finished"
    pipe = LatentDiffusionPipeline.from_pretrained(str(tiny_folder))
    draw = {"num_inference_steps": 2, "seed": 1, "output_type": "latent"}
    plain = pipe("a red disc", **draw).images
    report = pipe.load_lora_weights(file)
    assert not report.unmatched and not torch.equal(pipe("a red disc", **draw).images, plain)


def test_layers_ranks_and_learning_rates_follow_the_rules(tiny_folder, make_run):
    rules = [
        {"match": r"attn2", "rank": 1, "alpha": 5},
        {"match": r"mid_block", "rank": 0},
        {"match": r"\.up$", "learning_rate": 0.5},
    ]
    adapter = {"rank": 4, "layers": ["attn"], "rules": rules}
    made = build_objective(make_run(lora(tiny_folder, adapter), CAPTIONED))
    changes = made.adapter.changes["unet"]
    assert changes and all(".attn" in path and "mid_block" not in path for path in changes)
    for path, change in changes.items():
        assert change.down.shape[0] == (1 if "attn2" in path else 4)
        assert change.scale == (5.0 if "attn2" in path else 1.0)
    rates = made.players["unet"].learning_rates()
    assert rates and set(rates.values()) == {0.5} and all(name.endswith(".up") for name in rates)


def test_factors_do_not_depend_on_which_other_layers_are_chosen(tiny_folder, make_run):
    few = build_objective(make_run(lora(tiny_folder, {"layers": ["attn1.to_q"]}), CAPTIONED)).adapter.changes["unet"]
    many = build_objective(make_run(lora(tiny_folder, {"layers": "all"}), CAPTIONED)).adapter.changes["unet"]
    assert len(many) > len(few) > 0
    assert all(torch.equal(change.down, many[path].down) for path, change in few.items())


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"layers": ["attn9"]}, "no layer of unet is chosen"),
        ({"rules": [{"match": "attn9", "rank": 2}]}, "'attn9' matches no layer"),
        ({"parts": ["text_encoder_2"]}, "has no text_encoder_2"),
        ({"parts": ["unet", "unet"]}, "names one twice"),
        ({"factor": 4}, "factor is for LoKr"),
        ({"rules": [{"match": "(", "rank": 2}]}, "not a regular expression"),
        ({"rank": 0}, "rank"),
        ({"ranks": 4}, "did you mean 'rank'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_folder, make_run, adapter, words):
    with pytest.raises(ConfigError, match=words):
        build_objective(make_run(lora(tiny_folder, adapter), CAPTIONED))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begins_where_its_adapter_file_ends(tiny_folder, make_run, tmp_path, kind):
    rules = {"rules": [{"match": "attn2", "rank": 1}]} if kind == "LoRA" else {}
    rate = {"learning_rate": 1e-2}
    first = make_run(
        lora(tiny_folder, KINDS[kind] | rules), CAPTIONED, steps=4, optimizer=rate, output=str(tmp_path / "style")
    )
    made = fitted(first)
    made.export(tmp_path, averaged=False)
    own = {"form": "lokr", "factor": KINDS[kind]["factor"]} if "factor" in KINDS[kind] else {}
    for file in (tmp_path / "style.safetensors", tmp_path / "pytorch_lora_weights.safetensors"):
        if not file.is_file():
            continue
        run = make_run(lora(tiny_folder, {"start": str(file), **own}), CAPTIONED, output=str(tmp_path / "on"))
        built = build_objective(run)
        torch.testing.assert_close(output(built.components), output(made.components), rtol=1e-5, atol=1e-5)
        again = tmp_path / "again"
        again.mkdir(exist_ok=True)
        built.export(again, averaged=False)
        if file.name == "style.safetensors":
            old, new = read_tensors(file), read_tensors(again / "on.safetensors")
            assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
        assert "objective.adapter.start" in built.fingerprint()


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"rank": 4}, r"adapter\.rank: 4 is set, but .*style\.safetensors, from which the adapter starts, has 3"),
        ({"form": "loha"}, r"adapter\.form: 'loha' is set.*has 'lora'; leave form out"),
        ({"parts": ["unet"]}, r"adapter\.parts: \['unet'\] is set"),
        ({"layers": "attention"}, r"adapter\.layers: 'attention' is set.*leave layers out"),
        ({"rules": [{"match": "attn2", "rank": 1}]}, r"has the factors .*; not trained"),
    ],
)
def test_settings_other_than_those_of_the_adapter_file_are_refused(tiny_folder, make_run, tmp_path, adapter, words):
    run = make_run(lora(tiny_folder, KINDS["LoRA"]), CAPTIONED, output=str(tmp_path / "style"))
    build_objective(run).export(tmp_path, averaged=False)
    start = {"start": str(tmp_path / "style.safetensors"), **adapter}
    with pytest.raises(ConfigError, match=words):
        build_objective(make_run(lora(tiny_folder, start), CAPTIONED))


def test_a_run_from_an_adapter_file_trains_on_and_notices_another_file(tiny_folder, make_run, tmp_path):
    rate = {"learning_rate": 1e-2}
    first = make_run(lora(tiny_folder, {"rank": 2}), CAPTIONED, steps=4, optimizer=rate, output=str(tmp_path / "one"))
    assert train(first) == 0
    file = tmp_path / "one" / "model" / "one.safetensors"
    start = lora(tiny_folder, {"start": str(file)})
    run = make_run(start, CAPTIONED, steps=3, ema={"decay": 0.5}, output=str(tmp_path / "two"))
    assert train(run) == 0
    record = (tmp_path / "two" / "model" / "training.json").read_text()
    assert json.loads(record)["config"]["objective"]["adapter"] == {"start": "one.safetensors"}
    assert str(tmp_path) not in record and json.loads(record)["averaged"]
    tensors = read_tensors(file)
    write_tensors(file, {name: tensor * 2 for name, tensor in tensors.items()}, open_file(file)[1])
    with pytest.raises(ConfigError, match=r"objective\.adapter\.start: its content has changed"):
        train(run.model_copy(update={"steps": 5}))
