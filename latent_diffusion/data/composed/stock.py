"""The pictures of a source as things to compose with: their names, their styles, their cut-outs."""

import re
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock

import numpy as np
from PIL import Image

from latent_diffusion.data.composed.colours import NAMES
from latent_diffusion.data.composed.cutout import Cutout, cut_out, recolour
from latent_diffusion.data.composed.scene import Placed
from latent_diffusion.data.pictures.fitting import fit
from latent_diffusion.data.pictures.images import decode_image
from latent_diffusion.data.rows.source import Source
from latent_diffusion.data.settings import ComposedConfig
from latent_diffusion.errors import ConfigError

__all__ = ["Stock"]

MOST_KEPT = 2**28  # bytes of cut-outs


class Stock:
    """What can be composed.

    Attributes:
        rows: of the source, whose caption has its name with an article: what can be counted and coloured.
        opening: words of the style before the name, by row.
        name: by row.
    """

    def __init__(self, source: Source, kept: np.ndarray, config: ComposedConfig, size: int) -> None:
        """Take the source, the rows of it that may be used, and the side at which pictures are composed, px.

        Raises:
            ConfigError: no caption has a name with an article.
        """
        self._source, self._size = source, size
        self.name: dict[int, str] = {}
        self.opening: dict[int, str] = {}
        for k in map(int, kept):
            row = source.row(k)
            name, text = str(row.get(config.name, "")), str(row.get("text", ""))
            found = re.search(rf"(^|\s)(a|an|the)\s+{re.escape(name)}$", text, re.IGNORECASE) if name else None
            if found is not None:
                self.name[k], self.opening[k] = name, text[: found.start()].strip()
        self.rows: Sequence[int] = [*self.name]
        if not self.rows:
            raise ConfigError(
                f"data.composed: no caption of {source.where!r} ends with an article and the field {config.name!r}, as "
                '"a 3d render of a cat" with the name "cat"'
            )
        self.styles: dict[str, list[int]] = {}
        for k, opening in self.opening.items():
            self.styles.setdefault(opening, []).append(k)
        self.names: Sequence[str] = sorted(set(self.name.values()))
        self._lock = Lock()
        self._cut = lru_cache(max(MOST_KEPT // (4 * (2 * size) ** 2), 64))(self._read)
        self._coloured = lru_cache(max(MOST_KEPT // (4 * (2 * size) ** 2), 64))(self._recolour)

    def cutout(self, row: int) -> Cutout | None:
        """Return the thing of a row; None where it cannot be cut out."""
        return self._cut(row)

    def coloured(self, row: int, colour: str | None) -> Image.Image | None:
        """Return the thing of a row (RGBA) in a colour; None where it cannot have it."""
        cut = self._cut(row)
        return None if cut is None else cut.image if colour is None else self._coloured(row, colour)

    def bare_name(self, row: int) -> str:
        """Return the name without the colour in it: "apple" for "red apple"."""
        first, _, rest = self.name[row].partition(" ")
        return rest if rest and first.lower() in NAMES else self.name[row]

    def image(self, thing: Placed) -> Image.Image:
        """Return the picture of a placed thing, RGBA."""
        made = self.coloured(thing.row, None if thing.own or thing.form != "picture" else thing.colour)
        assert made is not None, "a scene has only things that can be cut out, in colours that they can have"
        return made

    def _read(self, row: int) -> Cutout | None:
        name = f"{self._source.where}/{self._source.row(row)['file_name']}"
        picture = decode_image(self._source.read(row), name=name, to_srgb=True)
        side = min(max(picture.size), 2 * self._size)
        return cut_out(fit(picture, (side, side), pad=True).picture)

    def _recolour(self, row: int, colour: str) -> Image.Image | None:
        cut = self._cut(row)
        return None if cut is None else recolour(cut, colour)
