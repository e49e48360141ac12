"""The processes of a run, as `accelerate launch` or torchrun started them."""

from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from latent_diffusion.errors import ConfigError

__all__ = ["build_accelerator"]


def build_accelerator() -> Accelerator:
    """Return accelerate's view of the processes; it gets neither the loader nor the curve, and no autocast.

    Raises:
        ConfigError: launched for a way of sharing work that the trainer does not know.
    """
    accelerator = Accelerator(
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
        ],
    )
    kind = accelerator.distributed_type.name
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ConfigError(f"launched for {kind}; this trainer knows one process, several CPU processes, several GPUs")
    return accelerator
