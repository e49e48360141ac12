"""Settings that cannot be combined: each is refused, and docs/training.md has the table of them with the reasons."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.config import RunConfig, parse_section
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.time_law import TimeLaw
from latent_diffusion.errors import ConfigError
from latent_diffusion.families import sd1
from latent_diffusion.training.adapters.adapter_layers import AdapterSettings
from latent_diffusion.training.networks.parts import ModelSettings, build_parts
from latent_diffusion.training.objective import Player
from latent_diffusion.training.objectives.lora import LoraSettings
from latent_diffusion.training.optimizer import build_optimizer, optimizer_settings
from latent_diffusion.training.run import build_objective

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
START, END = "<!-- made by tests/training/test_refusals.py -->\n", "<!-- end -->"


def run(**changes) -> RunConfig:
    values = {"output": "x", "objective": {"name": "unet"}, "data": {}, "batch_size": 8, "steps": 100} | changes
    return parse_section(RunConfig, {key: value for key, value in values.items() if value is not None}, "run")


def loss(**settings) -> DiffusionLoss:
    scheduler = settings.pop("scheduler", {})
    return DiffusionLoss(*read_schedule({**sd1.SCHEDULER, **scheduler}), **settings)


def two_rates() -> Player:
    """A player one of whose weights has a learning rate of its own."""

    class Two(Player):
        def forward(self, batch, step):
            raise NotImplementedError

        def learning_rates(self) -> dict[str, float]:
            return {"1.weight": 1e-5}

    player = Two()
    for place in ("0", "1"):
        player.add_module(place, nn.Linear(2, 2))
    return player


COMBINATIONS: dict[str, Callable] = {
    "`steps: 100`, `passes: 2`": lambda: run(passes=2),
    "neither `steps` nor `passes`": lambda: run(steps=None),
    "`decay: cosine`, `warmup: 100`, `steps: 100`": lambda: run(decay="cosine", warmup=100),
    "`batch_size: 8`, `accumulation: 3`": lambda: run(accumulation=3),
    "`optimizer: {name: schedule_free}`, `decay: cosine`": lambda: optimizer_settings(
        run(optimizer={"name": "schedule_free"}, decay="cosine")
    ),
    "`optimizer: {name: prodigy}`, a rule with `learning_rate`": lambda: build_optimizer(
        two_rates(), optimizer_settings(run(optimizer={"name": "prodigy"}))
    ),
    "`scheduler: {rescale_betas_zero_snr: true}`, a model with PNDM": lambda: build_parts(
        ModelSettings(parts={"vae": "a", "text_encoder": "b"}, unet="sd1", scheduler={"rescale_betas_zero_snr": True})
    ),
    "`objective: {name: clip}`, `accumulation: 2`": lambda: build_objective(
        run(objective={"name": "clip"}, accumulation=2)
    ),
    "`init`, `parts`": lambda: build_parts(ModelSettings(init="emoji", parts={"vae": "a", "text_encoder": "b"})),
    "`init`, `unet`": lambda: build_parts(ModelSettings(init="emoji", unet="sd1")),
    "`weighting: simple`, `gamma: 5`": lambda: loss(gamma=5.0),
    "`weighting: min_snr`, `k: 1`": lambda: loss(weighting="min_snr", k=1.0),
    "`weighting: bound`, `huber: 0.1`": lambda: loss(weighting="bound", huber=0.1),
    "epsilon, zero terminal SNR": lambda: loss(
        scheduler={"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    ),
    "`times: {law: uniform, mean: 1}`": lambda: TimeLaw("uniform", mean=1.0),
    "`times: {law: importance, std: 2}`": lambda: TimeLaw("importance", std=2.0),
    "`times: {low: 0.5, high: 0.5}`": lambda: TimeLaw(low=0.5, high=0.5),
    "`adapter: {form: lora, factor: 4}`": lambda: parse_section(AdapterSettings, {"factor": 4}, "objective.adapter"),
    "`adapter: {parts: [unet, unet]}`": lambda: parse_section(
        AdapterSettings, {"parts": ["unet", "unet"]}, "objective.adapter"
    ),
    "`words_learning_rate` without `words`": lambda: parse_section(
        LoraSettings, {"init": "emoji", "words_learning_rate": 1e-3}, "objective"
    ),
}


def reason(settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        COMBINATIONS[settings]()
    return str(caught.value)


def table() -> str:
    rows = [f"| {settings} | {reason(settings)} |" for settings in COMBINATIONS]
    return "\n".join(["| settings | answer |", "|---|---|", *rows]) + "\n"


def test_every_combination_is_refused_and_the_page_has_its_reason():
    text = PAGE.read_text("utf-8")
    made = table()
    assert START in text and text.partition(START)[2].partition(END)[0] == made, made
