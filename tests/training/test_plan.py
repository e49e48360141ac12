"""How long a run is: updates or passes through the data, and what it prints of that."""

import json
import re

import pytest
import toy
from processes import assert_equal_states, losses_of, train

from latent_diffusion.config import RunConfig, read_config
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.plan.run_plan import with_steps


def printed(output) -> str:
    return (output.parent / f"{output.name}.err0").read_text()


def test_passes_are_the_updates_that_they_amount_to_and_resume_alike(tmp_path):
    """Ten samples a pass, four an update: 4.8 passes are 12 updates."""
    passes, steps = tmp_path / "passes", tmp_path / "steps"
    assert train(steps) == 0
    assert train(passes, "steps=null", "passes=4.8", fault=("within a tensor file", 7)) < 0
    assert train(passes, "steps=null", "passes=4.8") == 0
    assert_equal_states(passes, steps)
    assert losses_of(passes) == losses_of(steps)
    assert json.loads((passes / "config.json").read_text())["config"]["steps"] == 12
    written = (passes / "config.json").stat().st_mtime_ns
    assert train(passes, "steps=null", "passes=4.8") == 0
    assert "is finished: 12 steps" in printed(passes) and (passes / "config.json").stat().st_mtime_ns == written


def test_more_passes_go_on(tmp_path):
    output = tmp_path / "run"
    assert train(output, "steps=null", "passes=2", "decay=constant") == 0
    assert train(output, "steps=null", "passes=3", "decay=constant") == 0
    assert json.loads((output / "model" / "training.json").read_text())["step"] == 8


def test_the_plan_is_printed_once_and_then_the_expected_end(tmp_path):
    output = tmp_path / "run"
    assert train(output) == 0
    plan = "plan: 10 pictures / batch_size 4 = 2.5 updates a pass; 12 updates = 48 samples = 4.8 passes"
    assert printed(output).count(plan) == 1
    assert len(re.findall(r"expected end: \d{4}-\d\d-\d\d \d\d:\d\d, in 0:00:0\d \(", printed(output))) == 1


def test_plan_alone_prints_speed_and_memory_and_writes_nothing(tmp_path):
    output = tmp_path / "run"
    assert train(output, "steps=null", "passes=1", "warmup=0", "--plan") == 0
    lines = printed(output)
    assert "3 updates = 12 samples = 1.2 passes" in lines
    assert "trained: 310 numbers" in lines and "expected end: " in lines and re.search(r"peak memory: .* GiB", lines)
    assert not output.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["passes=2"], r"found steps=12 and passes=2.0; set one of them to null"),
        (["steps=null"], "found neither"),
        (["steps=null", "passes=0"], "passes"),
    ],
)
def test_exactly_one_of_steps_and_passes(tmp_path, given, words):
    file = tmp_path / "run.yaml"
    file.write_text(toy.config(tmp_path / "run"))
    with pytest.raises(ConfigError, match=words):
        read_config(file, given)


def test_what_passes_cannot_be_is_refused():
    values = {"output": "x", "objective": {"name": "toy"}, "data": {}, "passes": 1, "batch_size": 4}
    objective = toy.ToyObjective(toy.ToySettings(), toy.ToyData(), RunConfig.model_validate(values))
    run = RunConfig.model_validate({**values, "warmup": 3, "decay": "cosine"})
    with pytest.raises(ConfigError, match=r"warmup 3 leaves nothing of 3 steps.*raise passes or lower warmup"):
        with_steps(run, objective)
    objective.pass_samples = lambda: None
    with pytest.raises(ConfigError, match="objective 'toy' have no end; use steps"):
        with_steps(run, objective)
