"""The loop: gradients, accumulation, averages, the guard against what is not finite, and the audit."""

import json
import math
import os
import signal
import time

import pytest
import torch
import toy
from processes import assert_equal_states, finish, last_step, losses_of, start, state_of, train

from latent_diffusion.config import EmaConfig, RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.randomness import normal
from latent_diffusion.training.ema import MovingAverage
from latent_diffusion.training.numbers import sample_numbers
from latent_diffusion.training.optimizer import learning_rate
from latent_diffusion.training.state.run_folder import RunFolder


def settings(**changes) -> RunConfig:
    values = {"output": "x", "objective": {"name": "toy"}, "data": {}, "steps": 10, "batch_size": 8}
    return RunConfig.model_validate(values | changes)


def message(output) -> str:
    return (output.parent / f"{output.name}.err0").read_text()


def test_loss_and_first_update_are_what_the_formulas_say(tmp_path):
    """One AdamW step from the mean over the global batch, by plain torch."""
    output = tmp_path / "run"
    options = ("steps=1", "precision=float64", "clip_norm=null", "warmup=0", "decay=constant", "accumulation=2")
    assert train(output, *options) == 0
    torch.manual_seed(0)
    run = settings(seed=0)
    objective = toy.ToyObjective(toy.ToySettings(), toy.ToyData(), run)
    for module in (*objective.players.values(), *objective.frozen.values()):
        module.double()
    objective.dtype = torch.float64
    (batch,) = objective.batches([[0, 1, 2, 3]])
    loss = objective.maker(batch, 0).total.mean()
    loss.backward()
    weights = dict(objective.maker.named_parameters())
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in weights.values()))
    line = losses_of(output)[0]
    assert line["maker/loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert line["maker/gradient_norm"] == pytest.approx(norm, rel=1e-12)
    state = state_of(output)
    for name, p in weights.items():
        decay = 1e-2 if p.ndim >= 2 else 0.0
        expected = p.detach() * (1 - 1e-2 * decay) - 1e-2 * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(state[f"maker.safetensors/{name}"], expected, rtol=1e-10, atol=1e-12)


def test_accumulation_changes_rounding_only(tmp_path):
    logs = []
    for number in (1, 2, 4):
        output = tmp_path / f"run{number}"
        assert train(output, f"accumulation={number}", "precision=float64") == 0
        logs.append(losses_of(output))
    for other in logs[1:]:
        for line, expected in zip(other, logs[0], strict=True):
            assert line == pytest.approx(expected, rel=1e-9)


def test_same_seed_is_bit_equal_and_another_is_not(tmp_path):
    assert [train(tmp_path / name, f"seed={seed}") for name, seed in (("a", 0), ("b", 0), ("c", 1))] == [0, 0, 0]
    assert_equal_states(tmp_path / "a", tmp_path / "b")
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") != losses_of(tmp_path / "c")


def test_processes_share_out_every_sample_once():
    run = settings(steps=3, batch_size=12, accumulation=2)
    whole = list(sample_numbers(run, start=0, rank=0, processes=1))
    assert [n for micro in whole for n in micro] == list(range(36))
    shares = [list(sample_numbers(run, start=0, rank=rank, processes=3)) for rank in range(3)]
    assert [[n for part in micro for n in part] for micro in zip(*shares, strict=True)] == whole
    assert list(sample_numbers(run, start=2, rank=0, processes=1)) == whole[4:]
    with pytest.raises(ConfigError, match=r"12 pictures cannot be shared by 5 processes x 2 micro-batches.*of 10"):
        sample_numbers(run, start=0, rank=0, processes=5)


def test_learning_rate_curves():
    run = settings(steps=110, warmup=10, decay="cosine", optimizer={"learning_rate": 2.0})
    assert [learning_rate(s, run) for s in (0, 4, 9, 10)] == [0.2, 1.0, 2.0, 2.0]
    assert learning_rate(60, run) == pytest.approx(1.0) and learning_rate(110, run) == pytest.approx(0.0)
    linear = run.model_copy(update={"decay": "linear"})
    assert learning_rate(35, linear) == pytest.approx(1.5)
    assert learning_rate(10**6, run.model_copy(update={"decay": "constant"})) == 2.0


def test_moving_average():
    net = torch.nn.Linear(3, 2)
    average = MovingAverage({"net": net}, EmaConfig(decay=0.5, warmup=10))
    expected = {name: p.detach().clone() for name, p in net.named_parameters()}
    for step in range(20):
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(normal(0, "weights", [step], p.shape)[0])
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * p.detach() for name, p in net.named_parameters()}
    live = {name: p.detach().clone() for name, p in net.named_parameters()}
    with average.in_place():
        torch.testing.assert_close(dict(net.named_parameters()), expected)
    assert all(torch.equal(p, live[name]) for name, p in net.named_parameters())
    torch.testing.assert_close(average.tensors(), {f"net.{name}": t for name, t in expected.items()})


@pytest.mark.parametrize("fault", ["objective.nan_loss_at=7", "objective.nan_gradient_at=7"])
def test_what_is_not_finite_stops_before_the_update(tmp_path, fault):
    output, sound = tmp_path / "run", tmp_path / "sound"
    assert train(output, fault, "checkpoint.every=1") == 5
    text = message(output)
    assert "diverged in update 8: maker" in text and "samples 28 .. 31" in text and "learning rate" in text
    assert "Traceback" not in text
    status = json.loads((output / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["saved"]) == ("diverged", 5, 7)
    assert train(sound, "checkpoint.every=1") == 0
    assert all(t.isfinite().all() for t in state_of(output).values())
    assert losses_of(output) == losses_of(sound)[:7]


def test_an_absurd_learning_rate_ends_with_5_and_finite_files(tmp_path):
    output = tmp_path / "run"
    assert train(output, "optimizer.learning_rate=1e20", "warmup=0", "checkpoint.every=1") == 5
    assert len(losses_of(output)) < 10
    assert all(t.isfinite().all() for t in state_of(output).values())


def test_previews_change_nothing_even_when_they_fail(tmp_path):
    shown, failing, without = tmp_path / "shown", tmp_path / "failing", tmp_path / "without"
    assert train(shown, "sample.every=2") == 0
    assert train(failing, "sample.every=2", "objective.preview_fails=true") == 0
    assert train(without) == 0
    assert len(list((shown / "samples").glob("step-*-0.png"))) == 6
    assert "no sample pictures after step 2: RuntimeError: no picture today" in message(failing)
    for output in (shown, failing):
        assert_equal_states(output, without)
        assert losses_of(output) == losses_of(without)


def test_the_exported_weights_are_the_average(tmp_path):
    from latent_diffusion.checkpoint.files.safetensors_file import read_tensors

    output = tmp_path / "run"
    assert train(output) == 0
    exported, state = read_tensors(output / "model" / "toy.safetensors"), state_of(output)
    for name, tensor in exported.items():
        assert torch.equal(tensor, state[f"ema.safetensors/maker.{name}"])
        assert not torch.equal(tensor, state[f"maker.safetensors/net.{name}"])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("objective.learns=false", "without any gradient in 5 updates: spare"),
        ("objective.global_draw=true", "draws from torch's global generator"),
        ("objective.thaw=true", "frozen, but changed: frozen"),
    ],
)
def test_the_audit_names_what_does_not_train_as_it_says(tmp_path, fault, words):
    assert train(tmp_path / "run", fault) == 70
    assert words in message(tmp_path / "run")


def test_one_run_in_a_folder_at_a_time(tmp_path):
    output = tmp_path / "run"
    process = start(output, "objective.seconds=0.2")
    while last_step(output) < 1:
        time.sleep(0.01)
    lock = json.loads((output / ".lock").read_text())
    assert lock["pid"] == process.pid
    before = (output / "log.jsonl").read_bytes()
    assert train(output, "objective.seconds=0.2") == 6
    assert f"process {process.pid} on" in message(output)
    assert (output / "log.jsonl").read_bytes()[: len(before)] == before
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    assert json.loads((output / ".lock").read_text())["pid"] == process.pid  # stale: taken over
    assert train(output, "steps=4", "allow_drift=true") == 0


def test_a_folder_with_other_things_is_refused(tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "thesis.tex").write_text("precious")
    assert train(output) == 2
    assert "thesis.tex" in message(output)


def test_no_space_is_found_before_training(tmp_path, monkeypatch):
    from latent_diffusion.errors import ResourceError

    folder = RunFolder(tmp_path)
    folder.check_space(2**20, keep=2)
    with pytest.raises(ResourceError, match=r"MiB free, the run needs .* \(2 \+ 1 checkpoints of"):
        folder.check_space(2**60, keep=2)


def test_wrong_keys_of_the_sections_end_with_2(tmp_path):
    assert train(tmp_path / "run", "objective.opponent_strat=3") == 2
    assert "objective: unknown key `opponent_strat` (did you mean 'opponent_start'?)" in message(tmp_path / "run")
    assert not (tmp_path / "run" / "status.json").exists()


def test_a_run_that_is_refused_leaves_no_new_folder(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for path in (tmp_path / "new", there):
        with pytest.raises(ConfigError), RunFolder(path).locked():
            raise ConfigError("refused")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]  # the user's own stays
    with pytest.raises(ConfigError), RunFolder(tmp_path / "new").locked():
        (tmp_path / "new/config.json").touch()
        raise ConfigError("after the first file")
    assert (tmp_path / "new/config.json").exists()
