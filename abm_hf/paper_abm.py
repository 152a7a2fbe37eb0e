"""The paper: the sheet on its table, and the printed lines, which alone run from edge to edge."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.polynomial import Polynomial

# Lines are looked for within this angle (degrees) of the horizontal and the vertical.
_TILT = 5.0
# A line counts with this share of its length in ink: handwriting and weak print interrupt it.
_COVER = 0.6
# Lines from edge to edge may end this far from it, as a share of the picture's width.
_EDGE = 0.03
_MOST_LINES = 100
# As many lines may be all that is written: an equals sign, an equivalence.
_FEW_LINES = 3
# Not so if they are fainter than this: folds.
_FAINT_LINE = 0.25
# A sheet covers at least this share of the picture, and of its own convex hull; it is this much brighter than the
# table; and no more of its outline than this is the picture's own edge: a patch of light reaches the edges.
_SHEET_SHARE = 0.12
_SHEET_SOLID = 0.93
_SHEET_BRIGHTER = 1.6
_SHEET_CUT_OFF = 0.4


@dataclass(frozen=True)
class _Line:
    """A nearly horizontal line: its ink, the band around it, and where it starts and ends."""

    ink: np.ndarray  # bool (rows, W)
    band: np.ndarray  # bool (rows, W)
    rows: slice
    start: int
    end: int
    edge_to_edge: bool


def flat_sheet(picture: np.ndarray) -> np.ndarray:
    """
    The sheet of paper that lies on something darker, seen from above and without its edge; else the picture itself.

    Args:
        picture (`np.ndarray` of `uint8`, shape (H, W) or (H, W, 3)): grey or RGB.
    """
    grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    factor = min(1.0, 400 / max(grey.shape))
    if min(grey.shape) * factor < 50:
        return picture
    small = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    bright = cv2.threshold(cv2.medianBlur(small, 5), 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    contours = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    outline = max(contours, key=cv2.contourArea, default=np.zeros((1, 1, 2), np.int32))
    hull = cv2.convexHull(outline)
    area = cv2.contourArea(hull)
    if area < _SHEET_SHARE * small.size or cv2.contourArea(outline) < _SHEET_SOLID * area:
        return picture
    inside = cv2.fillConvexPoly(np.zeros_like(small), hull, 1)
    sheet, table = small[cv2.erode(inside, np.ones((7, 7), np.uint8)) > 0], small[inside == 0]
    if not sheet.size or np.ptp(sheet) == 0:  # a stroke on a screen: paper is never that even, nor empty
        return picture
    if not table.size or np.median(sheet) < _SHEET_BRIGHTER * np.median(table):
        return picture
    at_edge = ((outline < 2) | (outline > np.array(small.shape[::-1]) - 3)).any(axis=2)
    if at_edge.mean() > _SHEET_CUT_OFF:
        return picture
    # Of four corners, where the outline has them; a crumpled or cut sheet is only turned upright.
    corners = cv2.approxPolyDP(hull, 0.04 * cv2.arcLength(hull, True), True)[:, 0]
    if len(corners) != 4:
        corners = cv2.boxPoints(cv2.minAreaRect(hull))
    return _seen_from_above(picture, corners.astype(np.float32) / factor)


def _seen_from_above(picture: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """What lies within four corners (4, 2), as a rectangle; a fiftieth of it, its edge, is left out all around."""
    order = np.roll(corners, -int(corners.sum(axis=1).argmin()), axis=0)  # from the upper left corner
    along, down = order[1] - order[0], order[3] - order[0]
    if along[0] * down[1] < along[1] * down[0]:  # anticlockwise
        order = order[[0, 3, 2, 1]]
    sides = np.linalg.norm(order - np.roll(order, -1, axis=0), axis=1)
    width, height = max(sides[0], sides[2]), max(sides[1], sides[3])
    edge = 0.02 * min(width, height)
    target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - np.float32(edge)
    size = max(1, round(width - 2 * edge)), max(1, round(height - 2 * edge))
    return cv2.warpPerspective(picture, cv2.getPerspectiveTransform(order, target), size, flags=cv2.INTER_LINEAR)


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
    strong = max(pen / 2, threshold)
    mask = (contrast > threshold).astype(np.uint8)
    turned = np.ascontiguousarray(mask.T)
    lines, columns = _find_lines(mask), _find_lines(turned)
    half = max(mask.shape) / 2
    rules, margins = _ruled(lines, mask.shape[1], half), _ruled(columns, mask.shape[0], half)
    if rules and not margins:
        margins = [line for line in columns if line.edge_to_edge]
    elif margins and not rules:
        rules = [line for line in lines if line.edge_to_edge]
    elif not rules:
        rules = _lone_rule(lines, contrast > strong, contrast, pen)
    ink, band = _paint(rules, contrast, pen)
    ink_across, band_across = _paint(margins, contrast.T, pen)
    ink, band = ink | ink_across.T, band | band_across.T
    if not ink.any():
        return ink
    left = ((contrast > strong) & (ink == 0)).astype(np.uint8)
    ink |= _within(left, band)
    if len(rules) + len(margins) <= _FEW_LINES and pen > _FAINT_LINE and not (left & (1 - ink)).any():
        return np.zeros_like(mask)  # nothing but a few lines: they are the writing (an equals sign)
    return ink


def _find_lines(mask: np.ndarray) -> list[_Line]:
    """All long, thin, nearly horizontal lines."""
    height, width = mask.shape
    thickness = max(4, round(max(height, width) / 100))
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
        if np.unique(x).size < 3 or np.ptp(x) < 0.25 * width:
            return None
        rows = Polynomial.fit(x, y + first, 2)(columns)  # in the domain -1..1, so well conditioned
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
        return across + _between(across, lines)
    if len(lines) < 3:
        return []
    # A page within the picture: its lines end where the page ends.
    start = np.median([line.start for line in lines])
    end = np.median([line.end for line in lines])
    page = [line for line in lines if max(abs(line.start - start), abs(line.end - end)) < 0.05 * width]
    return page if len(page) >= 3 and end - start >= max(0.5 * width, shortest) else []


def _between(across: list[_Line], lines: list[_Line]) -> list[_Line]:
    """Lines hidden by writing in part, which stand where the even spacing of the others puts them."""
    places = np.sort([(line.rows.start + line.rows.stop) / 2 for line in across])
    spacing = np.median(np.diff(places))
    if len(across) < 3 or spacing < 1:
        return []
    hidden = [line for line in lines if not line.edge_to_edge]
    steps = [((line.rows.start + line.rows.stop) / 2 - places) / spacing for line in hidden]
    off = [abs(step - np.rint(step))[abs(step).argmin()] for step in steps]
    return [line for line, away in zip(hidden, off, strict=True) if away < 0.1]


def _lone_rule(lines: list[_Line], ink: np.ndarray, contrast: np.ndarray, pen: float) -> list[_Line]:
    """
    The single line from edge to edge of a picture that is wider than high, with writing on one side of it alone.

    It underlines what is above; over what is below, it counts only where it is too pale for the pen.
    """
    across = [line for line in lines if line.edge_to_edge and line.end - line.start > 1.5 * ink.shape[0]]
    if len(across) != 1:
        return []
    line = across[0]
    written = ink.astype(np.uint8)
    written[line.rows][line.ink] = 0
    boxes = cv2.connectedComponentsWithStats(written, connectivity=8)[2][1:]
    top, height = boxes[:, cv2.CC_STAT_TOP], boxes[:, cv2.CC_STAT_HEIGHT]
    middle = (line.rows.start + line.rows.stop) / 2
    # Tails that reach through the line belong to what is above; low marks are bits of a neighbouring line.
    letters = height > height.max(initial=0) / 3
    above, below = (letters & (top < middle)).any(), (letters & (top >= middle)).any()
    pale = float(np.median(contrast[line.rows][line.ink])) < 0.75 * pen
    return [] if (above and below) or (below and not pale) else [line]


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
