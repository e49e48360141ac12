"""Unusual properties of the pictures of a data set that are not errors: counted and reported, one line each."""

import hashlib
from dataclasses import dataclass, field

from PIL import Image

from latent_diffusion.data.pictures.formats import BEGINNINGS, is_sequence
from latent_diffusion.data.pictures.images import CONVERTED, is_srgb

__all__ = ["Look", "Oddities", "look"]

SHOWN = 5  # names in a line


@dataclass(frozen=True)
class Look:
    """What one picture's file shows: the digest of its bytes, and its oddities."""

    content: bytes
    misnamed: bool
    moving: bool
    profiled: bool


def look(name: str, data: bytes, picture: Image.Image) -> Look:
    """Return what is unusual of a picture: its name, the bytes of its file, and what was read from them."""
    profile = picture.info.get(CONVERTED) or picture.info.get("icc_profile")
    return Look(
        content=hashlib.blake2b(data).digest(),
        misnamed=any(name.lower().endswith(ends) and not sign.match(data) for ends, sign in BEGINNINGS.items()),
        moving=is_sequence(data),
        profiled=bool(profile) and not is_srgb(profile),
    )


@dataclass
class Oddities:
    """Names of the pictures that have each oddity."""

    misnamed: list[str] = field(default_factory=list)
    moving: list[str] = field(default_factory=list)
    profiled: list[str] = field(default_factory=list)
    same: dict[bytes, list[str]] = field(default_factory=dict)  # by the digest of the file

    def note(self, name: str, seen: Look) -> None:
        """Add one picture."""
        self.same.setdefault(seen.content, []).append(name)
        for names, odd in ((self.misnamed, seen.misnamed), (self.moving, seen.moving), (self.profiled, seen.profiled)):
            if odd:
                names.append(name)

    def lines(self) -> list[str]:
        """Return a line for each oddity that was seen."""
        groups = [names for names in self.same.values() if len(names) > 1]
        again = [name for names in groups for name in names]
        each = (
            (len(again) - len(groups), again, "are there more than once; each is trained on as often as it is listed"),
            (len(self.misnamed), self.misnamed, "are of another format than their ending; they are read by content"),
            (len(self.moving), self.moving, "move or have pages; the first frame of each is taken"),
            (
                len(self.profiled),
                self.profiled,
                "have a colour profile other than sRGB; those that can be read are converted",
            ),
        )
        return [f"{count} pictures {what}: {_some(names)}" for count, names, what in each if count]


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
