"""One update of a LoRA of rank 16 on the attention of a U-Net: our trainer, and diffusers' U-Net with PEFT's layers.

The plain loop begins with our factors, so the losses are the same. In bfloat16 its U-Net shares our frozen weights,
which are in bfloat16, as in diffusers' example script; in float32 under autocast they take twice the memory. A peer's
name with "-checkpointed" recomputes its activations in the backward pass, which takes less memory and more time.
"""

from typing import Any, ClassVar

from torch import nn

from benchmarks.cases.train_step import TrainStep
from benchmarks.plan import AbsentError, Ready
from latent_diffusion.training.objectives.lora import LoraObjective

__all__ = ["LoraStep"]

RANK = 16
CHECKPOINTED = "-checkpointed"


class LoraStep(TrainStep):
    """Loss, gradients of the factors and AdamW for one batch of cached latents and text states."""

    title = "LoRA step"
    usual_batch: ClassVar[int] = 1
    objective: ClassVar[str] = "lora"
    chosen: ClassVar[dict[str, Any]] = {"adapter": {"rank": RANK, "layers": "attention"}}

    def build(self, tool: str) -> Ready:
        """Return the loop, ready to make updates."""
        self.checkpointing = tool.endswith(CHECKPOINTED)
        return super().build(tool.removesuffix(CHECKPOINTED))

    def trained(self, unet: Any, objective: LoraObjective) -> list[nn.Parameter]:
        """Put PEFT's layers into diffusers' U-Net, with our factors, and return their weights."""
        try:
            from peft import LoraConfig
        except ImportError:
            raise AbsentError("diffusers trains a LoRA with peft, which is not installed") from None
        unet.requires_grad_(False)
        changes = objective.adapter.changes["unet"]
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(changes)))
        for path, change in changes.items():
            unet.get_submodule(path).lora_A["default"].weight.data.copy_(change.get_parameter("down"))
        if self.checkpointing:
            unet.enable_gradient_checkpointing()
        return [weight for weight in unet.parameters() if weight.requires_grad]
