"""Prompts -> text states: a CLIP text model and its tokenizer.

As in Stable Diffusion: every prompt is cut or padded to the model's context length (77), padding takes part like any
other token (the mask is causal, so it cannot change the tokens before it). SD 1 and 2 feed the states after the last
layer norm to the cross-attention (SD 2's folder leaves out OpenCLIP's last layer); SDXL feeds those before the last
layer, without the norm, and one projected vector a prompt (Podell et al. 2023, arXiv:2307.01952, section 2.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.models.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from latent_diffusion.models.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["Encoded", "TextEncoder", "TextEncoders", "join_towers"]


@dataclass(frozen=True)
class Encoded:
    """Output of one text tower for B rows of tokens; float32, or float64 where its weights are."""

    states: Tensor  # (B, L, D), a vector a token
    pooled: Tensor | None  # (B, P), a vector a row: the end token's, projected; None for a tower without projection


class TextEncoder(nn.Module):
    """A text model and its tokenizer, as one function from prompts to `Conditioning`: one tower."""

    def __init__(
        self,
        model: CLIPTextModel | CLIPTextModelWithProjection,
        tokenizer: Tokenizer,
        *,
        penultimate: bool = False,
    ) -> None:
        """Take a model and the tokenizer it was trained with.

        Args:
            model: with a projection it also gives a pooled vector; transformers' own class does too.
            tokenizer: what turns prompts into the model's ids.
            penultimate: take the states before the last layer, without the final norm (SDXL).

        Raises:
            ConfigError: the tokenizer's ids do not fit the model's embedding rows or its begin and end ids.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.penultimate = penultimate
        self.expansions: Mapping[int, tuple[int, ...]] = {}  # id of a learned word -> ids of its vectors
        self._check_ids()

    @property
    def towers(self) -> tuple["TextEncoder", ...]:
        """This one; `TextEncoders` has two."""
        return (self,)

    def _check_ids(self) -> None:
        config, tokenizer = self.config, self.tokenizer
        if len(tokenizer) > config.vocab_size:
            raise ConfigError(f"the tokenizer has {len(tokenizer)} ids, the text model only {config.vocab_size} rows")
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= config.vocab_size:
            raise ConfigError(f"the tokenizer's largest id is {largest}, the text model has {config.vocab_size} rows")
        # Configs written before transformers 4.31 carry eos 2 whatever the vocabulary; the model then pools at the
        # largest id instead, which is the end token.
        if config.eos_token_id not in (2, tokenizer.eos_token_id):
            raise ConfigError(
                f"end id {tokenizer.eos_token_id} of the tokenizer, {config.eos_token_id} of the text model"
            )

    @property
    def config(self) -> Any:
        """The text model's `CLIPTextConfig`."""
        return self.model.config

    @property
    def width(self) -> int:
        """Channels D of the text states."""
        return self.config.hidden_size

    @property
    def pooled_width(self) -> int:
        """Channels P of the pooled vector; 0 where the model has no projection."""
        return self.config.projection_dim if hasattr(self.model, "text_projection") else 0

    @property
    def context_length(self) -> int:
        """Number of tokens L a prompt is cut or padded to, begin and end included."""
        return self.config.max_position_embeddings

    @property
    def end_id(self) -> int:
        """Id of the end token; its first occurrence closes a prompt."""
        return self.tokenizer.eos_token_id

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def token_ids(self, text: str) -> list[tuple[int, ...]]:
        """Return the ids of the whole `text`, however long, without begin and end; a learned word has several."""
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        return [self.expansions.get(token, (token,)) for token in ids[1:-1]]

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each prompt, begin and end not counted, before anything is cut.

        For a prompt far beyond the context length the count stops early and is only a lower bound.
        """
        return [len(ids) - SPECIAL_TOKENS for ids in self._ids(prompts)]

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (B, L), int64, on the CPU: begin, text, end, padding.

        A prompt longer than the context is cut, with a `LatentDiffusionWarning` that says which and by how much.

        Raises:
            ConfigError: a prompt is not valid Unicode (a lone surrogate).
        """
        length = self.context_length
        rows = torch.full((len(prompts), length), self.tokenizer.pad_token_id, dtype=torch.int64)
        for index, ids in enumerate(self._ids(prompts)):
            if len(ids) > length:
                self._warn_cut(prompts[index], len(ids))
                ids = [*ids[: length - 1], ids[-1]]
            rows[index, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows

    def _warn_cut(self, prompt: str, tokens: int) -> None:
        room = self.context_length - SPECIAL_TOKENS
        head = prompt if len(prompt) <= 40 else prompt[:40] + "..."
        message = f"prompt {head!r} has {tokens - SPECIAL_TOKENS} tokens or more; only the first {room} are used"
        warn(message)

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [self._expanded(self.tokenizer(self._head(prompt), verbose=False)["input_ids"]) for prompt in prompts]

    def _expanded(self, ids: Sequence[int]) -> list[int]:
        """Return the ids with each learned word as the ids of its vectors."""
        return [part for token in ids for part in self.expansions.get(token, (token,))]

    def _head(self, prompt: str) -> str:
        """Return `prompt`, cut where no token of the context can reach, so that a megabyte costs no time."""
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            where = f"character {error.start} is {prompt[error.start]!r}"
            raise ConfigError(f"a prompt is not valid Unicode: {where}, half of a surrogate pair") from None
        reach = LONGEST_TOKEN * self.context_length
        return prompt if len(prompt) <= reach else " ".join(prompt.split())[:reach]

    def encode(self, ids: Tensor, clip_skip: int | None = None) -> Tensor:
        """Return the states alone of `run`: (B, L, D) float32."""
        return self.run(ids, clip_skip).states

    def run(self, ids: Tensor, clip_skip: int | None = None) -> Encoded:
        """Return text states and, where the model has a projection, the pooled vector.

        Args:
            ids: token ids (B, L), int64, on any device.
            clip_skip: number of last layers to leave out (0 or None: none, 1: "clip skip 2" of other tools), counted
                from where this tower's states come from. The final layer norm is applied where it is without
                `clip_skip`, as diffusers does. The pooled vector always comes from the last layer.

        Raises:
            ConfigError: there are not that many layers.
        """
        skipped, layers = (clip_skip or 0) + self.penultimate, self.config.num_hidden_layers
        if not self.penultimate <= skipped < layers:
            most = layers - 1 - self.penultimate
            raise ConfigError(f"clip_skip: {clip_skip}; this text encoder has {layers} layers, so 0 to {most}")
        result: Any = self.model(input_ids=ids.to(self.device), output_hidden_states=bool(skipped))
        states = result.hidden_states[-1 - skipped] if skipped else result.last_hidden_state
        if skipped and not self.penultimate:
            body: Any = getattr(self.model, "text_model", self.model)  # only a model with projection has this level
            states = body.final_layer_norm(states)
        wide = torch.promote_types(states.dtype, torch.float32)
        pooled = result.text_embeds.to(wide) if self.pooled_width else None
        return Encoded(states.to(wide), pooled)

    def forward(self, prompts: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        """Return the conditioning of B prompts: context (B, L, D) float32 on the model's device."""
        return join_towers([self.run(self.tokenize(list(prompts)), clip_skip)])


class TextEncoders(nn.Module):
    """Two towers that read the same prompts; their states lie side by side (SDXL)."""

    def __init__(self, first: TextEncoder, second: TextEncoder) -> None:
        """Take both towers; the pooled vector is the second's.

        Raises:
            ConfigError: they read different numbers of tokens.
        """
        super().__init__()
        self.first, self.second = first, second
        if first.context_length != second.context_length:
            raise ConfigError(
                f"the first text encoder reads {first.context_length} tokens, the second {second.context_length}"
            )

    @property
    def towers(self) -> tuple[TextEncoder, ...]:
        """Both, in the order in which their states are joined."""
        return self.first, self.second

    @property
    def width(self) -> int:
        """Channels D of the joined states."""
        return self.first.width + self.second.width

    @property
    def pooled_width(self) -> int:
        """Channels P of the pooled vector."""
        return self.second.pooled_width

    @property
    def context_length(self) -> int:
        """Number of tokens L a prompt is cut or padded to, begin and end included."""
        return self.first.context_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.first.device

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Return the larger of both towers' token counts of each prompt, begin and end not counted."""
        return [max(pair) for pair in zip(*(tower.token_counts(prompts) for tower in self.towers), strict=True)]

    def forward(
        self, prompts: Sequence[str], clip_skip: int | None = None, second: Sequence[str] | None = None
    ) -> Conditioning:
        """Return the conditioning of B prompts, float32 on the model's device.

        Args:
            prompts: what both towers read.
            clip_skip: layers left out in both towers, before the penultimate.
            second: what the second tower reads instead.

        Returns:
            context (B, L, D1 + D2) and pooled (B, P).
        """
        texts = (list(prompts), list(prompts if second is None else second))
        rows = zip(self.towers, texts, strict=True)
        return join_towers([tower.run(tower.tokenize(part), clip_skip) for tower, part in rows])


def join_towers(parts: Sequence[Encoded]) -> Conditioning:
    """Return the conditioning of what each tower made of the same B rows: states side by side, the last's pooled."""
    return Conditioning(torch.cat([part.states for part in parts], dim=-1), pooled=parts[-1].pooled)


LONGEST_TOKEN = 128
"""More characters than any token of a CLIP vocabulary covers, in characters of text."""
