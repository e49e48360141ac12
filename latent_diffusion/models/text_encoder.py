"""Prompts -> text states: a CLIP text model and its tokenizer, both from transformers.

As in Stable Diffusion 1: every prompt is cut or padded to the model's context length (77), padding takes part like any
other token (the mask is causal, so it cannot change the tokens before it), and the states after the last layer norm
feed the cross-attention.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError, LatentDiffusionWarning

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["TextEncoder"]

SPECIAL_TOKENS = 2  # begin and end


class TextEncoder(nn.Module):
    """A transformers `CLIPTextModel` and `CLIPTokenizer`, as one function from prompts to `Conditioning`."""

    def __init__(self, model: "CLIPTextModel", tokenizer: "CLIPTokenizer") -> None:
        """Take a model and the tokenizer it was trained with.

        Raises:
            ConfigError: the tokenizer's ids do not fit the model's embedding rows or its begin and end ids.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._check_ids()

    def _check_ids(self) -> None:
        config, tokenizer = self.config, self.tokenizer
        if len(tokenizer) > config.vocab_size:
            raise ConfigError(f"the tokenizer has {len(tokenizer)} ids, the text model only {config.vocab_size} rows")
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
    def context_length(self) -> int:
        """Number of tokens L a prompt is cut or padded to, begin and end included."""
        return self.config.max_position_embeddings

    @property
    def end_id(self) -> int:
        """Id of the end token; its first occurrence closes a prompt."""
        end: Any = self.tokenizer.eos_token_id
        return end

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

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
        padding: Any = self.tokenizer.pad_token_id
        rows = torch.full((len(prompts), length), padding, dtype=torch.int64)
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
        warnings.warn(message, LatentDiffusionWarning, stacklevel=4)

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer(self._head(prompt), truncation=False, verbose=False)["input_ids"] for prompt in prompts]

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
        """Return text states (B, L, D) float32 for token ids (B, L) on any device.

        Args:
            ids: token ids.
            clip_skip: number of last layers to leave out (0 or None: none, 1: "clip skip 2" of other tools). The final
                layer norm is applied in any case, as diffusers does.

        Raises:
            ConfigError: there are not that many layers.
        """
        ids = ids.to(self.device)
        if not clip_skip:
            return self.model(input_ids=ids).last_hidden_state.float()
        layers = self.config.num_hidden_layers
        if not 0 < clip_skip < layers:
            raise ConfigError(f"clip_skip: {clip_skip}; this text encoder has {layers} layers, so 0 to {layers - 1}")
        states = self.model(input_ids=ids, output_hidden_states=True).hidden_states[-1 - clip_skip]
        body = getattr(self.model, "text_model", self.model)  # transformers 5.6 took this level out
        return body.final_layer_norm(states).float()

    def forward(self, prompts: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        """Return the conditioning of B prompts: context (B, L, D) float32 on the model's device."""
        return Conditioning(context=self.encode(self.tokenize(list(prompts)), clip_skip))


LONGEST_TOKEN = 128
"""More characters than any token of a CLIP vocabulary covers, in characters of text."""
