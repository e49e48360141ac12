"""The pipeline's methods for LoRA and learned words.

No method writes into a weight. Each call replaces the engine; images that are being drawn keep the old one. Loading a
file also activates it, until `set_adapters` is called. Threads may change one pipeline at the same time: each
change starts from the engine that the previous one made.
"""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from latent_diffusion.adapters.load_report import LoadReport
from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.stack import Stack, Strength
from latent_diffusion.adapters.word_file import read_words
from latent_diffusion.adapters.words import Word
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.runtime.undisturbed import undisturbed

__all__ = ["Adapting"]

Names = str | Sequence[str]
PathLike = str | os.PathLike[str]
_changing = threading.Lock()  # of all pipelines, since one that is copied or pickled cannot hold a lock


class Adapting:
    """The methods for adapters; names and meanings are diffusers' where it has one."""

    engine: Engine

    @undisturbed()
    def load_lora_weights(self, path: PathLike, adapter_name: str | None = None, weight: Strength = 1.0) -> LoadReport:
        """Load a LoRA, LoHa, LoKr, DoRA or full change and draw with it, beside those that are active.

        Args:
            path: a .safetensors file of kohya, LyCORIS, PEFT, diffusers or ComfyUI, or a folder with one.
            adapter_name: what to call it; None = the file's name without its ending.
            weight: how strongly, 1 = as trained; or one number each for "unet", "text_encoder", "text_encoder_2".

        Returns:
            What was found and what this model has no place for; a warning says the latter too.

        Raises:
            CheckpointError: no readable file, none of its layers is in this model, or a change does not fit.
            ConfigError: a name that is taken, or a weight that is no number.
        """
        adapter = read_lora(Path(path), self.engine.without_adapters, adapter_name)
        self._adapt(lambda stack: stack.load(adapter, weight))
        return adapter.report

    def set_adapters(self, adapter_names: Names, adapter_weights: Strength | Sequence[Strength] = 1.0) -> None:
        """Draw with exactly these loaded adapters, in place of those that were active.

        Args:
            adapter_names: one or several; [] for none.
            adapter_weights: one for all, or one each; see `load_lora_weights`.

        Raises:
            ConfigError: an adapter that is not loaded, or weights that do not fit.
        """
        names = _several(adapter_names)
        each = list(adapter_weights) if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        self._adapt(lambda stack: stack.set(names, each))

    def get_active_adapters(self) -> list[str]:
        """Return the names of the adapters that the next call draws with; fused ones are part of the model."""
        return list(self.engine.adapters.active)

    def get_list_adapters(self) -> list[str]:
        """Return the names of all loaded adapters, active or not."""
        return list(self.engine.adapters.loaded)

    def delete_adapters(self, adapter_names: Names) -> None:
        """Forget loaded adapters.

        Raises:
            ConfigError: one that is not loaded.
        """
        self._adapt(lambda stack: stack.delete(_several(adapter_names)))

    def fuse_lora(self, adapter_names: Names | None = None, lora_scale: float = 1.0) -> None:
        """Make active adapters part of the model: `set_adapters` no longer affects them, and they are saved.

        Args:
            adapter_names: which; None = all active ones.
            lora_scale: factor on their weights.

        Raises:
            ConfigError: one that is not active.
        """
        names = None if adapter_names is None else _several(adapter_names)
        self._adapt(lambda stack: stack.fuse(names, lora_scale))

    def unfuse_lora(self) -> None:
        """Take fused adapters out again, exactly; those still loaded are active as before."""
        self._adapt(lambda stack: stack.unfuse())

    def unload_lora_weights(self) -> None:
        """Forget all loaded adapters; fused ones stay until `unfuse_lora`."""
        self._adapt(lambda stack: stack.delete(tuple(stack.loaded)))

    @undisturbed()
    def load_textual_inversion(self, path: PathLike, token: str | None = None) -> tuple[Word, ...]:
        """Load learned words; in prompts, each is replaced by its vectors.

        Args:
            path: a file of A1111, kohya or diffusers (.safetensors, .pt, .bin), or a folder with one.
            token: what to call the word; None = the file's token, or the file's name where it holds none.

        Raises:
            CheckpointError: no readable file, no word in it, or one for another text encoder.
            ConfigError: a word that cannot be, or that the model knows already.
        """
        words = read_words(Path(path), self.engine.without_adapters, token)
        self._adapt(lambda stack: stack.learn(words))
        return words

    def unload_textual_inversion(self, tokens: Names | None = None) -> None:
        """Forget learned words; None = all.

        Raises:
            ConfigError: a word that is not loaded.
        """
        self._adapt(lambda stack: stack.forget(None if tokens is None else _several(tokens)))

    def _adapt(self, change: Callable[[Stack], Stack]) -> None:
        self._replace(lambda engine: engine.with_adapters(change(engine.adapters)))

    @undisturbed()
    def _replace(self, change: Callable[[Engine], Engine]) -> None:
        """Put `change` of the engine in its place, with no other change in between."""
        with _changing:
            self.engine = change(self.engine)


def _several(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
