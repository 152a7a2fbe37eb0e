"""Variations of handwriting that leave its label true: of ink (preferred, as nothing is blurred) and of images.

Every function takes its randomness from a generator that the caller gives, changes nothing in place, and keeps the
label. `photograph`, which turns an image into what a telephone would see of it, is in `photo.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from .strokes import Ink

try:
    import cv2
except ImportError as error:  # pragma: no cover
    raise ImportError("augmentation needs OpenCV: pip install opencv-python-headless") from error

Range = tuple[float, float]


def _check_ranges(config: object) -> None:
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if isinstance(value, tuple):
            low, high = value
            if not low <= high or (low <= 0 and item.name in ("scale", "stretch", "zoom")):
                raise ValueError(f"{item.name} must be an ascending range of usable values, not {value}")
        elif not 0 <= value < math.inf or (item.name.endswith("probability") and value > 1):
            raise ValueError(f"{item.name} must not be negative (nor a probability above 1), not {value}")


@dataclass(frozen=True)
class AugmentConfig:
    """How far ink may vary. Lengths are relative to the mean height of a stroke, angles in degrees.

    Args:
        scale (`tuple[float, float]`): Range of the size. Rendering by the field's rule undoes it.
        stretch (`tuple[float, float]`): Range of width over height, drawn evenly in the logarithm.
        slant (`float`): Largest change of the angle of upright strokes, to either side.
        rotation (`float`): Largest rotation to either side.
        stroke_shift (`float`): Standard deviation by which each stroke moves as a whole.
        stroke_scale (`float`): Standard deviation of the size of each stroke about its own middle.
        jitter (`float`): Standard deviation by which each point moves.
        elastic (`float`): Largest displacement of the slow distortion.
        elastic_period (`float`): Shortest wavelength of the slow distortion.
        drop_probability (`float`): Largest share of points left out of a stroke (its ends and at least two stay).

    Raises:
        ValueError: A range descends, or a value is negative.
    """

    scale: Range = (0.7, 1.4)
    stretch: Range = (0.8, 1.25)
    slant: float = 12.0
    rotation: float = 3.0
    stroke_shift: float = 0.03
    stroke_scale: float = 0.04
    jitter: float = 0.006
    elastic: float = 0.07
    elastic_period: float = 2.0
    drop_probability: float = 0.2

    def __post_init__(self) -> None:
        _check_ranges(self)


@dataclass(frozen=True)
class ImageAugmentation:
    """How far images may vary. Lengths are in pixels of the image as given, angles in degrees.

    Args:
        scale (`tuple[float, float]`): Range of the size of the whole image, for `augment_image(scale=None)`.
        zoom (`tuple[float, float]`): Range of the size of the ink within its frame.
        stretch (`tuple[float, float]`): Range of width over height of the ink, drawn evenly in the logarithm.
        slant (`float`): Largest shear angle, to either side.
        rotation (`float`): Largest rotation to either side; wide images turn less, to keep the line in its
            frame.
        elastic (`float`): Largest displacement of the slow distortion.
        elastic_period (`float`): Distance between its nodes.
        thicker_probability (`float`): Share of images whose strokes grow by a pixel.
        thinner_probability (`float`): Share of images whose strokes lose about a pixel, where they have one
            to lose.
        binary_probability (`float`): Share of images brought back to ink 255 on 0, as the field's images are; the rest
            keep the grey edges of the warp, as pictures do that were scanned or scaled.

    Raises:
        ValueError: A range descends, or a value is negative.
    """

    scale: Range = (0.7, 1.4)
    zoom: Range = (0.9, 1.1)
    stretch: Range = (0.85, 1.18)
    slant: float = 10.0
    rotation: float = 3.0
    elastic: float = 3.0
    elastic_period: float = 36.0
    thicker_probability: float = 0.15
    thinner_probability: float = 0.15
    binary_probability: float = 0.7

    def __post_init__(self) -> None:
        _check_ranges(self)


# -- ink


def transform_ink(ink: Ink, matrix: np.ndarray) -> Ink:
    """Applies a 2×2 matrix to column vectors (x, y down), about the middle of the ink."""
    left, top, right, bottom = ink.bounds
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    return _with_points(ink, lambda points: (points - middle) @ np.asarray(matrix).T + middle)


def vary_strokes(ink: Ink, rng: np.random.Generator, *, shift: float = 0.03, scale: float = 0.04) -> Ink:
    """Moves and scales each stroke on its own; the arguments are standard deviations as in [`AugmentConfig`].

    A short stroke (a dot, the bar of a t) moves in proportion to its own size as well, so that it stays where it
    belongs.
    """
    unit = stroke_size(ink)
    strokes = []
    for stroke in ink.strokes:
        points = stroke[:, :2]
        extent = float(np.ptp(points, axis=0).max())
        middle = points.mean(axis=0)
        moved = (points - middle) * (1 + rng.normal(0, scale, 2)) + middle
        moved += rng.normal(0, shift, 2) * min(unit, 0.3 * unit + extent)
        strokes.append(_with_columns(stroke, moved))
    return replace(ink, strokes=tuple(strokes))


def jitter_ink(ink: Ink, rng: np.random.Generator, amount: float = 0.006) -> Ink:
    """Moves each point by noise of standard deviation `amount` stroke heights."""
    deviation = amount * stroke_size(ink)
    return _with_points(ink, lambda points: points + rng.normal(0, deviation, points.shape))


def distort_ink(ink: Ink, rng: np.random.Generator, amount: float = 0.07, period: float = 2.0) -> Ink:
    """Draws the ink out here and squeezes it there: a sum of slow waves, at most `amount` stroke heights strong."""
    unit = stroke_size(ink)
    waves = rng.uniform([1.0, 0.0, 0.0], [3.0, 2 * np.pi, 2 * np.pi], (2, 3, 3))  # axis, wave: period, angle, phase

    def distort(points: np.ndarray) -> np.ndarray:
        moved = points.copy()
        for axis in range(2):
            for stretch, angle, phase in waves[axis]:
                along = points @ np.array([math.cos(angle), math.sin(angle)])
                wave = np.sin(along * (2 * np.pi / (stretch * period * unit)) + phase)
                moved[:, axis] += wave * (amount * unit / len(waves[axis]))
        return moved

    return _with_points(ink, distort)


def drop_points(ink: Ink, rng: np.random.Generator, share: float = 0.2) -> Ink:
    """Leaves out about `share` of the points of each stroke, but never its ends: a slower device."""
    strokes = []
    for stroke in ink.strokes:
        keep = rng.random(len(stroke)) >= share
        keep[[0, -1]] = True
        strokes.append(stroke[keep])
    return replace(ink, strokes=tuple(strokes))


def augment_ink(ink: Ink, rng: np.random.Generator, config: AugmentConfig | None = None) -> Ink:
    """All variations of ink at once, drawn within the limits of `config`.

    Args:
        ink ([`Ink`]): Any ink; label, symbols, annotations and times stay.
        rng (`np.random.Generator`): The only source of randomness.
        config ([`AugmentConfig`], *optional*): The default ranges when left out.
    """
    config = config or AugmentConfig()
    scale, stretch = _log_uniform(rng, config.scale), math.sqrt(_log_uniform(rng, config.stretch))
    lean = math.tan(math.radians(rng.uniform(-config.slant, config.slant)))
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    ink = vary_strokes(ink, rng, shift=config.stroke_shift, scale=config.stroke_scale)
    ink = distort_ink(ink, rng, config.elastic, config.elastic_period)
    ink = transform_ink(ink, turn @ np.array([[1.0, -lean], [0.0, 1.0]]) @ np.diag([scale * stretch, scale / stretch]))
    ink = jitter_ink(ink, rng, config.jitter)
    return drop_points(ink, rng, rng.uniform(0, config.drop_probability))


def stroke_size(ink: Ink) -> float:
    """Mean height of the strokes higher than a tenth of the highest, as in rendering; of flat ink, the widest."""
    widths, heights = np.array([np.ptp(stroke[:, :2], axis=0) for stroke in ink.strokes]).T
    _, top, _, bottom = ink.bounds
    if 10 * (bottom - top) < widths.max() or heights.max() == 0:
        return float(max(widths.max(), bottom - top)) or 1.0
    return float(heights[10 * heights > heights.max()].mean())


def _with_points(ink: Ink, change: Callable[[np.ndarray], np.ndarray]) -> Ink:
    moved = change(np.concatenate(ink.strokes)[:, :2])
    parts = np.split(moved, np.cumsum([len(stroke) for stroke in ink.strokes])[:-1])
    strokes = tuple(_with_columns(stroke, part) for stroke, part in zip(ink.strokes, parts, strict=True))
    return replace(ink, strokes=strokes)


def _with_columns(stroke: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, stroke[:, 2:]])


def _log_uniform(rng: np.random.Generator, bounds: Range) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


# -- images

_NEIGHBOURS = np.ones((3, 3), np.uint8)
_BRUSHES = (np.ones((1, 2), np.uint8), np.ones((2, 1), np.uint8), np.ones((2, 2), np.uint8))


def augment_image(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    scale: float | tuple[float, float] | None = 1.0,
    augmentation: ImageAugmentation | None = None,
) -> np.ndarray:
    """A new version of an image in the field's form: one warp for everything geometric, then the strokes' width.

    The frame keeps its size but for `scale`, so that batches can be planned beforehand, and all ink stays inside it:
    a variation that would push ink out is moved back, and shrunk if it must be.

    Args:
        image (`np.ndarray` of shape `(H, W)`, uint8): Ink bright on 0.
        rng (`np.random.Generator`): The only source of randomness.
        scale (`float`, `tuple[float, float]` or `None`, *optional*, defaults to 1.0):
            Factor of the frame's height and width, or one for each; `None` draws one factor. Scaling here costs
            nothing and blurs less than a second resampling.
        augmentation ([`ImageAugmentation`], *optional*): The default ranges when left out.

    Returns:
        `np.ndarray` of shape `(round(scale · H), round(scale · W))`, uint8.

    Raises:
        ValueError: The image is not two-dimensional uint8, or the scale is not positive.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a uint8 image of shape (H, W) is needed, got {image.dtype} of shape {image.shape}")
    limits = augmentation or ImageAugmentation()
    if scale is None:
        scale = _log_uniform(rng, limits.scale)
    rows, columns = scale if isinstance(scale, tuple) else (scale, scale)
    if not (rows > 0 and columns > 0):
        raise ValueError(f"scale must be positive, not {scale}")
    height, width = max(1, round(image.shape[0] * rows)), max(1, round(image.shape[1] * columns))
    left, top, across, down = cv2.boundingRect(image)
    box = (left, top, across, down)
    if across == 0:  # no ink at all
        return np.zeros((height, width), np.uint8)
    forward = _draw_affine(rng, limits, image.shape, box)
    forward = np.diag([width / image.shape[1], height / image.shape[0], 1.0]) @ forward
    forward = _kept_inside(forward, box, (height, width), limits.elastic)
    warped = _warp(image, np.linalg.inv(forward), (height, width), rng, limits)
    return _vary_width(warped, image, rng, limits)


def _draw_affine(
    rng: np.random.Generator, limits: ImageAugmentation, shape: tuple[int, ...], box: tuple[int, int, int, int]
) -> np.ndarray:
    """A 3×3 matrix from old to new pixels that varies the ink about its middle and shifts it a little."""
    left, top, width, height = box
    # A long line may only turn as far as the frame is high enough for its ends, and a tenth more.
    room = max(shape[0] - height - 4, 0) + 0.1 * height
    steepest = min(limits.rotation, math.degrees(math.asin(min(1.0, room / max(width, 1)))))
    angle = math.radians(rng.uniform(-steepest, steepest))
    lean = math.tan(math.radians(rng.uniform(-limits.slant, limits.slant)))
    zoom, stretch = _log_uniform(rng, limits.zoom), math.sqrt(_log_uniform(rng, limits.stretch))
    cosine, sine = math.cos(angle), math.sin(angle)
    linear = np.array([[cosine, sine], [-sine, cosine]]) @ np.array([[1.0, -lean], [0.0, 1.0]])
    linear = linear @ np.diag([zoom * stretch, zoom / stretch])
    middle = np.array([left + width / 2, top + height / 2])
    forward = np.eye(3)
    forward[:2, :2] = linear
    forward[:2, 2] = middle - linear @ middle + rng.uniform(-4, 4, 2)
    return forward


def _kept_inside(
    forward: np.ndarray, box: tuple[int, int, int, int], frame: tuple[int, int], elastic: float
) -> np.ndarray:
    """The transformation, shrunk and moved just so far that the ink and its distortion stay in the frame."""
    left, top, width, height = box
    low, high = np.array([left, top]) - elastic, np.array([left + width - 1, top + height - 1]) + elastic
    corners = np.array([[low[0], low[1], 1], [high[0], low[1], 1], [low[0], high[1], 1], [high[0], high[1], 1]])
    size = np.array([frame[1], frame[0]], dtype=float)
    edge = np.minimum(2.0, 0.1 * size)  # room for thicker strokes
    reached = corners @ forward[:2].T
    extent, room = np.ptp(reached, axis=0), size - 1 - 2 * edge
    shrink = float(min(1.0, *(room / np.maximum(extent, 1e-6))))
    if shrink < 1:
        forward = np.diag([shrink, shrink, 1.0]) @ forward
        reached = reached * shrink
    over = np.maximum(reached.max(axis=0) - (size - 1 - edge), 0)
    under = np.maximum(edge - reached.min(axis=0), 0)
    moved = forward.copy()
    moved[:2, 2] += under - over
    return moved


def _warp(
    image: np.ndarray,
    backward: np.ndarray,
    frame: tuple[int, int],
    rng: np.random.Generator,
    limits: ImageAugmentation,
) -> np.ndarray:
    """Resamples once: an affine map and a smooth random displacement, from new pixels to old ones."""
    height, width = frame
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    across, down = backward[:2].astype(np.float32)
    columns, rows = across[0] * x + (across[1] * y + across[2]), down[0] * x + (down[1] * y + down[2])
    if limits.elastic > 0:
        nodes = [int(size / limits.elastic_period) + 3 for size in (height, width)]
        noise = rng.uniform(-1, 1, (*nodes, 2)).astype(np.float32) * np.float32(limits.elastic * rng.random())
        # Linear interpolation of the smoothed nodes never exceeds them, which `_kept_inside` relies on.
        field = cv2.resize(cv2.GaussianBlur(noise, (3, 3), 0.8), (width, height), interpolation=cv2.INTER_LINEAR)
        columns += field[..., 0]
        rows += field[..., 1]
    return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _vary_width(
    warped: np.ndarray, image: np.ndarray, rng: np.random.Generator, limits: ImageAugmentation
) -> np.ndarray:
    """Makes strokes a little wider or thinner, and perhaps binary again."""
    width, binary = rng.random(), rng.random() < limits.binary_probability
    peak = int(warped.max())
    if width < limits.thicker_probability:
        warped = cv2.dilate(warped, _BRUSHES[int(rng.integers(len(_BRUSHES)))])
    elif width > 1 - limits.thinner_probability:
        thin = cv2.erode(warped, _BRUSHES[int(rng.integers(len(_BRUSHES)))])
        # Where a stroke is only a pixel wide, erosion would wipe it out: there the old stroke stays.
        survives = cv2.dilate(thin, _NEIGHBOURS)
        warped = np.where(survives > peak // 3, thin, warped)
    if binary:
        threshold = int(peak * rng.uniform(0.3, 0.5))
        warped = cv2.threshold(warped, threshold, 255, cv2.THRESH_BINARY)[1]
    return warped
