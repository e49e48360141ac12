"""A second tree of modules over the same tensors, so that one can be changed while the other stays as it is."""

from typing import TypeVar

from torch import nn

__all__ = ["shared_copy"]

M = TypeVar("M", bound=nn.Module)


def shared_copy(module: M) -> M:
    """Return a new module tree in which every parameter, buffer and plain attribute is the very object of `module`.

    Modules are new, with tables of their own: replacing a parameter, a submodule or a field in the copy does not touch
    `module`. Writing INTO a shared tensor does. A module that appears twice in the tree does so in the copy.
    """
    return _copy(module, {})


def _copy(module: M, done: dict[nn.Module, nn.Module]) -> M:
    if module not in done:
        twin = done[module] = module.__new__(type(module))
        tables = {name: table.copy() for name, table in vars(module).items() if _is_table(name, table)}
        vars(twin).update({**vars(module), **tables})
        children = {name: None if child is None else _copy(child, done) for name, child in module._modules.items()}
        vars(twin)["_modules"] = children
    return done[module]  # pyright: ignore[reportReturnType]  # each copy has the type of its original


def _is_table(name: str, value: object) -> bool:
    """Whether an attribute is one of torch's tables (parameters, buffers, hooks), which no two modules share."""
    return name.startswith("_") and isinstance(value, dict | set)
