"""A benchmark's function as a command of its own: `python -m benchmarks...`."""

from collections.abc import Callable, Sequence

import typer

from latent_diffusion.cli.main import main as run

__all__ = ["command"]


def command(function: Callable[..., int], name: str) -> Callable[[Sequence[str] | None], int]:
    """Return a function of arguments that runs `function` and returns its exit code.

    The codes mean what those of `latent-diffusion` do. `name` is how help calls the command.
    """
    app = typer.Typer(
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(function)

    def main(argv: Sequence[str] | None = None) -> int:
        return run(argv, app, name)

    return main
