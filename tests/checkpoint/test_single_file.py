"""Models as single files: round trips with folders, diffusers both ways, detection, the moving average, strangers."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_diffusion.checkpoint.files.safetensors_file import open_file, read_tensors, write_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.checkpoint.single import single_file
from latent_diffusion.checkpoint.single.detect import families_of_files
from latent_diffusion.checkpoint.single.single_file import load_single_file, save_single_file
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.text_config import TextConfig

FAMILIES = families_of_files()


def parts(components):
    towers = components.text_encoder.towers
    return [components.unet, components.autoencoder, *(tower.model for tower in towers)]


def assert_same(first, second):
    for one, two in zip(parts(first), parts(second), strict=True):
        ours, theirs = one.state_dict(), two.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert first.unet.config == second.unet.config and first.autoencoder.config == second.autoencoder.config
    assert first.schedule == second.schedule and first.prediction.name == second.prediction.name
    assert dict(first.scheduler_config) == dict(second.scheduler_config)
    assert first.zeros_for_empty_prompt == second.zeros_for_empty_prompt
    for one, two in zip(first.text_encoder.towers, second.text_encoder.towers, strict=True):
        assert one.penultimate == two.penultimate
        assert one.tokenize(["a red apple, 1!", ""]).tolist() == two.tokenize(["a red apple, 1!", ""]).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_to_file_to_folder(family, tiny_family, tmp_path):
    first = load_folder(tiny_family(family))
    save_single_file(first, tmp_path / "a.safetensors")
    second = load_single_file(tmp_path / "a.safetensors")
    assert_same(first, second)
    save_folder(second, tmp_path / "again")
    for file in sorted(tiny_family(family).rglob("*")):
        if file.is_file():
            other = tmp_path / "again" / file.relative_to(tiny_family(family))
            if file.suffix == ".safetensors":
                mine, its = read_tensors(file), read_tensors(other)
                assert mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)
            else:
                assert file.read_bytes() == other.read_bytes(), file.name


def as_family(components):
    """Return the values of a family that these parts would be of."""
    towers = components.text_encoder.towers
    text = tuple(
        TextConfig(
            width=tower.config.hidden_size,
            layers=tower.config.num_hidden_layers,
            heads=tower.config.num_attention_heads,
            activation=tower.config.hidden_act,
            projection=tower.pooled_width or None,
            penultimate=tower.penultimate,
            pad_token=tower.tokenizer.pad_token,
            vocab_size=tower.config.vocab_size,
        )
        for tower in towers
    )
    return SimpleNamespace(
        UNET=components.unet.config,
        AUTOENCODER=components.autoencoder.config,
        TEXT=text,
        SCHEDULER=components.scheduler_config,
        ZEROS_FOR_EMPTY_PROMPT=components.zeros_for_empty_prompt,
    )


@pytest.fixture
def foreign(tiny_family, tmp_path, monkeypatch):
    """A function from a family to (its parts, a file of them as others write it, which is then read as that family)."""

    def make(family: str, change=lambda tensors: tensors):
        components = load_folder(tiny_family(family))
        save_single_file(components, tmp_path / "a.safetensors")
        write_tensors(tmp_path / "a.safetensors", change(read_tensors(tmp_path / "a.safetensors")))
        tokenizers = {tower.tokenizer.pad_token: tower.tokenizer for tower in components.text_encoder.towers}
        monkeypatch.setattr(single_file, "family_values", lambda name: as_family(components))
        monkeypatch.setattr(single_file, "clip_vocabulary", lambda pad_token, length: tokenizers[pad_token])
        return components, tmp_path / "a.safetensors"

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_others(family, foreign):
    components, file = foreign(family, lambda tensors: {n: t for n, t in tensors.items() if n != "v_pred"})
    assert_same(components, load_single_file(file, family=family))


def test_what_others_leave_in_their_files(foreign):
    def change(tensors):
        layer = {n: t for n, t in tensors.items() if ".resblocks.2." in n}
        return {
            **tensors,
            **{name.replace(".resblocks.2.", ".resblocks.3."): tensor + 1 for name, tensor in layer.items()},
            "cond_stage_model.model.text_projection": torch.ones(24, 24),
            "cond_stage_model.model.logit_scale": torch.tensor(4.6),
            "cond_stage_model.model.attn_mask": torch.zeros(77, 77),
            "betas": torch.zeros(1000),
            "alphas_cumprod": torch.zeros(1000),
            "first_stage_model.loss.logvar": torch.zeros(()),
            "model_ema.num_updates": torch.tensor(7),
        }

    components, file = foreign("sd2", change)
    found = load_single_file(file, family="sd2")
    assert_same(components, found)
    assert "text_encoder: layers after number 3 are not used" in found.notes


def test_merges_that_lost_a_prefix(foreign):
    def change(tensors):
        position = {"cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None]}
        return {name.replace("transformer.text_model.", "transformer."): t for name, t in tensors.items()} | position

    components, file = foreign("sd1", change)
    assert_same(components, load_single_file(file, family="sd1"))


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_ours(family, tiny_family, tmp_path):
    import diffusers

    folder = tiny_family(family)
    save_single_file(load_folder(folder), tmp_path / "a.safetensors")
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    pipe = kind.from_single_file(str(tmp_path / "a.safetensors"), config=str(folder), local_files_only=True)
    names = ("unet", "vae", *(part for part in ("text_encoder", "text_encoder_2") if (folder / part).is_dir()))
    for name in names:
        (file,) = (folder / name).glob("*.safetensors")
        state = {key.removeprefix("text_model."): t for key, t in getattr(pipe, name).state_dict().items()}
        wanted = {key.removeprefix("text_model."): t for key, t in read_tensors(file).items()}
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_ours_reads_what_diffusers_names(family, tiny_family, tmp_path, foreign):
    """A file made from a diffusers pipeline with diffusers' own table of names, turned round."""
    import diffusers
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    components, file = foreign(family)
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(tiny_family(family)), local_files_only=True)
    tensors = read_tensors(file)
    for prefix, network, convert in (
        ("model.diffusion_model.", pipe.unet, convert_ldm_unet_checkpoint),
        ("first_stage_model.", pipe.vae, convert_ldm_vae_checkpoint),
    ):
        marked = {n: torch.full_like(t, i) for i, (n, t) in enumerate(sorted(tensors.items())) if n.startswith(prefix)}
        names = sorted(tensors)
        for theirs, mark in convert(marked, network.config).items():
            name = names[int(mark.flatten()[0])]
            tensors[name] = network.state_dict()[theirs].reshape(tensors[name].shape)
    write_tensors(file, tensors)
    assert_same(components, load_single_file(file, family=family))


@pytest.mark.parametrize("there", ["plain", "both", "averaged"])
@pytest.mark.parametrize("asked", [False, True])
def test_moving_average(there, asked, foreign):
    def change(tensors):
        start = "model.diffusion_model."
        unet = {name: tensor for name, tensor in tensors.items() if name.startswith(start)}
        average = {"model_ema.diffusion_model" + n.removeprefix(start).replace(".", ""): t + 1 for n, t in unet.items()}
        rest = {name: tensor for name, tensor in tensors.items() if name not in unet}
        return rest | ({} if there == "averaged" else unet) | ({} if there == "plain" else average)

    components, file = foreign("sd1", change)
    if there == "plain" and asked:
        with pytest.raises(CheckpointError, match="no averaged"):
            load_single_file(file, family="sd1", averaged=True)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = load_single_file(file, family="sd1", averaged=asked)
    taken = found.unet.conv_in.weight - components.unet.conv_in.weight
    assert torch.allclose(taken, torch.full_like(taken, float(asked or there == "averaged")), atol=1e-6)
    noted = [note for note in found.notes if note.startswith("U-Net")]
    assert len(noted) == (there != "plain")
    assert len([w for w in told if "averaged" in str(w.message)]) == (there == "both" and not asked)


def test_half_precision_and_casts(tiny_family, tmp_path):
    first = load_folder(tiny_family("sd1"))
    save_single_file(first, tmp_path / "half.safetensors", torch.float16)
    assert {t.dtype for t in read_tensors(tmp_path / "half.safetensors").values()} == {torch.float16}
    half = load_single_file(tmp_path / "half.safetensors", torch.float16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16} and not half.notes
    mixed = load_single_file(tmp_path / "half.safetensors", lambda weights: torch.bfloat16)
    assert {p.dtype for p in mixed.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in mixed.autoencoder.parameters()} == {torch.float32}
    count = len(mixed.unet.state_dict())
    assert f"unet: {count} tensors cast, float16 -> bfloat16" in mixed.notes and len(mixed.notes) == 3


def test_prediction_type_can_be_overridden(tiny_family, tmp_path):
    first = load_folder(tiny_family("sd1"))
    save_single_file(first, tmp_path / "a.safetensors")
    found = load_single_file(tmp_path / "a.safetensors", prediction_type="v_prediction")
    assert (
        found.prediction.name == "v_prediction"
        and "prediction: v_prediction, from the option prediction_type" in found.notes
    )
    assert load_folder(tiny_family("sd1"), prediction_type="v_prediction").prediction.name == "v_prediction"
    save_single_file(found, tmp_path / "v.safetensors")
    assert "v_pred" in read_tensors(tmp_path / "v.safetensors")
    assert load_single_file(tmp_path / "v.safetensors").prediction.name == "v_prediction"


def without(*starts):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(starts)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("first_stage_model."), r"autoencoder \(first_stage_model\) missing"),
        (without("cond_stage_model."), "text encoder missing"),
        (without("model.diffusion_model.time_embed.0.bias"), "1 missing: time_embedding.linear_1.bias"),
        (lambda t: t | {"model.diffusion_model.extra": torch.ones(1)}, "1 unknown: model.diffusion_model.extra"),
        (lambda t: t | {"first_stage_model.extra": torch.ones(1)}, "1 unknown: first_stage_model.extra"),
        (lambda t: t | {"cond_stage_model.transformer.x": torch.ones(1)}, "1 unknown: x"),
        (lambda t: t | {"embedding_manager.x": torch.ones(1)}, "belong to no part: embedding_manager.x"),
        (lambda t: t | {"model.diffusion_model.out.2.bias": torch.ones(9)}, r"conv_out.bias is \(9,\)"),
        (lambda t: t | {"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}, "NaN"),
        (lambda t: t | {"model.diffusion_model.out.2.bias": torch.ones(4).int()}, "int32"),
    ],
)
def test_strictness(change, words, foreign):
    _, file = foreign("sd1", change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_single_file(file, family="sd1")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "model_index.json of the header is missing"),
        ('{"model_index.json": {"_class_name": "os.system"}}', "_class_name"),
    ],
)
def test_headers_that_lie(metadata, words, tiny_family, tmp_path):
    save_single_file(load_folder(tiny_family("sd1")), tmp_path / "a.safetensors")
    tensors = read_tensors(tmp_path / "a.safetensors")
    write_tensors(tmp_path / "a.safetensors", tensors, {"latent_diffusion": metadata})
    with pytest.raises(CheckpointError, match=words):
        load_single_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet/config.json", "layers_per_block", 10**9),
        ("unet/config.json", "sample_size", None),
        ("text_encoder/config.json", "num_hidden_layers", 10**6),
        ("tokenizer", "merges", 5),
        ("tokenizer", "pad_token", None),
        ("scheduler/scheduler_config.json", "beta_schedule", "x"),
    ],
)
def test_fields_of_headers_that_lie(part, field, value, tiny_family, tmp_path):
    file = tmp_path / "a.safetensors"
    save_single_file(load_folder(tiny_family("sd1")), file)
    values = json.loads(open_file(file)[1]["latent_diffusion"])
    values[part][field] = value
    write_tensors(file, read_tensors(file), {"latent_diffusion": json.dumps(values)})
    with pytest.raises(CheckpointError) as caught:
        load_single_file(file)
    assert f"{part} of the header" in str(caught.value)


def test_wrong_suffix_and_unknown_family(tiny_family, tmp_path):
    first = load_folder(tiny_family("sd1"))
    with pytest.raises(ConfigError, match=r"written as \.safetensors"):
        save_single_file(first, tmp_path / "a.ckpt")
    save_single_file(first, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"unknown family 'sd15'.*sd1, sd1_inpaint"):
        load_single_file(tmp_path / "a.safetensors", family="sd15")


def test_the_modelspec_fields(tiny_family, tmp_path):
    """A model of no published size names no architecture that others would believe."""
    save_single_file(load_folder(tiny_family("sd1")), tmp_path / "a.safetensors")
    metadata = open_file(tmp_path / "a.safetensors")[1]
    assert metadata["format"] == "pt" and not any(name.startswith("modelspec") for name in metadata)


@pytest.mark.parametrize(
    "family,name",
    [
        ("sd1", "cond_stage_model.logit_scale"),
        ("sd1", "cond_stage_model.text_projection"),
        ("sd1", "cond_stage_model.transformer.text_model.embeddings.position_ids"),
        ("sdxl", "conditioner.embedders.0.logit_scale"),
        ("sdxl", "conditioner.embedders.0.text_projection"),
        ("sdxl", "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids"),
    ],
)
def test_what_merging_tools_leave_of_a_text_tower_is_passed_over(family, name, tiny_family, tmp_path):
    first = load_folder(tiny_family(family))
    save_single_file(first, tmp_path / "a.safetensors")
    tensors, metadata = load_file(tmp_path / "a.safetensors"), open_file(tmp_path / "a.safetensors")[1]
    save_file({**tensors, name: torch.zeros(1)}, tmp_path / "b.safetensors", metadata)
    second = load_single_file(tmp_path / "b.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.unet.parameters(), second.unet.parameters(), strict=True))


def test_other_names_of_a_text_tower_are_still_strange(tiny_family, tmp_path):
    save_single_file(load_folder(tiny_family("sd1")), tmp_path / "a.safetensors")
    tensors, metadata = load_file(tmp_path / "a.safetensors"), open_file(tmp_path / "a.safetensors")[1]
    save_file({**tensors, "cond_stage_model.other": torch.zeros(1)}, tmp_path / "b.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"belong to no part: cond_stage_model\.other"):
        load_single_file(tmp_path / "b.safetensors")
