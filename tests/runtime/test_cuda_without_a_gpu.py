"""What can be known of GPU code without a GPU: kernels compile for several, and torch's graph calls come in order."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from latent_diffusion.runtime.cuda.cuda_graphs import CudaRecorder

WIDE = [["tt.divisibility", 16]]  # what Triton finds out about tensors and widths of real models


def kernels():
    """Return each kernel with its types for a dtype, which arguments are wide, and its constants."""
    from latent_diffusion.runtime.cuda import triton_add, triton_geglu, triton_group_norm

    sizes = dict(pixels="i32", per_chunk="i32", chunks="i32", channels="i32")
    stored = dict(scale="*fp32", shift="*fp32")
    names = ("weight", "offset", "bias", "time")
    return {
        "moments": (triton_group_norm._moments, dict(x="*", means="*fp32", squares="*fp32", **sizes), {}),
        "join": (
            triton_group_norm._join,
            dict(
                means="*fp32", squares="*fp32", **dict.fromkeys(names, "*"), **stored, **sizes, width="i32", eps="fp32"
            ),
            dict(HAS_BIAS=True, HAS_TIME=True),
        ),
        "apply": (
            triton_group_norm._apply,
            dict(x="*", y="*", **stored, pixels="i32", channels="i32"),
            dict(SILU=True),
        ),
        "geglu": (triton_geglu._geglu, dict(x="*", y="*", tokens="i32", hidden="i32"), {}),
        "add": (
            triton_add._add,
            dict(x="*", y="*", bias="*", other="*", out="*", pixels="i32", channels="i32"),
            dict(HAS_OTHER=True),
        ),
    }


@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (90, "fp32")])
@pytest.mark.parametrize("name", ["moments", "join", "apply", "geglu", "add"])
def test_kernels_compile_for_gpus_with_wide_loads(name, capability, dtype, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants = kernels()[name]
    types = {key: f"*{dtype}" if kind == "*" else kind for key, kind in types.items()}
    signature = types | dict.fromkeys(constants, "constexpr")
    place = {key: index for index, key in enumerate(kernel.arg_names)}
    wide = [key for key, kind in types.items() if kind.startswith("*") or key in ("channels", "hidden")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(place[key],): value for key, value in constants.items()},
        attrs={(place[key],): WIDE for key in wide},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
    if name != "join":  # which gathers a few numbers of each group
        assert "v4.b32" in compiled.asm["ptx"], "16 bytes a load"


class FakeCuda:
    """Stands for `torch.cuda`, and writes down what is asked of it."""

    def __init__(self, monkeypatch):
        self.said, self.fail = [], None
        for name in ("Stream", "Event", "CUDAGraph", "graph", "stream", "device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.Stream(device, "caller's"))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: object())

    def Stream(self, device=None, name="own"):
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.said.append(f"{name} stream waits for {other.name}"),
            wait_event=lambda event: self.said.append(f"{name} stream waits for the last use"),
        )

    def Event(self):
        return SimpleNamespace(record=lambda stream: self.said.append(f"used on {stream.name} stream"))

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.said.append("replay"))

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.said.append(f"capture on {stream.name} stream, {capture_error_mode}")
        self.pool = pool
        yield
        if self.fail:
            raise self.fail

    @contextmanager
    def stream(self, stream):
        self.said.append(f"on {stream.name} stream")
        yield

    @contextmanager
    def device(self, device):
        self.said.append(str(device))
        yield


def test_recording_and_replaying_in_order(monkeypatch):
    fake = FakeCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda"))
    output = torch.zeros(1)
    with recorder.turn():
        recorder.warm(lambda: output)
        recording = recorder.record(lambda: output)
        recording.replay()
    with recorder.turn():
        recording.replay()
    assert recording.output is output
    assert fake.said == [
        "cuda:1",
        "own stream waits for caller's",
        "on own stream",
        "caller's stream waits for own",
        "capture on own stream, thread_local",
        "replay",
        "used on caller's stream",
        "cuda:1",
        "caller's stream waits for the last use",
        "replay",
        "used on caller's stream",
    ]


def test_a_failed_recording_leaves_its_pool_behind(monkeypatch):
    fake = FakeCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda", 0))
    fake.fail = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(lambda: torch.zeros(1))
    first, fake.fail = fake.pool, None
    recorder.record(lambda: torch.zeros(1))
    assert fake.pool is not first
    second = fake.pool
    recorder.record(lambda: torch.zeros(1))
    assert fake.pool is second
