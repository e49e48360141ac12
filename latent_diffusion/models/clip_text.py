"""CLIP's text tower: a transformer in which a token sees those before it (Radford et al. 2021, arXiv:2103.00020, 2.4).

Names of tensors, config fields and outputs are those of transformers' `CLIPTextModel`, which computes the same;
importing that takes longer than drawing a picture, and 200 MiB.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.attention import causal, join_heads, split_heads

__all__ = ["ACTIVATIONS", "CLIPTextConfig", "CLIPTextModel", "CLIPTextModelWithProjection", "TextOutput"]

LARGEST_ID = 2  # "eos_token_id" in configs of before transformers 4.31, whatever the vocabulary


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), an approximation of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}  # OpenAI's towers, OpenCLIP's


@dataclass(frozen=True)
class CLIPTextConfig:
    """The fields of a text tower's config.json, and what they are where it says nothing."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0  # of training, which is not done with this class
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    model_type: str = "clip_text_model"

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if type(value) is not int or value < (0 if name == "num_hidden_layers" else 1):
                raise ConfigError(f"{name} is {value!r}; a positive whole number is needed")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act is {self.hidden_act!r}; there are {', '.join(ACTIVATIONS)}")
        for name in ("layer_norm_eps", "attention_dropout"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name} is {value!r}; a number of 0 or more is needed")


SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "max_position_embeddings",
)


@dataclass(frozen=True)
class TextOutput:
    """Output of a text tower for B rows of L ids."""

    last_hidden_state: Tensor  # (B, L, D), after the final norm
    pooler_output: Tensor  # (B, D), the end token's
    hidden_states: tuple[Tensor, ...] | None = None  # (B, L, D) each: embeddings, then after each layer, without norm
    text_embeds: Tensor | None = None  # (B, P), the end token's, projected


class CLIPTextModel(nn.Module):
    """Embeddings, layers, final norm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.eos_token_id = config.eos_token_id
        self.embeddings = TextEmbeddings(config)
        self.encoder = TextLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> TextOutput:
        """Return the states of ids (B, L) int64, L up to the context length; those between the layers where asked."""
        x, states = self.embeddings(input_ids), []
        for layer in self.encoder.layers:
            states.append(x)
            x = layer(x)
        last = self.final_layer_norm(x)
        end = input_ids if self.eos_token_id == LARGEST_ID else (input_ids == self.eos_token_id).int()
        pooled = last[torch.arange(len(last), device=last.device), end.argmax(-1)]
        return TextOutput(last, pooled, (*states, x) if output_hidden_states else None)


class CLIPTextModelWithProjection(nn.Module):
    """A text tower and the projection of its end token's state."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextModel(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim or config.hidden_size, bias=False)

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> TextOutput:
        """Return the states of ids (B, L) int64 and the projected vector."""
        found = self.text_model(input_ids, output_hidden_states)
        return replace(found, text_embeds=self.text_projection(found.pooler_output))


class TextEmbeddings(nn.Module):
    """A vector for each token plus one for each place."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = _table(config.vocab_size, config.hidden_size, std=0.02)
        self.position_embedding = _table(config.max_position_embeddings, config.hidden_size, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, L, D) of ids (B, L)."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[-1]]


class TextLayers(nn.Module):
    """The layers, under transformers' name for the list."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.num_hidden_layers))


class TextLayer(nn.Module):
    """Attention and a small network, each on normed input and added to it."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.self_attn = CausalAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CausalAttention(nn.Module):
    """Each token looks at itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(join_heads(causal(q, k, v)))


class FeedForward(nn.Module):
    """Two linear layers with the activation between."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.fc2(self.activation(self.fc1(x)))


def _table(rows: int, width: int, std: float) -> nn.Embedding:
    """Return a table of random rows; on the meta device none are drawn, which would import torch's compiler (1 s)."""
    weight = torch.empty(rows, width)
    return nn.Embedding(rows, width, _weight=weight if weight.is_meta else weight.normal_(std=std))
