"""Data sets of the hub in a run: their revisions are resolved to commits once, and a continued run keeps them."""

import logging
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from accelerate.utils import gather_object

from latent_diffusion.config import RunConfig
from latent_diffusion.data.places.hub import HubPath, on_hub, pinned
from latent_diffusion.errors import LatentDiffusionError
from latent_diffusion.training.state.training_state import TrainingState

__all__ = ["with_pinned_data"]

logger = logging.getLogger(__name__)


def with_pinned_data(run: RunConfig, state: TrainingState | None, *, first: bool) -> RunConfig:
    """Return the run with a commit in every path that names a data set of the hub.

    The first process looks the commits up and shares them. Where the path has no revision, the commit of a checkpoint
    stays, also where the hub has a newer one by now.

    Raises:
        ConfigError, DataError, ResourceError: as `pinned`.
    """
    paths = [path for path in _paths(run.data) if on_hub(path)]
    if not paths:
        return run
    before = [path for path in _paths(state.values["config"]["data"]) if on_hub(path)] if state else []
    found: dict[str, str] | LatentDiffusionError = {}
    if first:
        download = bool(run.data.get("download"))
        try:
            found = {
                path: _commit(path, old, download=download) for path, old in zip_longest(paths, before[: len(paths)])
            }
        except LatentDiffusionError as fault:
            found = fault
    found = gather_object([found])[0]
    if isinstance(found, LatentDiffusionError):
        raise found
    for path in found.values():
        logger.info("data: %s", path)
    return run.model_copy(update={"data": _replaced(run.data, found)})


def _commit(path: str, before: str | None, *, download: bool) -> str:
    """Return the path with its commit; `before` is the path that the checkpoint has in the same place."""
    if before is not None and HubPath.parse(path).revision is None and _bare(path) == _bare(before):
        return before
    return pinned(path, download=download)


def _bare(path: str) -> str:
    """Return a path without its revision."""
    one = HubPath.parse(path)
    return str(HubPath(one.repository, None, one.place))


def _paths(data: Mapping[str, Any]) -> list[str]:
    """Return the paths of a `data:` section as it is written."""
    sources = data.get("sources")
    sections = [data, *(sources if isinstance(sources, list) else [])]
    return [one["path"] for one in sections if isinstance(one, Mapping) and isinstance(one.get("path"), str)]


def _replaced(data: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, Any]:
    changed = {**data}
    if isinstance(data.get("path"), str):
        changed["path"] = found.get(data["path"], data["path"])
    if isinstance(data.get("sources"), list):
        changed["sources"] = [_replaced(one, found) if isinstance(one, Mapping) else one for one in data["sources"]]
    return changed
