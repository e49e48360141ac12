"""The command `latent-diffusion`: one file a command; errors as one line on stderr, with an exit code for each kind.

No module here imports torch at its top, so that help, completion and wrong arguments answer at once.
"""

import contextlib
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from latent_diffusion.cli.commands.adapter import adapter
from latent_diffusion.cli.commands.convert import convert
from latent_diffusion.cli.commands.doctor import doctor
from latent_diffusion.cli.commands.evaluate import evaluate
from latent_diffusion.cli.commands.generate import generate
from latent_diffusion.cli.commands.img2img import img2img
from latent_diffusion.cli.commands.info import info
from latent_diffusion.cli.commands.inpaint import inpaint
from latent_diffusion.cli.commands.outpaint import outpaint
from latent_diffusion.cli.commands.push import push
from latent_diffusion.cli.commands.regenerate import regenerate
from latent_diffusion.cli.commands.serve import serve
from latent_diffusion.cli.commands.tokens import tokens
from latent_diffusion.cli.commands.train import train
from latent_diffusion.errors import LatentDiffusionWarning, describe
from latent_diffusion.version import VERSION

__all__ = ["main"]

COMMAND_LINE = 2
OUR_BUG = 70
INTERRUPTED = 130
DRAWING = (["generate"], ["img2img"], ["inpaint"], ["outpaint"], ["regenerate"])

app = typer.Typer(
    name="latent-diffusion",
    help="Make pictures from text, repaint parts of pictures, and train models.",
    epilog="Exit codes: 0 ok, 1 a check failed, 2 wrong argument or config, 3 data, 4 model, 5 diverged, "
    "6 disk, memory or device, 70 a bug in this package.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel="Make pictures")(generate)
app.command(rich_help_panel="Make pictures")(img2img)
app.command(rich_help_panel="Make pictures")(inpaint)
app.command(rich_help_panel="Make pictures")(outpaint)
app.command(rich_help_panel="Make pictures")(regenerate)
app.command(rich_help_panel="Make pictures")(tokens)
app.command(rich_help_panel="Make pictures")(serve)
app.command(rich_help_panel="Train and judge")(train)
app.command(rich_help_panel="Train and judge")(doctor)
app.command(rich_help_panel="Train and judge")(evaluate)
app.command(rich_help_panel="Models and files")(convert)
app.command(rich_help_panel="Models and files")(info)
app.command(rich_help_panel="Models and files")(push)
app.add_typer(adapter, name="adapter", rich_help_panel="Models and files")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"latent-diffusion {VERSION}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")] = False,
) -> None:
    """Declare the options of every command; `main` reads --debug itself, wherever it stands."""


_command = functools.cache(get_command)  # the tree of options, made once a process: it takes 25 ms


def main(argv: Sequence[str] | None = None, app: typer.Typer = app, name: str = "latent-diffusion") -> int:
    """Run one command and return its exit code; never raises and prints no traceback unless --debug is given.

    Args:
        argv: the arguments after the program's name; None = this process's.
        app: the commands.
        name: how messages name the program.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    warnings.showwarning = _one_line_warning
    try:
        code = _command(app)(args=arguments, prog_name=name, standalone_mode=False, obj={"debug": debug})
        if code == INTERRUPTED:
            _interrupted(leave=argv is None and arguments[:1] != ["train"])
        if sys.stdout is not None:  # None when the caller closed it
            sys.stdout.flush()
        code = code if isinstance(code, int) else 0
        if argv is None and arguments[:1] in DRAWING:
            _leave(code)
        return code
    except SystemExit as stop:  # typer's answer to a reader that left, as in `| head`
        return stop.code if isinstance(stop.code, int) else OUR_BUG
    except (KeyboardInterrupt, typer.Abort):
        _interrupted(leave=argv is None)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _describe(error)
        if line:
            _say(f"error: {line}")
        return code


def _interrupted(*, leave: bool) -> None:
    """Print that the command was interrupted; `leave` ends the process."""
    _say("interrupted")
    if leave:
        _leave(INTERRUPTED)


def _leave(code: int) -> None:
    """End the process here and now: taking a loaded model and torch apart would take it a second more.

    Nothing is lost: files are written whole or not at all, and what was begun is already cleaned up on the way here.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code)


def _describe(error: Exception) -> tuple[int, str]:
    """Return the exit code of an error and its one line; "" when help was already printed."""
    if isinstance(error, _USAGE):
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError" and context:
            print(context.get_help(), file=sys.stderr)
            return COMMAND_LINE, ""
        hint = f"; see {context.command_path} --help" if context else ""
        message = getattr(error, "format_message", error.__str__)()
        return COMMAND_LINE, message.rstrip(".") + hint
    return describe(error, out_of_memory="use a smaller size, fewer pictures at a time, or a lower --dtype")


def _say(message: str) -> None:
    """Print one line on stderr, whatever line breaks the message holds and whatever the terminal can encode."""
    if sys.stderr is None:  # closed by the caller
        return
    encoding = sys.stderr.encoding or "utf-8"
    line = " ".join(message.split())
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Print our own warnings as one line each; other libraries' warnings are not for users of a command."""
    if issubclass(category, LatentDiffusionWarning):
        _say(f"warning: {message}")


# typer publishes the errors of single parameters, but not their common class
_USAGE = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "UsageError")
