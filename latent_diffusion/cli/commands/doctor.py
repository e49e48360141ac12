"""`latent-diffusion doctor`: what is wrong with the data of a run, and what the run will need, before it starts."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["doctor"]


def doctor(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of a run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Change of a key, as in data.size=512.", show_default=False),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the list of broken pictures for data.quarantine."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write the report as one page, pictures inside.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Make a few updates to measure time and memory.")
    ] = True,
) -> int:
    """Examine the pictures, captions and masks of a run, and measure a few updates.

    Every picture is decoded. Named are broken, small and equal pictures, those that look alike, missing captions and
    masks that do not fit; then token lengths, frequent tags, the plan of the run, its time and its peak memory. Exit
    code 1 if something is broken or the run cannot start.

    **Examples**

    `latent-diffusion doctor configs/lora.yaml data.path=my-pictures --report report.html`

    `latent-diffusion doctor my.yaml --fix bad.txt` and then `latent-diffusion train my.yaml data.quarantine=bad.txt`
    """
    from latent_diffusion.cli.progress import parts_progress
    from latent_diffusion.config import parse_section, read_config
    from latent_diffusion.data.settings import DataConfig
    from latent_diffusion.errors import ConfigError
    from latent_diffusion.registry import find
    from latent_diffusion.training.doctor import STOPPED, diagnose
    from latent_diffusion.training.doctor_page import report_page

    run = read_config(config, overrides or [])
    kind = find("latent_diffusion.training.objectives", str(run.objective["name"]))
    data = parse_section(kind.data_type, run.data, "data")
    if not isinstance(data, DataConfig):
        raise ConfigError(f"objective {run.objective['name']!r} has no pictures; there is nothing to examine")
    for file in (fix, report):
        _refuse_existing(file)
    with parts_progress() as progress:
        told = diagnose(run, progress, measure=measure)
    for line in told.lines():
        typer.echo(line)
    if fix is not None:
        fix.write_text(told.quarantine(), encoding="utf-8")
        typer.echo(f"wrote {fix}: {len(told.findings.broken)} pictures; set data.quarantine={fix}")
    if report is not None:
        report.write_text(report_page(told, data, config), encoding="utf-8")
        typer.echo(f"wrote {report}")
    cannot_start = any(head in STOPPED for head, _, _ in told.faults)
    return 1 if told.findings.broken or cannot_start else 0


def _refuse_existing(file: Path | None) -> None:
    """Refuse a file that exists or cannot be written, before any work."""
    from latent_diffusion.errors import ResourceError

    if file is not None and file.exists():
        raise ResourceError(f"{str(file)!r} exists; nothing is overwritten, choose another name")
    if file is not None and not file.parent.is_dir():
        raise ResourceError(f"{str(file)!r}: there is no folder {str(file.parent)!r}; make it first")
