"""Marks that are no part of a formula: specks, dark patches, a frame around it, a line under it."""

import cv2
import numpy as np

# Patches are this many times as wide as the pen.
_PATCH_IN_PENS = 3.0
# A frame spans this share of the ink's width and height, has this share of its pixels farther from its middle than
# this (of half its sides), and is seen in this share of all directions from there.
_FRAME_SPANS = 0.8
_FRAME_AT_BORDER = 0.95
_FRAME_INNER = 0.65
_FRAME_AROUND = 0.85
# A line under the result is this many times as wide as letters are high, less where it runs under this share of all,
# and as high at most as this share of its width.
_UNDERLINE_IN_LETTERS = 3.0
_FULL_UNDERLINE_IN_LETTERS = 1.8
_UNDERLINE_SPANS = 0.6
_UNDERLINE_FLAT = 0.12
# Ink is red from this (of 255) on, and a correction if it is at most this share of the ink.
_RED = 40
_MOST_RED = 0.45
# Fingers and the like fill this share of their box, and the picture cuts them over this many widths of the pen.
_SOLID = 0.55
_CUT_IN_PENS = 1.2
# Share of its box that a disc fills, at least and at most.
_DISC = (0.7, 0.86)
# What the upper or lower edge cuts off is of another line if it is lower than this share of a letter.
_CUT_IN_LETTERS = 0.5


def foreign_marks(mask: np.ndarray, stroke: float, photograph: bool) -> np.ndarray:
    """
    Find what is no writing among the ink.

    Args:
        mask (`np.ndarray` of `uint8`, shape (H, W)): 1 for ink.
        stroke (`float`): width of the strokes (px).
        photograph (`bool`): whether other things may reach into the picture; not so where ink was drawn on a screen.

    Returns:
        `np.ndarray` of `uint8`, shape (H, W): 1 for what does not belong to a formula.
    """
    foreign = _patches(mask, stroke) if photograph else np.zeros_like(mask)
    foreign |= frame(mask & (1 - foreign))
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask & (1 - foreign), connectivity=8)
    # Much smaller than the dot that the pen would make.
    drop = boxes[:, cv2.CC_STAT_AREA] < max(stroke * stroke / 4, 2)
    drop[0] = True
    if photograph:
        _drop_holes(boxes, drop, mask.shape, stroke)
        _drop_neighbours(boxes, drop, mask.shape[0])
    _drop_underlines(boxes, drop)
    if photograph:
        _drop_intruder(boxes, drop, mask.shape)
    drop[0] = False
    return foreign | drop[labels].astype(np.uint8)


def frame(mask: np.ndarray) -> np.ndarray:
    """The one mark, if there is one, that runs around all others: `uint8` (H, W), 1 for its pixels."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = np.zeros_like(mask)
    for index in range(1, len(boxes)) if len(boxes) > 2 else ():
        left, top, width, height = boxes[index, :4]
        (ink_left, ink_top, *_), (right, bottom) = boxes[1:].min(axis=0), (boxes[1:, :2] + boxes[1:, 2:4]).max(axis=0)
        if width < _FRAME_SPANS * (right - ink_left) or height < _FRAME_SPANS * (bottom - ink_top):
            continue
        y, x = np.nonzero(labels[top : top + height, left : left + width] == index)
        u, v = 2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1
        at_border = np.mean(np.maximum(abs(u), abs(v)) > _FRAME_INNER)
        around = np.unique(np.floor(np.arctan2(v, u) * 36 / np.pi)).size / 72
        if at_border > _FRAME_AT_BORDER and around > _FRAME_AROUND:
            found[labels == index] = 1
    return found


def red_marks(mask: np.ndarray, redness: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """
    Find what was written in red across writing that is not: a teacher's corrections.

    Args:
        mask (`np.ndarray` of `uint8`, shape (H, W)): 1 for ink.
        redness (`np.ndarray` of `uint8`, shape (H, W)): how much redder than the paper each pixel is.
        contrast (`np.ndarray` of `float32`, shape (H, W)): how much darker than the paper each pixel is, 0..1.

    Returns:
        `np.ndarray` of `uint8`, shape (H, W): 1 on such marks and their blurred edges; all zero where most ink is
        red, or all is reddish.
    """
    red = ((redness > _RED) & (mask > 0)).astype(np.uint8)
    other = mask & (1 - cv2.dilate(red, np.ones((5, 5), np.uint8)))
    most = np.count_nonzero(red) > _MOST_RED * np.count_nonzero(mask)
    if most or not other.any() or np.median(redness[other > 0]) > _RED / 3:
        return np.zeros_like(mask)
    whole = cv2.morphologyEx(red, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    near = cv2.dilate(whole, np.ones((7, 7), np.uint8))
    labels = cv2.connectedComponents(near, connectivity=8)[1]
    across = np.zeros(labels.max() + 1, bool)
    across[labels[other > 0]] = True
    across[0] = False
    # Where they cross the writing, that is as dark as elsewhere.
    pale = contrast < 0.9 * np.percentile(contrast[other > 0], 80)
    return (across[labels] & (redness > _RED / 3) & pale).astype(np.uint8)


def _patches(mask: np.ndarray, stroke: float) -> np.ndarray:
    """What is far wider than the pen and reaches in from the edge: a finger, a table, a turned picture's corners."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    radius = _PATCH_IN_PENS * stroke / 2
    reaching = _reaching_in(mask, max(_CUT_IN_PENS * stroke, 0.04 * max(mask.shape)))
    core = (cv2.distanceTransform(padded, cv2.DIST_L2, 3) > radius).astype(np.uint8)
    if not core.any():
        return reaching
    size = 2 * round(radius + stroke / 2) + 1
    patch = cv2.dilate(core, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))[1:-1, 1:-1] & mask
    patch = _reaching_in(patch, 1)
    foreign = patch | reaching
    # Most of a mark a patch: all of it is. So are small marks beside it: the edge of its shadow.
    labels, boxes = cv2.connectedComponentsWithStats(mask, connectivity=8)[1:3]
    area, most = boxes[:, cv2.CC_STAT_AREA], np.count_nonzero(foreign)
    beside = cv2.dilate(foreign, np.ones((size, size), np.uint8))
    drop = np.bincount(labels[foreign > 0], minlength=len(boxes)) > 0.3 * area
    drop |= (np.bincount(labels[beside > 0], minlength=len(boxes)) > 0) & (area < 0.2 * most)
    drop[0] = False
    return foreign | drop[labels].astype(np.uint8)


def _reaching_in(mask: np.ndarray, width: float) -> np.ndarray:
    """The solid components that the edge of the picture cuts over at least `width` px."""
    labels, boxes = cv2.connectedComponentsWithStats(mask, connectivity=8)[1:3]
    edges = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    cut = np.max([np.bincount(edge, minlength=len(boxes)) for edge in edges], axis=0) >= width
    cut &= boxes[:, cv2.CC_STAT_AREA] > _SOLID * boxes[:, cv2.CC_STAT_WIDTH] * boxes[:, cv2.CC_STAT_HEIGHT]
    cut[0] = False
    return cut[labels].astype(np.uint8)


def _drop_holes(boxes: np.ndarray, drop: np.ndarray, shape: tuple[int, ...], stroke: float) -> None:
    """Mark discs of one size along an edge, far from one another: the holes of a sheet that was in a folder."""
    left, top, width, height, area = boxes.T
    round_ones = ~drop & (area > _DISC[0] * width * height) & (area < _DISC[1] * width * height)
    round_ones &= np.minimum(width, height) > 0.75 * np.maximum(width, height)
    if (round_ones != ~drop).any():  # the dots of a formula are no larger than its pen
        round_ones &= area > 2 * stroke * stroke
    places = (np.stack([left, top], 1) + boxes[:, 2:4] / 2) / shape[::-1]
    for edge in (places[:, 0], 1 - places[:, 0], places[:, 1], 1 - places[:, 1]):
        along = np.flatnonzero(round_ones & (edge < 0.12))
        if along.size >= 2 and np.ptp(boxes[along, :2], axis=0).max() > 4 * width[along].max():
            drop[along] = True


def _drop_intruder(boxes: np.ndarray, drop: np.ndarray, shape: tuple[int, ...]) -> None:
    """Mark all that is left, where it is one solid thing, and crumbs of it, at the edge of an empty picture."""
    area = np.where(drop, 0, boxes[:, cv2.CC_STAT_AREA])
    x, y, width, height, largest = boxes[area.argmax()]
    near = min(x, y, shape[1] - x - width, shape[0] - y - height) < 0.04 * max(shape)
    empty = width * height < 0.1 * shape[0] * shape[1] and np.count_nonzero(area > largest / 10) == 1
    if near and empty and largest > 0.4 * width * height and max(width, height) < 3 * min(width, height):
        drop[:] = True


def _drop_neighbours(boxes: np.ndarray, drop: np.ndarray, picture_height: int) -> None:
    """Mark the ends of letters of the lines above and below: low, and cut off by the picture's upper or lower edge."""
    top, height = boxes[:, cv2.CC_STAT_TOP], boxes[:, cv2.CC_STAT_HEIGHT]
    cut = ~drop & ((top == 0) | (top + height == picture_height))
    whole = height[~drop & ~cut]
    if whole.size:
        letter = np.median(whole[whole > whole.max() / 3])
        drop |= cut & (height < _CUT_IN_LETTERS * letter)


def _drop_underlines(boxes: np.ndarray, drop: np.ndarray) -> None:
    """Mark long flat lines that have letters above them and nothing below, from the lowest upwards."""
    left, top, width, height = boxes[:, :4].T
    middle, centre = left + width / 2, top + height / 2
    flat = height <= _UNDERLINE_FLAT * width
    for index in np.argsort(-top - height):
        others = ~drop
        others[index] = False
        letters = others & ~flat & (height > height[others].max(initial=0) / 3)
        near = others & (abs(middle - middle[index]) < width[index] / 2)
        if drop[index] or not flat[index] or not (near & letters).any() or (centre[near] > centre[index]).any():
            continue
        full = width[index] > _UNDERLINE_SPANS * (np.max((left + width)[others]) - np.min(left[others]))
        least = (_FULL_UNDERLINE_IN_LETTERS if full else _UNDERLINE_IN_LETTERS) * np.median(height[letters])
        drop[index] = width[index] > least
