"""One picture of a whole run: a row of small sample pictures for each checkpoint, all with the same seeds."""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet"]

CELL = 128  # largest side of a sample picture, px
MOST = 16000  # largest height of the sheet, px: cells shrink beyond it
LABEL, HEADER = 56, 44  # px for the number of updates and for the prompts
INK, PAPER = (40, 40, 40), (255, 255, 255)


def contact_sheet(folder: Path) -> Image.Image | None:
    """Return the sheet of the files `step-00001000-0.png` of a run's `samples/`; None without any.

    A file is cut into its pictures where its text has their side and their prompts, else it is one picture.
    """
    rows: list[tuple[int, list[Image.Image]]] = []
    prompts: list[str] = []
    for file in sorted(folder.glob("step-*-0.png")):
        with Image.open(file) as sheet:
            sheet.load()
            text = getattr(sheet, "text", {})
            pictures = _cut(sheet, text)
            prompts = [row["prompt"] for row in json.loads(text.get("pictures", "[]"))] or prompts
        rows.append((int(file.name.split("-")[1]), pictures))
    if not rows:
        return None
    columns = max(len(pictures) for _, pictures in rows)
    cell = max(8, min(CELL, MOST // len(rows), max(p.height for _, pictures in rows for p in pictures)))
    header = HEADER if prompts else 0
    widths = [max(round(cell * p.width / p.height) for _, row in rows for p in row[k : k + 1]) for k in range(columns)]
    made = Image.new("RGB", (LABEL + sum(widths), header + cell * len(rows)), PAPER)
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(11)
    for k, prompt in enumerate(prompts):
        x = LABEL + sum(widths[:k])
        pen.multiline_text((x + 1, 1), _lines(prompt, font, widths[k]), fill=INK, font=font, spacing=1)
    for index, (step, pictures) in enumerate(rows):
        y = header + index * cell
        pen.text((2, y + cell // 2 - 6), str(step), fill=INK, font=font)
        for k, picture in enumerate(pictures):
            small = picture.convert("RGB").resize((round(cell * picture.width / picture.height), cell))
            made.paste(small, (LABEL + sum(widths[:k]), y))
    return made


def _cut(sheet: Image.Image, text: dict[str, str]) -> list[Image.Image]:
    """Return the pictures of a sheet, in order."""
    if "cells" not in text:
        return [sheet.copy()]
    return [sheet.crop(tuple(box)) for box in json.loads(text["cells"])]


def _lines(prompt: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """Return a prompt in at most three lines of `width` px; a longer word is cut."""
    lines = [""]
    for word in prompt.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(line[: max(1, int(width // 6))] for line in lines[:3])
