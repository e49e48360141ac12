#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0: `Accelerator(fsdp_plugin=...)` in two processes on CPUs.
#
# One would expect: weights sharded over the processes, as `torch.distributed.fsdp.fully_shard` does it on CPUs with gloo,
# or an error that says FSDP needs GPUs.
# What happens instead: the plugin is dropped without a message. The distributed type is MULTI_CPU, `prepare` returns
# DistributedDataParallel, and each process holds all weights. ACCELERATE_USE_FSDP=true is dropped likewise.
#
# Output seen on 2026-11-29 (Python 3.11, CPU):
#   accelerate 1.15.0, torch 2.13.0+cpu
#   by the plugin: MULTI_CPU, DistributedDataParallel, 4160 of 4160 weights in each process, messages: []
#   by ACCELERATE_USE_FSDP: MULTI_CPU, DistributedDataParallel, 4160 of 4160 weights in each process, messages: []
#   by fully_shard of torch: 2080 of 4160 weights in each process
#
# Why it matters: an FSDP recipe that is tried on CPUs first passes, and has tried nothing of FSDP.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 accelerate==1.15.0 numpy==2.4.0
cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true

cat > "$folder/program.py" <<'PROGRAM'
import logging
import os
import sys
import warnings
from importlib.metadata import version

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import fully_shard

messages = []


class Keep(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())


logging.getLogger().addHandler(Keep())
warnings.showwarning = lambda message, *_: messages.append(str(message))
first = os.environ["RANK"] == "0"


def held(model):
    """Numbers of weights that this process holds, and of all."""
    local = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return sum(p.numel() for p in local), sum(p.numel() for p in model.parameters())


def tell(*words):
    if first:
        print(*words, flush=True)


tell(f"accelerate {version('accelerate')}, torch {torch.__version__}")
found = []
for name in ("the plugin", "ACCELERATE_USE_FSDP"):
    messages.clear()
    if name == "the plugin":
        accelerator = Accelerator(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap"))
    else:
        AcceleratorState._reset_state()
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="NO_WRAP")
        accelerator = Accelerator()
    model = accelerator.prepare(torch.nn.Linear(64, 64))
    one, whole = held(model)
    kind, wrapper = accelerator.distributed_type.value, type(model).__name__
    tell(f"by {name}: {kind}, {wrapper}, {one} of {whole} weights in each process, messages: {messages}")
    found.append((kind, wrapper, one == whole, not messages))
sharded = torch.nn.Linear(64, 64)
fully_shard(sharded, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
one, whole = held(sharded)
tell(f"by fully_shard of torch: {one} of {whole} weights in each process")
PartialState().destroy_process_group()
if found != [("MULTI_CPU", "DistributedDataParallel", True, True)] * 2 or one * 2 != whole:
    sys.exit("the behaviour has changed")
PROGRAM
"$folder/venv/bin/python" -m torch.distributed.run --nproc_per_node 2 --master_port 29571 "$folder/program.py"
