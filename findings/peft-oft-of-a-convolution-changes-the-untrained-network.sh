#!/usr/bin/env bash
# peft 0.21.2 (with torch 2.13.0): OFT on a 3x3 convolution, before and after merging.
#
# One would expect: OFT turns the weight by an orthogonal matrix. Before training the matrix is the identity, so the
# network with the adapter gives what it gave without; after training, `merge_and_unload` gives what the attached
# adapter gave.
# What happens instead: the attached adapter cuts the input into 3x3 patches, turns each and adds the patches up where
# they overlap, without dividing by the number of patches over a pixel (1 at a corner, 9 inside). The convolution then
# reads an input up to 9 times too large, so the untrained adapter already changes the output by more than the output is
# large. The merged weight is right: the two differ. A 1x1 convolution has no overlaps and is exact.
#
# Output seen on 2026-11-29 (Python 3.11, CPU):
#   torch 2.13.0+cpu, peft 0.21.2
#   1x1 convolution: output 2.25; changed by the untrained adapter 0; turned: merged against plain 0.19, attached against merged 2.4e-07
#   3x3 convolution: output 1.80; changed by the untrained adapter 5.5; turned: merged against plain 0.3, attached against merged 5.4
#
# Why it matters: an OFT adapter on the convolutions of a U-Net trains against a network that is not the model, and the
# result draws another picture once merged, or once read by a tool that turns the weight as the paper does.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 peft==0.21.2
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import sys
from importlib.metadata import version

import torch
from peft import OFTConfig, get_peft_model
from torch import nn

print(", ".join(f"{name} {version(name)}" for name in ("torch", "peft")))


class Net(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.conv(x)


def size(x):
    return x.abs().max().item()


@torch.no_grad()
def measure(kernel, block):
    """Largest values: the output, the change by an untrained adapter, attached minus merged after turning."""
    torch.manual_seed(0)
    net = Net(kernel).eval()
    x = torch.randn(2, 4, 9, 9)
    plain = net(x)
    model = get_peft_model(net, OFTConfig(oft_block_size=block, target_modules=["conv"])).eval()
    untrained = size(model(x) - plain)
    for name, weight in model.named_parameters():
        if "oft_R" in name:
            weight.normal_(0, 0.02)
    attached = model(x)
    merged = model.merge_and_unload()(x)
    print(
        f"{kernel}x{kernel} convolution: output {size(plain):.2f}; "
        f"changed by the untrained adapter {untrained:.2g}; "
        f"turned: merged against plain {size(merged - plain):.2g}, "
        f"attached against merged {size(attached - merged):.2g}"
    )
    return size(plain), untrained, size(attached - merged)


_, untrained, apart = measure(1, 4)
point_is_right = untrained == 0 and apart < 1e-5
plain, untrained, apart = measure(3, 9)
sys.exit(0 if point_is_right and untrained > plain and apart > plain else "the behaviour has changed")
PROGRAM
