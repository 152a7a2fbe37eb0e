"""Where the ink is in a picture, of either polarity, in uneven light, on plain or ruled paper."""

from dataclasses import dataclass

import cv2
import numpy as np

from .image_loading_abm import ImageInputError
from .ruled_paper_abm import ruled_lines

# Pictures are analysed at most this large (px on the longer side): a pen's line is still several pixels wide in a
# photograph of a page, and the strokes need about 30 px in height only.
_LONGEST_SIDE = 4000
# Paper is a slow thing: its light is estimated on a picture of this size (px on the longer side).
_PAPER_SIDE = 640
# Where the paper is darker than this (of 255), dividing by its brightness would only make noise stand out.
_DARKEST_PAPER = 64
# Pictures noisier than this (standard deviation, as a share of the paper's brightness) are photographs, whose strokes
# are wide enough to be smoothed by a Gaussian of 1 px; drawings and screenshots are not.
_GRAIN = 0.01
# The faintest ink that counts, as a share of the paper's brightness, and as multiples of the picture's noise.
_FAINTEST_INK = 0.06
_FAINTEST_INK_IN_NOISE = 6.0
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
    picture = shrunk(picture, _LONGEST_SIDE)
    # Brightness shows nearly every pen; a single colour shows the rest (red on green of the same brightness).
    planes = [picture] if picture.ndim == 2 else [to_grey(picture), *cv2.split(picture)]
    for plane in planes:
        found = _find_in_plane(plane)
        if found is not None:
            return found
    raise ImageInputError("no ink found: the picture is blank, or the writing too faint")


def to_grey(picture: np.ndarray) -> np.ndarray:
    """Brightness, `uint8` (H, W), of a grey or RGB picture."""
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def shrunk(picture: np.ndarray, longest_side: int) -> np.ndarray:
    """The picture with its longer side at most `longest_side` px."""
    scale = longest_side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _find_in_plane(grey: np.ndarray) -> InkMap | None:
    light = _ink_is_light(grey)
    # Chalk and light pens are for dark ground: what is a little lighter than bright paper is the light's own doing.
    chalk_on_paper = light and float(np.median(grey)) > _DARKEST_PAPER
    if light:
        grey = 255 - grey
    contrast = _contrast(grey, paper_window=min(grey.shape) / 5)
    if _paper_and_noise(contrast)[1] > _GRAIN:
        contrast = cv2.GaussianBlur(contrast, (0, 0), 1)
    levels = _levels(contrast)
    if levels is None:
        return None
    floor, pen = levels
    threshold = max(pen / 2, floor)
    foreign = ruled_lines(contrast, max(pen / 4, floor), pen)
    mask = ((contrast > threshold) & (foreign == 0)).astype(np.uint8)
    foreign |= _specks(mask, stroke_width(mask))
    mask &= 1 - foreign
    if not mask.any() or (pen < _FAINT_INK and (chalk_on_paper or not _has_strokes(mask))):
        return None
    # Also around it, where blur has spread it, but not where that is ink.
    contrast[cv2.dilate(foreign, np.ones((3, 3), np.uint8)) > mask] = 0
    return InkMap(contrast, threshold, mask, stroke_width(mask))


def _ink_is_light(grey: np.ndarray) -> bool:
    """
    Whether the ink is brighter than its paper.

    Ink covers the smaller part of a picture, so differences from the neighbourhood are skewed towards the ink's side,
    whatever the light. (The neighbourhood is wide: with a narrow one the paper inside a loop would count as ink.)
    """
    small = shrunk(grey, 512).astype(np.float32)
    difference = small - cv2.GaussianBlur(small, (0, 0), max(small.shape) / 8)
    difference -= difference.mean()
    return float(np.mean(difference**3)) > 0


def _contrast(grey: np.ndarray, paper_window: float) -> np.ndarray:
    """
    How much darker than the paper around it each pixel is, 0..1.

    The paper's brightness is the grey-scale closing of the picture: its brightest pixels within a window that is wider
    than a stroke. Unlike a local mean it ignores the ink altogether, and keeps the edge of a shadow sharp.
    Dividing by it makes ink in the shade count as much as ink in the light.
    """
    small = shrunk(grey, _PAPER_SIDE)
    if min(small.shape) >= 200:
        small = cv2.medianBlur(small, 3)  # else the brightest pixel in the window would be noise
    window = max(int(paper_window * max(small.shape) / max(grey.shape)), 9) | 1
    square = np.ones((window, window), np.uint8)  # and not a disc: OpenCV does squares row by row, however large
    padded = cv2.copyMakeBorder(small, window, window, window, window, cv2.BORDER_REPLICATE)
    paper = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, square)
    paper = cv2.GaussianBlur(paper[window:-window, window:-window], (0, 0), 1)
    paper = cv2.resize(paper, grey.shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return np.clip((paper - grey) / np.maximum(paper, _DARKEST_PAPER), 0, 1).astype(np.float32)


def _paper_and_noise(contrast: np.ndarray) -> tuple[float, float]:
    """
    Median and, measured without regard to the ink, standard deviation of the contrast.

    Relative to its paper, noise is strongest where the light is weakest, so the noisiest quarter of the picture
    counts, up to three times the whole: a quarter full of ink shows nothing.
    """
    height, width = contrast.shape[0] // 2, contrast.shape[1] // 2
    quarters = [part for half in (contrast[:height], contrast[height:]) for part in (half[:, :width], half[:, width:])]
    deviations = [float(np.median(np.abs(part - np.median(part)))) for part in (contrast, *quarters)]
    return float(np.median(contrast)), 1.4826 * min(max(deviations), 3 * deviations[0])


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
    return bool((solid & (length > max(12, max(mask.shape) / 60))).any())


def _specks(mask: np.ndarray, width: float) -> np.ndarray:
    """Marks much smaller than the dot that the pen would make."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    speck = boxes[:, cv2.CC_STAT_AREA] < max(width * width / 4, 2)
    speck[0] = False
    return speck[labels].astype(np.uint8)
