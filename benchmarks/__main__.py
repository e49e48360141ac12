"""`python -m benchmarks`: how fast this package is on this machine, beside others, with the same results."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.command import command
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import names, nearest

if TYPE_CHECKING:
    import torch

__all__ = ["bench", "main"]

WORK, SPEED = "What is done", "How it is measured"
CASES = tuple(name.replace("_", "-") for name in names("benchmarks.cases"))
PEERS = ("ours-plain", "diffusers", "diffusers-checkpointed", "diffusers-best", "compile", "openvino", "openvino-int8")
USUAL_MODEL = {"train-step": "small", "lora-step": "small"}
FORMATS = ("float32", "bfloat16", "auto")


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="CASE", help=f"{', '.join(CASES)}.", show_default="unet-step and vae-decode"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="A family with random weights (sd1, sdxl, ...; tiny takes seconds), emoji, or a model's folder.",
            show_default="sd1; a small U-Net for train-step and lora-step",
            rich_help_panel=WORK,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, metavar="PX", help="Of the pictures.", show_default="the model's", rich_help_panel=WORK),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures at a time.", show_default="1; 32 for train-step", rich_help_panel=WORK),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of a whole picture.", rich_help_panel=WORK)] = 20,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"{', '.join(PEERS)}. Repeatable; one that is not installed is skipped.",
            show_default="diffusers and diffusers-best",
            rich_help_panel=SPEED,
        ),
    ] = None,
    lossy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of generate: guidance-interval, or what --approximate takes there, such as deepcache:interval=3; of "
            "unet-step: int8. Compared with the exact result. Repeatable.",
            show_default=False,
            rich_help_panel=SPEED,
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="float32, bfloat16, or auto: what each takes by itself. Repeatable.",
            show_default="float32 and bfloat16",
            rich_help_panel=SPEED,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cpu or cuda.", show_default="cuda if there", rich_help_panel=SPEED),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Timed calls of each.", show_default="3 to 15, by their time", rich_help_panel=SPEED),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep every figure here, row by row; must be new.", show_default=False),
    ] = None,
) -> int:
    """Measure this package beside others on this machine.

    Every tool has the same weights and inputs and runs in a process of its own; they take turns. Beside each time
    stands how far the result is from diffusers' in float32. "% peak" is of the operations a second that this machine
    reached, before and after, in large matrix products and convolutions. "contended" means that something else was
    running: measure again. Exit code 1 if a ratio that the package is committed to is missed by more than 5 % on a
    quiet machine.

    **Examples**

    `python -m benchmarks unet-step --dtype float32 --peer diffusers --json unet.json`

    `python -m benchmarks --model tiny`
    """
    chosen = _known("case", cases or ["unet-step", "vae-decode"], CASES)
    usual = [] if lossy else ["diffusers", "diffusers-best"]
    others = [*_known("peer", peer or usual, PEERS), *(f"lossy:{name}" for name in lossy or ())]
    if lossy and not {"generate", "unet-step"}.issuperset(chosen):
        raise ConfigError(f"--lossy is for the cases generate and unet-step, not for {', '.join(chosen)}")
    formats = _known("dtype", dtype or ["float32", "bfloat16"], FORMATS)
    from benchmarks.facts import machine_facts
    from benchmarks.measure import check, measure
    from benchmarks.plan import Plan
    from benchmarks.report import Report
    from benchmarks.table import Printer
    from latent_diffusion.runtime.placement import choose_device

    place = _place(choose_device(device))
    plans = [
        Plan(case, model or USUAL_MODEL.get(case, "sd1"), form, place, size, batch, steps)
        for case in chosen
        for form in formats
    ]
    for plan in {plan.case: plan for plan in plans}.values():
        check(plan, others)
    report = Report(machine_facts(place), time.strftime("%Y-%m-%d %H:%M"), shlex.join(sys.argv[1:]), json)
    printer = Printer(report.head["machine"])
    for plan in plans:
        with printer.telling(plan) as tell:
            rows = measure(plan, others, repeats, report, tell)
        printer.show(rows)
    failed = [row.failed for row in report.rows if row.failed]
    for line in failed:
        typer.echo(f"check failed: {line}", err=True)
    return 1 if failed else 0


def _place(device: "torch.device") -> str:
    """Return the kind of device.

    Raises:
        ConfigError: it is none that is measured.
    """
    if device.type not in ("cpu", "cuda") or device.index:
        raise ConfigError(f"--device {str(device)!r} is not measured; use cpu or cuda, the first of its kind")
    return device.type


def _known(what: str, given: list[str], known: tuple[str, ...]) -> list[str]:
    """Return the names, each once.

    Raises:
        ConfigError: one is unknown.
    """
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return list(dict.fromkeys(given))


main = command(bench, "python -m benchmarks")

if __name__ == "__main__":
    sys.exit(main(None))
