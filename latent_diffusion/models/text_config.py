"""Sizes of a CLIP text tower, and how a Stable Diffusion family reads it."""

from dataclasses import dataclass

from latent_diffusion.models.clip_text import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from latent_diffusion.models.tokenizer import Tokenizer

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

    def build(self, tokenizer: Tokenizer) -> CLIPTextModel | CLIPTextModelWithProjection:
        """Return the model with random weights, on torch's current default device ("meta" takes none)."""
        config = self.of(tokenizer)
        return CLIPTextModel(config) if self.projection is None else CLIPTextModelWithProjection(config)

    def of(self, tokenizer: Tokenizer) -> CLIPTextConfig:
        """Return the model's own configuration, with the special ids of `tokenizer`."""
        return CLIPTextConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=FEED_FORWARD_GROWTH * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context_length,
            hidden_act=self.activation,
            projection_dim=self.projection or self.width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
