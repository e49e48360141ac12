"""One run from its configuration to the exported model: objective, training, resuming, export.

The same run started again continues from the newest checkpoint, or reports that it is finished.
"""

import contextlib
import logging
import os
import traceback
from collections.abc import Collection, Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from latent_diffusion.checkpoint.files.json_file import write_json
from latent_diffusion.config import LESS_MEMORY, RunConfig, Section, parse_section
from latent_diffusion.errors import ConfigError, DivergedError, ResourceError, describe
from latent_diffusion.registry import find
from latent_diffusion.runtime.cpu.allocator import keep_large_blocks
from latent_diffusion.runtime.cpu.threads import choose_threads, set_threads
from latent_diffusion.runtime.cpu.training_kernels import TrainingKernels, choose_kernels, works
from latent_diffusion.training.monitoring.log import RunLog, start_logging
from latent_diffusion.training.monitoring.previews import Previews
from latent_diffusion.training.monitoring.result import write_result
from latent_diffusion.training.monitoring.spikes import SpikeWatch
from latent_diffusion.training.monitoring.validation import Validation, is_last
from latent_diffusion.training.objective import Objective
from latent_diffusion.training.plan.memory_plan import plan_memory
from latent_diffusion.training.plan.run_plan import EndTime, measured, planned_line, with_steps, with_steps_of
from latent_diffusion.training.state.audit import Audit
from latent_diffusion.training.state.launch import (
    Launched,
    build_accelerator,
    choose_precision,
    launched,
    lost_process,
    warn_of_launcher_options,
)
from latent_diffusion.training.state.pinned_data import with_pinned_data
from latent_diffusion.training.state.run_folder import RunFolder
from latent_diffusion.training.state.saving import (
    Saver,
    describe_run,
    refuse_drift,
    restore,
    state_bytes,
)
from latent_diffusion.training.state.signals import StopSignals
from latent_diffusion.training.state.training_state import TrainingState, newest_state, set_aside_newer
from latent_diffusion.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["build_objective", "set_up", "show_plan", "train"]

logger = logging.getLogger(__name__)


def train(run: RunConfig) -> int:
    """Train one run to its end, or to a signal; return the exit code."""
    signals = StopSignals()
    with signals.caught():
        accelerator = _start()
        first = accelerator.is_main_process
        folder = RunFolder(run.output)
        folder.refuse_if_held()
        state = newest_state(folder.checkpoints)
        if state is not None and run.resume == "never":
            raise ConfigError(f"resume: never, but {folder.checkpoints} has checkpoints; choose another output")
        accelerator.wait_for_everyone()  # all have read the folder before the first writes in it
        run = with_pinned_data(with_steps_of(run, state), state, first=first)
        finished = state is not None and is_last(state, run) and folder.finished_steps() == state.step
        with folder.locked() if first and not finished else contextlib.nullcontext():
            if first and not finished:
                set_aside_newer(folder.checkpoints, state)
            code = _run(run, folder, state, accelerator, signals, finished=finished)
    accelerator.end_training()
    return code


def _run(
    run: RunConfig,
    folder: RunFolder,
    state: TrainingState | None,
    accelerator: "Accelerator",
    signals: StopSignals,
    *,
    finished: bool,
) -> int:
    """Build, continue from `state`, train and export."""
    first = accelerator.is_main_process
    configured, run = run, choose_precision(run, state, accelerator)
    warn_of_launcher_options(run, accelerator)
    launch = _launch(configured, run, state, accelerator)
    threads = int(launch["threads"].value)
    kernels = _choose_kernels(run, state, accelerator)
    torch.manual_seed(run.seed)
    objective = build_objective(run)
    run = with_steps(run, objective)
    described = describe_run(run, objective.fingerprint(), accelerator.num_processes, threads, kernels)
    if state is not None:
        refuse_drift(state, described, run)
        if finished:
            logger.info("%s is finished: %d steps, the model is in %s", run.output, state.step, folder.model)
            return 0
    with _reporting_failures(folder, first):
        if first:
            sources = {name: one._asdict() for name, one in launch.items()}
            write_json(folder.path / "config.json", {**described, "launch": sources})
        trainer = Trainer(objective, run, accelerator, kernels)
        log = RunLog(run.output, run)
        keep_best = partial(write_result, target=folder.best, described=described)
        validation = Validation(run, keep_best, log if first else None)
        if state is not None:
            restore(trainer, state)
            log.load(state.values["log"])
            validation.load(state.values.get("validation"))
            trainer.last = state.step if is_last(state, run) else run.updates
            logger.info("continuing after step %d from %s", state.step, state.folder)
        if first:
            folder.check_space(state_bytes(trainer), run.checkpoint.keep, models=2 if run.evaluate else 1)
            folder.tell(state="running", step=trainer.done, steps=run.updates, exit_code=None, message=None)
            log.start(trainer.done)
        with contextlib.closing(log):
            audit = Audit(trainer)
            signals.saving = True
            for line in (planned_line(run, objective.pass_samples()), *objective.plan_lines()):
                logger.info("%s", line)
            saver = Saver(run, folder, {"log": log, "validation": validation}, described)
            shared = [validation, Previews(run, run.output, log if first else None), saver]
            trainer.fit([log, *shared, SpikeWatch(), EndTime(), audit] if first else [*shared, audit], signals)
            signals.saving = False
        if trainer.stopped:
            logger.info("stopped after step %d of %d; run again to continue", trainer.done, trainer.last)
            if first:
                folder.tell(state="interrupted", step=trainer.done, exit_code=signals.exit_code)
            return signals.exit_code
        write_result(trainer, folder.model, described)
        if first:
            logger.info("finished: the model is in %s", folder.model)
            folder.tell(state="finished", step=trainer.done, exit_code=0)
        accelerator.wait_for_everyone()
    return 0


def _start() -> "Accelerator":
    """Prepare this process for training: its memory, its share of the work, its log."""
    keep_large_blocks()
    accelerator = build_accelerator()
    start_logging(logging.INFO if accelerator.is_main_process else logging.ERROR)
    return accelerator


def set_up(run: RunConfig) -> "tuple[RunConfig, Accelerator, TrainingKernels]":
    """Return a run with its precision, and what it computes with, where nothing is continued or written."""
    accelerator = _start()
    configured, run = run, choose_precision(run, None, accelerator)
    _launch(configured, run, None, accelerator)
    return run, accelerator, _choose_kernels(run, None, accelerator)


def show_plan(run: RunConfig) -> int:
    """Print the plan of a run, its expected end and its memory, from a few updates of which nothing is written."""
    run, accelerator, kernels = set_up(run)
    kind = find("latent_diffusion.training.objectives", str(run.objective["name"]))
    memory = plan_memory(kind, run, accelerator.device, kernels)
    if memory is not None:
        for line in memory.lines():
            logger.info("%s", line)
        if memory.missing:
            raise ResourceError(memory.trouble())
        run = memory.run
    torch.manual_seed(run.seed)
    objective = build_objective(run)
    run = with_steps(run, objective)
    for line in (planned_line(run, objective.pass_samples()), *objective.plan_lines()):
        logger.info("%s", line)
    for line in measured(Trainer(objective, run, accelerator, kernels)):
        logger.info("%s", line)
    accelerator.end_training()
    return 0


@contextlib.contextmanager
def _reporting_failures(folder: RunFolder, first: bool) -> Iterator[None]:
    """Write into `status.json` how a failure ended the run; a launcher hides the exit code and the message."""
    try:
        yield
    except SystemExit as stop:
        if first:
            folder.tell(state="interrupted", exit_code=stop.code)
        raise
    except Exception as fault:
        error = lost_process(fault) or fault
        if first:
            code, line = describe(error, out_of_memory=LESS_MEMORY)
            state = "diverged" if isinstance(error, DivergedError) else "failed"
            folder.tell(state=state, exit_code=code, message=line, traceback=traceback.format_exc())
        raise error from (None if error is fault else fault)


def _launch(
    configured: RunConfig, run: RunConfig, state: TrainingState | None, accelerator: "Accelerator"
) -> dict[str, Launched]:
    """Set the threads of this process; return and report what the run has from its launch."""
    found = launched(configured, run, state, accelerator, _choose_threads(run, state, accelerator))
    logger.info("launched with %s", ", ".join(f"{name} {one.value} ({one.source})" for name, one in found.items()))
    return found


def _choose_threads(run: RunConfig, state: TrainingState | None, accelerator: "Accelerator") -> int:
    """Set and return the threads of this process: as configured, as before, or the cores shared out."""
    processes = accelerator.num_processes
    wanted = run.threads
    if wanted is None and state is not None and state.values["processes"] == processes:
        wanted = state.values["threads"]  # sums in another order would end bit-equality
    threads = choose_threads(int(os.environ.get("LOCAL_WORLD_SIZE", str(processes))), wanted=wanted)
    set_threads(threads)
    return threads


def _choose_kernels(run: RunConfig, state: TrainingState | None, accelerator: "Accelerator") -> TrainingKernels:
    """Return the kernels to train with: those of the checkpoint, which keep its bits, or what is right here."""
    if not run.fast:
        return TrainingKernels()
    kernels = choose_kernels(run.precision, accelerator.device)
    if state is not None:
        kept = TrainingKernels(**state.values.get("kernels", {}))  # older checkpoints: the plain ones
        if not works(kept):
            logger.warning(
                "the kernels with which %s was trained are not available here: later updates round differently",
                state.folder,
            )
        kernels = kept if works(kept) else kernels
    everywhere = gather_object([asdict(kernels)])
    return TrainingKernels(**{name: all(chosen[name] for chosen in everywhere) for name in asdict(kernels)})


def build_objective(run: RunConfig) -> Objective:
    """Return the objective that `run.objective["name"]` names, with its two sections parsed.

    Raises:
        ConfigError: unknown objective, a wrong key or value in its sections, or keys of the run that it does not obey.
    """
    kind = find("latent_diffusion.training.objectives", str(run.objective["name"]))
    settings = {key: value for key, value in run.objective.items() if key != "name"}
    if kind.couples_samples and run.accumulation > 1:
        raise ConfigError(f"accumulation: objective {run.objective['name']!r} compares all pictures of a batch; use 1")
    _refuse_idle(run, "memory", kind.memory)
    _refuse_idle(run, "sample", kind.sample)
    objective: Objective = kind(
        parse_section(kind.settings_type, settings, "objective"), parse_section(kind.data_type, run.data, "data"), run
    )
    if run.evaluate is not None and objective.held_out is None:
        raise ConfigError(
            f"evaluate: objective {run.objective['name']!r} has no held-out pictures; set objective.validation, for "
            f"example objective.validation.split=test, or leave evaluate out"
        )
    return objective


def _refuse_idle(run: RunConfig, name: str, obeyed: Collection[str]) -> None:
    """Refuse keys of a section of the run that have no meaning for an objective.

    Raises:
        ConfigError: naming the first.
    """
    section: Section | None = getattr(run, name)
    for key in section.model_dump(exclude_defaults=True) if section is not None else ():
        if key not in obeyed:
            there = f"it obeys {', '.join(sorted(obeyed))}" if obeyed else f"it obeys no key of {name}"
            raise ConfigError(f"{name}.{key}: not for objective {run.objective['name']!r}; {there}; leave it out")
