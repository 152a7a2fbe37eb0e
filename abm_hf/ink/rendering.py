"""Ink to the field's offline images: the rule by which CROHME's published bitmaps were drawn, recovered exactly.

Nobody published the rule. The one below was found by measurement, and gives all 9,820 published bitmaps of CROHME's
training set and 2014 test set whose ink is readable pixel for pixel. `docs/rendering.md` tells it in words.

The lines are drawn here, vectorised over all segments of all strokes, and OpenCV widens them: some thousands of
expressions per second on one core. Measured side by side on CROHME, Pillow's lines are the same pixels in the same
time, but strokes of one point need care there, and the rule would hang on a library's internals. OpenCV's take half
the time and are others: it breaks ties between two pixels whichever way the pen moved (mean IoU 0.977, none equal).
"""

import math

import cv2
import numpy as np

from .strokes import Ink, InkError

#: Height in pixels that the typical tall trace gets.
HEIGHT = 28
#: Side in pixels of the square brush.
THICKNESS = 3
#: Pixels between the image's left and upper edge and the ink.
MARGIN = 13
#: Larger images are drawn smaller. The largest published image has 380,664 pixels.
MAX_PIXELS = 2**20
#: Ink whose lines are longer than this together, in pixels, is refused: a thousand times the longest of CROHME.
MAX_PATH = 2**23

# Positions are float32 products in the published images; from here on (in pixels) those are coarser than 1/256 pixel.
_FAR = 2**15


def render_ink(
    ink: Ink,
    *,
    height: float = HEIGHT,
    thickness: int = THICKNESS,
    margin: int = MARGIN,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Draws ink as the field's offline images are drawn.

    With `X = floor(x · 10ᵈ + 1/2)`, where `d ≤ 3` is the number of decimals that the ink's coordinates have,
    `k = floor(mean height of the traces higher than a tenth of the highest)` and `s = float32(height / k)`, a point
    goes to pixel `trunc(X · s) − min + margin`, both axes alike; the image has `max − min + 2 · margin` columns and
    rows. Points are joined by one-pixel Bresenham lines, which a square brush then widens.

    Where the published rule says nothing:

    - Flat ink, lower than a tenth of its widest trace (a lone minus sign), is scaled by that trace's width instead of
      the heights; ink of a single place is one dot.
    - Ink whose tall traces are lower than `height` thousandths of its unit is counted in thousandths of their height.
    - Ink farther than 32,768 pixels from the origin is moved to it, as float32 would blur it.

    Args:
        ink ([`Ink`]): Strokes in any unit, y down.
        height (`float`, *optional*, defaults to 28): Pixels that the typical tall trace is high.
        thickness (`int`, *optional*, defaults to 3): Side of the square brush in pixels; 1 leaves the bare lines.
        margin (`int`, *optional*, defaults to 13): Pixels left of and above the lines' own pixels. Right and below
            there is one less, as published. What the brush draws outside the image is lost.
        max_pixels (`int`, *optional*, defaults to 2²⁰): Ink that would need more is drawn smaller, both axes alike,
            with unchanged brush and margin.

    Returns:
        `np.ndarray` of shape `(rows, columns)`, uint8: ink 255 on 0, and nothing between.

    Raises:
        InkError: The lines would be longer than [`MAX_PATH`] pixels.
        ValueError: A parameter is out of range.
    """
    if not (height > 0 and math.isfinite(height)) or thickness < 1 or margin < 0:
        raise ValueError(f"need height > 0, thickness >= 1, margin >= 0; got {height}, {thickness}, {margin}")
    frame = max(2 * margin, 1)  # without any margin the last column and row still need their place
    if max_pixels < (frame + 2) ** 2:
        raise ValueError(
            f"max_pixels={max_pixels} is too small for a margin of {margin}: use {(frame + 2) ** 2} or more"
        )
    points = np.concatenate(ink.strokes)[:, :2].T.copy()  # (2, N): one row for each axis, as NumPy reduces rows faster
    ends = np.cumsum([len(stroke) for stroke in ink.strokes])
    starts = np.concatenate([[0], ends[:-1]])
    pixels = _to_pixels(points, starts, height, frame, max_pixels)
    columns, rows = (pixels.max(axis=1) + frame).tolist()
    x, y = _trace_lines(pixels, starts) + margin
    image = np.zeros((rows, columns), np.uint8)
    image.reshape(-1)[y * columns + x] = 255
    return cv2.dilate(image, np.ones((thickness, thickness), np.uint8)) if thickness > 1 else image


def _to_pixels(points: np.ndarray, starts: np.ndarray, height: float, frame: int, max_pixels: int) -> np.ndarray:
    """Pixel positions (2, N) int64 from 0, such that the image keeps within `max_pixels`."""
    points = _to_units(points, starts, height)
    low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
    scale = height / max(math.floor(_symbol_size(points, starts)), 1)
    # + 2: truncation and float32 may each add a pixel
    largest = _largest_scale((high - low).ravel().tolist(), frame + 2, max_pixels)
    if max(high.max(), -low.min()) * scale > _FAR or largest < scale:
        points, low = points - low, np.zeros_like(low)
    factor = np.float32(min(scale, largest))
    # Truncated, not floored, and in float32: this is how the published images fall to the pixel.
    pixels = (points.astype(np.float32) * factor).astype(np.int64)
    return pixels - (low.astype(np.float32) * factor).astype(np.int64)


def _to_units(points: np.ndarray, starts: np.ndarray, height: float) -> np.ndarray:
    """Whole multiples of the unit in which the published images measure: one of 1, 1/10, 1/100, else 1/1000."""
    if (points == np.floor(points)).all():
        return points
    for per_unit in (10.0, 100.0, 1000.0):
        units = np.floor(points * per_unit + 0.5)
        # 0.07 · 100 is not quite 7; the tolerance is relative, or tiny ink would count as zeros
        if np.abs(units - points * per_unit).max() <= 1e-12 * per_unit * np.abs(points).max():
            return units
    if 0 < _symbol_size(points, starts) * per_unit < height:
        points = points - points.min(axis=1, keepdims=True)
        points /= points.max()  # to the unit square first, as the least of numbers have no finite inverse
        units = np.floor(points * min(1000 / _symbol_size(points, starts), 1e15) + 0.5)
    return units


def _symbol_size(points: np.ndarray, starts: np.ndarray) -> float:
    """Mean height of the tall traces, or what stands for it where no trace is tall; 0 for a dot."""
    high, low = np.maximum.reduceat(points, starts, axis=1), np.minimum.reduceat(points, starts, axis=1)
    widths, heights = high - low  # (traces,) each
    tallest, widest = heights.max(), widths.max()
    extent = high.max(axis=1) - low.min(axis=1)
    if tallest == 0:
        return float(extent.max())
    if 10 * extent[1] < widest:
        return float(widest)
    return float(heights[10 * heights > tallest].mean())


def _largest_scale(extent: list[float], frame: int, max_pixels: int) -> float:
    """The scale at which `(width · scale + frame) · (height · scale + frame) = max_pixels`."""
    width, height = extent
    linear, free = frame * (width + height), max_pixels - frame**2
    # The quadratic formula turned round: it has no cancellation, and holds for ink without width or height too.
    divisor = linear + math.sqrt(linear**2 + 4 * width * height * free)
    return 2 * free / divisor if divisor else math.inf


def _trace_lines(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Positions (2, P) int64 of every pixel on the lines through the points of each trace, some of them repeatedly.

    Bresenham's line with ties towards its end: after `i` of `n` steps along the longer axis, the shorter has moved
    `floor(i · d / n + 1/2)`.
    """
    delta = np.diff(points)
    delta[:, starts[1:] - 1] = 0  # the pen is up between two traces
    distance = np.abs(delta)
    steps = distance.max(axis=0)
    between = np.flatnonzero(steps > 1)  # elsewhere the points themselves are the line
    if not len(between):
        return points
    steps = steps[between]
    last = np.cumsum(steps)
    if last[-1] > MAX_PATH:
        raise InkError(f"the lines are {last[-1]} pixels long together; {MAX_PATH} are allowed")
    step = np.arange(last[-1]) - np.repeat(last - steps, steps)
    line = np.repeat(between, steps)
    length = np.repeat(steps, steps)
    # A quotient of integers this small is exact in float64 where it is whole, and never rounds up to the next whole.
    moved = ((2 * step * distance[:, line] + length) / (2 * length)).astype(np.int64)
    return np.concatenate([points, points[:, line] + np.sign(delta)[:, line] * moved], axis=1)
