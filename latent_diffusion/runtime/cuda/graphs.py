"""A network launched as a whole: its kernels recorded once for each size, then replayed as one CUDA graph.

A step of Stable Diffusion 1 is some 700 kernels, which a fast GPU finishes sooner than Python can launch them. A
recording has fixed addresses: what changes is copied into its buffers, and its result is copied out. Latents and times
are copied at every call, keys and values of a prompt only when another prompt is drawn.

All recordings share one pool of memory for what lies between input and output, so the pool is as large as the largest
needs, and two of them must not run at the same time: one lock, and on the GPU one event, see to that. A recording is
made for one module tree and is forgotten with it; changed weights, hooks, gradients and autocast are never replayed.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latent_diffusion.errors import warn
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import Projected, UNet

__all__ = ["MOST", "GraphedUNet", "Graphs", "Recorder", "Recording", "decoded"]

MOST = 16  # recordings kept, those used last; each holds its inputs and output, some MB, and launch parameters

MaybeTensor = Tensor | None
Work = Callable[[Any, Sequence[Tensor], Sequence[MaybeTensor]], Tensor]
"""(module tree, what changes in every call, what stays for a prompt) -> the result, all on one device."""


class Recording(Protocol):
    """Work done once whose kernels can be launched again."""

    output: Tensor

    def replay(self) -> None:
        """Do the work again on what now lies in its inputs; the result is in `output` until the next replay."""
        ...


class Recorder(Protocol):
    """Interface of a recorder of work on one device."""

    def warm(self, work: Callable[[], Tensor]) -> None:
        """Do the work once, so that whatever is made at first use is there."""
        ...

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Record the work.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        ...

    def turn(self) -> AbstractContextManager:
        """Return the context of one use of a recording: it waits for the last, and the next waits for it."""
        ...


@dataclass
class _Entry:
    """A recording with its inputs, or the knowledge that there can be none."""

    tree: weakref.ref
    fresh: list[Tensor]
    kept: list[MaybeTensor]
    recording: Recording | None
    holds: Callable[[], object] = lambda: None  # which prompt's values lie in `kept`


class Graphs:
    """The recordings of one pipeline on one device."""

    def __init__(self, recorder: Recorder, most: int = MOST) -> None:
        """Record with `recorder`, and keep `most` recordings."""
        self.recorder, self.most = recorder, most
        self._lock = threading.RLock()
        self._entries: OrderedDict[tuple, _Entry] = OrderedDict()
        self._stamps: weakref.WeakKeyDictionary[nn.Module, list | None] = weakref.WeakKeyDictionary()
        self._warned = False

    def __len__(self) -> int:
        """Number of recordings."""
        return sum(entry.recording is not None for entry in self._entries.values())

    def look_at(self, tree: nn.Module) -> None:
        """Forget what was recorded of `tree` where its weights have changed or moved; call it once a prompt."""
        stamp = _stamp(tree)
        with self._lock:
            if tree in self._stamps and self._stamps[tree] != stamp:
                self._forget(lambda entry: entry.tree() is tree)
            self._stamps[tree] = stamp

    def __call__(
        self,
        work: Work,
        tree: nn.Module,
        fresh: Sequence[Tensor],
        kept: Sequence[MaybeTensor] = (),
        prompt: object = None,
    ) -> Tensor:
        """Return work(tree, fresh, kept), replayed where that is the same.

        Args:
            work: a function of a module's top level: it is part of what a recording is known by.
            tree: the modules and weights it works with.
            fresh: what changes in every call.
            kept: what stays while `prompt` is the same object.
            prompt: what `kept` belongs to.
        """
        result = self._replayed(work, tree, fresh, kept, prompt) if _replayable(fresh) else None
        return work(tree, fresh, kept) if result is None else result

    def _replayed(
        self, work: Work, tree: nn.Module, fresh: Sequence[Tensor], kept: Sequence[MaybeTensor], prompt: object
    ) -> Tensor | None:
        """Return what a replay gives; None where there is no recording and can be none."""
        with self._lock:
            if tree not in self._stamps:
                self.look_at(tree)
            if self._stamps[tree] is None:
                return None
            with self.recorder.turn():
                entry = self._entry(work, tree, fresh, kept)
                if entry.recording is None:
                    return None
                _fill(entry, fresh, kept, prompt)
                entry.recording.replay()
                return entry.recording.output.clone()

    def _entry(self, work: Work, tree: nn.Module, fresh: Sequence[Tensor], kept: Sequence[MaybeTensor]) -> _Entry:
        """Return what is recorded for these shapes, made now where it is not there."""
        key = (work, id(tree), *(_kind(value) for value in (*fresh, *kept)))
        entry = self._entries.get(key)
        if entry is None or entry.tree() is not tree:  # an address may come back with another tree
            self._forget(lambda entry: entry.tree() is None)
            entry = self._entries[key] = self._record(work, tree, fresh, kept)
            while len(self._entries) > self.most:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return entry

    @torch.inference_mode(False)  # its tensors could not be written to from outside that mode
    @torch.no_grad()
    def _record(self, work: Work, tree: nn.Module, fresh: Sequence[Tensor], kept: Sequence[MaybeTensor]) -> _Entry:
        whose = weakref.ref(tree)
        inputs = [value.detach().clone() for value in fresh]  # with the strides of the values, as everywhere below
        stays = [None if value is None else value.detach().clone() for value in kept]

        def run() -> Tensor:
            return work(whose(), inputs, stays)

        try:
            self.recorder.warm(run)
        except torch.OutOfMemoryError as error:  # what other sizes hold may be what is missing
            return self._given_up(whose, error)
        try:
            return _Entry(whose, inputs, stays, self.recorder.record(run))
        except RuntimeError as error:
            return self._given_up(whose, error)

    def _given_up(self, tree: weakref.ref, error: RuntimeError) -> _Entry:
        self._forget(lambda entry: isinstance(error, torch.OutOfMemoryError))
        if not self._warned:
            self._warned = True
            reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
            message = f"no CUDA graph for this size, so drawing is slower with the same result: {reason}"
            warn(message)
        return _Entry(tree, [], [], None)

    def _forget(self, which: Callable[[_Entry], bool]) -> None:
        for key in [key for key, entry in self._entries.items() if which(entry)]:
            del self._entries[key]


class GraphedUNet(UNet):
    """The same modules, weights and methods as the U-Net it is made of; replays whole forward passes.

    A shared copy of it, which guidance makes to change attention in, has no recordings and runs as it is.
    """

    def __init__(self, model: UNet, graphs: Graphs) -> None:
        """Share the modules of `model`."""
        nn.Module.__init__(self)
        self.config = model.config
        for name, child in model.named_children():
            self.add_module(name, child)
        self.train(model.training)
        self.recorded = (graphs, model)  # a tuple, so that `model` is no submodule
        self.self_made = weakref.ref(self)

    def project(self, cond: Any) -> Projected:
        """Return what the U-Net makes of the condition."""
        graphs, model = self.recorded
        if self.self_made() is self:
            graphs.look_at(model)
        return super().project(cond)

    def forward(self, x: Tensor, t: Tensor, projected: Projected) -> Tensor:
        """Return the prediction (B, C, h, w) of x (B, C, h, w) at times t (B,), as the U-Net does."""
        if self.self_made() is not self:
            return super().forward(x, t, projected)
        graphs, model = self.recorded
        return graphs(_step, model, (x, t), _flat(projected), projected)


def decoded(graphs: Graphs, model: AutoencoderKL, z: Tensor) -> Tensor:
    """Return `AutoencoderKL.decode(model, z)`, images (B, 3, H, W) of z (B, C, h, w), replayed."""
    graphs.look_at(model)
    return graphs(_decode, model, (z,))


def _step(unet: UNet, fresh: Sequence[Tensor], kept: Sequence[MaybeTensor]) -> Tensor:
    return unet(*fresh, _built(kept))


def _decode(model: AutoencoderKL, fresh: Sequence[Tensor], kept: Sequence[MaybeTensor]) -> Tensor:
    return AutoencoderKL.decode(model, *fresh)


def _flat(projected: Projected) -> list[MaybeTensor]:
    """Return the tensors of a projection in a row; `_built` is the inverse."""
    return [*(value for pair in projected.keys_values for value in pair), projected.concat, projected.added]


def _built(values: Sequence[Any]) -> Projected:
    *pairs, concat, added = values
    return Projected(tuple(zip(pairs[::2], pairs[1::2], strict=True)), concat, added)


def _fill(entry: _Entry, fresh: Sequence[Tensor], kept: Sequence[MaybeTensor], prompt: object) -> None:
    """Copy a call's values into the recording's inputs, those of the prompt only where others lie there."""
    for buffer, value in zip(entry.fresh, fresh, strict=True):
        buffer.copy_(value)
    if prompt is not None and entry.holds() is prompt:
        return
    pairs = [(b, v) for b, v in zip(entry.kept, kept, strict=True) if b is not None and v is not None]
    if pairs:
        torch._foreach_copy_([b for b, _ in pairs], [v.detach() for _, v in pairs])
    entry.holds = (lambda: None) if prompt is None else weakref.ref(prompt)


def _kind(value: MaybeTensor) -> tuple | None:
    """Return what must agree for a recording to serve."""
    return None if value is None else (value.shape, value.dtype, value.device)


def _replayable(fresh: Sequence[Tensor]) -> bool:
    """Whether a call can be recorded: on its device, without gradients, autocast or another recording in progress."""
    device = fresh[0].device.type
    if torch.is_grad_enabled() or torch.is_autocast_enabled(device):
        return False
    return device != "cuda" or not torch.cuda.is_current_stream_capturing()


def _stamp(tree: nn.Module) -> list | None:
    """Return where the weights lie and how often they were written to; None where hooks must run in every call."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in tree.modules()):
        return None
    weights = (*tree.parameters(), *tree.buffers())
    return [(w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in weights]
