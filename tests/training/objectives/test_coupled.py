"""Reflow, bridge and diffusion beside a partner: what is drawn and kept, what the network reads, what is refused."""

import json
from typing import Any

import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.randomness import normal
from latent_diffusion.training.losses import coupled
from latent_diffusion.training.networks import preparing
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.state.training_state import newest_state
from latent_diffusion.training.trainer import Trainer

TEXT = {"captions": ["text"]}


def prepared(run) -> Any:
    torch.manual_seed(run.seed)
    return Trainer(build_objective(run), run, build_accelerator())


def first_batch(trainer) -> Any:
    return next(trainer.objective.batches([tuple(range(trainer.run.batch_size))]))


@pytest.fixture
def make_reflow(tiny_folder, make_run, tmp_path):
    """Return a function that makes a reflow run on the captions of the discs."""

    def make(data=None, pairs=None, settings=None, **values):
        chosen = {"folder": str(tmp_path / "pairs"), "steps": 3, "guidance_scale": 2.0, **(pairs or {})}
        return make_run(
            {"name": "reflow", "init": str(tiny_folder), "pairs": chosen, **(settings or {})},
            {**TEXT, **(data or {})},
            **values,
        )

    return make


def test_pairs_are_the_pipelines_pictures_of_keyed_noise(make_reflow, tiny_folder):
    trainer = prepared(make_reflow(pairs={"per_picture": 2}))
    player, batch = trainer.objective.player, first_batch(trainer)
    x0, start = player.held[0](batch), player.coupling.starts(batch)
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")
    drawn = pipe(
        list(batch.captions), latents=start, sampler="dpmpp_2m", spacing="karras", num_inference_steps=3,
        guidance_scale=2.0, output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(x0, drawn, rtol=1e-3, atol=1e-4)
    pairs = trainer.objective.pairs
    assert len(pairs) == 8 and {k % 4 for k in pairs._places(batch)} == set(batch.row)
    torch.testing.assert_close(start, normal(0, "pair", pairs._places(batch), start.shape[1:]))


def test_the_loss_is_that_of_the_line_through_both_ends(make_reflow):
    trainer = prepared(make_reflow(precision="float64"))
    player, batch = trainer.objective.player, first_batch(trainer)
    schedule = player.loss.schedule
    x0, start = player.held[0](batch).double(), player.coupling.starts(batch).double()
    t = player.times(batch.sample)
    last = schedule.level(999)
    noise = (start - last.alpha * x0) / last.sigma
    network = player.network(player.held[1](batch).to(dtype=torch.float64))
    wanted = DiffusionLoss(schedule, player.loss.prediction)(network, x0, t, noise)
    torch.testing.assert_close(player(batch, 0).total, wanted)


def test_pairs_are_drawn_once_and_read_again(make_reflow, monkeypatch):
    first = prepared(make_reflow())
    kept = first.objective.pairs._drawn
    monkeypatch.setattr(coupled.DPMpp2M, "__call__", None)
    assert torch.equal(prepared(make_reflow()).objective.pairs._drawn, kept)


def test_drawing_logs_how_many_pairs_are_left(make_reflow, monkeypatch, caplog):
    monkeypatch.setattr(preparing, "FIRST", 0.0)
    monkeypatch.setattr(coupled, "CHUNK", 3)
    with caplog.at_level("INFO"):
        prepared(make_reflow(pairs={"per_picture": 2}))
    (line,) = [message for message in caplog.messages if message.startswith("drawing pairs")]
    assert line.startswith("drawing pairs: 3 of 8, ") and line.endswith(" left")


def test_a_damaged_pair_is_drawn_again(make_reflow, tmp_path):
    kept = prepared(make_reflow()).objective.pairs._drawn
    (shard,) = (tmp_path / "pairs").glob("*.safetensors")
    held = bytearray(shard.read_bytes())
    held[-1] ^= 1
    shard.write_bytes(held)
    assert torch.equal(prepared(make_reflow()).objective.pairs._drawn, kept)
    assert shard.read_bytes()[-1] == held[-1] ^ 1


def test_a_pairs_key_has_how_its_caption_is_read(make_reflow):
    one = prepared(make_reflow()).objective.pairs._key(0)
    assert prepared(make_reflow(settings={"caption_chunks": 1})).objective.pairs._key(0) != one
    assert prepared(make_reflow(precision="bfloat16")).objective.pairs._key(0) != one


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"captions": ["text", "text_alt"]}, "several captions"),
        ({"caption_dropout": 0.1}, "data.caption_dropout"),
        ({"flip": True}, "data.flip"),
    ],
)
def test_captions_that_are_drawn_are_refused(make_reflow, data, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(make_reflow(data))


def test_settings_of_drawn_noise_are_refused(tiny_folder, make_run):
    for changes in ({"offset_noise": 0.1}, {"validation": {"split": "val"}}, {"masked": {}}):
        with pytest.raises(ConfigError, match="is for training on pictures without a start"):
            build_objective(make_run({"name": "reflow", "init": str(tiny_folder), **changes}, TEXT))


@pytest.fixture
def two_styles(tmp_path):
    """Four things in outline and filled, and one without partner."""
    rows = []
    for k, colour in enumerate(("red", "green", "blue", "black")):
        for style in ("filled", "outline") if k else ("filled",):
            picture = Image.new("RGB", (32, 32), "white")
            picture.paste(colour if style == "filled" else "gray", (4, 4 + k, 28, 20 + k))
            name = f"{style}-{k}.png"
            picture.save(tmp_path / name)
            rows.append({"file_name": name, "text": f"{style} {k}", "name": f"thing {k}", "style": style})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_bridge_starts_at_the_partners_latents(tiny_folder, make_run, two_styles):
    objective = {"name": "bridge", "init": str(tiny_folder), "start": {"style": "outline"}}
    data = {**TEXT, "path": str(two_styles), "where": {"style": "filled"}}
    trainer = prepared(make_run(objective, data, steps=2))
    player, batch = trainer.objective.player, first_batch(trainer)
    x0 = player.held[0](batch)
    last = player.loss.schedule.level(999)
    ends = last.alpha * x0 + last.sigma * player.noise(batch, x0)
    started = trainer.objective.started
    for row, end in zip(batch.row, ends, strict=True):
        name = trainer.objective.data.rows[row]["name"]
        partner = [k for k in range(len(started)) if started.rows[k]["name"] == name]
        if partner:
            mean = player.parts[0].autoencoder.encode(started.image(partner[0])[None].float() / 127.5 - 1).mean
            error = end - player.parts[0].autoencoder.scale(mean)[0]
            assert error.abs().mean() < 3.0  # a draw of the posterior, not its mean
    losses = player(batch, 0).total
    alone = [trainer.objective.data.rows[row]["name"] == "thing 0" for row in batch.row]
    assert [bool(loss == 0) for loss in losses] == alone
    trainer.fit()


def test_a_bridge_without_partners_or_with_mirrored_pictures_is_refused(tiny_folder, make_run, two_styles):
    objective = {"name": "bridge", "init": str(tiny_folder), "start": {"style": "outline"}}
    data = {**TEXT, "path": str(two_styles), "where": {"style": "filled"}}
    with pytest.raises(DataError, match=r"no picture of data\.where shares"):
        build_objective(make_run({**objective, "match": "text"}, data))
    with pytest.raises(DataError, match=r"'outline-1.png' and 'outline-2.png' of objective.start both have style 'out"):
        build_objective(make_run({**objective, "match": "style"}, data))
    rows = [json.loads(line) for line in (two_styles / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        row["tags"] = [row["name"]] if row["style"] == "outline" else [row["name"], "drawn"]
    (two_styles / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"'filled-0.png' has 2 values of 'tags' \(drawn, thing 0\), where one is read"):
        build_objective(make_run({**objective, "match": "tags"}, data))
    with pytest.raises(ConfigError, match="leave flip and random_crop out"):
        build_objective(make_run(objective, {**data, "flip": True}))


@pytest.fixture
def make_beside(tiny_folder, make_run, two_styles):
    """Return a function that makes a run of diffusion that reads the outlines; `partner=None`: that reads nothing."""

    def make(partner="channels", settings=None, **values):
        own = {"name": "unet"} if partner is None else {"name": "bridge", "start": {"style": "outline"}}
        chosen = {} if partner is None else {"partner": partner}
        data = {**TEXT, "path": str(two_styles), "where": {"style": "filled"}}
        return make_run({"init": str(tiny_folder), **own, **chosen, **(settings or {})}, data, **values)

    return make


def test_the_network_reads_the_noisy_latents_and_then_the_partners(make_beside):
    trainer = prepared(make_beside())
    player, batch = trainer.objective.player, first_batch(trainer)
    read = []
    player.unet.conv_in.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0]))
    x0 = player.held[0](batch)
    player(batch, 0)
    (seen,) = read
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in player.loss.schedule.alpha_sigma(player.times(batch.sample)))
    noisy = (alpha * x0 + sigma * normal(0, "noise", batch.sample, x0.shape[1:])).float()
    torch.testing.assert_close(seen[:, : x0.shape[1]], noisy)
    assert torch.equal(seen[:, x0.shape[1] :], player.coupling.starts(batch))


def test_the_first_loss_is_that_of_ordinary_diffusion_where_there_is_a_partner(make_beside):
    beside, ordinary = (prepared(make_beside(partner, precision="float64")) for partner in ("channels", None))
    batch = first_batch(beside)
    wanted, found = (trainer.objective.player(batch, 0).total for trainer in (ordinary, beside))
    paired = torch.tensor([beside.objective.data.rows[row]["name"] != "thing 0" for row in batch.row])
    assert paired.sum() == 3
    torch.testing.assert_close(found, torch.where(paired, wanted, 0.0), rtol=1e-12, atol=0)


def test_a_model_that_reads_a_partner_is_written_whole_and_draws_no_text_alone(make_beside, tiny_folder):
    run = make_beside(optimizer={"learning_rate": 1e-3})
    assert train(run) == 0
    pipe = LatentDiffusionPipeline.from_pretrained(run.output / "model", device="cpu")
    weight = pipe.components.unet.conv_in.weight
    assert pipe.components.reads_partner and weight.shape[1] == 8 and weight[:, 4:].abs().min() > 0
    with pytest.raises(ConfigError, match="its U-Net reads 8 channels, the latents have 4: it also needs a picture"):
        pipe("a red disc")
    again = prepared(make_beside(settings={"init": str(run.output / "model")}))
    assert torch.equal(again.objective.components.unet.conv_in.weight, weight)
    with pytest.raises(ConfigError, match="reads 8 and writes 4 channels"):
        build_objective(make_beside("start", {"init": str(run.output / "model")}))


def test_diffusion_beside_a_partner_continues_bit_for_bit(make_beside, tmp_path):
    straight, halves = str(tmp_path / "straight"), str(tmp_path / "halves")
    for steps, output in ((4, straight), (2, halves), (4, halves)):
        assert train(make_beside(steps=steps, output=output, batch_size=2, ema={"decay": 0.9})) == 0
    wanted, found = (newest_state(tmp_path / name / "checkpoints") for name in ("straight", "halves"))
    assert wanted is not None and found is not None
    wanted, found = wanted.tensors("unet"), found.tensors("unet")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_a_partner_in_channels_excludes_is_refused(make_beside, tiny_family):
    with pytest.raises(ConfigError, match="sample: sample pictures are drawn of a prompt alone"):
        build_objective(make_beside(sample={"prompts": ["a red disc"]}))
    with pytest.raises(ConfigError, match="validation is for training on pictures without a start"):
        build_objective(make_beside(settings={"validation": 0.5}))
    with pytest.raises(ConfigError, match="must read 4, or 8 with a partner"):
        build_objective(make_beside(settings={"init": str(tiny_family("sd1_inpaint"))}))


def test_a_reflowed_model_is_written_whole(make_reflow):
    run = make_reflow(steps=2, batch_size=2)
    assert train(run) == 0
    pipe = LatentDiffusionPipeline.from_pretrained(run.output / "model", device="cpu")
    assert len(pipe("a red disc", sampler="euler", spacing="trailing", num_inference_steps=1, seed=0).images) == 1
