"""One update of a U-Net: our trainer, and diffusers' U-Net in the plain loop of its example script.

Both see the same pictures, captions, times and noise and begin with the same weights, so their losses are the same.
Latents and text states are computed before, on both sides.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.case import OURS, PLAIN, Case, twin_of
from benchmarks.flops import count_flops
from benchmarks.model import random_weights
from benchmarks.peers import check_peer
from benchmarks.plan import AbsentError, Ready
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
from latent_diffusion.checkpoint.folder.network_config import unet_values
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.config import RunConfig
from latent_diffusion.families import tiny
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.models.unet import UNet, UNetConfig
from latent_diffusion.randomness import normal
from latent_diffusion.registry import find
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.training.clock import timed
from latent_diffusion.training.numbers import sample_numbers
from latent_diffusion.training.trainer import Trainer

__all__ = ["TrainStep"]

SMALL = "small"  # the model's name, where none is asked for
CONFIG = UNetConfig(  # 18 M weights
    sample_size=16,
    block_out_channels=(64, 128, 256),
    layers_per_block=2,
    cross_attention=(True, True, False),
    num_attention_heads=(8, 8, 8),
    cross_attention_dim=256,
)
RATE, DECAY, CLIP = 1e-4, 1e-2, 1.0  # as the example script's
COMPARED = 4  # first losses
PICTURES, LEVELS = 64, 4  # of the data set; of its autoencoder: 8 px a cell
LAW = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "clip_sample")
DRAWN = 24  # steps whose draws are made ahead for the plain loop; then they come round again


class TrainStep(Case):
    """Loss, gradients and AdamW for one batch of cached latents and text states."""

    title = "Training step"
    usual_batch: ClassVar[int] = 32
    objective: ClassVar[str] = "unet"
    chosen: ClassVar[dict[str, Any]] = {}  # settings of the objective beside those of every run
    reference_calls: ClassVar[int] = COMPARED

    @property
    def config(self) -> UNetConfig:
        """Sizes of the U-Net that is trained."""
        return CONFIG if self.plan.model == SMALL else self.model.described.unet.config

    @property
    def size(self) -> int:
        """Side of the pictures in px."""
        return self.plan.size or self.config.sample_size * 2 ** (LEVELS - 1)

    def flops(self) -> float:
        """Count forward and backward."""
        with torch.device("meta"):
            unet, side = UNet(self.config), self.size // 2 ** (LEVELS - 1)
            x = torch.empty(self.batch, self.config.in_channels, side, side)
            t, context = torch.empty(self.batch), torch.empty(self.batch, 77, self.config.cross_attention_dim)

        def step() -> None:
            with torch.enable_grad():
                unet(x, t, unet.project(Conditioning(context))).sum().backward()

        return count_flops(step)

    def build(self, tool: str) -> Ready:
        """Return the loop, ready to make updates."""
        if tool not in (OURS, PLAIN):
            check_peer(tool)
        if tool.startswith("openvino"):
            raise AbsentError(f"{tool} does not train")
        if self.plan.dtype == "auto":
            raise AbsentError("train-step: no tool chooses a number format by itself; use float32 or bfloat16")
        seconds: dict[str, float] = {}
        with timed(seconds, "load"):
            objective, run = self._objective(fast=tool != PLAIN)
        with timed(seconds, "prepare"):
            ready = self._ours(objective, run) if tool in (OURS, PLAIN) else self._theirs(objective, run, tool)
        return replace(ready, seconds=seconds)

    def _objective(self, *, fast: bool) -> tuple[Any, RunConfig]:
        """Return the objective of a run from scratch on random pictures, and the run."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _write_model(folder / "model", self.config.cross_attention_dim)
            _write_pictures(folder / "pictures", self.size)
            kind: Any = find("latent_diffusion.training.objectives", self.objective)
            settings = kind.settings_type.model_validate(
                {
                    "parts": {"vae": str(folder / "model" / "vae"), "text_encoder": str(folder / "model")},
                    "unet": vars(self.config),
                    "scheduler": {"prediction_type": "epsilon"},
                    "workers": 1,
                    **self.chosen,
                }
            )
            data = kind.data_type.model_validate({"path": str(folder / "pictures"), "size": self.size})
            run = RunConfig.model_validate(
                {
                    "output": folder / "run",
                    "objective": {"name": self.objective},
                    "data": {},
                    "steps": DRAWN,
                    "batch_size": self.batch,
                    "precision": self.plan.dtype,
                    "optimizer": {"learning_rate": RATE, "weight_decay": DECAY},
                    "clip_norm": CLIP,
                    "fast": fast,
                }
            )
            objective = kind(settings, data, run)
            with torch.device("meta"):
                unet = UNet(self.config)
            objective.base.unet.load_state_dict(random_weights(unet, torch.float32).state_dict())
        return objective, run

    def _ours(self, objective: Any, run: RunConfig) -> Ready:
        from latent_diffusion.runtime.cpu.allocator import keep_large_blocks
        from latent_diffusion.runtime.cpu.training_kernels import PLAIN as PLAIN_KERNELS
        from latent_diffusion.runtime.cpu.training_kernels import choose_kernels

        keep_large_blocks()
        accelerator = self._accelerator()
        kernels = choose_kernels(run.precision, accelerator.device) if run.fast else PLAIN_KERNELS
        trainer = Trainer(objective, run, accelerator, kernels)
        seen = _Losses()

        def call() -> Mapping[str, Tensor]:
            trainer.last = trainer.done + 1
            trainer.run = run.model_copy(update={"steps": trainer.last})
            trainer.fit([seen])
            return seen.first()

        return Ready(call, _dtype(run), split=seen.split)

    def _theirs(self, objective: Any, run: RunConfig, tool: str) -> Ready:
        """Return the plain loop of diffusers' text-to-image example, with cached latents and text states."""
        from diffusers import DDPMScheduler, UNet2DConditionModel

        draws = self._draws(objective, run)
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(unet_values(self.config))
        unet = twin_of(unet, objective.base.unet).train()
        weights = self.trained(unet, objective)
        if tool != "diffusers":
            unet = unet.to(memory_format=torch.channels_last)
        law = {name: objective.components.scheduler_config[name] for name in LAW}
        scheduler: Any = DDPMScheduler(**law)
        optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
        network: Any = torch.compile(unet) if tool == "compile" else unet
        seen = _Losses()

        def call() -> Mapping[str, Tensor]:
            with timed(seen.split, "data"):
                x0, context, t, noise = draws[seen.count % len(draws)]
            with timed(seen.split, "gradients"):
                noisy = scheduler.add_noise(x0, noise, t)
                with autocast(run.precision, x0.device):
                    found = network(noisy, t, context, return_dict=False)[0]
                    loss = F.mse_loss(found.float(), noise.float(), reduction="mean")
                loss.backward()
            with timed(seen.split, "update"):
                torch.nn.utils.clip_grad_norm_(weights, CLIP)
                optimizer.step()
                optimizer.zero_grad()
                seen.add(loss.item())
            return seen.first()

        return Ready(call, _dtype(run), split=seen.split)

    def trained(self, unet: Any, objective: Any) -> list[nn.Parameter]:
        """Return the weights of diffusers' U-Net that the plain loop trains."""
        return list(unet.parameters())

    def _draws(self, objective: Any, run: RunConfig) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return latents, text states, times and noise of the first steps, as our trainer draws them."""
        accelerator = self._accelerator()
        objective.prepare(accelerator, torch.float32)
        latents, conditions = objective.player.held
        draws = []
        for batch in objective.batches(sample_numbers(run, start=0, rank=0, processes=1)):
            batch = batch.to(accelerator.device)
            x0, context = latents(batch).float(), conditions(batch).context.float()
            noise = normal(run.seed, "noise", batch.sample, x0.shape[1:])
            row = (x0, context, objective.player.times(batch.sample), noise)
            draws.append(tuple(x.to(accelerator.device) for x in row))
        return draws

    def _accelerator(self) -> Any:
        from accelerate import Accelerator

        return Accelerator(mixed_precision="no", cpu=self.plan.device == "cpu")


class _Losses:
    """Watches the updates."""

    def __init__(self) -> None:
        self.count, self.split = 0, dict[str, float]()
        self._first: list[float] = []

    def add(self, loss: float) -> None:
        self.count += 1
        self._first = [*self._first, loss][:COMPARED]

    def first(self) -> dict[str, Tensor]:
        return {"losses": torch.tensor(self._first)}

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to note."""

    def after_update(self, trainer: Trainer, figures: dict[str, float]) -> None:
        """Note the loss and where the time went."""
        self.add(figures["unet/loss"])
        for name, seconds in trainer.clock.take().items():
            self.split[name] = self.split.get(name, 0.0) + seconds


def _dtype(run: RunConfig) -> torch.dtype:
    return torch.bfloat16 if run.precision == "bfloat16" else torch.float32


def _write_model(folder: Path, width: int) -> None:
    """Write the frozen parts, as small as they go: they run once, before the training."""
    from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
    from latent_diffusion.models.text_config import TextConfig

    tokenizer = clip_vocabulary("<|endoftext|>")
    coder = replace(tiny.AUTOENCODER, block_out_channels=(8, 8, 16, 16)[:LEVELS])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = TextEncoder(TextConfig(width=width, layers=1, heads=2).build(tokenizer), tokenizer)
        networks = UNet(tiny.UNET), AutoencoderKL(coder)
    save_folder(Components(*networks, text, *read_schedule(tiny.SCHEDULER), tiny.SCHEDULER, "model"), folder)


def _write_pictures(folder: Path, side: int) -> None:
    """Write a data set of noise with captions."""
    from PIL import Image

    folder.mkdir()
    rows = []
    for index in range(PICTURES):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": f"picture number {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
