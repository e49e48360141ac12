"""From the name a user gives to the place of a model: a bundled name, or the path of a folder or a file."""

import os
import re
from pathlib import Path

from latent_diffusion.checkpoint.built import require_built
from latent_diffusion.checkpoint.files.atomic import moved_aside
from latent_diffusion.checkpoint.files.links import refuse_broken_link
from latent_diffusion.errors import CheckpointError
from latent_diffusion.registry import nearest

__all__ = ["bundled_models", "locate_model"]

BUNDLED = Path(__file__).parent.parent / "bundled"
INDEX = "model_index.json"
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)")


def bundled_models() -> list[str]:
    """Return the names of the models that come with the package, sorted."""
    return sorted(index.parent.name for index in BUNDLED.glob(f"*/{INDEX}"))


def locate_model(name: str | os.PathLike[str]) -> Path:
    """Return the diffusers folder or the single file that `name` means.

    A bundled name wins over a folder of the same name; write "./emoji" for the folder.

    Raises:
        CheckpointError: neither a bundled name, nor a file, nor a folder with a model_index.json; or a bundled model
            whose weights are not built.
    """
    names = bundled_models()
    if str(name) in names:
        require_built(BUNDLED / str(name))
        return BUNDLED / str(name)
    folder = Path(name)
    known = f"bundled models are: {', '.join(names) or 'none'}{nearest(str(name), names)}"
    if not os.path.exists(folder):  # unlike Path.exists, False for names too long to be one
        refuse_broken_link(folder)
        if folder.name and os.path.isdir(older := moved_aside(folder)):  # False for a name that is too long
            raise CheckpointError(
                f"no model {str(name)!r}: a save over it was interrupted; rename {str(older)!r} to restore it"
            )
        advice = ""
        if _HUB.fullmatch(str(name)):
            advice = f"; nothing is downloaded: get a repository of the Hub by `hf download {name} --local-dir FOLDER`"
        raise CheckpointError(f"no model {str(name)!r}: there is no such file or folder, and the {known}{advice}")
    if folder.is_file():
        return folder
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{str(name)!r} has no {INDEX}, so it is not a model folder; the {known}")
    return folder
