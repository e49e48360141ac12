"""Make `latent_diffusion/bundled/clip_vocabulary/merges.txt.bz2` out of the byte pairs of open-clip.

    python scripts/make_clip_vocabulary.py

Every published Stable Diffusion text encoder reads this vocabulary; with it in the package a single-file checkpoint,
which has none inside, opens without a network.
"""

import bz2
import gzip
from pathlib import Path

import open_clip

SIZE = 49408  # ids: 256 bytes, 256 bytes that end a word, the merges, begin, end
TARGET = Path(__file__).parent.parent / "latent_diffusion" / "bundled" / "clip_vocabulary" / "merges.txt.bz2"


def main() -> None:
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    merges = ["#version: 0.2", *lines[1 : 1 + SIZE - 2 * 256 - 2]]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(bz2.compress(("\n".join(merges) + "\n").encode("utf-8")))


if __name__ == "__main__":
    main()
