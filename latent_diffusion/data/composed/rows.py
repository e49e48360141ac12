"""Composed pictures as a source: row k is a function of the seed and of k, made when it is asked for."""

import hashlib
import io
from functools import lru_cache

import numpy as np

from latent_diffusion.data.composed.colours import TARGETS
from latent_diffusion.data.composed.drawing import draw_scene
from latent_diffusion.data.composed.painting import paint
from latent_diffusion.data.composed.scene import HeldOut, Scene
from latent_diffusion.data.composed.stock import Stock
from latent_diffusion.data.composed.words import Names, caption, false_scenes
from latent_diffusion.data.rows.source import Source
from latent_diffusion.data.rows.table import Row
from latent_diffusion.data.settings import ReadingConfig
from latent_diffusion.randomness import generator

__all__ = ["ComposedSource"]

MOST_DRAWS = 100
"""Draws of one scene; after so many that cannot be, the row is a plain picture."""
RECENT = 4096  # scenes and captions that are kept: a row is asked for its caption, its name, then its picture


class ComposedSource(Source):
    """Pictures composed of those of another source; a share of the rows are those pictures as they are."""

    def __init__(self, base: Source, kept: np.ndarray, config: ReadingConfig, size: int) -> None:
        """Take the source, the rows of it that may be used, and the side of the pictures, px."""
        assert config.composed is not None, "only such a source is composed"
        self.base, self.kept, self.config, self._size = base, kept, config.composed, size
        self.where, self.words, self.reads = f"{base.where}, composed", base.words, base.reads
        self.fields = (base.fields | {"text", "kind", "false"}) - {"mask_file"}  # a mask does not fit what is composed
        self.stock = Stock(base, kept, self.config, size)
        self.held_out = HeldOut() if self.config.held_out is None else HeldOut.read(self.config.held_out)
        self._names = Names(self.stock.opening, self.config.synonyms)
        self._kinds = [kind for kind, share in self.config.shares.items() if share > 0]
        shares = np.array([share for share in self.config.shares.values() if share > 0])
        self._sums = np.cumsum(shares / shares.sum())
        self.scene = lru_cache(RECENT)(self._scene)
        self._written = lru_cache(RECENT)(self._write)

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Return False: it is made of another source, never found at a path."""
        return False

    @classmethod
    def open(cls, path: str, config: ReadingConfig) -> "ComposedSource":
        """Refuse: it is made of another source."""
        raise NotImplementedError("a composed source is made of an open one")

    def __len__(self) -> int:
        """Return the number of rows that the setting names."""
        return self.config.rows

    def _draw(self, purpose: str, k: int) -> np.random.Generator:
        return generator(self.config.seed, f"composed {purpose}", k)

    def _scene(self, k: int) -> Scene | None:
        """Return what row k shows; None: a plain picture."""
        kind = self._kinds[int(np.searchsorted(self._sums, self._draw("kind", k).random(), side="right"))]
        if kind == "plain":
            return None
        draw = self._draw("scene", k)
        for _ in range(MOST_DRAWS):
            scene = draw_scene(kind, self.stock, draw)
            if scene is not None and not self.held_out.has(scene, self.config.synonyms):
                return scene
        return None

    def _plain(self, k: int) -> int:
        """Return the row of the source that a plain row shows."""
        return int(self.kept[int(self._draw("plain", k).integers(len(self.kept)))])

    def row(self, k: int) -> Row:
        """Return the caption as `text`, the `kind`, and captions of other pictures that are `false` of this one."""
        return self._written(k)

    def name(self, k: int) -> str:
        """Return `file_name` of row k; no caption is written for it."""
        return f"{k}: {self.base.name(self._plain(k))}" if self.scene(k) is None else f"{k}.png"

    def _write(self, k: int) -> Row:
        scene = self.scene(k)
        if scene is None:
            plain = self.base.row(self._plain(k))
            kept = {field: value for field, value in plain.items() if field != "mask_file"}
            return {**kept, "file_name": self.name(k), "kind": "plain"}
        draw = self._draw("false", k)
        false = false_scenes(scene, self.stock.names, [*TARGETS], draw)
        return {
            "file_name": self.name(k),
            "text": caption(scene, self._names, self._draw("caption", k)),
            "kind": scene.kind,
            # the same choices of words, so that the two captions differ in what is false alone
            "false": [caption(one, self._names, self._draw("caption", k)) for one in false],
        }

    def read(self, k: int) -> bytes:
        """Return the picture of row k, as BMP: nothing is lost, and it is written quickly."""
        scene = self.scene(k)
        if scene is None:
            return self.base.read(self._plain(k))
        stream = io.BytesIO()
        paint(scene, self._size, self.stock.image, self._draw("ground", k)).save(stream, "BMP")
        return stream.getvalue()

    def identity(self) -> bytes:
        """Return a digest of the source's, of the rows used, and of the settings and the combinations held out."""
        digest = hashlib.blake2b(self.base.identity(), digest_size=16)
        digest.update(self.kept.tobytes())
        digest.update(f"{self.config.model_dump_json()} {self._size}".encode())
        digest.update(repr(sorted(self.held_out.combinations)).encode())
        return digest.digest()
