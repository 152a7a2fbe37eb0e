"""Ink to the field's offline images: the rule by which CROHME's published bitmaps were drawn, recovered exactly.

Nobody published the rule. The one below was found by measurement, and gives all 9,820 published bitmaps of CROHME's
training set and 2014 test set whose ink is readable pixel for pixel. `docs/rendering.md` tells it in words.

Drawing is vectorised over all segments of all strokes; OpenCV only dilates. OpenCV's own lines differ from the
published ones at every other step between two pixels, and Pillow's, which are equal, take twice the time.
"""

import math

import numpy as np

from .ink import Ink, InkError

try:
    import cv2
except ImportError as error:  # pragma: no cover
    raise ImportError("rendering ink needs OpenCV: pip install opencv-python-headless") from error

#: Height in pixels that the typical tall trace gets.
HEIGHT = 28
#: Side in pixels of the square brush.
THICKNESS = 3
#: Pixels between the image's left and upper edge and the ink.
MARGIN = 13
#: Larger images are drawn smaller. The largest published image has 380,664 pixels.
MAX_PIXELS = 2**20
#: Ink whose lines together are longer is refused, in pixels: a thousand times the longest of CROHME.
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

    With `u` the file's unit (1, or 1/1000 where any coordinate has a fraction), `X = floor(x / u + 1/2)`,
    `k = floor(mean height of the traces higher than a tenth of the highest)` and `s = float32(height / k)`, a point
    goes to pixel `trunc(X · s) − min + margin`, both axes alike; the image has `max − min + 2 · margin` columns and
    rows. Points are joined by one-pixel Bresenham lines, which a square brush then widens.

    Where the published rule says nothing:

    - Flat ink, lower than a tenth of its widest trace (a lone minus sign), is scaled by that trace's width instead of
      the heights; ink of a single place is one dot.
    - Ink with fractions whose traces are lower than `height` thousandths gets the next power of ten as its unit that
      is as fine as the pixels.
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
        raise ValueError(f"max_pixels={max_pixels} is too small for a margin of {margin}: use {(frame + 2) ** 2} or more")
    points = np.concatenate(ink.strokes)[:, :2]
    lengths = np.fromiter(map(len, ink.strokes), np.int64, len(ink.strokes))
    starts = np.cumsum(lengths) - lengths
    points = _to_pixels(points, starts, height, frame, max_pixels)
    columns, rows = (points.max(axis=0) + frame).tolist()
    x, y = _trace_lines(points, starts)
    image = np.zeros((rows, columns), np.uint8)
    image[y + margin, x + margin] = 255
    return cv2.dilate(image, np.ones((thickness, thickness), np.uint8)) if thickness > 1 else image


def _to_pixels(points: np.ndarray, starts: np.ndarray, height: float, frame: int, max_pixels: int) -> np.ndarray:
    """Pixel positions (N, 2) int64 from 0, such that the image keeps within `max_pixels`."""
    points = _to_units(points, starts, height)
    size = _symbol_size(points, starts)
    scale = height / max(math.floor(size), 1)
    extent = points.max(axis=0) - points.min(axis=0)
    largest = _largest_scale(extent, frame + 2, max_pixels)  # + 2: truncation and float32 may add a pixel each
    if np.abs(points).max() * scale > _FAR or largest < scale:
        points = points - points.min(axis=0)
    factor = np.float32(min(scale, largest))
    # Truncated, not floored, and in float32: this is how the published images fall to the pixel.
    pixels = (points.astype(np.float32) * factor).astype(np.int64)
    return pixels - pixels.min(axis=0)


def _to_units(points: np.ndarray, starts: np.ndarray, height: float) -> np.ndarray:
    """Whole multiples of the unit in which the published images measure: 1, or 1/1000 where there are fractions."""
    if (points == np.floor(points)).all():
        return points
    per_unit = 1000.0
    fineness = _symbol_size(points, starts) * per_unit
    if 0 < fineness < height:
        points = points - points.min(axis=0)
        # Ink of a size ratio beyond 10^12 is degenerate anyway, and would run out of float64's digits.
        per_unit = min(per_unit * 10.0 ** math.ceil(math.log10(height / fineness)), 1e15 / points.max())
    return np.floor(points * per_unit + 0.5)


def _symbol_size(points: np.ndarray, starts: np.ndarray) -> float:
    """Mean height of the tall traces, or what stands for it where no trace is tall; 0 for a dot."""
    sizes = np.maximum.reduceat(points, starts) - np.minimum.reduceat(points, starts)  # (traces, 2)
    widest, tallest = sizes.max(axis=0)
    extent = points.max(axis=0) - points.min(axis=0)
    if tallest == 0:
        return float(extent.max())
    if 10 * extent[1] < widest:
        return float(widest)
    heights = sizes[:, 1]
    return float(heights[10 * heights > tallest].mean())


def _largest_scale(extent: np.ndarray, frame: int, max_pixels: int) -> float:
    """The scale at which `(width · scale + frame) · (height · scale + frame) = max_pixels`."""
    width, height = extent.tolist()
    linear, free = frame * (width + height), max_pixels - frame**2
    # The quadratic formula turned round: it has no cancellation, and holds for ink without width or height too.
    divisor = linear + math.sqrt(linear**2 + 4 * width * height * free)
    return 2 * free / divisor if divisor else math.inf


def _trace_lines(points: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of every pixel on the lines through the points, trace by trace, some of them repeatedly.

    Bresenham's line with ties towards its end: after `i` of `n` steps along the longer axis, the shorter has moved
    `floor(i · d / n + 1/2)`, in exact integers.
    """
    delta = np.diff(points, axis=0)
    delta[starts[1:] - 1] = 0  # the pen is up between two traces
    steps = np.abs(delta).max(axis=1, initial=0)
    moves = np.flatnonzero(steps)
    steps, delta, origin = steps[moves], delta[moves], points[moves]
    ends = np.cumsum(steps)
    if len(ends) and ends[-1] > MAX_PATH:
        raise InkError(f"the lines are {ends[-1]} pixels long together; {MAX_PATH} are allowed")
    step = np.arange(1, ends[-1] + 1 if len(ends) else 1) - np.repeat(ends - steps, steps)
    twice = np.repeat(2 * steps, steps)
    pixels = []
    for axis in (0, 1):
        distance = np.repeat(2 * np.abs(delta[:, axis]), steps)
        moved = (step * distance + (twice >> 1)) // twice
        line = np.repeat(origin[:, axis], steps) + np.repeat(np.sign(delta[:, axis]), steps) * moved
        pixels.append(np.concatenate([points[starts, axis], line]))
    return pixels[0], pixels[1]
