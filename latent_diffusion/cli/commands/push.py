"""`latent-diffusion push`: upload a model's folder to the Hugging Face Hub; nothing else here sends anything."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.errors import CheckpointError, ConfigError, ResourceError, first_line

__all__ = ["push"]


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Result of a run, such as runs/mine/model.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="Commit message.")] = "Upload the model",
) -> None:
    """Upload a model or an adapter to the Hugging Face Hub.

    The token is that of `hf auth login`, or of the variable HF_TOKEN. Files with these names in the repository are
    replaced. The licence in README.md is yours to write first.

    **Example**

    `latent-diffusion push runs/mine/model me/my-style --private`
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{str(folder)!r}: there is no such folder; give the result of a run, its model/ or best/"
        )
    if not any(folder.rglob("*.safetensors")):
        raise CheckpointError(f"{str(folder)!r}: holds no weights (.safetensors); give the result of a run")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the library reads it when it is imported
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, ignore_patterns=[".tmp-*"]
        )
    except HFValidationError as fault:
        raise ConfigError(f"{repository!r} is not the name of a repository (owner/name): {first_line(fault)}") from None
    except OfflineModeIsEnabled:
        raise ResourceError("push: HF_HUB_OFFLINE forbids the upload; unset it for this command") from None
    except HfHubHTTPError as fault:
        status = fault.response.status_code if fault.response is not None else 0
        advice = "; run `hf auth login`, or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        raise ResourceError(f"push: the hub refused {repository!r}: {first_line(fault)}{advice}") from None
    except (OSError, *_connection_faults()) as fault:
        raise ResourceError(f"push: the hub cannot be reached: {first_line(fault)}; try again later") from None
    typer.echo(commit.commit_url)


def _connection_faults() -> tuple[type[Exception], ...]:
    """Return the errors of the library that huggingface_hub connects with: it has changed from release to release."""
    found = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return tuple(library.HTTPError for library in found if library is not None)
