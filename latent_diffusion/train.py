"""The command `accelerate launch -m latent_diffusion.train CONFIG [key=value ...]`; `training/run.py` runs it."""

import os
import sys
import traceback
from collections.abc import Sequence

from latent_diffusion.config import LESS_MEMORY, read_config
from latent_diffusion.errors import describe
from latent_diffusion.training.settings_page import help_text

__all__ = ["main"]

_USAGE = "usage: python -m latent_diffusion.train CONFIG [key=value ...] [--plan] [--debug]"


def main(argv: Sequence[str] | None = None) -> int:
    """Train as CONFIG and the overrides describe; return the exit code (`errors.py` has the list)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug, plan_only = "--debug" in arguments, "--plan" in arguments
    arguments = [argument for argument in arguments if argument not in ("--debug", "--plan")]
    if not arguments:
        print(_USAGE, file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(arguments):
        try:
            print(f"{_USAGE}\n\n{help_text()}", flush=True)
        except BrokenPipeError:  # the reader, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    try:
        run = read_config(arguments[0], arguments[1:])
        from latent_diffusion.training.run import show_plan, train  # torch: not before the configuration is right

        return show_plan(run) if plan_only else train(run)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = describe(error, out_of_memory=LESS_MEMORY)
        if "RANK" not in os.environ or _first_to_report(error):
            print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return code


def _first_to_report(error: Exception) -> bool:
    from latent_diffusion.training.state.launch import first_to_report  # imports torch

    return first_to_report(error)


if __name__ == "__main__":
    sys.exit(main())
