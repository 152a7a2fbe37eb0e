"""Where each token of a label stands on the encoder's grid, from segmented ink."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from ..ink.alignment import written_places
from ..ink.strokes import Ink

# Rows and columns into which a grid cell is divided to count how much of a stroke crosses it.
_FINE = 4
_FRACTION_BITS = 4


def token_cells(
    ink: Ink | None, box: tuple[float, float, float, float], shape: Sequence[int], stride: int
) -> np.ndarray | None:
    """How much ink of each token of the label lies in each cell of the grid.

    Args:
        ink: With symbols for the written tokens of its label, in their order, as prepared data has them.
        box: Left, top, right and bottom of the ink's points on the image, in pixels.
        shape: Height and width of the image.
        stride: Pixels that a cell is high and wide.

    Returns:
        uint8 (T, h, w): 0 to 16 parts of the cell; all 0 for tokens that are not written. `None` where the ink or its
        segmentation is not known.
    """
    if ink is None or not ink.symbols or ink.label is None:
        return None
    tokens = ink.label.split()
    height, width = (-(-side // stride) for side in shape)
    left, top, right, bottom = ink.bounds
    origin = np.array([left, top])
    factor = np.array([box[2] - box[0], box[3] - box[1]]) / np.maximum([right - left, bottom - top], 1e-9)
    cells = np.zeros((len(tokens), height, width), np.uint8)
    for place, symbol in zip(written_places(tokens), ink.symbols, strict=True):
        lines = [((ink.strokes[i][:, :2] - origin) * factor + box[:2]) * (_FINE / stride) for i in symbol.strokes]
        cells[place] = _crossed(lines, height, width)
    return cells


def _crossed(lines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Parts of each cell (h, w) that lines of x, y in parts of cells cross."""
    fine = np.zeros((height * _FINE, width * _FINE), np.uint8)
    # OpenCV's pixels have their middles, not their corners, at whole numbers.
    shifted = [np.rint((line - 0.5) * 2**_FRACTION_BITS).astype(np.int32) for line in lines]
    cv2.polylines(fine, shifted, isClosed=False, color=1, shift=_FRACTION_BITS)
    x, y = np.concatenate(lines).astype(int).T  # for dots, which are no lines
    fine[y.clip(0, len(fine) - 1), x.clip(0, fine.shape[1] - 1)] = 1
    return fine.reshape(height, _FINE, width, _FINE).sum((1, 3), dtype=np.uint8)


def pad_cells(cells: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor (B, T, h, w), uint8, of what [`token_cells`] gave for each image of a batch; 0 where unknown."""
    padded = np.zeros((len(cells), *shape), np.uint8)
    for row, known in zip(padded, cells, strict=True):
        if known is not None:
            row[tuple(slice(size) for size in known.shape)] = known
    return torch.from_numpy(padded)
