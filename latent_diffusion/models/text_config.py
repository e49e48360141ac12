"""Sizes of a CLIP text tower, and how a Stable Diffusion family reads it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

__all__ = ["TextConfig"]

FEED_FORWARD_GROWTH = 4  # hidden width of a layer over the tower's, in every published tower


@dataclass(frozen=True)
class TextConfig:
    """One text tower; `build` makes it."""

    width: int  # channels D of the states
    layers: int  # transformer layers
    heads: int  # attention heads
    activation: str = "quick_gelu"  # x * sigmoid(1.702 x), OpenAI's towers; "gelu" in OpenCLIP's
    projection: int | None = None  # channels P of the pooled vector; None = the tower gives none
    penultimate: bool = False  # read the states before the last layer, without the final norm (SDXL)
    pad_token: str = "<|endoftext|>"  # the end token; OpenCLIP pads with id 0, "!"
    vocab_size: int = 49408  # rows of the token embedding
    context_length: int = 77  # tokens of a prompt, begin and end included

    def build(self, tokenizer: "CLIPTokenizer") -> "CLIPTextModel | CLIPTextModelWithProjection":
        """Return the transformers model with random weights, on torch's current default device ("meta" takes none)."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        config = self.for_transformers(tokenizer)
        return CLIPTextModel(config) if self.projection is None else CLIPTextModelWithProjection(config)

    def for_transformers(self, tokenizer: "CLIPTokenizer") -> "CLIPTextConfig":
        """Return transformers' configuration, with the special ids of `tokenizer`."""
        from transformers import CLIPTextConfig

        special: Any = tokenizer  # whose ids transformers declares as nearly anything
        return CLIPTextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=FEED_FORWARD_GROWTH * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context_length,
            hidden_act=self.activation,
            projection_dim=self.projection or self.width,
            bos_token_id=special.bos_token_id,
            eos_token_id=special.eos_token_id,
            pad_token_id=special.pad_token_id,
        )
