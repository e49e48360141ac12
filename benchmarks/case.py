"""What every case is: the same inputs for all tools, a count of operations, and a way to make each tool ready."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.lossy import is_lossy
from benchmarks.model import Source
from benchmarks.peers import Twin, build_peer
from benchmarks.plan import AbsentError, Plan, Ready
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.options.model import MachineOptions
from latent_diffusion.pipeline.engine.machine import Machine
from latent_diffusion.training.clock import timed

__all__ = ["OURS", "PLAIN", "Case", "NetworkCase", "machine_options", "twin_of"]

OURS = "ours"
PLAIN = "ours-plain"  # the same without what makes it fast


class Case(ABC):
    """One kind of work; a file in `cases/` exports one."""

    title: ClassVar[str]
    usual_batch: ClassVar[int] = 1  # pictures at a time where nothing is said
    reference_calls: ClassVar[int] = 1  # of the reference, to have as much to compare as the tools

    def __init__(self, plan: Plan, model: Source) -> None:
        """Take the question and the model."""
        self.plan, self.model = plan, model

    @property
    def size(self) -> int:
        """Side of the pictures in px."""
        if self.plan.size:
            return self.plan.size
        described = self.model.described
        return described.unet.config.sample_size * described.autoencoder.factor

    @property
    def batch(self) -> int:
        """How many pictures a call is for."""
        return self.plan.batch or self.usual_batch

    @abstractmethod
    def flops(self) -> float:
        """Return the floating point operations of one call, counted on the plain network; 1 multiply-add = 2."""

    @abstractmethod
    def build(self, tool: str) -> Ready:
        """Return a tool ready to work.

        Raises:
            AbsentError: it is not here or cannot do this.
        """


class NetworkCase(Case):
    """One call of one network: ours as a pipeline has it, theirs as diffusers has it."""

    parts: ClassVar[tuple[str, ...]]  # which of the model's parts must be real

    @abstractmethod
    def ours(self, machine: Machine, placed: Components) -> Ready:
        """Return our part, in its place, as a call."""

    def approximated(self, tool: str, machine: Machine, placed: Components) -> Components:
        """Return the parts with an approximation in their place.

        Raises:
            AbsentError: it is not of one call of this network alone.
        """
        raise AbsentError(f"{tool} is no way to compute {self.title}")

    @abstractmethod
    def theirs(self, components: Components) -> Twin:
        """Return diffusers' module with the same weights, and its float32 inputs on the CPU."""

    def build(self, tool: str) -> Ready:
        """Return a tool ready to work."""
        seconds: dict[str, float] = {}
        if tool in (OURS, PLAIN) or is_lossy(tool):
            machine = Machine.choose(self.model.described, machine_options(self.plan, tool))
            with timed(seconds, "load"):
                components = self.model.build(self.parts, machine.dtype)
            with timed(seconds, "prepare"):
                placed = machine.place(components)
                ready = self.ours(machine, self.approximated(tool, machine, placed) if is_lossy(tool) else placed)
            return Ready(ready.call, ready.dtype, seconds)
        with timed(seconds, "import"):
            import diffusers

            assert diffusers.AutoencoderKL and diffusers.UNet2DConditionModel, "which are imported when they are named"
        with timed(seconds, "load"):
            twin = self.theirs(self.model.build(self.parts, torch.float32))
        with timed(seconds, "prepare"):
            ready = build_peer(tool, self.plan, twin)
        seconds["prepare"] -= sum(ready.seconds.values())
        return Ready(ready.call, ready.dtype, seconds | ready.seconds)


def machine_options(plan: Plan, tool: str) -> MachineOptions:
    """Return what our pipeline is told."""
    return {"device": plan.device, "dtype": plan.dtype, "vae_dtype": plan.dtype, "fast": tool != PLAIN}


def twin_of(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Give diffusers' network, made on the meta device, our tensors; the names are the same."""
    weights: dict[str, Tensor] = dict(ours.named_parameters())
    theirs.load_state_dict(weights, assign=True)
    return theirs.eval()
