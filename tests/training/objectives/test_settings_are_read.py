"""Every accepted setting is read by the run: one that nothing reads would be accepted and have no effect."""

import inspect
import sys
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from latent_diffusion.config import RunConfig, Section
from latent_diffusion.registry import find, names
from latent_diffusion.training.optimizer import build_optimizer, optimizer_settings
from latent_diffusion.training.run import train

OBJECTIVES = names("latent_diffusion.training.objectives")
OPTIMIZERS = names("latent_diffusion.training.optimizers")
VALUES: dict[
    str, dict[str, Any]
] = {  # sections that are null if they are left out, and settings that are read beside others only
    "lora": {
        "validation": {"split": "val"},
        "words": [{"token": "disc", "start": "sun", "vectors": 2}],
        "times": {"law": "logit_normal"},
        "weighting": "p2",
    },
    "unet": {"validation": 0.4, "train": {"rules": [{"match": "attn1", "until": 0.5}]}},
    "textual_inversion": {"validation": 0.4, "preserve": {"replace": {"disc": "circle"}}},
    "autoencoder": {"validation": 0.4, "perceptual": 0.05},
    "clip": {"validation": 0.4},
}

BESIDE_OTHERS = {  # read where another setting asks for it, by the test that is named
    "test_bucketed": "BucketConfig.enlarge BucketConfig.max_side BucketConfig.min_side BucketConfig.sizes "
    "BucketConfig.step",
    "test_caches": "CacheConfig.folder CacheConfig.gigabytes",
    "test_masked": "MaskedSettings.outside MaskedSettings.prior MaskedSettings.source",
    "test_inpainting": "InpaintingSettings.own InpaintingSettings.shapes InpaintingSettings.whole",
    "test_lora": "AdapterSettings.factor Rule.alpha Rule.learning_rate Rule.match Rule.rank Rule.until",
    "test_unet": "Parts.text_encoder Parts.vae",
    "test_autoencoder": "AutoencoderSettings.equivariance",
    "test_clip": "Tower.layers Tower.mlp_ratio",
    "test_validation": "EvaluateConfig.patience",
    "test_resume": "RunConfig.allow_drift RunConfig.resume",
    "test_folder": "DataConfig.max_bad DataConfig.on_bad",
    "test_captions": "WordingConfig.keep WordingConfig.separator",
    "test_sources": "SourceConfig.picture",
}


@pytest.fixture
def read(monkeypatch):
    """The settings read so far, by section and name, but for what a section reads of itself to check it."""
    seen: set[tuple[type, str]] = set()
    plain = Section.__getattribute__

    def watched(self, name):
        kind = type(self)
        caller = sys._getframe(1)
        checks = caller.f_code.co_name.startswith("_") and caller.f_locals.get("self") is self
        if name in kind.__pydantic_fields__ and not checks:
            seen.add((kind, name))
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", watched)
    return seen


def sections(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """A section and all within it."""
    found = {kind}
    for field in kind.model_fields.values():
        parts = [field.annotation]
        while parts:
            part = parts.pop()
            if inspect.isclass(part) and issubclass(part, BaseModel):
                found |= sections(part)
            parts += get_args(part)
    return found


def unread(kinds: set[type[BaseModel]], seen: set[tuple[type, str]]) -> set[str]:
    return {f"{kind.__name__}.{name}" for kind in kinds for name in kind.model_fields if (kind, name) not in seen}


@pytest.mark.slow
def test_every_setting_of_a_run_is_read(tiny_objective, pictures, tmp_path, read):
    kinds = sections(RunConfig)
    for name in OBJECTIVES:
        kind = find("latent_diffusion.training.objectives", name)
        kinds |= sections(kind.settings_type) | sections(kind.data_type)
        data = {"size": 32} if name == "concepts" else {"path": str(pictures), "size": 32, "where": {"split": "train"}}
        run = {
            "output": tmp_path / name, "steps": 2, "batch_size": 2, "threads": 1, "ema": {},
            "objective": tiny_objective(name) | VALUES.get(name, {}), "data": data,
            "sample": {"prompts": ["a red disc"], "steps": 2},
        }  # fmt: skip
        if "validation" in VALUES.get(name, {}):
            run["evaluate"] = {"every": 2, "patience": 1}
        assert train(RunConfig.model_validate(run)) == 0, name
    assert unread(kinds, read) == {name for fields in BESIDE_OTHERS.values() for name in fields.split()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_of_an_optimizer_is_read(name, read):
    kind = find("latent_diffusion.training.optimizers", name)
    layer = torch.nn.Linear(2, 2)
    layer.learning_rates = dict
    run = RunConfig(output="x", objective={"name": "unet"}, data={}, steps=1, batch_size=1, optimizer={"name": name})
    build_optimizer(layer, optimizer_settings(run))
    assert unread({kind}, read) == set()
