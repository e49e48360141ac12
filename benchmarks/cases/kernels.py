"""Single kernels at the sizes of the model's levels: GroupNorm with SiLU, GEGLU, attention; the U-Net's are guided."""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.case import OURS, PLAIN, Case
from benchmarks.flops import count_flops
from benchmarks.plan import AbsentError, Ready, drawn
from latent_diffusion.runtime.cuda import fusions
from latent_diffusion.runtime.cuda.wide_heads import WIDEST_FUSED, attend_wide
from latent_diffusion.training.clock import timed

__all__ = ["Kernels"]

ROWS = 2  # of a guided picture
GEGLU = 8  # channels before it over those of its level
SHOWN = 1024  # numbers of each result that are compared
Work = Callable[[], Tensor]


class Kernels(Case):
    """One call of each; `split` has the seconds of each. Ours are the fused ones of a GPU; on a CPU torch's."""

    title = "Kernels"

    def flops(self) -> float:
        """Count one call of each; of norms and GEGLU there are none to count."""
        return count_flops(
            lambda: [work() for _, work in self._works(torch.device("meta"), torch.float32, fused=False)]
        )

    def build(self, tool: str) -> Ready:
        """Return the kernels with their inputs in place; diffusers calls torch's own."""
        if tool not in (OURS, PLAIN, "diffusers"):
            raise AbsentError(f"{tool} has no kernels of its own")
        device, dtype = torch.device(self.plan.device), self.plan.torch_dtype(torch.bfloat16)
        works = dict(self._works(device, dtype, fused=tool == OURS and device.type == "cuda"))
        split: dict[str, float] = {}

        @torch.no_grad()
        def call() -> Mapping[str, Tensor]:
            made = []
            for name, work in works.items():
                with timed(split, name):
                    made.append(work())
                    if device.type == "cuda":
                        torch.cuda.synchronize()
            return {"output": torch.cat([out.flatten()[:SHOWN].float() for out in made])}

        return Ready(call, dtype, split=split)

    def _works(self, device: torch.device, dtype: torch.dtype, *, fused: bool) -> Iterator[tuple[str, Work]]:
        """Return every kernel with inputs on the device, by name."""
        described = self.model.described
        unet, coder, factor = described.unet.config, described.autoencoder.config, described.autoencoder.factor
        use = fusions.choose_fusions(device, dtype) if fused else fusions.PLAIN

        def draw(name: str, *shape: int) -> Tensor:
            return drawn(name, *shape).to(device, dtype)

        def norm(batch: int, channels: int, side: int, groups: int) -> Work:
            x = draw("x", batch, channels, side, side).contiguous(memory_format=torch.channels_last)
            layer = nn.GroupNorm(groups, channels, device=device, dtype=dtype)
            return lambda: use.norm(x, layer, silu=True)

        def geglu(batch: int, channels: int, side: int) -> Work:
            x = draw("x", batch, side * side, GEGLU * channels)
            return lambda: use.geglu(x)

        def attention(batch: int, channels: int, side: int, heads: int) -> Work:
            width = channels // heads
            q, k, v = (draw(name, batch, heads, side * side, width) for name in "qkv")
            kernel = attend_wide if fused and width > WIDEST_FUSED else F.scaled_dot_product_attention
            return lambda: kernel(q, k, v)

        batch, side = ROWS * self.batch, self.size // factor
        for level, channels in enumerate(unet.block_out_channels):
            where, cells = f"U-Net level {level}", side >> level
            yield f"norm {where}", norm(batch, channels, cells, unet.norm_num_groups)
            if unet.cross_attention[level]:
                yield f"GEGLU {where}", geglu(batch, channels, cells)
                yield f"attention {where}", attention(batch, channels, cells, unet.num_attention_heads[level])
        yield "norm decoder", norm(self.batch, coder.block_out_channels[0], self.size, coder.norm_num_groups)
        yield "attention decoder", attention(self.batch, coder.block_out_channels[-1], side, 1)
