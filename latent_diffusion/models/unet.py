"""U-Net that predicts from a noisy latent, its noise level and text states.

The prompt enters only through keys and values of the cross-attentions and, in SDXL, through a vector added to that of
the noise level, so `project` computes both once for all steps.
Tensor names are those of diffusers' `UNet2DConditionModel`.
Reference: Ho et al. 2020, arXiv:2006.11239, appendix B; Rombach et al. 2022, arXiv:2112.10752, section 3; Podell et al.
2023, arXiv:2307.01952, sections 2.1 and 2.2 (SDXL).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.attention import KeysValues
from latent_diffusion.nn.embeddings import TimeEmbedding, sinusoids
from latent_diffusion.nn.resnet import Downsample, ResnetBlock, Upsample
from latent_diffusion.nn.transformer import SpatialTransformer, TransformerBlock

__all__ = ["Projected", "UNet", "UNetConfig"]

TIME_GROWTH = 4  # width of the noise-level embedding over that of the first level


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net. Level 0 has the latent's size, each further level half of it."""

    sample_size: int  # latent px a side it was trained at
    block_out_channels: tuple[int, ...]  # channels of each level
    layers_per_block: int  # residual blocks a level on the way down; one more on the way up
    cross_attention: tuple[bool, ...]  # whether a level attends to itself and the context, both ways
    num_attention_heads: tuple[int, ...]  # heads of each level; the middle has the last level's
    cross_attention_dim: int  # channels D of the context
    in_channels: int = 4  # latent channels, plus those of `Conditioning.concat`
    out_channels: int = 4  # latent channels
    transformer_layers_per_block: int | tuple[int, ...] = 1  # transformer blocks at each place of a level; middle: last
    use_linear_projection: bool = False  # linear layers (SD 2) or 1x1 convolutions (SD 1) around them
    norm_num_groups: int = 32  # groups of every GroupNorm; divides every entry of block_out_channels
    norm_eps: float = 1e-5  # epsilon of the residual blocks' GroupNorms
    upcast_attention: bool = False  # a hint for other tools in float16; our kernels accumulate in float32 anyway
    added_width: int | None = None  # SDXL: channels of pooled vector and embedded sizes together; None = told neither
    size_width: int = 256  # channels that one size number is embedded in

    def __post_init__(self) -> None:
        """Check the sizes; lists become tuples.

        Raises:
            ConfigError: lists of different lengths, or channels that groups or heads do not divide.
        """
        for name in ("block_out_channels", "cross_attention", "num_attention_heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        levels = len(self.block_out_channels)
        if not levels:
            raise ConfigError("unet: block_out_channels is empty; give the channels of each level")
        layers = self.transformer_layers_per_block
        if not isinstance(layers, int):  # one number is kept as it is: it stands for all levels
            object.__setattr__(self, "transformer_layers_per_block", tuple(layers))
        for name in ("cross_attention", "num_attention_heads", "transformer_layers_per_block"):
            if not isinstance(getattr(self, name), int) and len(getattr(self, name)) != levels:
                raise ConfigError(
                    f"unet: {name} has {len(getattr(self, name))} entries for {levels} levels; give one a level"
                )
        for channels, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            for name, divisor in (("norm_num_groups", self.norm_num_groups), ("num_attention_heads", heads)):
                if divisor < 1 or channels % divisor:
                    raise ConfigError(f"unet: block_out_channels has {channels}, not a multiple of {name} {divisor}")

    def transformer_layers(self, level: int) -> int:
        """Return the number of transformer blocks at each place of `level`; -1 is the last level, and the middle."""
        layers = self.transformer_layers_per_block
        return layers if isinstance(layers, int) else layers[level]


@dataclass(frozen=True)
class Projected:
    """All that depends on the condition only, for a batch of B conditions.

    `keys_values` holds for each cross-attention, in the order the U-Net runs them, keys and values (B, N, L, d) each;
    `concat` (B, C', h, w) are extra input channels, or None; `added` (B, E) joins the embedded noise level, or None.
    """

    keys_values: tuple[KeysValues, ...]
    concat: Tensor | None = None
    added: Tensor | None = None

    def __len__(self) -> int:
        """Number of conditions B."""
        return self.keys_values[0][0].shape[0]

    def __getitem__(self, rows: slice) -> "Projected":
        """Return a slice of the batch, as views."""
        return self._map(lambda v: v[rows])

    def repeat_interleave(self, count: int) -> "Projected":
        """Return each condition `count` times in a row."""
        return self._map(lambda v: v.repeat_interleave(count, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Projected":
        """Return the same on `device` in `dtype`."""
        return self._map(lambda v: v.to(device=device, dtype=dtype))

    @staticmethod
    def cat(parts: Sequence["Projected"]) -> "Projected":
        """Join batches along B; `concat` and `added` must each be set in all parts or in none."""

        def join(name: str) -> Tensor | None:
            present = [v for part in parts if (v := getattr(part, name)) is not None]
            if present and len(present) != len(parts):
                raise ValueError(f"cannot join projections: `{name}` is set in {len(present)} of {len(parts)} parts")
            return torch.cat(present) if present else None

        layers = zip(*(part.keys_values for part in parts), strict=True)
        joined = tuple((torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers)
        return Projected(joined, join("concat"), join("added"))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Projected":
        pairs = tuple((change(k), change(v)) for k, v in self.keys_values)
        rest = {name: None if v is None else change(v) for name, v in vars(self).items() if name != "keys_values"}
        return Projected(pairs, **rest)


class UNet(nn.Module):
    """Residual blocks and transformers on falling, then rising sizes, joined by skip connections."""

    def __init__(self, config: UNetConfig) -> None:
        """Build the network with torch's default initialisation."""
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        plan = LevelPlan(config, TIME_GROWTH * widths[0])
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], plan.time_width)
        if config.added_width is not None:
            self.add_embedding = TimeEmbedding(config.added_width, plan.time_width)
        self.down_blocks = nn.ModuleList(DownLevel(plan, level) for level in range(len(widths)))
        self.mid_block = Middle(plan)
        self.up_blocks = nn.ModuleList(UpLevel(plan, level) for level in reversed(range(len(widths))))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def project(self, cond: Conditioning) -> Projected:
        """Return keys and values of every cross-attention for `cond.context` (B, L, D), and the added vector.

        Gradients flow through both.

        Raises:
            ConfigError: SDXL without `cond.pooled` or `cond.size_ids`, or of other widths than it was built for.
        """
        blocks = (module for module in self.modules() if isinstance(module, TransformerBlock))
        keys_values = tuple(block.attn2.project(cond.context) for block in blocks)
        return Projected(keys_values, cond.concat, self._added(cond))

    def _added(self, cond: Conditioning) -> Tensor | None:
        """Embed the pooled vector and the sizes: (B, E); None for a U-Net that is told neither."""
        wanted = self.config.added_width
        if wanted is None:
            return None
        if cond.pooled is None or cond.size_ids is None:
            raise ConfigError("this U-Net (SDXL) needs `pooled` and `size_ids` beside the text states")
        sizes = sinusoids(cond.size_ids.flatten(), self.config.size_width).reshape(len(cond), -1)
        features = torch.cat([cond.pooled, sizes.to(cond.pooled.dtype)], dim=-1)
        if features.shape[-1] != wanted:
            raise ConfigError(
                f"pooled vector ({cond.pooled.shape[-1]}) and {cond.size_ids.shape[-1]} sizes "
                f"(of {self.config.size_width} each) are {features.shape[-1]} channels; this U-Net reads {wanted}"
            )
        return self.add_embedding(features)

    def forward(self, x: Tensor, t: Tensor, projected: Projected) -> Tensor:
        """Return the prediction (B, C, h, w).

        Args:
            x: (B, C, h, w) noisy latents in the network's dtype; any h and w.
            t: (B,) integer or float times in training steps.
            projected: what `project` returned for the B conditions.
        """
        if projected.concat is not None:
            x = torch.cat([x, projected.concat], dim=1)
        context = iter(projected.keys_values)
        features = sinusoids(t, self.config.block_out_channels[0]).to(x.dtype)
        time = self.time_embedding(features)
        if projected.added is not None:
            time = time + projected.added
        time = F.silu(time)  # every residual block wants it after its SiLU
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            x = level(x, time, context, skips)
        x = self.mid_block(x, time, context)
        for level in self.up_blocks:
            x = level(x, time, context, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Keep only each block's input for backward and compute the block again: less memory, about a third slower."""
        for module in self.modules():
            if isinstance(module, ResnetBlock | SpatialTransformer):
                module.checkpointing = enabled


@dataclass(frozen=True)
class LevelPlan:
    """Sizes from which the levels are built."""

    config: UNetConfig
    time_width: int  # channels of the noise-level embedding

    def resnets(self, inputs: Sequence[int], level: int) -> nn.ModuleList:
        """Return one residual block for each of the input widths `inputs`."""
        c = self.config
        return nn.ModuleList(
            ResnetBlock(
                width,
                c.block_out_channels[level],
                groups=c.norm_num_groups,
                eps=c.norm_eps,
                time_width=self.time_width,
            )
            for width in inputs
        )

    def transformers(self, count: int, level: int) -> nn.ModuleList:
        """Return `count` transformers with the sizes of `level`."""
        c = self.config
        return nn.ModuleList(
            SpatialTransformer(
                c.block_out_channels[level],
                c.num_attention_heads[level],
                c.cross_attention_dim,
                layers=c.transformer_layers(level),
                groups=c.norm_num_groups,
                linear_projection=c.use_linear_projection,
            )
            for _ in range(count)
        )


def attend(transformer: nn.Module, x: Tensor, context: Iterator[KeysValues]) -> Tensor:
    """Run one transformer (B, C, H, W) with the next keys and values of `context`, one pair for each of its blocks."""
    assert isinstance(transformer, SpatialTransformer), "attentions hold SpatialTransformers"
    return transformer(x, [next(context) for _ in transformer.transformer_blocks])


class DownLevel(nn.Module):
    """Residual blocks, each followed by a transformer where the level attends, then half the size."""

    def __init__(self, plan: LevelPlan, level: int) -> None:
        super().__init__()
        c, widths = plan.config, plan.config.block_out_channels
        inputs = [widths[max(level - 1, 0)]] + [widths[level]] * (c.layers_per_block - 1)
        last = level == len(widths) - 1
        self.attentions = plan.transformers(c.layers_per_block if c.cross_attention[level] else 0, level)
        self.resnets = plan.resnets(inputs, level)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(widths[level], symmetric=True)])

    def forward(self, x: Tensor, time: Tensor, context: Iterator[KeysValues], skips: list[Tensor]) -> Tensor:
        """Map `x` (B, C', H, W) to (B, C, H / 2, W / 2); appends every intermediate result to `skips`."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if len(self.attentions):
                x = attend(self.attentions[index], x, context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class Middle(nn.Module):
    """Residual block, transformer, residual block at the smallest size."""

    def __init__(self, plan: LevelPlan) -> None:
        super().__init__()
        width = plan.config.block_out_channels[-1]
        self.attentions = plan.transformers(1, -1)
        self.resnets = plan.resnets([width, width], -1)

    def forward(self, x: Tensor, time: Tensor, context: Iterator[KeysValues]) -> Tensor:
        """Map `x` (B, C, H, W) to the same shape."""
        x = attend(self.attentions[0], self.resnets[0](x, time), context)
        return self.resnets[1](x, time)


class UpLevel(nn.Module):
    """Residual blocks that take up the skips, each with a transformer where the level attends, then twice the size."""

    def __init__(self, plan: LevelPlan, level: int) -> None:
        super().__init__()
        c, widths = plan.config, plan.config.block_out_channels
        width, above, below = widths[level], widths[max(level - 1, 0)], widths[min(level + 1, len(widths) - 1)]
        layers = c.layers_per_block + 1
        arriving = [below] + [width] * (layers - 1)
        skipped = [width] * (layers - 1) + [above]  # the last skip came from the level above, or from conv_in
        self.attentions = plan.transformers(layers if c.cross_attention[level] else 0, level)
        self.resnets = plan.resnets([a + s for a, s in zip(arriving, skipped, strict=True)], level)
        self.upsamplers = nn.ModuleList([Upsample(width)] if level else [])

    def forward(self, x: Tensor, time: Tensor, context: Iterator[KeysValues], skips: list[Tensor]) -> Tensor:
        """Map `x` (B, C', h, w) to (B, C, 2 h, 2 w), or to the size of the next skip; takes its skips off the end."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), time)
            if len(self.attentions):
                x = attend(self.attentions[index], x, context)
        for upsample in self.upsamplers:
            x = upsample(x, (skips[-1].shape[-2], skips[-1].shape[-1]))
        return x
