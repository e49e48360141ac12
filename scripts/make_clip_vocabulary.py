"""Make `latent_diffusion/bundled/clip_vocabulary/` (vocab.json, merges.txt) out of the byte pairs of open-clip.

    python scripts/make_clip_vocabulary.py

Every published Stable Diffusion text encoder reads this vocabulary; with it in the package a single-file checkpoint,
which has none inside, opens without a network.
"""

import gzip
import json
from pathlib import Path

import open_clip

from latent_diffusion.data.bpe import BytePairs

SIZE = 49408  # ids: 256 bytes, 256 bytes that end a word, the merges, begin, end
TARGET = Path(__file__).parent.parent / "latent_diffusion" / "bundled" / "clip_vocabulary"


def main() -> None:
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    pairs = BytePairs(tuple(tuple(line.split()) for line in lines[1 : 1 + SIZE - 2 * 256 - 2]))
    TARGET.mkdir(parents=True, exist_ok=True)
    merges = ["#version: 0.2", *(" ".join(pair) for pair in pairs.merges)]
    (TARGET / "merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
    compact = json.dumps(pairs.vocabulary, ensure_ascii=False, separators=(",", ":"))
    (TARGET / "vocab.json").write_text(compact + "\n", "utf-8")


if __name__ == "__main__":
    main()
