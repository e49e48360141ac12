"""Reading a run: numbers, overrides, and one clear line for everything that is wrong."""

import pytest

from latent_diffusion.config import parse_section, read_config
from latent_diffusion.errors import ConfigError

GOOD = """
output: runs/a
objective: {name: toy, rate: 1e-3}
data: {}
steps: 100
batch_size: 8
optimizer:
  learning_rate: 1e-4
"""


def read(tmp_path, text=GOOD, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_config(path, list(overrides))


def test_numbers_are_those_of_yaml_1_2(tmp_path):
    run = read(tmp_path, GOOD + "seed: 010\n", "clip_norm=5e-1", "ema.decay=.999", "accumulation=2")
    assert run.optimizer["learning_rate"] == 1e-4 and run.objective["rate"] == 1e-3
    assert (run.seed, run.clip_norm, run.ema.decay, run.accumulation) == (10, 0.5, 0.999, 2)


def test_words_that_yaml_1_1_takes_for_booleans_stay_words(tmp_path):
    assert read(tmp_path, GOOD, "objective.word=off", "objective.time=12:30").objective["word"] == "off"


def test_overrides_set_lists_and_null(tmp_path):
    run = read(tmp_path, GOOD, "sample.every=5", "sample.prompts=[a cat, a dog]", "clip_norm=null")
    assert run.sample.prompts == ["a cat", "a dog"] and run.clip_norm is None


WRONG = {
    "learing_rate: 1": r"run.yaml: unknown key `learing_rate`",
    "lerning_rate=1": r"unknown key `lerning_rate` \(did you mean 'optimizer.learning_rate'\?\)",
    "learning_rate=1": r"did you mean 'optimizer.learning_rate'\?",
    "lr=1": r"did you mean 'optimizer.learning_rate'\?",
    "ema.dekay=1": r"unknown key `ema.dekay` \(did you mean 'decay'\?\)",
    "ema=0.999": r"`ema`: keys under it are expected \(decay, warmup\), found 0.999; for example ema: \{decay: 0.999\}",
    "sample=true": r"`sample`: keys under it are expected \(every, [^)]*\), found True$",
    "optimizer=adamw": r"`optimizer`: keys under it are expected, found 'adamw'; for .* optimizer: \{name: adamw\}",
    "trackers=wandb": r"`trackers`: a list is expected, found 'wandb'; write \[wandb\]",
    "batch_sise=1": r"unknown key `batch_sise` \(did you mean 'batch_size'\?\)",
    "steps=two": r"`steps` is 'two', a number is required",
    "steps=true": r"`steps` is True, a number is required",
    "steps=1.5": r"`steps`.*found 1.5",
    "steps=null": r"give steps .* or passes .*found neither",
    "steps=0": r"`steps`.*greater than or equal to 1.*found 0",
    "batch_size=-4": r"`batch_size`.*found -4",
    "ema.decay=1.5": r"`ema.decay`.*less than 1",
    "precision=float16": r"`precision`.*'auto', 'float32', 'bfloat16' or 'float64'",
    "seed=4294967296": r"`seed`.*4294967295",
    "accumulation=3": r"batch_size 8 is not a multiple of accumulation 3",
    "objective={}": r"objective.name is missing",
    "steps.a=3": r"`steps` is a value, not a section",
    "steps": r"not of the form key=value",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_get_one_line(tmp_path, wrong):
    in_file = ": " in wrong
    with pytest.raises(ConfigError, match=WRONG[wrong]) as caught:
        read(tmp_path, GOOD + wrong if in_file else GOOD, *([] if in_file else [wrong]))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


BROKEN = {
    "steps: 1\nsteps: 2\n": r"run.yaml:2: not valid YAML: duplicate key 'steps'",
    "a: [1, 2\n": r"run.yaml:2: not valid YAML",
    "- a\n- b\n": r"`key: value` lines, found list",
    "a: !!python/object/apply:os.system [false]\n": r"not valid YAML: could not determine a constructor",
    "a: " + "[" * 100_000: r"not valid YAML",
    "1: 2\n": r"key 1 is not a string",
    "": r"`key: value` lines, found NoneType",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_broken_files_name_the_line(tmp_path, text):
    with pytest.raises(ConfigError, match=BROKEN[text]):
        read(tmp_path, text)


def test_missing_file_and_missing_keys(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration: No such file"):
        read_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="`output` is missing \\(and 3 more\\)"):
        read(tmp_path, "seed: 1\n")


def test_a_key_of_an_optimizer_by_its_initials():
    from latent_diffusion.training.optimizers.adamw import AdamW

    with pytest.raises(ConfigError, match=r"unknown key `lr` \(did you mean 'learning_rate'\?\)"):
        parse_section(AdamW, {"lr": 1}, "optimizer")
