"""The models that may be drawn with, of which one is loaded at a time."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_diffusion.checkpoint.locate import INDEX, bundled_models
from latent_diffusion.checkpoint.model_hash import SHORT, model_hash
from latent_diffusion.pipeline.engine.lora_folder import ENDINGS
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.registry import nearest
from latent_diffusion.server.limits import ServeSettings
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.train_folder import TrainFolder

if TYPE_CHECKING:
    from latent_diffusion.pipeline.preview import Preview

__all__ = ["Shelf"]

FILES = (".safetensors", ".ckpt")
MAX_LISTED = 1000  # files of a folder


class Shelf:
    """The bundled models, the one that the server was started with, those of `--model-folder` and of runs."""

    def __init__(self, settings: ServeSettings, loading: Mapping[str, Any] | None = None) -> None:
        """Load the first model; `loading` are options of `from_pretrained` for every model.

        Raises:
            CheckpointError: no such model, or a damaged one.
            ConfigError, ResourceError: an option or a device that cannot be.
        """
        self._settings = settings
        self._loading = dict(loading or {})
        self._lock = threading.Lock()
        self._preview: Preview | None = None
        first = settings.model if settings.model in bundled_models() else Path(settings.model).name
        self._first = {first: settings.model}
        self.name = first
        self.pipe = LatentDiffusionPipeline.from_pretrained(settings.model, **self._loading)

    def models(self) -> dict[str, str]:
        """Return what can be loaded: the name and, for this process alone, where it lies."""
        found = {name: name for name in bundled_models()} | self._first
        folder = self._settings.model_folder
        for path in sorted(folder.iterdir())[:MAX_LISTED] if folder else ():
            if path.suffix.lower() in FILES or (path / INDEX).is_file():
                found.setdefault(path.name, str(path))
        return found | (TrainFolder(trained).models() if (trained := self._settings.train_folder) else {})

    def find(self, name: str) -> str:
        """Return the model that a client means by its name, also without the ending or with a hash behind it.

        Raises:
            Refusal: there is none.
        """
        known = self.models()
        plain = name.partition(" [")[0]
        for model in known:
            if plain in (model, Path(model).stem):
                return model
        if len(name) >= SHORT and (self.hash() or "").startswith(name.lower()):
            return self.name
        raise Refusal(404, f"no model {name!r:.80}{nearest(plain, known)}; there are {', '.join(known)}", "model")

    def take(self, name: str | None) -> LatentDiffusionPipeline:
        """Return the pipeline of a model, loaded in place of the present one; for the drawing thread alone.

        Raises:
            Refusal: there is no such model.
            CheckpointError: it is damaged.
        """
        if name is not None and (wanted := self.find(name)) != self.name:
            pipe = LatentDiffusionPipeline.from_pretrained(self.models()[wanted], **self._loading)
            with self._lock:
                self.name, self.pipe, self._preview = wanted, pipe, None
        return self.pipe

    def hash(self) -> str | None:
        """Return the hash of the present model's weights."""
        source = self.pipe.components.source
        return None if source is None else model_hash(source)

    def preview(self) -> "Preview":
        """Return the function that shows unfinished latents of the present model; fitted when it is first needed."""
        with self._lock:
            if self._preview is None:
                self._preview = self.pipe.preview()
            return self._preview

    def loras(self) -> list[str]:
        """Return the names that `<lora:name:weight>` in a prompt may have."""
        folder = self._settings.lora_folder
        found = [] if folder is None else [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS]
        return sorted(path.relative_to(folder or path).with_suffix("").as_posix() for path in found)[:MAX_LISTED]
