"""Token ids to text states: the prompt and the empty one of a guided picture."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.case import NetworkCase
from benchmarks.flops import count_flops
from benchmarks.peers import Twin
from benchmarks.plan import Ready
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.pipeline.engine.machine import Machine

__all__ = ["TextEncoding"]

PROMPTS = ("an oil painting of a lighthouse on a cliff at dusk, waves breaking below, warm light in the window", "")


class TextEncoding(NetworkCase):
    """All towers of the model on two prompts of 77 tokens."""

    title = "Text encoder"
    parts = ("text_encoder",)

    def ours(self, machine: Machine, placed: Components) -> Ready:
        """Return the towers as the pipeline calls them."""
        encoder = placed.text_encoder
        ids = _ids(encoder, self.batch).to(machine.device)

        @torch.no_grad()
        def call() -> Mapping[str, Tensor]:
            return {"output": torch.cat([tower.encode(part) for tower, part in zip(encoder.towers, ids)], dim=-1)}

        return Ready(call, next(encoder.parameters()).dtype)

    def theirs(self, components: Components) -> Twin:
        """Return the towers as diffusers' pipelines call them."""
        return Twin(_Towers(components.text_encoder), (_ids(components.text_encoder, self.batch),))

    def flops(self) -> float:
        """Count one encoding."""
        encoder = self.model.described.text_encoder
        towers = [tower.model.to("meta", torch.float32) for tower in encoder.towers]
        ids = _ids(encoder, self.batch).to("meta")
        return count_flops(lambda: [tower(input_ids=part) for tower, part in zip(towers, ids)])


def _ids(encoder: TextEncoder | TextEncoders, batch: int) -> Tensor:
    """Return the token ids of every tower, (towers, 2 B, L)."""
    return torch.stack([tower.tokenize(PROMPTS * batch) for tower in encoder.towers])


class _Towers(nn.Module):
    """Transformers' models from ids (towers, B, L) to states (B, L, D), as Stable Diffusion reads them."""

    def __init__(self, encoder: TextEncoder | TextEncoders) -> None:
        super().__init__()
        self.models = nn.ModuleList(tower.model for tower in encoder.towers)
        self.penultimate = [tower.penultimate for tower in encoder.towers]

    def forward(self, ids: Tensor) -> Tensor:
        states = []
        for model, penultimate, part in zip(self.models, self.penultimate, ids):
            result = model(input_ids=part, output_hidden_states=penultimate)
            states.append(result.hidden_states[-2] if penultimate else result.last_hidden_state)
        return torch.cat(states, dim=-1)
