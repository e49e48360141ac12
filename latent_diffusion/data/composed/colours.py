"""Colours and their names, in Oklab.

A name holds for a region of lightness L, chroma C and hue h. The same rule names the colour of a composed picture,
so that its caption is true, and of one that a model drew. Reference: Ottosson 2020, "A perceptual color space for image
processing" (Oklab).
"""

import numpy as np

__all__ = ["NAMES", "TARGETS", "from_oklab", "name_pixels", "name_shares", "to_oklab", "to_polar"]

_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip
_FROM_LAB, _FROM_LMS = np.linalg.inv(_TO_LAB), np.linalg.inv(_TO_LMS)
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)

TARGETS = {
    "red": (0.58, 0.22, 27.0),
    "orange": (0.75, 0.17, 60.0),
    "yellow": (0.88, 0.24, 98.0),
    "green": (0.66, 0.19, 145.0),
    "blue": (0.58, 0.19, 258.0),
    "purple": (0.53, 0.20, 303.0),
    "pink": (0.77, 0.15, 355.0),
    "brown": (0.45, 0.08, 52.0),
    "black": (0.20, 0.0, 0.0),
}
"""A typical colour of each name: lightness, chroma, hue in degrees."""
NAMES = (*TARGETS, "turquoise", "grey", "white")
"""Every name a pixel can have."""
_NUMBER = {name: k for k, name in enumerate(NAMES)}
GREY_CHROMA = 0.04  # below this a pixel has no hue
LEAST_CHROMATIC = 0.2  # share of a thing's pixels with a hue from which on the hue names it


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Return (..., 3) Oklab, float64, of (..., 3) sRGB in 0..255 uint8."""
    lms = np.cbrt(_LINEAR[rgb] @ _TO_LMS.T)
    return lms @ _TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """Return (..., 3) sRGB uint8 of (..., 3) Oklab; what lies outside sRGB is clipped."""
    linear = (lab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T
    linear = linear.clip(0, 1)
    coded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (coded * 255 + 0.5).astype(np.uint8)


def to_polar(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lightness, chroma and hue (degrees, 0..360) of (..., 3) Oklab."""
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return lab[..., 0], np.hypot(lab[..., 1], lab[..., 2]), hue


def name_pixels(lab: np.ndarray) -> np.ndarray:
    """Return the index in `NAMES` of each pixel of (..., 3) Oklab."""
    light, chroma, hue = to_polar(lab)
    bands = [(15, "pink"), (44, "red"), (82, "orange"), (117, "yellow"), (175, "green"), (215, "turquoise")]
    bands += [(284, "blue"), (333, "purple"), (361, "pink")]
    found = np.array([_NUMBER[name] for _, name in bands])[
        np.searchsorted([end for end, _ in bands], hue, side="right")
    ]
    warm = (hue >= 20) & (hue < 100)
    found = np.where(warm & (light < 0.68) & (chroma < np.where(hue < 44, 0.12, 0.125)), _NUMBER["brown"], found)
    rosy = (hue < 30) & (light > 0.7) & (chroma < 0.16) & (hue + 100 * (0.16 - chroma) < 36)
    found = np.where(rosy, _NUMBER["pink"], found)
    grey = np.where(light < 0.36, _NUMBER["black"], np.where(light > 0.88, _NUMBER["white"], _NUMBER["grey"]))
    return np.where((chroma < GREY_CHROMA) | (light < 0.18), grey, found)


def name_shares(lab: np.ndarray) -> dict[str, float]:
    """Return the share of the pixels (N, 3) Oklab that have each name, largest first.

    Names with a hue come first where a fifth of the pixels have one: black outlines and white eyes of a red thing do
    not name it.
    """
    counts = np.bincount(name_pixels(lab).reshape(-1), minlength=len(NAMES)) / max(lab.size // 3, 1)
    shares = {name: float(counts[k]) for k, name in enumerate(NAMES) if counts[k]}
    without = {"black", "grey", "white"}
    coloured = sum(share for name, share in shares.items() if name not in without)
    first = coloured >= LEAST_CHROMATIC
    return dict(sorted(shares.items(), key=lambda item: ((item[0] in without) == first, -item[1])))
