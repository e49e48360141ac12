"""`latent-diffusion tokens`: how a prompt is read."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from latent_diffusion.cli.arguments import only, takes
from latent_diffusion.cli.command_options import CommandOptions
from latent_diffusion.cli.terminal import harmless
from latent_diffusion.options.call import Options

if TYPE_CHECKING:
    from latent_diffusion.pipeline.token_report import ReadTerm, TokenReport

__all__ = ["tokens"]


@takes(only(CommandOptions, "model"), only(Options, "emphasis", "rewrite"))
def tokens(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Prompt, as given to generate.", show_default=False)],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            help="Number of steps that schedules such as [before:after:0.5] refer to.",
            show_default="the model's",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    *,
    model: str,
    emphasis: str,
    rewrite: bool | None,
) -> None:
    """Show how a prompt is parsed: tokens, weights, chunks of 75, and the changes from step to step.

    **Examples**

    `latent-diffusion tokens "a (red:1.3) apple, [green|blue] leaf"`
    """
    from latent_diffusion.cli.picture_files import load_pipeline

    pipe = load_pipeline(model, {"device": "cpu"})
    report = pipe.tokens(prompt, num_inference_steps=steps, emphasis=emphasis, rewrite=rewrite)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)


def _show(report: "TokenReport") -> None:
    """Print the report line by line, without what could steer a terminal."""
    if report.read_as is not None:
        _say(f"rewritten: {report.read_as}")
    for tag in report.adapters:
        _say(f"adapter {tag.name}: text {tag.text_weight:g}, U-Net {tag.unet_weight:g}")
    for first, terms in report.lines:
        if len(report.lines) > 1:
            _say(f"from step {first + 1}:")
        for term in terms:
            weight = f", weight {term.weight:g}" if len(terms) > 1 else ""
            _say(f"{_count(term.tokens, 'token')} in {_count(term.chunks, 'chunk')} of {report.room}{weight}")
            _show_chunks(term)


def _show_chunks(term: "ReadTerm") -> None:
    alike = len(set(term.towers)) == 1
    for number, chunks in enumerate(term.towers[:1] if alike else term.towers, 1):
        if not alike:
            _say(f"  text encoder {number}:")
        for chunk in chunks:
            _say("  " + "".join(word if weight == 1 else f"{word.strip()}:{weight:.3g} " for word, weight in chunk))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _say(line: str) -> None:
    typer.echo(harmless(line))
