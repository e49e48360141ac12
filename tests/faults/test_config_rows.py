"""Settings and model configurations with the faults of docs/reliability.md that no other file tests."""

import json
import shutil
import sys

import pytest

from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.cli.main import main
from latent_diffusion.config import read_config
from latent_diffusion.errors import CheckpointError, ConfigError


@pytest.fixture
def changed(tiny_folder, tmp_path):
    """Return a function that copies the tiny model with other values in one of its files."""

    def change(file, **values):
        folder = shutil.copytree(tiny_folder, tmp_path / "model", dirs_exist_ok=True)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    return change


@pytest.mark.parametrize(
    ("file", "values", "word"),
    [
        ("scheduler/scheduler_config.json", {"beta_start": 0.02, "beta_end": 0.001}, "beta"),
        ("unet/config.json", {"down_block_types": ["CrossAttnDownBlock2D"] * 7}, "down_block_types"),
        ("unet/config.json", {"block_out_channels": [32] * 1000}, "1000 levels"),
        ("vae/config.json", {"down_block_types": ["DownEncoderBlock2D"] * 7}, "down_block_types"),
        ("unet/config.json", {"layers_per_block": 10**6}, "layers_per_block"),
        ("unet/config.json", {"sample_size": 10**9}, "sample_size"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ],
)
def test_c03_c08_what_does_not_fit_together_or_into_memory(changed, peak_memory, file, values, word):
    folder = changed(file, **values)
    with peak_memory() as taken:
        with pytest.raises(CheckpointError, match=word):
            load_folder(folder)
        assert taken() < 100e6


TEXTS = {
    "digits": '{"sample_size": ' + "9" * 5000 + "}",
    "nested": "[" * 100_000,
    "cut": '{"sample_size": 3',
    "infinity": '{"sample_size": Infinity}',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_c04_json_that_no_reader_survives_is_one_line(changed, capsys, kind):
    folder = changed("unet/config.json")
    (folder / "unet" / "config.json").write_text(TEXTS[kind])
    by_info = [["info", str(folder)]] if kind != "infinity" else []  # which shows fields and builds nothing
    for command in (*by_info, ["generate", "a cat", "--model", str(folder)]):
        assert main(command) == 4
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "config.json" in told and "a bug in this package" not in told


YAML = (
    *("steps: " + "9" * 5000, "steps: " + "[" * 100_000, "steps: 1\nsteps: 2"),
    *("steps: [1, 2", "a: b: c", "\t- x", "\0"),
)


@pytest.mark.parametrize("text", YAML)
def test_c04_yaml_that_no_reader_survives_is_one_line(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value) and "run.yaml" in str(caught.value)


def test_c07_no_code_of_a_model_folder_is_imported(changed, tmp_path, monkeypatch):
    folder = changed(
        "unet/config.json",
        auto_map={"AutoModel": "evil.Evil"},
        _attn_implementation_internal="evil/kernels",
        _class_name="UNet2DConditionModel",
    )
    for place in (folder, folder / "unet", tmp_path):
        (place / "evil.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')")
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    load_folder(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["evil", "Evil"]}))
    with pytest.raises(CheckpointError, match=r"unet is \['evil', 'Evil'\]"):
        load_folder(folder)
    assert not (tmp_path / "sentinel").exists()
    assert not [name for name in set(sys.modules) - before if name.split(".")[0] in ("evil", "os.system")]


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "evil.Evil"])
def test_c06_a_yaml_file_of_other_tools_is_never_read(tiny_folder, tmp_path, monkeypatch, capsys, target):
    """Such a file names classes to import; what a single file holds is found in its tensors."""
    model = tmp_path / "model.safetensors"
    assert main(["convert", str(tiny_folder), str(model)]) == 0
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')")
    config = f"model:\n  target: {target}\n  params: {{args: 'touch {tmp_path / 'sentinel'}'}}\n"
    for name in ("model.yaml", "config.yaml"):
        (tmp_path / name).write_text(config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["info", str(model)]) == 0
    load_model(model, None)
    capsys.readouterr()
    assert main(["generate", "a cat", "--model", "model.yaml"]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "sentinel").exists() and "evil" not in sys.modules
