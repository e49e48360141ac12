import json

import pytest
import real
import torch
from processes import state_of, train, train_together

SIZES = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8}


@pytest.fixture
def objectives(tiny_folder):
    adversarial = {"start": 1, "width": 8, "layers": 1}
    return {
        "autoencoder": {
            "name": "autoencoder", "model": SIZES, "perceptual": 0.0, "equivariance": 0.5, "adversarial": adversarial
        },
        "unet": {"name": "unet", "init": str(tiny_folder)},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["autoencoder", "unet"])
def test_two_processes_train_what_one_trains(objectives, pictures, tmp_path, name):
    """Equal but for the order of sums, in float64; the autoencoder with its discriminator and adaptive weight."""
    run = {
        "output": "unused", "objective": objectives[name], "steps": 4, "batch_size": 4, "precision": "float64",
        "ema": {"decay": 0.5}, "clip_norm": 0.1,
        "data": {"path": str(pictures), "size": 32, "flip": True, "captions": ["text"], "caption_dropout": 0.3},
    }  # fmt: skip
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(run))
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, str(config), run=real.run) == 0
    assert train_together(two, str(config), run=real.run) == [0, 0]
    alone, shared = state_of(one), state_of(two)
    assert alone.keys() == shared.keys()
    far = [key for key in alone if not torch.allclose(alone[key], shared[key], rtol=1e-6, atol=1e-9)]
    assert far == []
