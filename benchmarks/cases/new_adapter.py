"""Two pictures with an adapter that was just loaded: what the first takes beyond the second."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.after_change import AfterChange
from benchmarks.plan import drawn
from latent_diffusion.adapters.delta import LowRank, Product
from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.writing import write_lora
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline

__all__ = ["NewAdapter"]

RANK = 4


class NewAdapter(AfterChange):
    """Every call loads a LoRA of all self-attentions' queries in place of the one before."""

    title = "Two pictures with a new adapter"
    loaded = 0

    def _ours(self, pipe: LatentDiffusionPipeline, steps: int, options: dict[str, Any]) -> Any:
        self._load(pipe)
        return super()._ours(pipe, steps, options)

    def _theirs(self, pipe: Any, steps: int) -> Any:
        self._load(pipe)
        return super()._theirs(pipe, steps)

    def _load(self, pipe: Any) -> None:
        if self.loaded == self.changes:
            return
        self.loaded = self.changes
        pipe.unload_lora_weights()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "lora.safetensors"
            write_lora(file, {"unet": self._updates()})
            pipe.load_lora_weights(str(file))

    def _updates(self) -> dict[str, Update]:
        updates = {}
        for name, weight in self.model.described.unet.named_parameters():
            if name.endswith("attn1.to_q.weight"):
                key, (rows, columns) = f"{name} {self.changes}", weight.shape
                factors = Product(drawn(key, rows, RANK) / 100, drawn(key, RANK, columns) / 100)
                updates[name.removesuffix(".weight")] = Update("LoRA", LowRank(factors, 1.0), None)
        return updates
