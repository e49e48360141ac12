#!/usr/bin/env bash
# torch 2.13.0: `state_dict()` of a module under `fully_shard` (FSDP2) whose weights are gathered by `unshard()`.
#
# One would expect: reading changes nothing. `parameters()` gives the whole weights, so `state_dict()` gives them too.
# What happens instead: `state_dict()` gives the shards, and the module is sharded again from then on, without a message.
# The whole weights that were taken before it lose their memory (their storage has 0 bytes).
#
# Output seen on 2026-11-30 (Python 3.11, CPU, two processes):
#   torch 2.13.0+cpu
#   after unshard(): weight is a Parameter of 4096 numbers
#   after parameters(): weight is a Parameter of 4096 numbers
#   state_dict() gives a DTensor with 2048 of 4096 numbers in this process
#   after state_dict(): weight is a DTensor with 2048 of 4096 numbers in this process
#   memory of the weight that was taken before: 16384 bytes, then 0
#
# Why it matters: an average, a digest or an export that gathers the weights and then reads them by `state_dict()` reads a
# half (or an eighth) of each, and the layers gathered for it are no longer whole.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy==2.4.0
cd "$folder"
export OMP_NUM_THREADS=1

cat > "$folder/program.py" <<'PROGRAM'
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
first = dist.get_rank() == 0


def tell(*words):
    if first:
        print(*words, flush=True)


def described(tensor):
    """What a tensor is, and the numbers of it that this process holds."""
    if hasattr(tensor, "to_local"):
        return f"{type(tensor).__name__} with {tensor.to_local().numel()} of {tensor.numel()} numbers in this process"
    return f"{type(tensor).__name__} of {tensor.numel()} numbers"


tell(f"torch {torch.__version__}")
layer = torch.nn.Linear(64, 64, bias=False)
fully_shard(layer, mesh=dist.init_device_mesh("cpu", (2,)))
layer.unshard()
seen = [described(layer.weight)]
tell(f"after unshard(): weight is a {seen[-1]}")
taken = layer.weight
list(layer.parameters())
seen.append(described(layer.weight))
tell(f"after parameters(): weight is a {seen[-1]}")
before = taken.untyped_storage().nbytes()
seen.append(described(layer.state_dict()["weight"]))
tell(f"state_dict() gives a {seen[-1]}")
seen.append(described(layer.weight))
tell(f"after state_dict(): weight is a {seen[-1]}")
after = taken.untyped_storage().nbytes()
tell(f"memory of the weight that was taken before: {before} bytes, then {after}")
dist.destroy_process_group()
whole, half = "Parameter of 4096 numbers", "DTensor with 2048 of 4096 numbers in this process"
if seen != [whole, whole, half, half] or (before, after) != (4 * 4096, 0):
    sys.exit("the behaviour has changed")
PROGRAM
"$folder/venv/bin/python" -m torch.distributed.run --nproc_per_node 2 --master_port 29573 "$folder/program.py"
