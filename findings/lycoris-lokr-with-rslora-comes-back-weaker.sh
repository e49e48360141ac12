#!/usr/bin/env bash
# lycoris-lora 4.1.3 (with torch 2.13.0): LoKr with `rs_lora=True`, saved and opened again.
#
# One would expect: the change of an adapter that was saved and opened by the same library is the change that was
# trained.
# What happens instead: where both Kronecker factors are whole (the dimension is as large as the layer allows, the usual
# "full" LoKr), training multiplies by sqrt(dim) with rs_lora, the file gets alpha = dim * sqrt(dim), and opening the
# file takes the scale of whole factors for 1. The change comes back divided by sqrt(dim): a quarter at dim 16, a
# hundredth at dim 10000. Nothing in the file tells the two kinds apart (whole factors have no dimension of their own).
# Without rs_lora, and with factors cut in two, the change comes back whole.
#
# Output seen on 2026-11-29 (Python 3.11, CPU):
#   torch 2.13.0+cpu, lycoris-lora 4.1.3
#   dim 2, rs_lora False, a factor cut in two: alpha in the file 1, change comes back times 1.0000
#   dim 2, rs_lora True, a factor cut in two: alpha in the file 1.41421, change comes back times 1.0000
#   dim 16, rs_lora False, whole factors: alpha in the file 16, change comes back times 1.0000
#   dim 10000, rs_lora False, whole factors: alpha in the file 10000, change comes back times 1.0000
#   dim 16, rs_lora True, whole factors: alpha in the file 64, change comes back times 0.2500
#   dim 10000, rs_lora True, whole factors: alpha in the file 1e+06, change comes back times 0.0100
#
# Why it matters: the trained LoKr draws a much weaker picture in every reader that takes whole factors for scale 1,
# LyCORIS itself included; no reader can do better from the file alone. Train whole factors without rs_lora.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 lycoris-lora==4.1.3
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import logging
import sys
from importlib.metadata import version

import torch
from lycoris.logging import logger
from lycoris.modules import get_module, make_module
from lycoris.modules.lokr import LokrModule
from torch import nn

logger.setLevel(logging.ERROR)
print(", ".join(f"{name} {version(name)}" for name in ("torch", "lycoris-lora")))


@torch.no_grad()
def returned(dim, rs_lora):
    """Change after opening the tensors over the change that was trained."""
    torch.manual_seed(0)
    layer, twin = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(8, 64)
    plain = layer(x)
    trained = LokrModule("layer", layer, lora_dim=dim, alpha=1, factor=4, rs_lora=rs_lora)
    for name, weight in trained.named_parameters():
        weight.normal_(0, 0.1)
    trained.apply_to()
    change = layer(x) - plain
    tensors = {f"layer.{key}": value.clone() for key, value in trained.state_dict().items()}
    opened = make_module(*get_module(tensors, "layer"), "layer", twin)
    opened.apply_to()
    again = twin(x) - plain
    factor = ((again * change).sum() / change.square().sum()).item()
    kind = "a factor cut in two" if "layer.lokr_w2_a" in tensors else "whole factors"
    alpha = tensors["layer.alpha"].item()
    print(f"dim {dim}, rs_lora {rs_lora}, {kind}: alpha in the file {alpha:g}, change comes back times {factor:.4f}")
    return factor


right = [returned(2, False), returned(2, True), returned(16, False), returned(10000, False)]
weak = [returned(16, True) * 4, returned(10000, True) * 100]
sys.exit(0 if all(abs(factor - 1) < 1e-3 for factor in right + weak) else "the behaviour has changed")
PROGRAM
