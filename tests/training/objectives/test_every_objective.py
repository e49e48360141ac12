"""Every objective with tiny models: killed and resumed it ends bit-equal, and two processes train as one does."""

import json
from pathlib import Path

import pytest
import real
import torch
from kills import GAN_FROM, kill_at_random_steps
from processes import losses_of, state_of, train, train_together

from latent_diffusion.registry import find, names

# The draws and the state of the first six are those of unet, consistency and autoencoder; test_plane.py has plane's;
# latent_clip draws as the classifier and compares as clip
LIKE_OTHERS = (
    "bridge", "distribution_matching", "learned_schedule", "learned_variance", "progressive", "reflow", "plane",
    "latent_clip",
)  # fmt: skip
OBJECTIVES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_OTHERS else [])
    for name in names("latent_diffusion.training.objectives")
]


@pytest.fixture(scope="module")
def config_of(tiny_objective, pictures, tmp_path_factory):
    """Return a function that writes the run of an objective on four pictures, and returns its file."""

    def write(name: str, **changes) -> str:
        objective = tiny_objective(name)
        if name == "autoencoder":
            adversarial = objective["adversarial"] | {"start": GAN_FROM}
            objective |= {"perceptual": 0.05, "adversarial": adversarial}
        captions = [] if name == "autoencoder" else ["text"] if name == "reflow" else ["text", "text_alt"]
        dropout = 0.3 if name in ("unet", "lora") else 0.0
        flip = name not in ("clip", "reflow", "bridge", "distribution_matching")
        data = {"path": str(pictures), "size": 32, "captions": captions, "caption_dropout": dropout, "flip": flip}
        known = find("latent_diffusion.training.objectives", name).data_type.model_fields
        run = {
            "output": "unused", "objective": objective, "batch_size": 4, "ema": {"decay": 0.9},
            "data": {key: value for key, value in data.items() if key in known},
            "optimizer": {"learning_rate": 1e-3}, "warmup": 5, "clip_norm": 0.1, "log_every": 1, "threads": 1,
            "checkpoint": {"every": 4, "keep": 1}, **changes,
        }  # fmt: skip
        file = tmp_path_factory.mktemp("configs") / f"{name}.yaml"
        file.write_text(json.dumps(run))
        return str(file)

    return write


@pytest.mark.parametrize("name", OBJECTIVES)
def test_killed_and_resumed_equals_uninterrupted(config_of, tmp_path, name):
    kill_at_random_steps(config_of(name, steps=12), tmp_path, name, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "unet"])  # two players, and the one that the others build on
def test_killed_five_times_and_resumed_equals_uninterrupted(config_of, tmp_path, name):
    kill_at_random_steps(config_of(name, steps=16), tmp_path, name, kills=5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_train_as_one_in_float64(config_of, tmp_path, name):
    """Losses, and all that is saved, equal but for the order of sums; the GAN plays from update 5 on."""
    compare_one_and_two(config_of(name, precision="float64", steps=8), tmp_path, before=1e-9, after=1e-9)
    alone, shared = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert alone.keys() == shared.keys()
    assert [key for key in alone if not torch.allclose(alone[key], shared[key], rtol=1e-6, atol=1e-9)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_two_processes_make_the_losses_of_one_in_float32(config_of, tmp_path, name):
    # AdamW makes whole steps of the rounding in gradients that are 0 but for it: not larger than fine-tuning's
    config = config_of(name, optimizer={"learning_rate": 1e-4}, steps=16)
    compare_one_and_two(config, tmp_path, before=1e-5, after=1e-4 if name == "autoencoder" else 1e-5)


def compare_one_and_two(config, folder, *, before, after):
    """Compare the losses of all updates: relative `before` the GAN plays, and `after`."""
    one, two = folder / "one", folder / "two"
    assert train(one, config, run=real.run) == 0
    assert train_together(two, config, run=real.run) == [0, 0]
    assert json.loads((two / "config.json").read_text())["processes"] == 2
    alone, shared = losses_of(one), losses_of(two)
    assert len(alone) == len(shared) == json.loads(Path(config).read_text())["steps"]
    for expected, line in zip(alone, shared, strict=True):
        bound = before if line["step"] <= GAN_FROM else after
        losses = {key: value for key, value in line.items() if key.endswith("loss")}
        assert losses == pytest.approx({key: expected[key] for key in losses}, rel=bound, abs=bound), line["step"]


def test_no_process_encodes_what_another_has(config_of, tmp_path):
    """Six pictures and their mirror images, their captions and the empty one: each is encoded by one process."""
    config = config_of("unet", steps=2)
    assert train(tmp_path / "one", config, run=real.run_counting) == 0
    assert train_together(tmp_path / "two", config, run=real.run_counting) == [0, 0]
    files = ("one.encoded0", "two.encoded0", "two.encoded1")
    alone, first, second = ([int(n) for n in (tmp_path / file).read_text().split()] for file in files)
    assert alone[0] == 12 and alone[1] == 19
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    assert all(abs(a - b) <= 1 for a, b in zip(first, second, strict=True))
