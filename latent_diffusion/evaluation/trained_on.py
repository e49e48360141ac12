"""The part of a data set that a model was trained on, as recorded in its folder.

Training writes `training.json` into the model folder; its `config.data` is the `data:` section of the run, for example
`{"config": {"data": {"where": {"style": ["noto"], "split": "train"}, "where_not": {"group": "symbols"}}}}`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from latent_diffusion.errors import CheckpointError, ConfigError

__all__ = ["RECORD", "TrainedOn", "parse_filters", "read_trained_on"]

RECORD = "training.json"

Filter = dict[str, list[str]]


@dataclass(frozen=True)
class TrainedOn:
    """Field -> values kept, and field -> values left out; the split is not part of it."""

    where: Filter
    where_not: Filter


def read_trained_on(folder: Path) -> TrainedOn:
    """Return the record of a model folder; no record means all of the data.

    Raises:
        CheckpointError: the record cannot be read.
    """
    file = folder / RECORD
    if not file.is_file():
        return TrainedOn({}, {})
    try:
        data = json.loads(file.read_text("utf-8"))["config"]["data"]
        return TrainedOn(_filter(data.get("where")), _filter(data.get("where_not")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{str(file)!r} is not a training record: {type(error).__name__}: {error}") from error


def _filter(values: object) -> Filter:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"a filter must be an object, found {values!r}")
    lists = {str(name): value if isinstance(value, list) else [value] for name, value in values.items()}
    return {name: [str(item) for item in items] for name, items in lists.items() if name != "split"}


def parse_filters(texts: list[str]) -> Filter:
    """Return the filter that `style=noto,fluent-3d` and the like on a command line mean.

    Raises:
        ConfigError: not of the form field=value[,value...].
    """
    found: Filter = {}
    for text in texts:
        name, equals, values = text.partition("=")
        items = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or not name.strip() or not items:
            raise ConfigError(f"filter {text!r} is not of the form field=value or field=value,value")
        found.setdefault(name.strip(), []).extend(items)
    return found
