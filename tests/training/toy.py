"""A small objective with everything the trainer handles: two players, an average, a frozen part, keyed draws.

`python tests/training/toy.py OUTPUT [key=value ...]` trains it as `latent_diffusion.train` would; tests run it in
processes of their own, some with faults planted by `FAULTS`.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from latent_diffusion.randomness import normal, uniform
from latent_diffusion.training.objective import Losses, Objective, Player

SIZE = 6


class ToySettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    opponent_start: int = 5
    nan_loss_at: int | None = None
    nan_gradient_at: int | None = None
    nan_rank: int = 0
    learns: bool = True
    global_draw: bool = False
    thaw: bool = False
    seconds: float = 0.0
    preview_fails: bool = False
    held_out: bool = False
    evaluation_fails_in: int | None = None


class ToyData(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = 10


@dataclass(frozen=True)
class ToyBatch:
    sample: tuple[int, ...]
    values: Tensor

    def to(self, device: torch.device) -> "ToyBatch":
        return ToyBatch(self.sample, self.values.to(device))


class Maker(Player):
    """A two-layer network that also has to please the opponent."""

    def __init__(self, settings: ToySettings, seed: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(SIZE, 16), nn.GroupNorm(4, 16), nn.SiLU(), nn.Linear(16, SIZE))
        self.settings, self.seed = settings, seed
        self.held: tuple[nn.Module, ...] = ()

    def forward(self, batch: ToyBatch, step: int) -> Losses:
        s = self.settings
        time.sleep(s.seconds)
        noise = normal(self.seed, "noise", batch.sample, (SIZE,)).to(batch.values)
        if s.global_draw:
            noise = noise + torch.randn_like(noise)
        if s.thaw:
            with torch.no_grad():
                next(self.held[1].parameters()).add_(0.01)
        made = self.net(batch.values + 0.3 * noise)
        if s.nan_gradient_at == step and int(os.environ.get("RANK", "0")) == s.nan_rank:
            made.register_hook(lambda gradient: gradient * float("nan"))
        total = (made - batch.values.flip(1)).square().mean(1)
        opponent, frozen = self.held
        total = total + 0.1 * (frozen(made) - frozen(batch.values)).square().mean(1)
        if step >= s.opponent_start:
            total = total - 0.05 * opponent(made).squeeze(1)
        if s.nan_loss_at == step and int(os.environ.get("RANK", "0")) == s.nan_rank:
            total = total * float("nan")
        return Losses(total, {"distance": (made - batch.values).detach().abs().mean(1), "one": total.new_ones(())})


class Opponent(Player):
    """Tells what the maker made from what is there; moves from `opponent_start` on."""

    def __init__(self, settings: ToySettings, maker: Maker) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(SIZE, 8), nn.SiLU(), nn.Linear(8, 1, bias=False))
        self.settings, self.held = settings, (maker,)

    def active(self, step: int) -> bool:
        return step >= self.settings.opponent_start

    def forward(self, batch: ToyBatch, step: int) -> Losses:
        with torch.no_grad():
            made = self.held[0].net(batch.values)
        difference = self.net(batch.values) - self.net(made)
        return Losses(nn.functional.softplus(-difference).squeeze(1))


class ToyObjective(Objective):
    settings_type = ToySettings
    data_type = ToyData
    best_by = "held_out"

    def __init__(self, settings: ToySettings, data: ToyData, run) -> None:
        self.settings, self.data, self.run = settings, data, run
        self.maker = Maker(settings, run.seed)
        opponent = Opponent(settings, self.maker)
        frozen = nn.Linear(SIZE, 4).requires_grad_(False)
        self.maker.held = (opponent.net, frozen)
        if not settings.learns:
            self.maker.spare = nn.Parameter(torch.ones(3, 3))
        self.players = {"maker": self.maker, "opponent": opponent}
        self.ema_modules = {"maker": self.maker.net}
        self.frozen = {"frozen": frozen}

    def prepare(self, accelerator, dtype: torch.dtype) -> None:
        for module in (*self.players.values(), *self.frozen.values()):
            module.to(accelerator.device, dtype)
        self.dtype = dtype

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[ToyBatch]:
        for chosen in numbers:
            rows = [number % self.data.count for number in chosen]
            signs = [1.0 if uniform(self.run.seed, "flip", n) < 0.5 else -1.0 for n in chosen]
            values = normal(1, "data", rows, (SIZE,)) * torch.tensor(signs)[:, None]
            yield ToyBatch(tuple(chosen), values.to(self.dtype))

    def export(self, folder: Path, *, averaged: bool) -> None:
        from latent_diffusion.checkpoint.files.safetensors_file import write_tensors

        write_tensors(folder / "toy.safetensors", dict(self.maker.net.state_dict()), {"format": "pt"})

    @property
    def held_out(self):
        return [0, 1, 2] if self.settings.held_out else None

    def evaluate(self, share) -> dict[str, Tensor]:
        if int(os.environ.get("RANK", "0")) == self.settings.evaluation_fails_in:
            raise RuntimeError("no figures today")
        rows = list(share.of(len(self.held_out)))
        values = normal(2, "held out", rows, (SIZE,)).to(self.dtype)
        return {"held_out": (self.maker.net(values) - values.flip(1)).square().mean(1)}

    def draw(self, share) -> "list[Image.Image]":
        torch.randn(5)  # a careless preview: training must not notice
        if self.settings.preview_fails:
            raise RuntimeError("no picture today")
        return [Image.new("RGB", (8, 8), ("red", "green", "blue")[k]) for k in share.of(3)]

    def verify(self, folder: Path) -> None:
        assert (folder / "toy.safetensors").is_file()

    def pass_samples(self) -> int:
        return self.data.count

    def fingerprint(self) -> dict[str, str]:
        return {"data.count": str(self.data.count)}


def config(output: Path | str) -> str:
    """Return the text of a run."""
    return f"""
output: {output}
objective: {{name: toy}}
data: {{count: 10}}
steps: 12
batch_size: 4
optimizer: {{learning_rate: 1e-2}}
warmup: 3
decay: cosine
ema: {{decay: 0.9}}
checkpoint: {{every: 3, keep: 2}}
log_every: 1
threads: 1
"""


def install() -> None:
    """Let `objective: {name: toy}` find this file."""
    from latent_diffusion.training import run

    run.find = lambda package, name: ToyObjective


def run(output: Path | str, *overrides: str) -> int:
    """Train in this process."""
    from latent_diffusion.train import main

    install()
    file = Path(output).parent / f"{Path(output).name}.yaml"
    file.write_text(config(output))
    return main([str(file), *overrides])


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
