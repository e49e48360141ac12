"""Configurations of a model that cannot be: refused by name, before any memory is taken."""

import json
import shutil

import pytest

from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.errors import CheckpointError

CASES = [
    *(("scheduler/scheduler_config.json", "num_train_timesteps", v) for v in (float("nan"), float("inf"), 1.5, 1e12)),
    *(("scheduler/scheduler_config.json", "_num_inference_steps", v) for v in ("abc", None, -1, float("nan"))),
    *(("scheduler/scheduler_config.json", "_guidance_scale", v) for v in ("x", None, float("nan"), -1)),
    *(("scheduler/scheduler_config.json", "steps_offset", v) for v in ("x", [1], -5)),
    *(("unet/config.json", "sample_size", v) for v in (10**9, 0, -8, "x", 1.5, float("nan"), [])),
    *(("unet/config.json", "layers_per_block", v) for v in (10**6, 0, -1, 1.5, float("nan"), [])),
    *(("unet/config.json", "block_out_channels", v) for v in ([], [0, 0], [-32, 32], [10**12, 10**12], [32.5, 64])),
    *(("unet/config.json", "attention_head_dim", v) for v in (0, None, [1.5, 2], [])),
    *(("unet/config.json", "norm_num_groups", v) for v in (0, None, 1.5)),
    *(("unet/config.json", "transformer_layers_per_block", v) for v in (10**6, 0)),
    ("unet/config.json", "cross_attention_dim", 10**9),
    ("unet/config.json", "norm_eps", float("nan")),
    *(("vae/config.json", "scaling_factor", v) for v in (float("nan"), "x")),
    *(("vae/config.json", "block_out_channels", v) for v in ([], [10**9], ["x"], 5)),
    *(("vae/config.json", "latent_channels", v) for v in (0, -1, 10**9)),
    *(("vae/config.json", "layers_per_block", v) for v in (10**6, 0)),
]


@pytest.mark.parametrize(("file", "field", "value"), CASES)
def test_refused_by_name(tiny_folder, tmp_path, file, field, value):
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError) as told:
        load_folder(folder)
    assert field in str(told.value) and str(path) in str(told.value)
