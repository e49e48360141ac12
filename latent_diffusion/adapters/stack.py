"""The adapters of a pipeline: loaded, active with their strengths, and fused.

A stack is never changed, only replaced, and the parts it gives are always made from the untouched ones of the
checkpoint. So any order of loading, setting, merging and taking off ends in the same numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.lora_file import Adapter
from latent_diffusion.adapters.mask_channels import on_latents, with_mask_channels
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of, with_parts
from latent_diffusion.adapters.words import Word, with_words
from latent_diffusion.checkpoint.components import Applied, Components
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["Stack", "Strength"]

Strength = float | Mapping[str, float]
"""How strongly: one number, or one for each of "unet", "text_encoder", "text_encoder_2" (those left out: 1)."""

PARTS = ("unet", "text_encoder", "text_encoder_2")
MOST = 100.0  # of a strength, either sign; published adapters are drawn with at 10 and less


@dataclass(frozen=True)
class Stack:
    """All adapters of one model."""

    loaded: Mapping[str, Adapter] = field(default_factory=dict)  # by name
    active: Mapping[str, Strength] = field(default_factory=dict)  # those drawn with, by name
    fused: tuple[tuple[Adapter, Strength], ...] = ()  # those that stay whatever is set
    words: tuple[Word, ...] = ()
    own: Adapter | None = None  # the inpainting adapter of the model's folder, a part of the model: no record names it

    def load(self, adapter: Adapter, strength: Strength = 1.0) -> "Stack":
        """Add an adapter beside those there and draw with it.

        Raises:
            ConfigError: there is one of that name.
        """
        if adapter.name in self.loaded:
            raise ConfigError(f"an adapter {adapter.name!r} is loaded already; give another adapter_name, or delete it")
        loaded, active = {**self.loaded, adapter.name: adapter}, {**self.active, adapter.name: _checked(strength)}
        return replace(self, loaded=loaded, active=active)

    def set(self, names: Sequence[str], strengths: Sequence[Strength]) -> "Stack":
        """Draw with exactly these.

        Raises:
            ConfigError: no such adapter, or not one strength each.
        """
        if len(names) != len(strengths):
            raise ConfigError(f"{len(strengths)} weights for {len(names)} adapters; give one each")
        return replace(self, active={self._known(name): _checked(s) for name, s in zip(names, strengths, strict=True)})

    def delete(self, names: Sequence[str]) -> "Stack":
        """Forget these adapters; merged ones stay merged.

        Raises:
            ConfigError: no such adapter.
        """
        gone = {self._known(name) for name in names}
        loaded = {name: adapter for name, adapter in self.loaded.items() if name not in gone}
        return replace(self, loaded=loaded, active={n: s for n, s in self.active.items() if n not in gone})

    def fuse(self, names: Sequence[str] | None, scale: float) -> "Stack":
        """Fuse active adapters (all, or those named), with `scale` times their strengths.

        Raises:
            ConfigError: one that is not active.
        """
        chosen = tuple(self.active) if names is None else tuple(map(self._known, names))
        for name in chosen:
            if name not in self.active:
                raise ConfigError(f"adapter {name!r} is not active; activate it with set_adapters before fusing")
        more = tuple((self.loaded[name], _scaled(self.active[name], scale)) for name in chosen)
        active = {name: strength for name, strength in self.active.items() if name not in chosen}
        return replace(self, active=active, fused=self.fused + more)

    def unfuse(self) -> "Stack":
        """Take what was merged out again; adapters that are still loaded become active as they were merged."""
        back = {a.name: strength for a, strength in self.fused if self.loaded.get(a.name) is a}
        return replace(self, active={**back, **self.active}, fused=())

    def learn(self, words: Sequence[Word]) -> "Stack":
        """Add learned words.

        Raises:
            ConfigError: a word of that name is there.
        """
        taken = {word.token for word in self.words}
        for word in words:
            if word.token in taken:
                raise ConfigError(
                    f"{word.file}: a learned word {word.token!r} is loaded already; rename the file, or choose another "
                    "name with token= in Python"
                )
            taken.add(word.token)
        return replace(self, words=(*self.words, *words))

    def forget(self, tokens: Sequence[str] | None) -> "Stack":
        """Remove learned words; None = all.

        Raises:
            ConfigError: no such word.
        """
        there = [word.token for word in self.words]
        for token in tokens or ():
            if token not in there:
                raise ConfigError(f"no learned word {token!r}; loaded: {', '.join(there) or 'none'}")
        return replace(self, words=tuple(w for w in self.words if tokens is not None and w.token not in tokens))

    def only_fused(self) -> "Stack":
        """Return the fused adapters only, which a saved model contains."""
        return Stack(fused=self.fused)

    def apply(self, base: Components) -> Components:
        """Return the parts to draw with; `base`, and all that no adapter touches, is shared and stays as it is.

        Raises:
            ConfigError: two inpainting adapters, or a learned word that the vocabulary already has.
        """
        at_work = self._at_work() if self.own is None else ((self.own, 1.0), *self._at_work())
        repainting = [a.name for a, strength in at_work if a.report.inpainting and _of_part(strength, "unet")]
        if len(repainting) > 1:
            raise ConfigError(f"the adapters {' and '.join(map(repr, repainting))} are for inpainting; use one of them")
        if repainting:
            base = replace(with_mask_channels(base), repaints_by=repainting[0])
        students = [a.report.trained for a, strength in at_work if a.report.trained and _of_part(strength, "unet")]
        if students:
            base = replace(base, scheduler_config={**base.scheduler_config, **students[-1].in_model()})
        parts = {}
        for part, module in parts_of(base).items():
            changes = [(_updates(a, part, base), _of_part(s, part)) for a, s in at_work if part in a.updates]
            if any(strength for _, strength in changes):
                parts[part] = adapted(module, changes)
        changed = with_words(with_parts(base, parts) if parts else base, self.words)
        return replace(changed, adapters=self.applied()) if self.applied() else changed

    def applied(self) -> tuple[Applied, ...]:
        """Return the active adapters and words, for the records of pictures."""
        loras = tuple(
            Applied("lora", a.name, a.report.hash, {part: _of_part(strength, part) for part in a.updates})
            for a, strength in self._at_work()
        )
        return loras + tuple(Applied("embedding", word.token, word.hash) for word in self.words)

    def _at_work(self) -> tuple[tuple[Adapter, Strength], ...]:
        return self.fused + tuple((self.loaded[name], strength) for name, strength in self.active.items())

    def _known(self, name: str) -> str:
        if name not in self.loaded:
            there = ", ".join(self.loaded) or "none"
            raise ConfigError(f"no adapter {name!r}{nearest(str(name), self.loaded)}; loaded are {there}")
        return name


def _updates(adapter: Adapter, part: str, components: Components) -> Mapping[str, Update]:
    """Return an adapter's changes of a part, which may read more channels than the one that it was read for."""
    fits = part != "unet" or components.repaints_by is None or adapter.report.inpainting
    return adapter.updates[part] if fits else on_latents(adapter.updates[part], components.unet.conv_in.weight)


def _of_part(strength: Strength, part: str) -> float:
    return strength.get(part, 1.0) if isinstance(strength, Mapping) else strength


def _scaled(strength: Strength, scale: float) -> Strength:
    scale = _number(scale)
    return {part: _number(scale * _of_part(strength, part)) for part in PARTS}


def _checked(strength: Strength) -> Strength:
    """Return a strength.

    Raises:
        ConfigError: a part that no model has, no finite number, or one beyond `MOST`.
    """
    if not isinstance(strength, Mapping):
        return _number(strength)
    for part in strength:
        if part not in PARTS:
            raise ConfigError(f"adapter weight for {part!r}; there are {', '.join(PARTS)}{nearest(str(part), PARTS)}")
    return {part: _number(value) for part, value in strength.items()}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise ConfigError(f"adapter weight {value!r} is no finite number")
    if abs(value) > MOST:
        raise ConfigError(f"adapter weight {str(value)[:20]} is out of range; use -{MOST:g} to {MOST:g}")
    return float(value)
