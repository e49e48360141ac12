"""The bundled model's weights: packed as changes, put together to the same bits, checked when built and when loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hatch_build
import hatch_weights as weights
from latent_diffusion.checkpoint import locate
from latent_diffusion.checkpoint.built import require_built
from latent_diffusion.checkpoint.files.safetensors_file import open_file, read_tensors, write_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.cli.main import main
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.unet import UNet
from scripts.pack_changes import arrays_of, changes_of, distance, pack, packed
from scripts.rounding import WIDEST, input_moments, output_gradients, rounded, units_of
from scripts.unpack_changes import unpack

UNIT = 0.25  # of a tensor's changes, root mean square
ROOT = Path(__file__).parents[2]
TRAINING = '{"step": 7, "config": {"data": {"where": {"style": "fluent-mono", "group": "activities"}}}}\n'


def some(*shape, scale=1.0, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float16)


def test_a_change_is_rounded_to_units_of_its_row():
    first = {"a/plain": some(4, 3, 2), "a/line": some(9), "a/large": some(2, 50), "a/same": some(5), "a/one": some()}
    change = {name: some(*old.shape, scale=0.01, seed=1) for name, old in first.items()}
    change["a/same"] *= 0
    change["a/line"][0] = 2
    new = {name: first[name] + change[name] for name in first}
    found = changes_of(first, new, UNIT)
    assert "a/same" not in found and "a/same:unit" not in found
    for name, rows in (("a/plain", 4), ("a/line", 1)):
        apart = new[name].astype(np.float64) - first[name]
        assert found[f"{name}:unit"] == pytest.approx(np.full(rows, UNIT * np.sqrt(np.mean(apart**2))))
    fine = changes_of(first, new, 1e-4)["a/large:unit"]
    assert fine == pytest.approx(np.abs(change["a/large"]).max(1) / 127, rel=0.05), "int8 holds the largest change"
    for name in ("a/plain", "a/line", "a/large", "a/one"):
        steps, unit = found[name], found[name + ":unit"]
        assert steps.dtype == np.int8 and steps.shape == first[name].shape
        built = weights.moved(first[name], steps, unit)
        error = np.abs(built.astype(np.float64) - new[name]).reshape(len(unit), -1)
        most = np.maximum(np.spacing(np.abs(new[name])), np.spacing(np.abs(built))).astype(np.float64)
        assert (error <= unit[:, None] / 2 + most.reshape(len(unit), -1)).all(), name


def test_the_bits_are_those_of_a_product_and_then_a_sum_in_float32():
    first, steps = some(64, 33), np.random.default_rng(2).integers(-127, 128, (64, 33)).astype(np.int8)
    unit = np.random.default_rng(3).uniform(0.001, 0.01, 64).astype(np.float32)
    theirs = torch.from_numpy(first).float() + torch.from_numpy(steps).float() * torch.from_numpy(unit)[:, None]
    assert weights.moved(first, steps, unit).tobytes() == theirs.half().numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda new: new.update(b=some(3, 9)), r"b: shape \(3, 9\) in the new model, \(3, 4\) in the first version"),
        (lambda new: new.pop("b"), r"b: shape absent in the new model"),
        (lambda new: new.update(c=some(1)), r"c: shape \(1,\) in the new model, absent in the first version"),
        (lambda new: new["b"].__setitem__((0, 0), np.inf), "b: a weight is no finite number"),
        (lambda new: None, "no weight of the new model differs"),
    ],
)
def test_what_is_no_change_is_refused(change, words):
    first = {"a": some(5), "b": some(3, 4)}
    new = {name: array.copy() for name, array in first.items()}
    change(new)
    with pytest.raises(CheckpointError, match=words):
        changes_of(first, new, UNIT)


def test_the_changes_of_noise_take_little_more_than_its_entropy():
    steps = np.rint(np.random.default_rng(0).normal(0, 1.19, (400, 1000))).astype(np.int8)
    share = np.unique(steps, return_counts=True)[1] / steps.size
    entropy = -(share * np.log2(share)).sum()
    size = len(packed({"a": steps, "a:unit": np.full(400, 0.002, np.float32)}))
    assert entropy < 8 * size / steps.size < 1.04 * entropy


@pytest.fixture
def tree(tmp_path, tiny_folder):
    """A source tree whose first version is the tiny model, and a folder with a new version of it."""
    root, new = tmp_path / "tree", tmp_path / "new"
    save_folder(load_folder(tiny_folder), root / weights.FIRST, torch.float16)
    shutil.copytree(root / weights.FIRST, root / weights.BUILT, ignore=shutil.ignore_patterns("*.safetensors"))
    parts = load_folder(tiny_folder)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for weight in (*parts.unet.parameters(), *parts.text_encoder.parameters()):
            weight.add_(torch.randn_like(weight), alpha=0.003)
    save_folder(parts, new, torch.float16)
    (new / "training.json").write_text(TRAINING)
    return root, new


def built(root):
    return {name: root / weights.BUILT / name for name in weights.PARTS.values()}


def test_a_model_goes_through_its_changes(tree, capsys):
    root, new = tree
    pack(new, UNIT, root)
    said = capsys.readouterr().out
    assert said.count("\n") == 2 and "bits for each of" in said and "of the change" in said
    record = json.loads((root / weights.BUILT / weights.RECORD).read_text())
    require_built(root / weights.BUILT)
    assert (root / weights.BUILT / "training.json").read_text() == TRAINING
    for name, file in built(root).items():
        found, wanted, old = (read_tensors(place) for place in (file, new / name, root / weights.FIRST / name))
        arrays = [{key: tensor.numpy() for key, tensor in tensors.items()} for tensors in (found, wanted, old)]
        assert {key: t.shape for key, t in found.items()} == {key: t.shape for key, t in old.items()}
        assert distance(arrays[0], arrays[1]) <= 0.3 * distance(arrays[2], arrays[1])
        assert open_file(file)[1]["changes"] == record["changes"]
        assert record["files"][name] == {"bytes": file.stat().st_size, "sha256": weights.digest(file.read_bytes())}
    vae = weights.PARTS["vae"]  # which the new version did not change
    assert read_tensors(built(root)[vae]).keys() == read_tensors(root / weights.FIRST / vae).keys()
    first, again = (load_folder(place) for place in (root / weights.FIRST, root / weights.BUILT))
    assert all(map(torch.equal, first.autoencoder.parameters(), again.autoencoder.parameters()))

    before = {file: (file.stat().st_ino, file.read_bytes()) for file in built(root).values()}
    weights.build_weights(root)
    assert {file: (file.stat().st_ino, file.read_bytes()) for file in before} == before, "what is right is left alone"
    for file in before:
        file.unlink()
    weights.build_weights(root)
    assert all(file.read_bytes() == data for file, (_, data) in before.items()), "the same bits again"
    assert not list(root.rglob(".tmp-*"))


def test_without_changes_the_first_version_is_built(tree):
    root, _ = tree
    files = {name: root / weights.FIRST / name for name in weights.PARTS.values()}
    values = {n: {"bytes": f.stat().st_size, "sha256": weights.digest(f.read_bytes())} for n, f in files.items()}
    (root / weights.BUILT / weights.RECORD).write_text(json.dumps({"changes": None, "files": values}))
    weights.build_weights(root)
    require_built(root / weights.BUILT)
    assert all(built(root)[name].read_bytes() == file.read_bytes() for name, file in files.items())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: flip(root / weights.CHANGES), "emoji-changes.safetensors.z: its SHA-256 is"),
        (lambda root: (root / weights.CHANGES).unlink(), "emoji-changes.safetensors.z: No such file"),
        (lambda root: flip(root / weights.FIRST / weights.PARTS["unet"]), "with the changes its SHA-256 is"),
        (lambda root: (root / weights.FIRST / weights.PARTS["vae"]).unlink(), "diffusion_pytorch_model.*No such file"),
    ],
)
def test_what_is_damaged_is_refused(tree, harm, words, monkeypatch, capsys):
    root, new = tree
    pack(new, UNIT, root)
    for file in built(root).values():
        file.unlink()
    harm(root)
    with pytest.raises(weights.BuildError, match=words) as caught:
        weights.build_weights(root)
    assert "\n" not in str(caught.value)
    capsys.readouterr()
    monkeypatch.setattr(weights, "build_weights", lambda: (_ for _ in ()).throw(caught.value))
    assert weights.main() == 1 and capsys.readouterr().err == f"error: {caught.value}\n"


def flip(file):
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)


def test_other_models_are_refused(tree, tiny_folder, tmp_path):
    root, new = tree
    parts = load_folder(tiny_folder)
    others = {
        "U-Net: norm_eps differ": replace(parts, unet=UNet(replace(parts.unet.config, norm_eps=1e-3))),
        "noise schedule: prediction differ": load_folder(tiny_folder, prediction_type="v_prediction"),
    }
    for words, other in others.items():
        save_folder(other, tmp_path / "other", torch.float16)
        with pytest.raises(CheckpointError, match=words):
            pack(tmp_path / "other", UNIT, root)
    vocabulary = new / "tokenizer" / "vocab.json"
    ids = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps(ids | {"a": ids["b"], "b": ids["a"]}))
    (new / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="vocabulary: tokens differ"):
        pack(new, UNIT, root)
    for unit in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="--unit"):
            pack(new, unit, root)
    assert not (root / weights.CHANGES).exists()


@pytest.mark.parametrize("part", weights.PARTS)
def test_weights_that_are_missing_or_of_another_version_are_one_line(tree, part, monkeypatch, capsys):
    root, new = tree
    pack(new, UNIT, root)
    folder, file = root / weights.BUILT, root / weights.BUILT / weights.PARTS[part]
    monkeypatch.setattr(locate, "BUNDLED", folder.parent)
    assert locate.locate_model("emoji") == folder
    tensors, metadata = read_tensors(file), open_file(file)[1]

    def refused(words):
        capsys.readouterr()
        assert main(["info", "emoji"]) == 4
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(file) in said and words in said and "python hatch_build.py" in said

    write_tensors(file, tensors, metadata | {"changes": "0" * 64})
    assert (
        file.stat().st_size == json.loads((folder / weights.RECORD).read_text())["files"][weights.PARTS[part]]["bytes"]
    )
    refused("another version")
    shutil.copy(root / weights.FIRST / weights.PARTS[part], file)
    refused("another version")
    file.unlink()
    refused("not built")
    weights.build_weights(root)
    locate.locate_model("emoji")
    (folder / weights.RECORD).write_text("{}")
    with pytest.raises(CheckpointError, match=r"weights\.json: cannot be read: 'files'; install the package again"):
        locate.locate_model("emoji")


def test_wheel_and_sdist_have_what_they_need(monkeypatch):
    monkeypatch.setattr(hatch_build, "build", lambda: None)  # the kernels of this tree stay as they are
    for version in ("standard", "editable"):
        hook = object.__new__(hatch_build.BuildHook)
        monkeypatch.setattr(type(hook), "target_name", "wheel", raising=False)
        data = {"artifacts": [], "force_include": {}}
        hook.initialize(version, data)
        assert data["artifacts"] == [str(weights.BUILT / name) for name in weights.PARTS.values()]
    import tomllib

    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"][
        "include"
    ]
    assert {"/hatch_build.py", "/hatch_weights.py", f"/{weights.FIRST}", f"/{weights.CHANGES}"} <= set(included)


def test_the_built_weights_are_those_of_the_record():
    record = json.loads((ROOT / weights.BUILT / weights.RECORD).read_text())
    assert list(record["files"]) == list(weights.PARTS.values())
    for name, values in record["files"].items():
        assert weights.digest((ROOT / weights.BUILT / name).read_bytes()) == values["sha256"]
    assert (record["changes"] is not None) == (ROOT / weights.CHANGES).exists()
    assert not (ROOT / weights.BUILT / "clip").exists(), "its image tower fits the first text encoder only"


def test_weights_of_a_layer_are_rounded_so_that_its_outputs_stay_near():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(60, 60, generator=generator)
    inputs = torch.randn(4000, 60, generator=generator) @ mixed  # correlated, as inputs of layers are
    changes = 0.01 * torch.randn(20, 60, generator=generator)
    units = torch.full((20,), 0.01)
    ways = {
        "plain": (changes / units[:, None]).round(),
        "together": rounded(changes, units, inputs.T @ inputs).float(),
    }
    apart = {way: float(((steps * units[:, None] - changes) @ inputs.T).norm()) for way, steps in ways.items()}
    assert apart["together"] < 0.8 * apart["plain"]
    assert rounded(changes, units, torch.eye(60)).equal(ways["plain"].to(torch.int8)), "nothing to make up for"


def test_the_moments_of_inputs_are_those_of_the_layers_of_a_model(tiny_folder):
    model = load_folder(tiny_folder)
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = input_moments(model, pictures, ["a cat", "a dog", "a house"])
    shapes = {f"unet/{name}": weight.shape for name, weight in model.unet.state_dict().items()}
    for name, moments in found.items():
        assert moments.equal(moments.T) or (moments - moments.T).abs().max() < 1e-3 * moments.abs().max()
        if name.startswith("unet/"):
            assert len(moments) == shapes[name][1:].numel()
    weighed = {name for name, array in arrays_of(tiny_folder).items() if array.ndim > 1 and ".embeddings." not in name}
    assert found.keys() == weighed


def test_units_are_inverse_to_gradients_and_their_geometric_mean_is_the_share():
    sizes = {"a": (100, 0.02), "b": (300, 0.01), "free": (50, 0.5)}
    found = units_of(sizes, {"a": 4.0, "b": 8.0}, 0.5)
    assert found["a"] / found["b"] == pytest.approx(2)
    assert 100 * np.log(found["a"] / 0.02) + 300 * np.log(found["b"] / 0.01) == pytest.approx(400 * np.log(0.5))
    assert found["free"] == 0.25
    assert units_of(sizes, {"a": 1e-9, "b": 8.0}, 0.5)["a"] == 0.5 * WIDEST * 0.02


def test_gradients_are_those_of_all_outputs(tiny_folder):
    model = load_folder(tiny_folder)
    model.unet.requires_grad_(False)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = output_gradients(model, pictures, ["a cat", "a dog"])
    assert "unet/conv_in.weight" in found and not any(name.startswith("vae/encoder") for name in found)
    bias = model.autoencoder.decoder.conv_out.bias
    images = model.autoencoder.to_images(model.autoencoder.to_latents(pictures))
    exact = (images[:, 0].numel()) ** 0.5 / float(images.detach().norm())  # each pixel of a channel moves as its bias
    assert bias is not None and found["vae/decoder.conv_out.bias"] == pytest.approx(exact, rel=0.9)
    assert not any(weight.requires_grad for weight in model.unet.parameters()), "as it was"


@pytest.mark.parametrize("steps", [[1], [-7, 7, 0], [[3, -2], [0, 1]], [8, 0], [-127, 5, 1]])
def test_steps_come_apart_as_they_were_paired(steps):
    steps = np.array(steps, np.int8)
    pairs = weights.paired(steps)
    assert (pairs.dtype == np.uint8) == (np.abs(steps.astype(int)).max() <= weights.SMALL)
    assert weights.apart(pairs, steps.shape).tolist() == steps.tolist()


def test_changes_alone_are_unpacked_to_a_model_folder(tree, tmp_path, capsys):
    root, new = tree
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    pack(new, UNIT, root, only=tmp_path / "unfinished.z")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before, "no new version"
    unpack(tmp_path / "unfinished.z", tmp_path / "model", root)
    made, wanted = arrays_of(tmp_path / "model"), arrays_of(new)
    assert distance(made, wanted) < 0.2 * distance(arrays_of(root / weights.FIRST), wanted)
    load_folder(tmp_path / "model")
    with pytest.raises(weights.BuildError, match="exists"):
        unpack(tmp_path / "unfinished.z", tmp_path / "model", root)
    (tmp_path / "bad.z").write_bytes((tmp_path / "unfinished.z").read_bytes()[:-9])
    with pytest.raises(weights.BuildError, match="damaged"):
        unpack(tmp_path / "bad.z", tmp_path / "other", root)
    assert not (tmp_path / "other").exists()
