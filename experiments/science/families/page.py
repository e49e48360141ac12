"""Write the figures of a run into docs/science/families.md: tables, curves and a sheet of drawings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from experiments.science.families.run import (
    FAMILIES,
    OTHER_WAYS,
    SHOWN,
    Run,
    as_images,
    drawings_key,
    key,
    marks,
    place,
    real_key,
)
from experiments.science.figures import PAGES, chart, fill, save_picture
from latent_diffusion.data.pictures.images import to_pil

__all__ = ["write_chart", "write_sheet", "write_tables"]

PAGE = PAGES / "families.md"
MOST_POINTS = 25  # of a line, about


def write_tables(run: Run) -> None:
    """Put the tables on the page."""
    found, seeds = run.found, run.asked.seeds
    lines = [
        "| family | weights, M | updates | held out, bits | trained on, bits | KID x1000 | precision | recall | "
        "G multiply-adds a picture | ms a picture |",
        "|---" * 10 + "|",
    ]
    for name in FAMILIES:
        training = found[f"{key(run, name, seeds[0])}, training"]
        updates = [found[f"{key(run, name, seed)}, training"]["updates"] for seed in seeds]
        cells = [name, f"{training['weights'] / 1e6:.2f}", figure(updates, 0)]
        bits = [found[f"{key(run, name, seed)}, bits"] for seed in seeds]
        exact = "" if name == "flow" else "≤ "
        for kind in ("held out", "train"):
            cells.append("none" if name == "GAN" else exact + figure([float(np.mean(one[kind])) for one in bits], 2))
        lines.append(row([*cells, *drawn_cells([found[drawings_key(run, name, seed)] for seed in seeds])]))
    for way in (way for ways in OTHER_WAYS.values() for way in ways if drawings_key(run, way, seeds[0]) in found):
        lines.append(row([way, "", "", "", "", *drawn_cells([found[drawings_key(run, way, seeds[0])]])]))
    real = found[real_key(run)]
    cells = ["real pictures", "", "", "", "", f"{real['kid']:.0f}", f"{real['precision']:.2f}", f"{real['recall']:.2f}"]
    fill(PAGE, "families", [*lines, row([*cells, "", ""])])
    ode = [float(np.mean(found[name])) for seed in seeds if (name := f"{key(run, 'diffusion', seed)}, ODE") in found]
    by_ode = f"{figure(ode, 2)} bits for each number of the held-out pictures" if ode else "not measured"
    fill(PAGE, "ode", [f"Diffusion by the ODE: {by_ode}."])
    write_training(run.found.values, {name: key(run, name, seeds[0]) for name in FAMILIES})


def write_training(found: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Put the table of losses and gradients on the page; `keys` names each family's training."""
    lines = ["| player | loss in the first eighth | last eighth | spread in the last eighth | long gradients |"]
    lines.append("|---" * 5 + "|")
    for name, of in keys.items():
        training = found[f"{of}, training"]
        for player, losses in training["losses"].items():
            eighth = max(1, len(losses) // 8)
            ends = np.mean(losses[:eighth]), np.mean(losses[-eighth:]), np.std(losses[-eighth:])
            title = name if player == "model" else f"{name}: {player}"
            lines.append(row([title, *(f"{one:.3f}" for one in ends), f"{training['shortened'][player]:.3f}"]))
    fill(PAGE, "training", lines)


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figure(values: Sequence[float], digits: int) -> str:
    """Return the mean, and the spread where there are several."""
    text = f"{np.mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):,.{digits}f}"


def drawn_cells(drawn: Sequence[dict[str, float]]) -> list[str]:
    places = {"kid": (1, 0), "precision": (1, 2), "recall": (1, 2), "operations": (0.5, 3), "seconds": (1000, 1)}
    return [figure([one[name] * unit for one in drawn], digits) for name, (unit, digits) in places.items()]


def write_chart(run: Run) -> None:
    """Put KID and losses against minutes on the page."""
    found, seed, minutes = run.found, run.asked.seeds[0], run.asked.minutes
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    early = [at for at in marks(run)[:-1] if all(f"{name}, {seed}, KID at {at:g} min" in found for name in FAMILIES)]
    if early:
        last = {name: found[drawings_key(run, name, seed)]["kid"] for name in FAMILIES}
        panels["EffLite-KID x1000"] = {
            name: [*((at, found[f"{name}, {seed}, KID at {at:g} min"]) for at in early), (minutes, last[name])]
            for name in FAMILIES
        }
    titles = {"VAE": "loss: bits a number", "diffusion": "loss: square error of v", "GAN": "losses of the game"}
    titles |= dict.fromkeys(("hierarchical VAE", "flow"), titles["VAE"])
    for name in ("VAE", "hierarchical VAE", "flow", "diffusion", "GAN"):
        training = found[f"{key(run, name, seed)}, training"]
        for player, losses in training["losses"].items():
            times = np.linspace(training["seconds"][0], training["seconds"][-1], len(losses)) / 60
            points = [(round(float(t), 2), y) for t, y in zip(times, losses, strict=True)][2:]
            points = points[:: max(1, len(points) // MOST_POINTS)]
            title = "GAN's critic" if player == "critic" else name
            panels.setdefault(titles[name], {})[title] = points
    (PAGES / "families.svg").write_text(chart(panels, "processor minutes"))


def write_sheet(run: Run) -> None:
    """Put the first drawings of each family on the page, real pictures above."""
    held = run.held_out
    rows = {"real, held out": held[:: max(1, len(held) // SHOWN)][:SHOWN]}
    for name in FAMILIES:
        folder = place(run, name, run.asked.seeds[0])
        rows[name] = torch.from_numpy(np.load(folder / f"{key(run, name, run.asked.seeds[0])}.npy")[:SHOWN])
    cell, gap, label = 64, 4, 104
    sheet = Image.new("RGB", (label + SHOWN * (cell + gap), len(rows) * (cell + gap) + gap), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (name, values) in enumerate(rows.items()):
        y = gap + number * (cell + gap)
        draw.text((4, y + cell // 2 - 8), name, fill=(40, 40, 40), font=font)
        for column, picture in enumerate(to_pil(as_images(values))):
            sheet.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), (label + column * (cell + gap), y))
    save_picture(sheet, PAGES / "families.webp")
