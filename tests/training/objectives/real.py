"""The real trainer in a process of its own, started by `processes.train(output, ..., run=real.run)` or another here."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.config import RunConfig
from latent_diffusion.train import main
from latent_diffusion.training.networks.frozen_states import Latents, TextStates
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer


def run(output: Path, config: str, *overrides: str) -> int:
    """Train `config` into `output`; return the exit code."""
    return main([config, f"output={output}", *overrides])


def run_sharded(output: Path, config: str, *overrides: str) -> int:
    """Train `config` as `accelerate launch` starts it with `fsdp_version: 2`."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    return run(output, config, *overrides)


def fit_each(output: Path, *runs: str) -> int:
    """Make the updates of one run after another, each given as JSON, and write the trained weights of each."""
    output.mkdir(exist_ok=True)
    accelerator = build_accelerator()
    for number, values in enumerate(runs):
        made = RunConfig.model_validate(json.loads(values))
        torch.manual_seed(made.seed)
        trainer = Trainer(build_objective(made), made, accelerator)
        seen = Losses()
        trainer.fit([seen])
        if accelerator.is_main_process:
            losses = {"losses": torch.tensor(seen.values, dtype=torch.float64)}
            write_tensors(output / f"{number}.safetensors", {**trainer.trainable["unet"], **losses})
        accelerator.free_memory()
    accelerator.end_training()
    return 0


class Losses:
    """Keeps the loss of each update."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to note."""

    def after_update(self, trainer: Trainer, figures: dict[str, float]) -> None:
        """Note the loss."""
        self.values.append(figures["unet/loss"])


def run_counting(output: Path, config: str, *overrides: str) -> int:
    """Train, and write how many pictures and captions this process has encoded for caches to `OUTPUT.encoded<rank>`."""
    counts = {Latents: 0, TextStates: 0}

    def count(kind: Any) -> None:
        encode = kind._encode

        def counted(self: Any, items: Any) -> Any:
            counts[kind] += len(items)
            return encode(self, items)

        kind._encode = counted

    count(Latents)
    count(TextStates)
    code = run(output, config, *overrides)
    Path(f"{output}.encoded{os.environ.get('RANK', '0')}").write_text(f"{counts[Latents]} {counts[TextStates]}")
    return code
