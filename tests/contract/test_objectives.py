"""What every file in training/objectives/ must fulfil: documented sections, and weights that move as declared."""

import pytest
import torch
from pydantic import BaseModel, ValidationError

from latent_diffusion.config import RunConfig
from latent_diffusion.registry import find, names
from latent_diffusion.training.objective import Objective, Player
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

PACKAGE = "latent_diffusion.training.objectives"


@pytest.fixture(scope="module", params=names(PACKAGE))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def kind(name):
    return find(PACKAGE, name)


@pytest.fixture(scope="module")
def run(name, kind, tiny_objective, pictures, tmp_path_factory):
    section = tiny_objective(name)
    try:
        kind.settings_type.model_validate({key: value for key, value in section.items() if key != "name"})
    except ValidationError as error:
        missing = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        pytest.skip(f"objective {name} has no settings of a tiny run: {missing}")
    data = {"path": str(pictures), "size": 32, "captions": [] if name == "autoencoder" else ["text"]}
    data = {key: value for key, value in data.items() if key in kind.data_type.model_fields}
    output = str(tmp_path_factory.mktemp("objectives") / name)
    values = {"output": output, "steps": 2, "batch_size": 4, "threads": 1, "objective": section, "data": data}
    return RunConfig.model_validate(values)


def sections(model: type[BaseModel]):
    """Yield the models of a section and of the sections within it."""
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


def built(run):
    torch.manual_seed(run.seed)
    return build_objective(run)


def test_sections_refuse_unknown_keys(kind):
    assert issubclass(kind, Objective)
    for section in (*sections(kind.settings_type), *sections(kind.data_type)):
        assert section.model_config.get("extra") == "forbid", section.__name__
        with pytest.raises(ValidationError, match="no_such_key"):
            section.model_validate({"no_such_key": 1})


def test_every_key_has_a_meaning(kind):
    for section in (*sections(kind.settings_type), *sections(kind.data_type)):
        silent = [key for key, field in section.model_fields.items() if not field.description]
        assert silent == [], section.__name__


def test_what_is_trained_and_what_is_frozen_are_disjoint(run):
    objective = built(run)
    assert objective.players and all(isinstance(player, Player) for player in objective.players.values())
    players = [{id(p) for p in player.parameters()} for player in objective.players.values()]
    frozen = {id(p) for module in objective.frozen.values() for p in module.parameters() if not p.requires_grad}
    trained = set().union(*players)
    assert sum(map(len, players)) == len(trained), "two players train the same weight"
    assert not trained & frozen
    for part, module in objective.frozen.items():
        assert not any(p.requires_grad for p in module.parameters()), part
    averaged = {id(p) for module in objective.ema_modules.values() for p in module.parameters()}
    assert averaged & trained and not averaged & frozen


def test_two_updates_move_what_is_declared_and_nothing_else(run):
    objective = built(run)
    trainer = Trainer(objective, run, build_accelerator())
    before = state(objective)
    trainer.fit()
    after = state(objective)
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    trained = {
        ("player", name, key)
        for name, player in objective.players.items()
        for key, parameter in player.named_parameters()
        if parameter.requires_grad
    }
    assert {key for key in moved if key[0] == "frozen"} == set()
    assert moved == trained and all(tensor.isfinite().all() for tensor in after.values() if tensor.is_floating_point())


def state(objective):
    """Return a copy of every tensor of players and frozen parts, by (kind, part, name)."""
    groups = {"player": objective.players, "frozen": objective.frozen}
    return {
        (group, name, key): tensor.detach().clone()
        for group, parts in groups.items()
        for name, module in parts.items()
        for key, tensor in module.state_dict().items()
    }
