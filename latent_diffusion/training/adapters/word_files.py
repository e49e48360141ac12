"""The files of learned words that a run writes: written, and read back."""

from pathlib import Path

import torch

from latent_diffusion.adapters.word_file import read_words
from latent_diffusion.adapters.word_writing import write_word
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.errors import CheckpointError
from latent_diffusion.training.adapters.adapter_metadata import word_metadata
from latent_diffusion.training.adapters.learned_words import LearnedWords

__all__ = ["write_words"]


def write_words(folder: Path, words: LearnedWords, base: Components, dtype: str) -> None:
    """Write each word into `folder` as A1111 and diffusers read it; then compare the files with the vectors.

    Raises:
        CheckpointError: a file read back does not hold the trained vectors.
    """
    for word in words.now(getattr(torch, dtype)):
        for file in write_word(folder, word, word_metadata(base, word.token)):
            (read,) = read_words(file, base)
            same = all(torch.equal(read.vectors[tower], vectors) for tower, vectors in word.vectors.items())
            if read.token != word.token or not same:
                raise CheckpointError(f"{file}: read back it does not hold the vectors of {word.token!r}")
