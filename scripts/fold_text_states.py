"""Give a model another text encoder; fold a least-squares map into its U-Net, so that it reads nearly the old states.

    python scripts/fold_text_states.py MODEL TEXT PICTURES OUTPUT

MODEL is a model folder, TEXT a folder with another text encoder of equal width and its tokenizer, PICTURES a data set
whose captions (`text` and `name`) both encode. OUTPUT becomes MODEL with the other text encoder.

The keys and values of a cross-attention are s W^T of the text states s. For the other states s' let A minimise
|s' A - s|^2 over all tokens of the captions; then s' (W A^T)^T is nearly s W^T. Every fifth caption is held out for the
printed share of the variance of s that s' A explains, beside that of s' itself.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.checkpoint.folder.text_folder import load_text_encoder
from latent_diffusion.data.rows.metadata import values_of
from latent_diffusion.errors import CheckpointError, LatentDiffusionError
from latent_diffusion.evaluation.pictures import read_pictures
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.transformer import TransformerBlock

RIDGE = 1e-4  # added to the diagonal of the normal equations, as a share of its mean
MOST = 3000  # captions: 231,000 tokens for the 65,536 numbers of A at width 256
AT_ONCE = 100


def least_squares(given: Tensor, wanted: Tensor) -> Tensor:
    """Return A (D, D), float64, that minimises |given A - wanted|^2 over the rows of both (N, D)."""
    x, y = given.double(), wanted.double()
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, x.T @ y)


def explained(made: Tensor, wanted: Tensor) -> float:
    """Return the share of the variance of `wanted` (N, D) over its rows that `made` explains; 1 where equal."""
    apart = (wanted - made).square().sum()
    return 1 - float(apart / (wanted - wanted.mean(0)).square().sum())


@torch.no_grad()
def fold(unet: UNet, map_: Tensor) -> None:
    """Let every cross-attention read states s' as it reads s' A now, with A = `map_` (D, D); in place."""
    for block in unet.modules():
        if isinstance(block, TransformerBlock):
            for layer in (block.attn2.to_k, block.attn2.to_v):
                layer.weight.copy_(layer.weight.double() @ map_.T)


@torch.no_grad()
def states(encoder: TextEncoder, captions: Sequence[str]) -> Tensor:
    """Return the states (B, L, D) of B captions, float32."""
    parts = (captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE))
    return torch.cat([encoder(part).context for part in parts])


def give(model: Path, text: Path, pictures: Path, output: Path) -> str:
    """Write OUTPUT; return the line to print.

    Raises:
        CheckpointError: the encoders have other widths, or the model has two of them.
    """
    components, other = load_folder(model), load_text_encoder(text)
    first = components.text_encoder
    if not isinstance(first, TextEncoder) or first.width != other.width:
        widths = [tower.width for tower in first.towers]
        raise CheckpointError(
            f"{text}: its states have {other.width} channels, those of {model} {widths}; "
            "one encoder of equal width is needed"
        )
    found = {
        value
        for row in read_pictures(pictures).rows
        for field in ("text", "name")
        for value in values_of(row.table, field)
    }
    captions = sorted(found)[:: max(1, len(found) // MOST)]
    old, new = states(first, captions), states(other, captions)
    held = torch.arange(len(captions)) % 5 == 4
    map_ = least_squares(new[~held].flatten(0, 1), old[~held].flatten(0, 1))
    given, wanted = new[held].flatten(0, 1).double(), old[held].flatten(0, 1).double()
    fold(components.unet, map_)
    save_folder(replace(components, text_encoder=other, prompt_forms=None), output, torch.float16)
    return (
        f"{output}: the map explains {explained(given @ map_, wanted):.2f} of the variance of the old states of "
        f"{int(held.sum())} captions that it was not fitted to, the new states {explained(given, wanted):.2f}"
    )


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text", "pictures", "output"):
        parser.add_argument(name, type=Path)
    try:
        print(give(**vars(parser.parse_args())))
    except LatentDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
