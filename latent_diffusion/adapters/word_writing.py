"""Write a learned word for other tools.

TOKEN.safetensors                   {"emb_params": (n, D)}, of SDXL {"clip_l", "clip_g"}     A1111, ComfyUI, kohya
TOKEN/learned_embeds.safetensors    {TOKEN: (n, D)}                                          diffusers
"""

from collections.abc import Mapping
from pathlib import Path

from latent_diffusion.adapters.word_file import IN_FOLDER, NAMELESS, OF_SDXL
from latent_diffusion.adapters.words import Word
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors

__all__ = ["write_word"]


def write_word(folder: Path, word: Word, metadata: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Write a word into `folder`; return its files. That of SDXL has one form, which all tools read.

    Args:
        folder: an existing folder.
        word: its vectors keep their dtype.
        metadata: strings for the header.

    Raises:
        ResourceError: a file cannot be written.
    """
    file = folder / f"{word.token}.safetensors"
    if len(word.vectors) > 1:
        write_tensors(file, dict(zip(OF_SDXL, word.vectors.values(), strict=True)), metadata)
        return (file,)
    (vectors,) = word.vectors.values()
    write_tensors(file, {NAMELESS[0]: vectors}, metadata)
    own = folder / word.token / IN_FOLDER[0]
    own.parent.mkdir()
    write_tensors(own, {word.token: vectors}, metadata)
    return file, own
