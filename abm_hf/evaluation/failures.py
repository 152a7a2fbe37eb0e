"""What a checkpoint reads wrong: synthetic expressions with the label and the answer, as the model card shows them.

The ink is the package's own, so the page may be shown anywhere, and everybody gets the same expressions. It says what
kinds of mistakes there are, not how many: the hands are made up, and differ from those of CROHME.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..ink.rendering import render_ink
from ..ink.strokes import Ink
from ..latex.normalization import normalize_latex
from ..synthetic.expressions import synthetic_ink

#: Pixels: width of the page's columns, space around things, height of a line of text.
_WIDTH, _MARGIN, _LINE = 460, 14, 20
_PAPER, _RIGHT, _WRONG = (255, 255, 255), (82, 82, 91), (190, 24, 93)


@dataclass(frozen=True)
class Failure:
    """A picture, uint8 (H, W) with ink bright, what is written on it, and what was read; both in token form."""

    picture: np.ndarray
    label: str
    answer: str


def find_failures(
    read: Callable[[Sequence[Ink]], Sequence[str | None]], count: int = 8, most: int = 200
) -> list[Failure]:
    """The first synthetic expressions that are read wrong.

    Args:
        read: gives the LaTeX of each ink, as `[result.latex for result in recognizer(inks)]` does.
        count: how many are wanted.
        most: expressions that are read at most; `count` failures may not be among them.

    Returns:
        At most `count`, in the order of their seeds.
    """
    found: list[Failure] = []
    for start in range(0, most, 16):
        inks = [
            synthetic_ink(seed, min_tokens=4, max_tokens=20, convention="abm") for seed in range(start, start + 16)
        ]
        for ink, latex in zip(inks, read(inks), strict=True):
            answer = " ".join(normalize_latex(latex)) if latex else ""
            if answer != ink.label:
                found.append(Failure(render_ink(ink), str(ink.label), answer))
        if len(found) >= count:
            break
    return found[:count]


def draw_failures(failures: Iterable[Failure], columns: int = 2) -> Image.Image:
    """One page: each picture dark on white, the label below it in grey, the answer in red."""
    cells = [_draw(failure) for failure in failures]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    page = Image.new("RGB", (columns * _WIDTH, sum(heights) + _MARGIN), _PAPER)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            page.paste(cell, (place * _WIDTH, top))
        top += height
    return page


def _draw(failure: Failure) -> Image.Image:
    picture = Image.fromarray(255 - failure.picture)
    room = _WIDTH - 2 * _MARGIN
    scale = min(1.0, room / picture.width)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    lines = [(f"is:   {failure.label}", _RIGHT), (f"read: {failure.answer or '(nothing)'}", _WRONG)]
    font = ImageFont.load_default(13)
    wrapped = [(part, colour) for text, colour in lines for part in _wrap(text, font, room)]
    cell = Image.new("RGB", (_WIDTH, picture.height + _LINE * len(wrapped) + 2 * _MARGIN), _PAPER)
    cell.paste(picture, (_MARGIN, 0))
    draw = ImageDraw.Draw(cell)
    for number, (text, colour) in enumerate(wrapped):
        draw.text((_MARGIN, picture.height + 6 + number * _LINE), text, colour, font)
    return cell


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: int) -> list[str]:
    """Lines that fit, broken between tokens."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
