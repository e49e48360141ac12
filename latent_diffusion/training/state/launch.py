"""The processes of a run, as `accelerate launch` or torchrun started them, and what the launcher was asked besides."""

import logging
import os
import sys
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple

import psutil
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from torch.distributed import TCPStore

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.runtime.precision import bfloat16_cost, bfloat16_is_fast
from latent_diffusion.training.state.training_state import TrainingState

__all__ = [
    "Launched",
    "build_accelerator",
    "choose_precision",
    "first_to_report",
    "launched",
    "lost_process",
    "warn_of_launcher_options",
]

logger = logging.getLogger(__name__)

_WAYS = "one process, several CPU processes, several GPUs (one process each, DistributedDataParallel), or FSDP2"
_WHY = "it cannot run on CPUs, so no test could run it"
_OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")
_TWO_ON_CPU = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node {count} -m latent_diffusion.train ..."


def build_accelerator() -> Accelerator:
    """Return accelerate's view of the processes; it gets neither the loader nor the curve, and no autocast.

    Raises:
        ConfigError: launched for a way of sharing work that the trainer does not support, or several processes were
            started of which each would train alone.
    """
    for variable, name in _OTHER_WAYS.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise ConfigError(f"launched for {name}, which this trainer does not support: {_WHY}; launch {_WAYS}")
    accelerator = Accelerator(
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
        ],
    )
    kind = accelerator.distributed_type.name
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        raise ConfigError(f"launched for {kind}, which this trainer does not support; launch {_WAYS}")
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > accelerator.num_processes:
        raise ConfigError(
            f"{started} processes were launched, but without a GPU accelerate starts each as a separate run; set "
            f"ACCELERATE_USE_CPU=true to train with {started} CPU processes, or launch one process"
        )
    return accelerator


def choose_precision(run: RunConfig, state: TrainingState | None, accelerator: Accelerator) -> RunConfig:
    """Return the run with `precision: auto` replaced: by the checkpoint's, else by what all processes are fast in."""
    device = accelerator.device
    if run.precision != "auto":
        if run.precision == "bfloat16" and not bfloat16_is_fast(device):
            logger.warning(
                "precision: bfloat16, but %s has no bfloat16 arithmetic and emulates it: a convolution takes %.1f "
                "times as long as in float32; use auto",
                device,
                bfloat16_cost(device),
            )
        return run
    if state is not None:
        chosen, reason = str(state.values["config"]["precision"]), f"as {state.folder} was trained"
    elif all(gather_object([bfloat16_is_fast(device)])):
        chosen, reason = "bfloat16", f"{device} computes in it"
    else:
        chosen, reason = "float32", f"{device} has no bfloat16 arithmetic"
    logger.info("precision: %s, since %s", chosen, reason)
    return run.model_copy(update={"precision": chosen})


def warn_of_launcher_options(run: RunConfig, accelerator: Accelerator) -> None:
    """Name each option of `accelerate launch` that the run's own configuration decides in its place."""
    given = _launcher_options()
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", {"bfloat16": "bf16"}.get(run.precision)):
        logger.warning("--mixed_precision %s has no effect: the run has precision=%s", mixed, run.precision)
    steps = given.get("gradient_accumulation_steps", "1")
    if steps not in ("1", str(run.accumulation)):
        logger.warning(
            "--gradient_accumulation_steps %s has no effect: the run has accumulation=%d", steps, run.accumulation
        )
    count, running = given.get("num_processes", "1"), accelerator.num_processes
    if count.isdecimal() and int(count) > running:
        advice = _TWO_ON_CPU.format(count=count)
        logger.warning("--num_processes %s, but accelerate launched %d; on CPUs use %s", count, running, advice)
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        logger.warning("dynamo_backend %s of the launcher has no effect: networks are not compiled", backend)


class Launched(NamedTuple):
    """One value that a run has from its launch, and what decided it."""

    value: int | str
    source: str


def launched(
    run: RunConfig, chosen: RunConfig, state: TrainingState | None, accelerator: Accelerator, threads: int
) -> dict[str, Launched]:
    """Return processes, threads, device, precision and accumulation as they take effect, each with its source.

    Args:
        run: as it was configured.
        chosen: the same with the precision it is trained with.
        state: the checkpoint that is continued, or None.
        accelerator: accelerate's view of the processes.
        threads: of each process.
    """
    kept = state is not None and state.values["processes"] == accelerator.num_processes
    shared_out = "as its checkpoint was trained" if kept else "the cores, shared out"
    precision = "precision of the run" if run.precision != "auto" else "precision: auto of the run"
    return {
        "processes": Launched(accelerator.num_processes, _source_of_processes()),
        "threads": Launched(threads, shared_out if run.threads is None else "threads of the run"),
        "device": Launched(str(accelerator.device), _source_of_device(accelerator)),
        "precision": Launched(chosen.precision, precision),
        "accumulation": Launched(chosen.accumulation, "accumulation of the run"),
    }


def _source_of_processes() -> str:
    """Return what decided the number of processes: an option, a file of accelerate's, torchrun, or nothing."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "no launcher"
    given = _launcher_options()
    if "num_processes" in given:
        return "--num_processes of accelerate launch"
    default = None if "cpu" in given else default_config_file  # as accelerate: with --cpu only a named file is read
    file = given.get("config_file", default)
    if file is None or not os.path.isfile(file):
        return "accelerate launch without a configuration file"
    with open(file, encoding="utf-8") as stream:
        written = yaml.safe_load(stream)
    named = isinstance(written, dict) and "num_processes" in written
    return f"num_processes of {file}" if named else f"accelerate launch, since {file} has no num_processes"


def _source_of_device(accelerator: Accelerator) -> str:
    """Return what decided the device."""
    if accelerator.device.type != "cpu":
        return "the GPU of the process"
    asked = os.environ.get("ACCELERATE_USE_CPU", "")
    return f"ACCELERATE_USE_CPU={asked}" if asked.lower() in ("1", "true", "yes") else "no GPU was found"


def first_to_report(error: Exception) -> bool:
    """Return whether no other process of this launch has reported an error of this kind; True without torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=5))
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"latent_diffusion/{restart}/{type(error).__name__}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the store is gone with its process
        return True


def lost_process(fault: Exception) -> ResourceError | None:
    """Return what to report where a sum over processes failed because another process ended; None for other faults."""
    words = str(fault)
    if not isinstance(fault, RuntimeError) or not any(sign in words for sign in _LOST):
        return None
    return ResourceError(
        "another process of this run ended; see its message; every checkpoint is intact: run again to continue"
    )


def _launcher_options() -> dict[str, str]:
    """Return the `--name value` options of the `accelerate launch` that started this process; {} without one."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return {}
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return {}
    if sys.argv[1:] and words[-len(sys.argv[1:]) :] == sys.argv[1:]:  # the run's own arguments
        words = words[: -len(sys.argv[1:])]
    pairs = " ".join(words).replace("=", " ").split()
    return {name[2:].replace("-", "_"): value for name, value in pairwise([*pairs, ""]) if name.startswith("--")}
