"""The alpha that PEFT keeps beside the tensors, not among them.

diffusers writes it as JSON into the header, under `lora_adapter_metadata` with the part's name before each field; PEFT
itself writes `adapter_config.json` beside the file.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_diffusion.adapters.keys import TEXT_MODEL, Place
from latent_diffusion.errors import CheckpointError

__all__ = ["PeftConfigs"]

IN_HEADER = "lora_adapter_metadata"
BESIDE = "adapter_config.json"
MAX_BYTES = 1_000_000
MAX_TERMS = 100  # of OFT's series; PEFT has 5


@dataclass(frozen=True)
class PeftConfigs:
    """Fields of a `LoraConfig` by "part.field"; a name without a part counts for every part."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, metadata: Mapping[str, str], file: Path) -> "PeftConfigs":
        """Read the settings in the header or in the file beside; empty if there are none.

        Raises:
            CheckpointError: what is there is no JSON object.
        """
        beside = file.with_name(BESIDE)
        text = metadata.get(IN_HEADER)
        if text is None and file.name.startswith("adapter_") and beside.is_file():
            with open(beside, encoding="utf-8", errors="replace") as opened:
                text = opened.read(MAX_BYTES)
        try:
            values = json.loads(text or "{}")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: its PEFT settings are no JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: its PEFT settings are no JSON object")
        return cls(values)

    def scale(self, place: Place) -> Callable[[int | None], float]:
        """Return the scale of a layer's change by its rank r: alpha / r, or alpha / sqrt(r); 1 without settings.

        The root is rank-stabilised LoRA: Kalajdzievski 2023, arXiv:2312.03732, theorem 3.2. A change whose factors show
        no rank (None) has that of the settings.

        Raises:
            CheckpointError: an alpha or a rank that is no number above 0.
        """
        alpha = self._of_layer(place, "lora_alpha", "alpha")  # LoHa and LoKr say it without `lora_`
        if alpha is None:
            return lambda rank: 1.0
        said = self._of_layer(place, "r", "rank")
        root = bool(self._field(place, "use_rslora"))

        def scale(rank: int | None) -> float:
            known = said if rank is None else rank
            return 1.0 if known is None else alpha / (math.sqrt(known) if root else known)

        return scale

    def oft_terms(self, place: Place) -> int | None:
        """Return the number of terms of OFT's series, None where Cayley's transform is exact.

        Raises:
            CheckpointError: the settings are not there, or ask for a constrained rotation.
        """
        if self._field(place, "peft_type") != "OFT":
            raise CheckpointError(f"an OFT needs its settings: {BESIDE} in the folder of adapter_model.safetensors")
        if self._field(place, "coft"):
            raise CheckpointError("constrained OFT (coft) is not read")
        if self._field(place, "use_cayley_neumann") is False:
            return None
        terms = self._field(place, "num_cayley_neumann_terms")
        if type(terms) is not int or not 1 <= terms <= MAX_TERMS:
            raise CheckpointError(f"its num_cayley_neumann_terms is {terms!r:.100}; 1 to {MAX_TERMS} are read")
        return terms

    def _of_layer(self, place: Place, name: str, short: str) -> float | None:
        """Return a number of the settings, or what their patterns say of this layer instead."""
        value = self._field(place, name)
        value = self._field(place, short) if value is None else value
        patterns = self._field(place, f"{short}_pattern") or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(
                f"its PEFT settings give {short}_pattern {patterns!r:.100}; a JSON object is required"
            )
        value = next((given for pattern, given in patterns.items() if _matches(pattern, place.path)), value)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        if value is not None and not number:
            raise CheckpointError(f"its PEFT settings give {name} {value!r:.100}; a number above 0 is required")
        return value

    def _field(self, place: Place, name: str) -> Any:
        return self.values.get(f"{place.part}.{name}", self.values.get(name))


def _matches(pattern: str, path: str) -> bool:
    """Whether a name of a pattern table matches this layer: its path, or the end of it; with `^` the whole path.

    Raises:
        CheckpointError: a regular expression, which PEFT allows and a hostile file could stall us with.
    """
    name = pattern.removeprefix("^").removesuffix("$")
    if not re.fullmatch(r"[\w.]+", name):
        raise CheckpointError(f"its PEFT settings have the pattern {pattern!r:.100}; only names of layers are read")
    name, path = name.removeprefix(TEXT_MODEL), path.removeprefix(TEXT_MODEL)
    return path == name or (not pattern.startswith("^") and path.endswith("." + name))
