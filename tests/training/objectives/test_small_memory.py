"""Ways to train in less memory: what they change, what they must not change, and what they refuse."""

import json
from typing import Any

import pytest
from processes import assert_equal_states, losses_of

from latent_diffusion.errors import ConfigError
from latent_diffusion.training.launch import build_accelerator
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text"], "caption_dropout": 0.3}
SAMPLES = {"prompts": ["a red disc"], "every": 2, "steps": 2}
OBJECTIVES = {
    "unet": {"name": "unet", "validation": {"split": "val"}},
    "lora": {"name": "lora", "adapter": {"rank": 2}, "preserve": {"replace": {"red": "blue"}}},
    "concepts": {"name": "concepts", "adapter": {"rank": 2}, "concepts": [{"prompt": "a red disc"}], "draw_steps": 2},
}


def run_of(make_run, folder, kind, output, **values):
    data = {} if kind == "concepts" else CAPTIONED
    run = make_run({**OBJECTIVES[kind], "init": str(folder)}, data, output=str(output), **values)
    return run.model_copy(update={"data": {"size": 32}}) if kind == "concepts" else run


def trained(run):
    objective: Any = build_objective(run)
    trainer = Trainer(objective, run, build_accelerator())
    trainer.fit()
    return objective


def weights_of(objective):
    return [tensor for player in objective.players.values() for tensor in player.state_dict().values()]


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_dropped_encoders_change_neither_weights_nor_pictures(tiny_folder, make_run, tmp_path, kind):
    kept, dropped = tmp_path / "kept" / "run", tmp_path / "dropped" / "run"
    for output, memory in ((kept, None), (dropped, {"drop_encoders": True})):
        run = run_of(make_run, tiny_folder, kind, output, steps=2, sample=SAMPLES, memory=memory, log_every=1)
        assert train(run) == 0
    assert_equal_states(kept, dropped)
    assert losses_of(kept) == losses_of(dropped)
    pictures = [sorted((output / "samples").glob("step*.png")) for output in (kept, dropped)]
    assert pictures[0] and [one.read_bytes() for one in pictures[0]] == [one.read_bytes() for one in pictures[1]]
    files = [sorted(file.name for file in (output / "model").rglob("*.safetensors")) for output in (kept, dropped)]
    assert files[0] and files[0] == files[1]
    assert json.loads((dropped / "status.json").read_text())["state"] == "finished"


def test_dropped_encoders_leave_no_weight_in_memory(tiny_folder, make_run, tmp_path):
    made = trained(run_of(make_run, tiny_folder, "lora", tmp_path / "run", memory={"drop_encoders": True}))
    for model in (made.base, made.components):
        for part in (model.autoencoder, model.text_encoder):
            assert {weight.device.type for weight in part.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("objective", "data", "reason"),
    [
        ({"name": "lora", "adapter": {"parts": ["text_encoder"]}}, {}, "while a text encoder or a word is trained"),
        ({"name": "unet", "inpainting": {}}, {}, "around each drawn mask"),
        ({"name": "unet", "latent_cache_bytes": 0}, {}, "latents are not cached"),
        ({"name": "unet"}, {"fit": "random_crop"}, "latents are not cached"),
        ({"name": "unet", "text_cache_bytes": 0}, {}, "text states are not cached"),
    ],
)
def test_encoders_that_updates_need_are_not_dropped(tiny_folder, make_run, objective, data, reason):
    run = make_run({**objective, "init": str(tiny_folder)}, CAPTIONED | data, memory={"drop_encoders": True})
    with pytest.raises(ConfigError, match=f"memory.drop_encoders: .*{reason}"):
        Trainer(build_objective(run), run, build_accelerator())


def test_objectives_refuse_what_has_no_meaning_for_them(tiny_objective, make_run):
    run = make_run(tiny_objective("autoencoder"), memory={"drop_encoders": True})
    with pytest.raises(ConfigError, match=r"memory\.drop_encoders: not for objective 'autoencoder'"):
        build_objective(run)
