"""How a `scheduler_config.json` of diffusers holds a noise law: facts that stand on the law's class.

    schedulers: ClassVar[tuple[SchedulerForm, ...]] = (SchedulerForm({"beta_schedule": "linear"}),)

`checkpoint/folder/scheduler_config.py` reads and writes by them. A law without a form draws and trains, and is refused
where a model is saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["SchedulerForm"]


@dataclass(frozen=True)
class SchedulerForm:
    """One form; of several, the first is written where the file has none of them yet."""

    marks: Mapping[
        str, Any
    ]  # fields and their values by which the law is recognised; "Flow*" is any text from "Flow" on
    names: Mapping[str, str] = field(default_factory=dict)  # the law's field -> the file's, where the two differ
    prediction: str = ""  # the only one that a network of this law may have in diffusers; "" = any
    writes_prediction: bool = True  # whether the file has a `prediction_type`
    refused: Mapping[str, str] = field(default_factory=dict)  # fields that may not be set, and what is read instead

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Return whether a configuration has all marks."""
        return all(_equal(config.get(name), mark) for name, mark in self.marks.items())

    def name_of(self, name: str) -> str:
        """Return the file's name of the law's field `name`."""
        return self.names.get(name, name)


def _equal(value: object, mark: object) -> bool:
    if isinstance(mark, str):
        return isinstance(value, str) and fnmatchcase(value, mark)
    return value is mark if isinstance(mark, bool) else value == mark
