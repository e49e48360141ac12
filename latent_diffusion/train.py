"""`accelerate launch -m latent_diffusion.train CONFIG [key=value ...]`: configuration, objective, training, export."""

import logging
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from latent_diffusion.config import RunConfig, parse_section, read_config
from latent_diffusion.errors import LatentDiffusionError
from latent_diffusion.registry import find

if TYPE_CHECKING:
    from accelerate import Accelerator

    from latent_diffusion.training.objective import Objective

__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Train as CONFIG and the overrides say; return the exit code (errors.py has the list)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m latent_diffusion.train CONFIG [key=value ...] [--debug]", file=sys.stderr)
        return 0 if arguments else 2
    try:
        run = read_config(arguments[0], arguments[1:])
        return train(run)
    except LatentDiffusionError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def train(run: RunConfig) -> int:
    """Train one run to its end, export it, and return the exit code."""
    import torch

    from latent_diffusion.runtime.allocator import keep_large_blocks
    from latent_diffusion.runtime.threads import choose_threads, set_threads
    from latent_diffusion.training.log import RunLog
    from latent_diffusion.training.trainer import Trainer

    keep_large_blocks()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = build_accelerator()
    set_threads(choose_threads(accelerator.num_processes, wanted=run.threads))
    logger.info(
        "%d process(es), %d threads each, %s", accelerator.num_processes, torch.get_num_threads(), run.precision
    )
    run.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    objective = build_objective(run)
    trainer = Trainer(objective, run, accelerator)
    log = RunLog(run.output, run)
    log.start(trainer.done)
    trainer.fit([log])
    log.close()
    return 0


def build_accelerator() -> "Accelerator":
    """Return accelerate's view of the processes; it gets neither the loader nor the curve, and no autocast."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    return Accelerator(
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
        ],
    )


def build_objective(run: RunConfig) -> "Objective":
    """Return the objective that `run.objective["name"]` names, with its two sections parsed.

    Raises:
        ConfigError: unknown objective, or a wrong key or value in its sections.
    """
    kind = find("latent_diffusion.training.objectives", str(run.objective["name"]))
    settings = {key: value for key, value in run.objective.items() if key != "name"}
    return kind(
        parse_section(kind.settings_type, settings, "objective"), parse_section(kind.data_type, run.data, "data"), run
    )


if __name__ == "__main__":
    sys.exit(main())
