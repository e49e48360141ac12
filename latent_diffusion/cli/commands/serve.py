"""`latent-diffusion serve`: the page and the HTTP APIs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latent_diffusion.cli.arguments import given_of, takes
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.model import LoadOptions

__all__ = ["serve"]


@takes(LoadOptions)
def serve(
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME|PATH", help="Model to begin with.")] = "emoji",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; others than this machine's need --api-key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 = any free one.")
    ] = 7860,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="LATENT_DIFFUSION_API_KEY",
            show_default=False,
            help="Key that every request must have: as bearer token, as password or as x-api-key.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            show_default=False,
            help="Origin of another page that may call, such as http://localhost:8000. Repeatable.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Most requests that wait.")] = 64,
    lora_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", show_default=False, help="Folder of the files that <lora:name:weight> in prompts names."
        ),
    ] = None,
    model_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default=False, help="Folder of more models that requests may choose."),
    ] = None,
    train_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            help="Folder of picture folders to train on; runs are kept in it.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", show_default=False, help="Folder for all finished pictures."),
    ] = None,
    **given: Any,
) -> None:
    """Serve a page for drawing, repainting and training, and HTTP APIs.

    The APIs are this package's own (/jobs), that of the A1111 web UI (/sdapi/v1) and OpenAI's for images (/v1/images);
    /docs lists all routes. Needs the extra `serve`: pip install "latent_diffusion[serve]".

    **Examples**

    `latent-diffusion serve`

    `latent-diffusion serve --model v1-5.safetensors --lora-folder loras/ --output pictures/`

    `latent-diffusion serve --train-folder training/`

    `latent-diffusion serve --host 0.0.0.0 --api-key "$(openssl rand -hex 16)"`
    """
    try:
        import fastapi
        import multipart
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}; install it with: pip install 'latent_diffusion[serve]'") from None
    del fastapi, multipart
    from latent_diffusion.server.app import build_app
    from latent_diffusion.server.limits import ServeSettings
    from latent_diffusion.server.listening import listen

    settings = ServeSettings(
        model=model, host=host, port=port, api_key=api_key, cors=tuple(cors or ()), queue=queue,
        lora_folder=lora_folder, model_folder=model_folder, output=output,
        train_folder=train_folder,
    )  # fmt: skip
    with listen(host, port) as (socket, url):  # a port in use is found before the model is loaded
        app = build_app(settings, given_of(LoadOptions, given))
        socket.listen()  # a program that reads the address can connect at once
        typer.echo(f"{url}  (Ctrl-C stops)")
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[socket])
