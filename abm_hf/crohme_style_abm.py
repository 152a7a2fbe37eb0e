"""The field's image form: how to know it, and how to redraw ink of any size and pen in it.

CROHME's offline images were drawn from ink: scaled to a common height, one-pixel lines dilated by a 3 x 3 square, ink
255 on 0, 12 px of paper above and to the left, 11 px below and to the right. A network trained on them has seen
nothing else, so a picture is brought as near to that as it can be.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .image_loading_abm import ImageInputError
from .ink_extraction_abm import InkMap, find_ink, stroke_width, to_grey

_PEN = 3
# The field's square pen draws 3 px wide along the axes, 4.2 px diagonally. Of round pens, as real ones are, this one
# (px) overlaps it most: 3.0, 3.3 and 3.8 were tried, on the published images drawn at other sizes, with other pens,
# blurred and photographed.
_PEN_WIDTH = 3.5
# Ink drawn with the field's own pen, and of about the field's size, keeps its size: 0.75 to 1.33 of what would be set.
_SIZE_TOLERANCE = 1.33


@dataclass(frozen=True)
class StyledImage:
    """One picture on its way: as read, its ink where that was looked for, and the result, `uint8` (H, W)."""

    read: np.ndarray
    ink: np.ndarray | None
    image: np.ndarray


def to_crohme_style(
    read: np.ndarray, do_normalize: bool, min_side: int, component_height: float, margin: int, max_pixels: int
) -> StyledImage:
    """
    A picture as `read_picture` returns it to what the network sees; [`ABMImageProcessor`] documents the options.

    Raises:
        ImageInputError: the picture is under `min_side` (px), or without ink.
    """
    height, width = read.shape[:2]
    if min(height, width) < min_side:
        raise ImageInputError(f"{width} x {height} px is too small: each side needs {min_side} px")
    grey = to_grey(read)
    if not do_normalize:
        return StyledImage(read, None, grey)
    for image in (grey, 255 - grey):
        if is_crohme_style(image, margin, max_pixels):
            return StyledImage(read, None, image)
    ink = find_ink(read)
    return StyledImage(read, ink.mask, redraw(ink, component_height, margin, max_pixels))


def is_crohme_style(picture: np.ndarray, margin: int, max_pixels: int) -> bool:
    """
    Whether a grey picture is in the field's form already, so that it must not be touched.

    Holds for all 9,821 published images of CROHME's training set and its test of 2014, and hardly by accident: two
    values, the exact margins, and strokes that a 3 x 3 opening leaves as they are.
    """
    if picture.ndim != 2 or picture.size > max_pixels or min(picture.shape) <= 2 * margin:
        return False
    if np.count_nonzero(picture == 255) + np.count_nonzero(picture == 0) < picture.size:
        return False
    left, top, width, height = cv2.boundingRect(picture)
    right, bottom = picture.shape[1] - left - width, picture.shape[0] - top - height
    return (top, bottom, left, right) == (margin, margin - 1, margin, margin - 1) and _has_field_pen(picture)


def redraw(ink: InkMap, component_height: float, margin: int, max_pixels: int) -> np.ndarray:
    """
    Draw ink in the field's form.

    Args:
        ink (`InkMap`): the ink, in the picture's own size.
        component_height (`float`): the height (px) to which connected components are scaled; see `scale_to_field`.
        margin (`int`): px of paper above and to the left; one less below and to the right.
        max_pixels (`int`): the area of the result at most, which makes ink smaller where needed.

    Returns:
        `np.ndarray` of `uint8`, shape (H, W): ink 255 on 0.
    """
    width, height = cv2.boundingRect(ink.mask)[2:]
    scale = scale_to_field(ink, component_height)
    if _has_field_pen(ink.mask) and 1 / _SIZE_TOLERANCE < scale < _SIZE_TOLERANCE:
        scale = 1.0
    scale = _within_budget(scale, width, height, 2 * margin, max_pixels)
    image = _drawn(ink, scale, margin)
    while image.size > max_pixels:  # thin strokes grow by the width of the pen, soft edges by their blur
        scale *= 0.97
        image = _drawn(ink, scale, margin)
    return image


def _drawn(ink: InkMap, scale: float, margin: int) -> np.ndarray:
    """Ink at a given scale, with the field's pen and margins."""
    if scale == 1 and _has_field_pen(ink.mask):
        inked = ink.mask
    else:
        # Fine enough for the pen that is there and for the one to come, so that the outline can move by parts of a px.
        zoom = max(2 * scale, min(1.0, 4 / ink.stroke_width))
        fine = _cut(_with_pen(_zoomed(ink, zoom), _PEN_WIDTH * zoom / scale))
        inked = (_resized(fine.astype(np.float32), scale / zoom) >= 0.5).astype(np.uint8)
    frame = (margin, margin - 1, margin, margin - 1)
    return cv2.copyMakeBorder(_cut(inked) * 255, *frame, cv2.BORDER_CONSTANT, value=0)


def scale_to_field(ink: InkMap, component_height: float) -> float:
    """
    The factor that brings ink to the field's size.

    The field scales the mean height of the pen's traces, those under a tenth of the tallest left out, to 28 px. A
    picture has no traces but connected components; measured along the middle of the strokes, and with the same
    rule, these are 29 px high (median of the published images), with a spread of 9 % between images. The plain mean
    of all components has the same median and twice the spread: it makes formulas with many bars and dots too large.
    """
    boxes = cv2.connectedComponentsWithStats(ink.mask, connectivity=8)[2][1:]
    heights = boxes[:, cv2.CC_STAT_HEIGHT] - ink.stroke_width
    widths = boxes[:, cv2.CC_STAT_WIDTH] - ink.stroke_width
    tallest, widest = max(heights.max(), 0.0), max(widths.max(), 0.0)
    if tallest > max(widest / 8, 2.0):
        return component_height / float(heights[heights > tallest / 10].mean())
    # Nothing but bars and dots. Bars are about twice as wide as letters are high; a lone dot is as wide as the pen.
    return 2 * component_height / widest if widest > 2 * ink.stroke_width else _PEN / ink.stroke_width


def _within_budget(scale: float, width: int, height: int, frame: int, max_pixels: int) -> float:
    """The scale, or the largest that keeps the framed result within `max_pixels`."""
    if (scale * width + frame) * (scale * height + frame) <= max_pixels:
        return scale
    # The positive root of width · height · s² + frame · (width + height) · s + frame² = max_pixels.
    a, b, c = width * height, frame * (width + height), frame * frame - max_pixels
    return (-b + float(np.sqrt(b * b - 4.0 * a * c))) / (2 * a)


def _zoomed(ink: InkMap, zoom: float) -> np.ndarray:
    """The ink mask in another size, thresholded only there; `uint8` (H, W)."""
    left, top, width, height = cv2.boundingRect(ink.mask)
    # Interpolation needs paper around the ink: as much as comes out in whole pixels, lest all shift by parts of one.
    pad = min(range(2, 12), key=lambda side: abs(side * zoom - round(side * zoom)))
    contrast = cv2.copyMakeBorder(ink.contrast, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    contrast = contrast[top : top + height + 2 * pad, left : left + width + 2 * pad]
    return (_resized(contrast, zoom) > ink.threshold).astype(np.uint8)


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation)


def _cut(mask: np.ndarray) -> np.ndarray:
    """Cut to the ink."""
    left, top, width, height = cv2.boundingRect(mask)
    return mask[top : top + height, left : left + width]


def _with_pen(mask: np.ndarray, pen: float) -> np.ndarray:
    """
    The same strokes drawn with a pen of another width (px).

    The outline moves in or out by half the difference, which keeps the shape better than drawing the middle line
    anew: overlap (IoU) with ten published images, distorted in eighteen ways (a third to four times the size, pens of
    a third to twice the width, blur, photographs), is 0.76 to 1.0, where thinning gives 0.64 to 0.79, and leaving the
    width as it is 0 to 1.0. Where a stroke is so thin that it would vanish, its middle line is drawn instead.
    """
    shift = (stroke_width(mask) - pen) / 2
    if shift <= 0:
        reach = int(pen) + 2
        padded = cv2.copyMakeBorder(mask, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
        return (cv2.distanceTransform(1 - padded, cv2.DIST_L2, 5) - 0.5 < -shift).astype(np.uint8)
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    kept = (cv2.distanceTransform(padded, cv2.DIST_L2, 5) - 0.5 > shift).astype(np.uint8)
    square = np.ones((max(1, round(pen)), max(1, round(pen))), np.uint8)
    lost = thinned(padded) & (1 - cv2.dilate(kept, square))
    return np.maximum(kept, cv2.dilate(lost, square))


def _has_field_pen(mask: np.ndarray) -> bool:
    """Whether the strokes may be one-pixel lines dilated by a 3 x 3 square."""
    square = np.ones((_PEN, _PEN), np.uint8)
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return bool(np.array_equal(opened, mask)) and abs(stroke_width((mask > 0).astype(np.uint8)) - _PEN) < 1


def thinned(mask: np.ndarray) -> np.ndarray:
    """
    The middle lines of a mask, one pixel wide (Zhang and Suen, 1984).

    OpenCV has thinning in its contributed modules only, and a table over the 256 neighbourhoods is all there is to
    it: not worth a dependency on scikit-image. The mask's outermost pixels must be zero.
    """
    deletable = _deletable()
    weights = np.array([[128, 1, 2], [64, 0, 4], [32, 16, 8]], np.float32)
    mask = mask.copy()
    changed = True
    while changed:
        changed = False
        for table in deletable:
            neighbours = cv2.filter2D(mask, cv2.CV_8U, weights, borderType=cv2.BORDER_CONSTANT)
            gone = cv2.LUT(neighbours, table) & mask
            changed |= bool(gone.any())
            mask -= gone
    return mask


def _deletable() -> np.ndarray:
    """For both half-steps, and each neighbourhood as bits clockwise from the north, 1 where the pixel may go."""
    tables = np.zeros((2, 256), np.uint8)
    for code in range(256):
        ring = [code >> bit & 1 for bit in range(8)]
        starts = sum(not ring[i] and ring[(i + 1) % 8] for i in range(8))
        if starts != 1 or not 2 <= sum(ring) <= 6:
            continue
        north, east, south, west = ring[::2]
        tables[0, code] = not (north and east and south) and not (east and south and west)
        tables[1, code] = not (north and east and west) and not (north and south and west)
    return tables
