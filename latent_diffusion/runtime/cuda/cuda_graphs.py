"""CUDA graphs as torch offers them: recorded on a stream of their own, replayed on the caller's."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["CudaRecorder"]

_recording = threading.Lock()  # a process may record one graph at a time


class CudaRecording:
    """A CUDA graph and its output, which lies in the recorder's pool."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor) -> None:
        self.graph, self.output = graph, output

    def replay(self) -> None:
        """Launch the kernels on the current stream."""
        self.graph.replay()


class CudaRecorder:
    """Records on one GPU; all recordings take their memory from one pool."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream; `device` is a GPU, "cuda" the current one."""
        device = torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.last: torch.cuda.Event | None = None

    def warm(self, work: Callable[[], Tensor]) -> None:
        """Run once beside the caller's stream: libraries open, kernels compile, none of which can be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def record(self, work: Callable[[], Tensor]) -> CudaRecording:
        """Record the work without running it.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: what other threads allocate meanwhile is no error
            with _recording, torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                output = work()
        except RuntimeError:
            self.pool = torch.cuda.graph_pool_handle()  # torch does not say what state the old one is in
            raise
        return CudaRecording(graph, output)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait, on the GPU, for the last use of a recording; two threads may work on two streams."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if self.last is None:
                self.last = torch.cuda.Event()
            else:
                stream.wait_event(self.last)
            try:
                yield
            finally:
                self.last.record(stream)
