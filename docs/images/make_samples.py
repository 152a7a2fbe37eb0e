"""Makes `samples.png`, the page of `docs/data.md`: `python docs/images/make_samples.py`.

Each row is an expression that nobody wrote: as the ink sources draw it, as a photograph of that, and as the picture
sources bring the photograph back to the field's form. Below stands the label.
"""

from pathlib import Path

import cv2
import numpy as np

from abm_hf.data.pictures import to_crohme_style
from abm_hf.ink.rendering import render_ink
from abm_hf.synthetic.expressions import synthetic_ink
from abm_hf.synthetic.photographs import photograph

SEEDS = (3, 18, 36, 41, 52, 77, 90, 104)
CELL, MARGIN, LINE = 420, 14, 18


def fit(picture: np.ndarray) -> np.ndarray:
    """The picture in grey, not wider than a cell."""
    picture = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, CELL / picture.shape[1])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture


def draw_row(seed: int) -> np.ndarray:
    """One expression in its three forms, and its label."""
    ink = synthetic_ink(seed, min_tokens=8, max_tokens=18)
    drawn = render_ink(ink)
    taken = photograph(drawn, np.random.default_rng(seed))
    cells = [fit(drawn), fit(taken), fit(to_crohme_style(taken))]
    height = max(cell.shape[0] for cell in cells)
    row = np.full((height + LINE + MARGIN, 3 * (CELL + MARGIN)), 255, np.uint8)
    for place, cell in enumerate(cells):
        left = place * (CELL + MARGIN) + MARGIN // 2
        row[: cell.shape[0], left : left + cell.shape[1]] = cell
    origin = (MARGIN // 2, height + LINE - 4)
    cv2.putText(row, ink.label or "", origin, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 60, 1, cv2.LINE_AA)
    return row


def main() -> None:
    """Writes the page beside this file."""
    page = np.concatenate([np.full((MARGIN, 3 * (CELL + MARGIN)), 255, np.uint8), *map(draw_row, SEEDS)])
    cv2.imwrite(str(Path(__file__).with_name("samples.png")), page)


if __name__ == "__main__":
    main()
