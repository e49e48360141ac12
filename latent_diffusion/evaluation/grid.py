"""A sheet of pictures to look at: each prompt with the real picture above and what the model drew below."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Column", "draw_grid"]

MARGIN = 6
FONT_SIZE = 11
LABEL_LINES = 4
LINE_HEIGHT = 13
PAPER, INK = (255, 255, 255), (40, 40, 40)
RULE = (205, 205, 205)


@dataclass(frozen=True)
class Column:
    """One prompt of a sheet: its label, the real picture (None = there is none), and the pictures drawn for it."""

    label: str
    real: Image.Image | None
    drawn: Sequence[Image.Image]


def draw_grid(columns: Sequence[Column], per_row: int = 12, cell: int = 96) -> Image.Image:
    """Return a sheet with `per_row` prompts side by side: label, real picture, a rule, the drawn pictures.

    Args:
        columns: at least one prompt.
        per_row: prompts in a row of the sheet.
        cell: side of each picture on the sheet, in px.
    """
    font = ImageFont.load_default(FONT_SIZE)
    drawn = max(len(column.drawn) for column in columns)
    label_height = LABEL_LINES * LINE_HEIGHT + 2
    height = label_height + (drawn + 1) * (cell + MARGIN) + 3 * MARGIN
    across = min(per_row, len(columns))
    down = -(-len(columns) // per_row)
    sheet = Image.new("RGB", (across * (cell + MARGIN) + MARGIN, down * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        x = MARGIN + (number % per_row) * (cell + MARGIN)
        y = number // per_row * height
        text = "\n".join(wrap(column.label, font, cell)[:LABEL_LINES])
        draw.multiline_text((x, y), text, fill=INK, font=font, spacing=1)
        y += label_height
        if column.real is not None:
            sheet.paste(column.real.resize((cell, cell), Image.Resampling.BICUBIC), (x, y))
        y += cell + MARGIN
        draw.line((x, y, x + cell, y), fill=RULE)
        y += MARGIN
        for picture in column.drawn:
            sheet.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), (x, y))
            y += cell + MARGIN
    return sheet


def wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return `text` in lines of at most `width` px where its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
