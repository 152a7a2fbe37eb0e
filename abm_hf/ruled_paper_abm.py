"""The printed lines of ruled and squared paper, told from handwriting by what only they do: run from edge to edge."""

from dataclasses import dataclass

import cv2
import numpy as np

# Lines are looked for within this angle (degrees) of the horizontal and the vertical.
_TILT = 5.0
# A line counts with this share of its length in ink: handwriting and weak print interrupt it.
_COVER = 0.6
# Lines from edge to edge may end this far from it, as a share of the picture's width.
_EDGE = 0.03
_MOST_LINES = 100


@dataclass(frozen=True)
class _Line:
    """A nearly horizontal line: its ink, the band around it, and where it starts and ends."""

    ink: np.ndarray  # bool (rows, W)
    band: np.ndarray  # bool (rows, W)
    rows: slice
    start: int
    end: int
    edge_to_edge: bool


def ruled_lines(contrast: np.ndarray, threshold: float, pen: float) -> np.ndarray:
    """
    Find the printed lines among the ink.

    One long line may be a fraction bar, so it takes two that run from edge to edge, or three that start and end
    together, and a length of at least half the longer side: three tall letters in a tightly cut picture do as much.
    Squared paper is found once in each direction; where one direction is ruled, a single line across it (a margin)
    goes too. Only ink that is as thin as the line goes, and as pale as it where it is paler than the pen, so the
    strokes that cross or follow it stay whole.

    Args:
        contrast (`np.ndarray` of `float32`, shape (H, W)): how much darker than the paper each pixel is, 0..1.
        threshold (`float`): contrast from which lines are looked for: low, as they are seldom as dark as the pen.
        pen (`float`): contrast of the pen.

    Returns:
        `np.ndarray` of `uint8`, shape (H, W): 1 for printed lines; all zero if the paper is plain.
    """
    mask = (contrast > threshold).astype(np.uint8)
    turned = np.ascontiguousarray(mask.T)
    lines, columns = _find_lines(mask), _find_lines(turned)
    half = max(mask.shape) / 2
    rules, margins = _ruled(lines, mask.shape[1], half), _ruled(columns, mask.shape[0], half)
    if rules and not margins:
        margins = [line for line in columns if line.edge_to_edge]
    elif margins and not rules:
        rules = [line for line in lines if line.edge_to_edge]
    ink, band = _paint(rules, contrast, pen)
    ink_across, band_across = _paint(margins, contrast.T, pen)
    ink, band = ink | ink_across.T, band | band_across.T
    if not ink.any():
        return ink
    left = ((contrast > pen / 2) & (ink == 0)).astype(np.uint8)
    ink |= _within(left, band)
    if not (left & (1 - ink)).any():
        return np.zeros_like(mask)  # nothing but lines: they are the writing (an equals sign)
    return ink


def _find_lines(mask: np.ndarray) -> list[_Line]:
    """All long, thin, nearly horizontal lines."""
    height, width = mask.shape
    thickness = max(8, round(max(height, width) / 100))
    thin = _no_higher_than(mask, thickness)
    left = cv2.morphologyEx(thin, cv2.MORPH_OPEN, np.ones((1, max(5, width // 100)), np.uint8))
    tilt = np.deg2rad(_TILT)
    found = cv2.HoughLines(
        left, 1, np.pi / 1440, max(20, int(0.3 * width)), min_theta=np.pi / 2 - tilt, max_theta=np.pi / 2 + tilt
    )
    lines: list[_Line] = []
    for rho, theta in [] if found is None else found[:1000, 0]:
        line = _follow(thin, left, (rho - np.arange(width) * np.cos(theta)) / np.sin(theta), thickness)
        if line is not None:
            lines.append(line)
        if len(lines) == _MOST_LINES:
            break
    return lines


def _follow(thin: np.ndarray, left: np.ndarray, rows: np.ndarray, thickness: int) -> _Line | None:
    """Fit one line of the Hough transform to the ink near it, and take that ink out of `left`."""
    height, width = thin.shape
    columns = np.arange(width)
    inside = (rows >= 0) & (rows <= height - 1)
    nearest = np.clip(np.rint(rows), 0, height - 1).astype(int)
    # The transform gives each line many times over; what an earlier one took is gone.
    if inside.sum() < 0.3 * width or left[nearest, columns][inside].sum() < 0.15 * width:
        return None
    first = max(0, int(rows[inside].min()) - 3 * thickness)
    last = min(height, int(rows[inside].max()) + 3 * thickness + 2)
    grid = np.arange(first, last)[:, None]
    # Paper bends: a parabola follows it where a straight line does not. The last fit is free of what was written near.
    for reach in (2 * thickness, thickness, thickness / 3):
        y, x = np.nonzero((np.abs(grid - rows) <= reach) & (left[first:last] > 0))
        if np.ptp(x) < 0.25 * width if x.size else True:
            return None
        rows = np.polyval(np.polyfit(x / width, y + first, 2), columns / width)
    near = (np.abs(grid - rows) <= thickness / 2 + 1) & (thin[first:last] > 0)
    left[first:last][near] = 0
    counts = near.sum(axis=0)
    if not counts.any():
        return None
    # Now that the line is known, so is how thick it is: what is thicker, or off its middle, is a stroke that meets it.
    drawn = float(np.median(counts[counts > 0]))
    band = np.abs(grid - rows) <= drawn / 2 + 2
    ink = near & band & (_no_higher_than(thin[first:last], int(1.5 * drawn) + 1) > 0)
    inside = np.flatnonzero((rows >= 0) & (rows <= height - 1))
    hit = np.flatnonzero(ink.any(axis=0))
    if hit.size < 0.25 * width or not inside.size:
        return None
    start, end = int(hit[hit.size // 100]), int(hit[-1 - hit.size // 100])
    if hit.size < _COVER * (end - start + 1):
        return None
    reaches = start - inside[0] <= _EDGE * width and inside[-1] - end <= _EDGE * width
    return _Line(ink, band, slice(first, last), start, end, bool(reaches))


def _no_higher_than(mask: np.ndarray, height: int) -> np.ndarray:
    """Ink whose vertical runs have at most `height` px."""
    column = np.ones((height + 1, 1), np.uint8)
    return mask & (1 - cv2.morphologyEx(mask, cv2.MORPH_OPEN, column, borderType=cv2.BORDER_CONSTANT, borderValue=0))


def _ruled(lines: list[_Line], width: int, shortest: float) -> list[_Line]:
    """Those lines that are printed; none if the paper is not ruled in this direction."""
    across = [line for line in lines if line.edge_to_edge]
    if sum(line.end - line.start >= max(0.5 * width, shortest) for line in across) >= 2:
        return across
    if len(lines) < 3:
        return []
    # A page within the picture: its lines end where the page ends.
    start = np.median([line.start for line in lines])
    end = np.median([line.end for line in lines])
    page = [line for line in lines if max(abs(line.start - start), abs(line.end - end)) < 0.05 * width]
    return page if len(page) >= 3 and end - start >= max(0.5 * width, shortest) else []


def _paint(lines: list[_Line], contrast: np.ndarray, pen: float) -> tuple[np.ndarray, np.ndarray]:
    """The ink and the bands of all lines, `uint8` in the shape of `contrast`; what the pen wrote on them left out."""
    ink, band = np.zeros(contrast.shape, bool), np.zeros(contrast.shape, bool)
    for line in lines:
        level = float(np.median(contrast[line.rows][line.ink]))
        darkest = (level + pen) / 2 if level < 0.7 * pen else 1.0
        ink[line.rows] |= line.ink & (contrast[line.rows] <= darkest)
        band[line.rows] |= line.band
    return ink.astype(np.uint8), band.astype(np.uint8)


def _within(mask: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Components that lie wholly within the bands: the crossings of squared paper, shreds of print."""
    _, labels = cv2.connectedComponents(mask, connectivity=8)
    outside = np.bincount(labels[band == 0], minlength=labels.max() + 1) > 0
    outside[0] = True
    return (~outside[labels]).astype(np.uint8)
