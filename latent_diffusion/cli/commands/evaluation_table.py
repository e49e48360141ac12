"""An evaluation on the terminal, as tables."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latent_diffusion.evaluation.caption_bits import LikelihoodScore
    from latent_diffusion.evaluation.composition.score import CompositionReport
    from latent_diffusion.evaluation.drawn import DrawingScore
    from latent_diffusion.evaluation.evaluate import Report

__all__ = ["print_composition", "print_tables"]

SHARES = ("name1", "name5", "style", "joint1")


def print_tables(report: "Report") -> None:
    """Print the report; a figure that was not measured is a dash."""
    console = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 120)
    part = report.reconstruction
    if part is not None:
        table = Table(title=f"Autoencoder of {report.model}, {part.pictures} held-out pictures at {part.size} px")
        for name in ("PSNR", "PSNR of the mean error", "rKID x1000"):
            table.add_column(name, justify="right")
        table.add_row(f"{part.psnr:.2f} dB", f"{part.psnr_pooled:.2f} dB", f"{part.rkid:.1f}")
        console.print(table)
    table = Table(title=f"Pictures of {report.model} at {report.size} px")
    table.add_column("what")
    for name in ("prompts", "pictures", "Name@1", "Name@5", "Style", "Joint@1", "KID x1000", "CLIP", "CLIP of real"):
        table.add_column(name, justify="right")
    for label, score in (("drawn, prompts seen", report.seen), ("drawn, prompts never seen", report.unseen)):
        if score is not None:
            table.add_row(label, *_cells(score))
    table.add_section()
    for row in report.references:
        cells = [_share(row.scores, kind) for kind in SHARES]
        table.add_row(row.what, str(row.pictures), str(row.pictures), *cells, _number(row.kid), "-", "-", style="dim")
    console.print(table)
    likelihoods = ("prompts seen", report.seen_likelihood), ("prompts never seen", report.unseen_likelihood)
    if any(part for _, part in likelihoods):
        console.print(_likelihood_table(likelihoods))
    if report.copying is not None:
        part = report.copying
        console.print(
            f"Nearest training picture: {part.nearest:.1f} grey levels (rms) from {part.pictures} drawings, "
            f"{part.between:.1f} between the {part.searched} training pictures. "
            f"{part.copies:.0%} of the drawings are nearer than nine in ten training pictures are to each other."
        )
    if report.references:
        console.print("Dim rows: reference pictures for the prompts never seen.", style="dim")


def print_composition(report: "CompositionReport") -> None:
    """Print what a composition test found, beside the same scenes composed of real pictures."""
    table = Table(title=f"Combinations never trained on, drawn by {report.model}")
    for name in ("what", "pictures", "right", "thing named", "both", "real: right", "real: named", "real: both"):
        table.add_column(name, justify="left" if name == "what" else "right")
    real = {score.kind: score for score in report.real}
    for score in report.drawn:
        own = real.get(score.kind)
        shares = [score.right, score.named, score.both, *([own.right, own.named, own.both] if own else [])]
        table.add_row(score.kind, str(score.pictures), *(f"{share:.2f}" for share in shares))
    Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 120).print(table)


def _likelihood_table(rows: "Iterable[tuple[str, LikelihoodScore | None]]") -> Table:
    table = Table(title="Negative log-likelihood of real latents, bits a number")
    table.add_column("what")
    for name in ("pictures", "own caption", "other caption", "no caption", "bits of a picture the caption explains"):
        table.add_column(name, justify="right")
    for label, part in rows:
        if part is not None:
            figures = [f"{value:.3f}" for value in (part.own, part.other, part.empty)]
            table.add_row(label, str(part.pictures), *figures, f"{part.explained:.1f} ± {part.explained_error:.1f}")
    return table


def _cells(score: "DrawingScore") -> list[str]:
    shares = [_share(score.scores, kind) for kind in SHARES]
    figures = [_number(score.kid), _number(score.clip), _number(score.clip_real)]
    return [str(score.prompts), str(score.pictures), *shares, *figures]


def _share(scores: dict[str, float], kind: str) -> str:
    return f"{scores[kind]:.3f}" if kind in scores else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
