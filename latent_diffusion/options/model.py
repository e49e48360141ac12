"""The options with which a model is opened: where it computes, and what its files do not state."""

from typing import TYPE_CHECKING, Annotated, TypedDict

from latent_diffusion.options.option import MACHINE, MODEL, Option

if TYPE_CHECKING:
    import os

    import torch

__all__ = ["LoadOptions", "MachineOptions", "ReadingOptions"]


class MachineOptions(TypedDict, total=False):
    """Where and how a pipeline computes. None of it changes a picture beyond rounding."""

    device: Annotated[
        "torch.device | str | None",
        Option("Device: cpu, cuda or cuda:1.", metavar="NAME", panel=MACHINE, shown="cuda if available", cli=str),
    ]
    dtype: Annotated[
        "str | torch.dtype",
        Option(
            "Number format of the U-Net: auto, float32, bfloat16 or float16.",
            "auto", metavar="NAME", panel=MACHINE, cli=str,
        ),
    ]  # fmt: skip
    """See `runtime.placement`."""
    vae_dtype: Annotated[
        "str | torch.dtype",
        Option(
            "Number format of the autoencoder; auto is float32.", "auto", metavar="NAME", panel=MACHINE, cli=str,
        ),
    ]  # fmt: skip
    """A picture that overflows in half precision is made again."""
    attention: Annotated[
        str,
        Option(
            "Attention kernel: auto, native, sdpa, xformers or math. A kernel that does not work on the device is an "
            "error.",
            "auto", metavar="NAME", panel=MACHINE,
        ),
    ]  # fmt: skip
    tiling: Annotated[
        bool | str,
        Option(
            "Run the autoencoder in bands of rows: the same picture in less memory.",
            "auto", panel=MACHINE, shown="where memory is short", cli=bool,
        ),
    ]  # fmt: skip
    """True, False, or "auto"."""
    offload: Annotated[
        bool,
        Option(
            "Hold only one of text encoder, U-Net and autoencoder on the GPU at a time.", False, panel=MACHINE,
        ),
    ]  # fmt: skip
    """The others wait in the host's memory."""
    fast: Annotated[
        bool,
        Option(
            "Rearrange weights and choose kernels for speed; the picture is the same within rounding.",
            True, panel=MACHINE,
        ),
    ]  # fmt: skip
    """See `runtime.speedup`."""


class ReadingOptions(TypedDict, total=False):
    """What the files of a model do not state, or state wrongly."""

    family: Annotated[
        str | None,
        Option(
            "Family of a single file, where its tensors are misleading, such as sd1, sd2_v or sdxl_inpaint.",
            metavar="NAME", panel=MODEL, shown="read from its tensors",
        ),
    ]  # fmt: skip
    prediction_type: Annotated[
        str | None,
        Option(
            "Meaning of the U-Net's output: epsilon, v_prediction or sample.",
            metavar="NAME", panel=MODEL, shown="as the model's files state",
        ),
    ]  # fmt: skip
    averaged: Annotated[
        bool,
        Option(
            "Use the moving average (EMA) of the U-Net's weights that a single file may hold.",
            False, panel=MODEL, flags=("--ema",),
        ),
    ]  # fmt: skip
    vae: Annotated[
        "str | os.PathLike[str] | None",
        Option(
            "Autoencoder to use in place of the model's own, or where a single file has none.",
            metavar="FILE|FOLDER", panel=MODEL, shown="the model's own", cli=str,
        ),
    ]  # fmt: skip


class LoadOptions(MachineOptions, ReadingOptions, total=False):
    """Optional arguments of `from_pretrained`."""
