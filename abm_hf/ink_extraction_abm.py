"""Where the ink is in a picture, of either polarity, in uneven light, on plain or ruled paper."""

from dataclasses import dataclass

import cv2
import numpy as np

from .image_loading_abm import ImageInputError
from .marks_abm import foreign_marks, frame, red_marks
from .paper_abm import flat_sheet, ruled_lines

_NO_INK = "no ink found: the picture is blank, or the writing too faint"
# Pictures are analysed at most this large (px): a pen's line is still several pixels wide in a photograph of a page,
# and the strokes need about 30 px in height only.
_MOST_PIXELS = 2_200_000
# Paper is a slow thing: its light is estimated on a picture of this size (px).
_PAPER_PIXELS = 300_000
# Where the paper is darker than this (of 255), dividing by its brightness would only make noise stand out.
_DARKEST_PAPER = 64
# Pictures noisier than this (standard deviation, as a share of the paper's brightness) are photographs, whose strokes
# are wide enough to be smoothed by a Gaussian of 1 px; drawings and screenshots are not.
_GRAIN = 0.01
# Not those so low (px) that their strokes are finer than that.
_SMALL = 150
# Pictures less noisy than this were drawn on a screen.
_CLEAN = 0.002
# The faintest ink that counts, as a share of the paper's brightness, and as multiples of the picture's noise.
_FAINTEST_INK = 0.06
_FAINTEST_INK_IN_NOISE = 6.0
# Where the pen is paler than elsewhere, in glare or pressed less, down to this share of it is made up for.
_PALEST = 0.5
# Contrast from which a pixel is ink, as a share of the pen's: edges keep their place.
_THRESHOLD = 0.5
# Pixels that differ by more than this (of 255) from all their neighbours, and the share of a picture that is many.
_IMPULSE = 48
_MANY_IMPULSES = 5e-4
# Ink fainter than this must form strokes to be told from the grain of blank paper.
_FAINT_INK = 0.25


@dataclass(frozen=True)
class InkMap:
    """
    Ink found in a picture.

    Attributes:
        contrast (`np.ndarray` of `float32`, shape (H, W)): how much darker than its paper each pixel is, 0..1; zero
            where something other than handwriting was removed.
        threshold (`float`): contrast from which a pixel is ink: half that of the pen, so that edges keep their place.
        mask (`np.ndarray` of `uint8`, shape (H, W)): 1 for ink.
        stroke_width (`float`): in px.
    """

    contrast: np.ndarray
    threshold: float
    mask: np.ndarray
    stroke_width: float


def find_ink(picture: np.ndarray) -> InkMap:
    """
    Find the handwriting in a picture.

    Args:
        picture (`np.ndarray` of `uint8`, shape (H, W) or (H, W, 3)): grey or RGB.

    Raises:
        ImageInputError: if nothing stands out from the paper.
    """
    picture = flat_sheet(shrunk(picture, _MOST_PIXELS))
    # Brightness shows nearly every pen; a single colour shows the rest (red on green of the same brightness).
    redness = None if picture.ndim == 2 else _redness(picture)
    planes = [picture] if picture.ndim == 2 else [to_grey(picture), *cv2.split(picture)]
    for plane in planes:
        found = _find_in_plane(plane, redness)
        if found is not None:
            return found
    raise ImageInputError(_NO_INK)


def to_grey(picture: np.ndarray) -> np.ndarray:
    """Brightness, `uint8` (H, W), of a grey or RGB picture."""
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def shrunk(picture: np.ndarray, most_pixels: int) -> np.ndarray:
    """The picture with an area of at most about `most_pixels`."""
    scale = (most_pixels / (picture.shape[0] * picture.shape[1])) ** 0.5
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _find_in_plane(grey: np.ndarray, redness: np.ndarray | None) -> InkMap | None:
    """The ink of one colour plane; None if nothing stands out from the paper there."""
    grey = _without_impulses(grey)
    light = _ink_is_light(grey)
    # Chalk and light pens are for dark ground: what is a little lighter than bright paper is the light's own doing.
    chalk_on_paper = light and float(np.median(grey)) > _DARKEST_PAPER
    contrast, noise = _contrast(255 - grey if light else grey)
    levels = _levels(contrast)
    if levels is None:
        return None
    contrast, printed, levels = _without_print(contrast, *levels)
    if levels is None:
        return None
    floor, pen = levels
    evened = _evened(contrast, floor, pen)
    mask = (evened > _THRESHOLD).astype(np.uint8)
    if redness is not None and not light:
        evened[red_marks(mask, redness, contrast) > 0] = 0
        mask = (evened > _THRESHOLD).astype(np.uint8)
    width = stroke_width(mask)
    mask &= 1 - _faint_specks(mask, contrast > pen / 2, width)
    writing = mask & (1 - foreign_marks(mask, width, noise > _CLEAN))
    if pen < _FAINT_INK and (chalk_on_paper or not _has_strokes(writing)):
        return None
    if not writing.any():
        raise ImageInputError(_NO_INK)
    # Also around what is foreign, where blur has spread it, but not where that is ink.
    evened[cv2.dilate(printed | (mask - writing), np.ones((3, 3), np.uint8)) > writing] = 0
    return InkMap(evened, _THRESHOLD, writing, stroke_width(writing))


def _without_print(
    contrast: np.ndarray, floor: float, pen: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float] | None]:
    """The contrast without a frame and printed lines, a mask of those lines, and the levels that are left."""
    contrast = contrast.copy()
    square = np.ones((3, 3), np.uint8)
    contrast[cv2.dilate(frame((contrast > max(pen / 4, floor)).astype(np.uint8)), square) > 0] = 0
    printed = ruled_lines(contrast, max(pen / 4, floor), pen)
    if not printed.any():
        return contrast, printed, (floor, pen)
    # The lines had their part in the pen's level.
    line = float(np.median(contrast[printed > 0]))
    contrast[printed > 0] = np.median(contrast)
    levels = _levels(contrast)
    if levels is not None:
        floor, pen = levels
        # Around the lines blur has spread them, and what is as pale as they are may be more of them.
        contrast[(cv2.dilate(printed, square) > 0) & (contrast < pen / 2)] = 0
        levels = max(floor, min(1.3 * line, pen / 2)), pen
    return contrast, printed, levels


def _redness(picture: np.ndarray) -> np.ndarray:
    """How much redder (of 255) than its paper each pixel is; `uint8` (H, W)."""
    red, green, blue = cv2.split(picture)
    redness = cv2.subtract(red, cv2.max(green, blue))
    return cv2.subtract(redness, np.full_like(redness, np.median(redness[::4, ::4])))


def _without_impulses(grey: np.ndarray) -> np.ndarray:
    """Lone pixels unlike all their neighbours put right, if they are many: a broken camera or scanner, and no dots."""
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    dark = cv2.subtract(cv2.erode(grey, ring), grey) > _IMPULSE
    lone = dark | (cv2.subtract(grey, cv2.dilate(grey, ring)) > _IMPULSE)
    if np.count_nonzero(lone) < _MANY_IMPULSES * grey.size:
        return grey
    return np.where(lone, cv2.medianBlur(grey, 3), grey)


def _ink_is_light(grey: np.ndarray) -> bool:
    """
    Whether the ink is brighter than its paper.

    Ink covers the smaller part of a picture, so differences from the neighbourhood are skewed towards the ink's side,
    whatever the light. The neighbourhood is wide: with a narrow one the paper inside a loop would count as ink. Its
    median, unlike its mean, follows the edge of a shadow but for its corners, which are broad, as strokes are not.
    """
    small = shrunk(grey, 100_000)
    window = min(max(min(small.shape) // 2, 3), 255) | 1
    half = window // 2
    padded = cv2.copyMakeBorder(small, half, half, half, half, cv2.BORDER_REFLECT)
    around = cv2.medianBlur(padded, window)[half:-half, half:-half]
    difference = np.log((small + np.float32(16)) / (around + np.float32(16)))
    square = np.ones((max(window // 4, 1),) * 2, np.uint8)
    broad = cv2.dilate(cv2.morphologyEx(np.abs(difference), cv2.MORPH_OPEN, square), square)
    thin = difference[broad < 0.2]
    return float(np.sum((thin if np.abs(thin).max(initial=0) > 0.2 else difference) ** 3)) > 0


def _contrast(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """
    How much darker than the paper around it each pixel is, 0..1, and the standard deviation of the noise.

    The paper's brightness is the grey-scale closing of the picture: its brightest pixels within a window that is wider
    than a stroke. Unlike a local mean it ignores the ink altogether, and keeps the edge of a shadow sharp.
    Dividing by it makes ink in the shade count as much as ink in the light.
    """
    small = shrunk(grey, _PAPER_PIXELS)
    if min(small.shape) >= 200:
        small = cv2.medianBlur(small, 3)  # else the brightest pixel in the window would be noise
    window = max(int(min(grey.shape) / 5 * (small.size / grey.size) ** 0.5), 9) | 1
    square = np.ones((window, window), np.uint8)  # and not a disc: OpenCV does squares row by row, however large
    padded = cv2.copyMakeBorder(small, window, window, window, window, cv2.BORDER_REPLICATE)
    paper = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, square)
    paper = cv2.GaussianBlur(paper[window:-window, window:-window], (0, 0), 1)
    paper = cv2.resize(paper, grey.shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)
    contrast = np.clip((paper - grey) / np.maximum(paper, _DARKEST_PAPER), 0, 1).astype(np.float32)
    noise = _paper_and_noise(contrast)[1]
    if noise > _GRAIN and min(grey.shape) > _SMALL:
        contrast = cv2.GaussianBlur(contrast, (0, 0), 1)
    return contrast, noise


def _evened(contrast: np.ndarray, floor: float, pen: float) -> np.ndarray:
    """The contrast as a share, 0..1, of the pen's own nearby: strokes washed out by glare count as the others do."""
    boxes = cv2.connectedComponentsWithStats((contrast > max(pen / 2, floor)).astype(np.uint8))[2][1:]
    step = max(1, int((contrast.size / _PAPER_PIXELS) ** 0.5))
    letter = int(np.median(boxes[:, cv2.CC_STAT_HEIGHT])) if len(boxes) else 1
    window = max(9, letter // step) | 1
    peaks = cv2.dilate(contrast, np.ones((step, step), np.uint8))[::step, ::step]
    local = cv2.blur(cv2.dilate(peaks, np.ones((window, window), np.uint8)), (window, window))
    local = np.clip(local, max(_PALEST * pen, 2 * floor), max(pen, 2 * floor))
    return np.minimum(contrast / cv2.resize(local, contrast.shape[::-1]), 1)


def _paper_and_noise(contrast: np.ndarray) -> tuple[float, float]:
    """
    Level of the paper and, measured without regard to the ink, standard deviation of the contrast.

    Relative to its paper, noise is strongest where the light is weakest, so the noisiest quarter of the picture
    counts, up to three times the whole: a quarter full of ink shows nothing.
    """
    height, width = contrast.shape[0] // 2, contrast.shape[1] // 2
    quarters = [part for half in (contrast[:height], contrast[height:]) for part in (half[:, :width], half[:, width:])]
    (paper, whole), *parts = (_clipped_normal(part) for part in (contrast, *quarters))
    return paper, min(max(whole, *(noise for _, noise in parts)), 3 * whole)


def _clipped_normal(values: np.ndarray) -> tuple[float, float]:
    """Median and standard deviation of the paper, from its lower side, ink above three deviations clipped away."""
    values = values.ravel()[:: max(1, values.size // 40_000)]
    for _ in range(5):
        median = np.median(values)
        deviation = 1.4826 * np.median(median - values[values <= median])
        kept = values[values <= median + 3 * deviation]
        if kept.size == values.size:
            break
        values = kept
    return float(median), float(deviation)


def _levels(contrast: np.ndarray) -> tuple[float, float] | None:
    """Contrast above which a pixel is no noise, and that of the pen; None if nothing stands out from the paper."""
    paper, noise = _paper_and_noise(contrast)
    floor = paper + max(4 * noise, 0.04)
    marks = contrast[contrast > floor]
    if not marks.size:
        return None
    # Among all that stands out, edges, faint rules and stains are on one side, the pen's full line on the other.
    pen = float(np.median(marks[marks >= min(_otsu(marks), float(marks.max()))]))
    if pen < max(_FAINTEST_INK, paper + _FAINTEST_INK_IN_NOISE * noise):
        return None
    return floor, pen


def _otsu(values: np.ndarray) -> float:
    """The value in 0..1 that best parts `values` in two groups (Otsu 1979)."""
    counts, edges = np.histogram(values, 256, (0, 1))
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between))]) if np.isfinite(between).any() else 0.0


def stroke_width(mask: np.ndarray) -> float:
    """Width of the strokes (px): the median, along their middle, of twice the distance to the paper."""
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return 1.0
    # Doubled, every stroke has an even width and its middle lies between pixels, where distances come out exact.
    zoom = 2 if width * height <= 4_000_000 else 1
    cut = np.ascontiguousarray(mask[top : top + height, left : left + width].repeat(zoom, 0).repeat(zoom, 1))
    padded = cv2.copyMakeBorder(cut, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)
    middle = (distance == cv2.dilate(distance, np.ones((3, 3), np.uint8))) & (distance > 0)
    return max(1.0, 2 * float(np.median(distance[middle])) / zoom)


def _has_strokes(mask: np.ndarray) -> bool:
    """Whether some mark is long for its picture, and for its own area, as strokes are and grain and stains are not."""
    boxes = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:]
    length = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT])
    solid = boxes[:, cv2.CC_STAT_AREA] > 2 * length  # grain joins in threads of one pixel
    sides = boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    fold = (sides > 0.9 * np.array(mask.shape[::-1])).any(axis=1) & (sides.min(axis=1) < 0.1 * sides.max(axis=1))
    solid &= ~fold
    return bool((solid & (length > max(12, max(mask.shape) / 60))).any())


def _faint_specks(mask: np.ndarray, clear: np.ndarray, stroke: float) -> np.ndarray:
    """Marks with nothing clear in them that are no longer than a dot: noise, where the light or the pen is weak."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    speck = boxes[:, cv2.CC_STAT_AREA] < 3 * stroke * stroke
    speck[np.unique(labels[clear])] = False
    speck[0] = False
    return speck[labels].astype(np.uint8)
