"""A report as JSON, and the picture sheets beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.evaluation.caption_bits import LikelihoodScore
from latent_diffusion.evaluation.composition.prompts import KINDS
from latent_diffusion.evaluation.composition.score import CompositionReport
from latent_diffusion.evaluation.evaluate import Report
from latent_diffusion.registry import nearest

__all__ = [
    "COMPOSITION_FIGURES",
    "FIGURES",
    "check",
    "composition_figures",
    "figures",
    "report_to_dict",
    "require_names",
    "write_composition",
    "write_report",
]

DRAWN = ("prompts", "pictures", "name1", "name5", "style", "joint1", "kid", "clip", "clip_real")
FIGURES = (
    *(f"reconstruction.{name}" for name in ("pictures", "size", "psnr", "psnr_pooled", "rkid")),
    *(f"{part}.{name}" for part in ("seen", "unseen") for name in DRAWN),
    *(f"copying.{name}" for name in ("pictures", "searched", "nearest", "between", "copies")),
    *(f"{part}_likelihood.{field.name}" for part in ("seen", "unseen") for field in fields(LikelihoodScore)),
)
"""Every figure of a model that a report can have."""
SHARES = ("right", "named", "both")
COMPOSITION_FIGURES = tuple(f"{kind}.{share}" for kind in KINDS for share in SHARES)
"""Every figure of a composition test."""

SHEETS = ("seen_grid", "unseen_grid", "nearest_grid")


def report_to_dict(report: Report, settings: Mapping[str, object]) -> dict[str, object]:
    """Return the report without its pictures, with the settings it was made with, ready for JSON."""
    values = {
        field.name: getattr(report, field.name) for field in fields(report) if field.name not in (*SHEETS, "references")
    }
    parts = {name: asdict(value) if hasattr(value, "__dataclass_fields__") else value for name, value in values.items()}
    return {**parts, "references": [asdict(row) for row in report.references], "settings": dict(settings)}


def figures(report: Report) -> dict[str, float]:
    """Return every figure of the model under a dotted name, as in `seen.name1` or `reconstruction.psnr`."""
    found: dict[str, float] = {}
    for part in ("reconstruction", "seen", "unseen", "copying", "seen_likelihood", "unseen_likelihood"):
        score = getattr(report, part)
        if score is None:
            continue
        values = asdict(score)
        values |= values.pop("scores", {})
        values.pop("found", None)  # numbers of pictures, no figure
        found |= {f"{part}.{name}": float(value) for name, value in values.items() if value is not None}
    return found


def check(found: Mapping[str, float], floors: Mapping[str, float]) -> list[str]:
    """Return a line for every figure that is below its floor, or was not measured."""
    lines = []
    for name, floor in floors.items():
        if name not in found:
            lines.append(f"{name} was not measured")
        elif not found[name] >= floor:
            lines.append(f"{name} is {found[name]:.4g}, below {floor:g}")
    return lines


def require_names(names: Iterable[str], known: Sequence[str] = FIGURES) -> None:
    """Check the names of figures before hours are spent on measuring them.

    Raises:
        ConfigError: a name that is none of `known`.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown figure {name!r}; there are {', '.join(known)}{nearest(name, known)}")


def write_report(report: Report, settings: Mapping[str, object], folder: Path) -> list[Path]:
    """Write `evaluation.json` and the sheets there are into `folder`; return their paths.

    Raises:
        ResourceError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "evaluation.json"]
        files[0].write_text(json.dumps(report_to_dict(report, settings), indent=2) + "\n", "utf-8")
        for name in SHEETS:
            sheet = getattr(report, name)
            if sheet is not None:
                files.append(folder / f"{name.removesuffix('_grid')}.png")
                sheet.save(files[-1])
    except OSError as error:
        raise ResourceError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error
    return files


def composition_figures(report: CompositionReport) -> dict[str, float]:
    """Return every figure of a composition test under a dotted name, as in `colour.right`."""
    return {f"{score.kind}.{share}": getattr(score, share) for score in report.drawn for share in SHARES}


def write_composition(report: CompositionReport, settings: Mapping[str, object], folder: Path) -> list[Path]:
    """Write `composition.json` and `composition.png` into `folder`; return their paths.

    Raises:
        ResourceError: the folder cannot be written.
    """
    values = {
        "model": report.model,
        "drawn": [asdict(score) for score in report.drawn],
        "composed of real pictures": [asdict(score) for score in report.real],
        "settings": dict(settings),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "composition.json", folder / "composition.png"]
        files[0].write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        report.sheet.save(files[1])
    except OSError as error:
        raise ResourceError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error
    return files
