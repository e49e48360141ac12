"""A1111's settings, of which two change pictures: the model and the layers of the text encoder."""

from collections.abc import Mapping
from typing import Any

from latent_diffusion.server.a1111.translation import CLIP_SKIP, MODEL, VAE
from latent_diffusion.server.drawing.shelf import Shelf
from latent_diffusion.server.refusals import Refusal

__all__ = ["Settings"]


class Settings:
    """The settings that hold for every request of this API."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._changed: dict[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """Return all settings; clients send them back with one changed."""
        model = self._changed.get(MODEL, self._shelf.name)
        digest = self._shelf.hash() if model == self._shelf.name else None
        return {
            MODEL: model,
            "sd_checkpoint_hash": digest or "",
            "samples_format": "png",
            CLIP_SKIP: self._changed.get(CLIP_SKIP, 1),
            VAE: "Automatic",
        }

    def change(self, values: Mapping[str, Any]) -> None:
        """Take over the settings that are known here.

        Raises:
            Refusal: no such model (404), or a clip skip that cannot be (400).
        """
        changed = self.with_overrides({name: values[name] for name in (MODEL, CLIP_SKIP) if name in values})
        self._changed = changed

    def with_overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that were changed, with those of one request over them.

        Raises:
            Refusal: as for `change`.
        """
        chosen = {**self._changed, **values}
        if chosen.get(MODEL) is not None:
            chosen[MODEL] = self._shelf.find(str(chosen[MODEL]))
        else:
            chosen.pop(MODEL, None)
        skip = chosen.get(CLIP_SKIP, 1)
        if isinstance(skip, bool) or not isinstance(skip, int | float) or not 1 <= skip <= 12:
            raise Refusal(400, f"{CLIP_SKIP} {skip!r:.30} is not a number from 1 to 12", CLIP_SKIP)
        return chosen
