"""Curves and sample pictures beside `log.jsonl`: TensorBoard's files, and Weights & Biases through accelerate."""

import hashlib
import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Tracker", "open_trackers"]

logger = logging.getLogger(__name__)


class Tracker(ABC):
    """A place for curves and pictures; opened at the update from which the run goes on."""

    @abstractmethod
    def __init__(self, folder: Path, run: RunConfig, done: int) -> None:
        """Open it.

        Raises:
            ImportError: its package is not installed.
        """

    @abstractmethod
    def figures(self, done: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""

    @abstractmethod
    def pictures(self, done: int, images: "list[Image]") -> None:
        """Show sample pictures."""

    @abstractmethod
    def close(self) -> None:
        """Write what is open; may be called twice."""


class TensorBoard(Tracker):
    """Files in `tensorboard/`; points after `done`, of a run that was killed later, are dropped."""

    def __init__(self, folder: Path, run: RunConfig, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def figures(self, done: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, done)

    def pictures(self, done: int, images: "list[Image]") -> None:
        import numpy

        for index, image in enumerate(images):
            self._writer.add_image(f"samples/{index}", numpy.asarray(image.convert("RGB")), done, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of the project `latent_diffusion`, its files in `wandb/`; a continued run is the same one there.

    The library decides by its own variables (WANDB_MODE=offline) whether it sends anything.
    """

    def __init__(self, folder: Path, run: RunConfig, done: int) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("trackers: wandb is not installed: pip install wandb, or take it out of trackers")
        from accelerate.tracking import WandBTracker

        place = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        self._tracker: Any = WandBTracker(
            "latent_diffusion", name=folder.name, id=place, resume="allow", dir=str(folder)
        )
        self._tracker.start()
        self._tracker.store_init_configuration(run.model_dump(mode="json"))
        self._open = True

    def figures(self, done: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=done)

    def pictures(self, done: int, images: "list[Image]") -> None:
        self._tracker.log_images({"samples": images}, step=done)

    def close(self) -> None:
        if self._open:
            self._tracker.finish()
        self._open = False


TRACKERS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def open_trackers(folder: Path, run: RunConfig, done: int) -> list[Tracker]:
    """Return the trackers that the run names, without those that cannot be opened, such as a service out of reach.

    TensorBoard, the default, is left out where it is not installed.

    Raises:
        ConfigError: Weights & Biases is named, but not installed.
    """
    opened: list[Tracker] = []
    for name in dict.fromkeys(run.trackers):
        try:
            opened.append(TRACKERS[name](folder, run, done))
        except ImportError:
            logger.info("%s is not installed: curves go to log.jsonl only", name)
        except ConfigError:
            raise
        except Exception as fault:  # a disk, a network, a service: each library has its own
            reason = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
            logger.warning("%s cannot be opened (%s): curves go to log.jsonl only", name, reason)
    return opened
