"""Twenty kinds of pictures that people hand over, drawn from ink, and twenty kinds of pictures without any.

Where [`photograph`] draws what cameras do at random, to train on, these are named, to measure by: each is one
difficulty, drawn at a strength that a person reads without effort.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ..ink.rendering import render_ink
from ..ink.strokes import Ink

Colour = tuple[float, float, float]
_WHITE, _BLACK = (246.0, 245.0, 240.0), (30.0, 30.0, 34.0)
_BLUE, _RED, _PENCIL = (40.0, 60.0, 150.0), (200.0, 40.0, 45.0), (105.0, 105.0, 110.0)


def draw_kind(kind: str, ink: Ink, rng: np.random.Generator) -> np.ndarray:
    """One picture of the ink: uint8 (H, W, 3), or (H, W, 4) for `transparent`.

    Args:
        kind (`str`): A key of [`KINDS`].
        ink ([`Ink`]): What is written.
        rng (`np.random.Generator`): The only source of randomness.
    """
    return KINDS[kind](ink, rng)


def draw_blank(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A picture without a formula, uint8 (H, W, 3); `kind` is a key of [`BLANKS`]."""
    return BLANKS[kind](rng)


def _written(ink: Ink, height: int, pen: float, margin: float = 1.0) -> np.ndarray:
    """Coverage (H, W) float32 by a round pen of `pen` px; letters are `height` px high, as is the margin times one."""
    side = max(1, round(pen))
    lines = render_ink(ink, height=height, thickness=1, margin=round(margin * height) + side, max_pixels=2**23)
    drawn = cv2.dilate(lines, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return cv2.GaussianBlur(drawn.astype(np.float32) / 255, (0, 0), 0.6)


def _laid(page: np.ndarray, cover: np.ndarray, colour: Colour) -> np.ndarray:
    """Colour on a page (H, W, 3) float32 as far as it is covered."""
    return page + cover[..., None] * (np.array(colour, np.float32) - page)


def _paper(shape: tuple[int, ...], colour: Colour = _WHITE) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.float32), (*shape[:2], 3)).copy()


def _noise(shape: tuple[int, ...], rng: np.random.Generator, grain: int = 1) -> np.ndarray:
    """Smooth noise (H, W) of unit deviation, `grain` px coarse."""
    small = rng.standard_normal((shape[0] // grain + 2, shape[1] // grain + 2), dtype=np.float32)
    return (
        small[: shape[0], : shape[1]] if grain == 1 else cv2.resize(small, shape[1::-1], interpolation=cv2.INTER_CUBIC)
    )


def _grid(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, both (H, W), from 0 to 1."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    return y / shape[0], x / shape[1]


def _lit(page: np.ndarray, rng: np.random.Generator, loss: float = 0.35) -> np.ndarray:
    """Light that falls off in some direction."""
    y, x = _grid(page.shape)
    angle = rng.uniform(0, 2 * np.pi)
    along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    return page * (1 - loss * (along + 0.7) / 1.4)[..., None]


def _taken(
    page: np.ndarray, rng: np.random.Generator, blur: float = 0.9, noise: float = 4, jpeg: int = 70
) -> np.ndarray:
    """By a camera."""
    page = cv2.GaussianBlur(page, (0, 0), blur) if blur else page
    page = page + noise * _noise(page.shape, rng)[..., None]
    encoded = cv2.imencode(".jpg", np.clip(page, 0, 255).astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(encoded[1], cv2.IMREAD_COLOR))[..., ::-1])


def _ruled(page: np.ndarray, spacing: float, colour: Colour, both: bool = False, width: int = 2) -> np.ndarray:
    lines = np.zeros(page.shape[:2], np.float32)
    for axis in range(2 if both else 1):
        for place in np.arange(spacing * 0.6, page.shape[axis], spacing).astype(int):
            lines[(slice(place, place + width), slice(None))[:: 1 - 2 * axis]] = 1
    return _laid(page, lines, colour)


def _turned(page: np.ndarray, degrees: float) -> np.ndarray:
    height, width = page.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    sine, cosine = abs(turn[0, 1]), abs(turn[0, 0])
    size = round(width * cosine + height * sine), round(width * sine + height * cosine)
    turn[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    return cv2.warpAffine(page, turn, size, borderMode=cv2.BORDER_REPLICATE)


def _on_desk(sheet: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sheet on a dark table, seen from aside."""
    height, width = sheet.shape[:2]
    edge = 0.3 * min(height, width)
    size = round(width + 2 * edge), round(height + 2 * edge)
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    seen = (
        corners
        + np.float32(edge)
        + rng.uniform(-0.12, 0.12, (4, 2)).astype(np.float32) * np.float32(min(height, width))
    )
    view = cv2.getPerspectiveTransform(corners, seen)
    wood = _noise((size[1], max(2, size[0] // 40)), rng, 3)
    desk = _paper((size[1], size[0]), (72, 52, 40)) + 8 * cv2.resize(wood, size)[..., None]
    inside = cv2.warpPerspective(np.ones((height, width), np.float32), view, size)
    return desk + inside[..., None] * (cv2.warpPerspective(sheet, view, size, borderMode=cv2.BORDER_REPLICATE) - desk)


def _strokes(shape: tuple[int, ...], lines: list[np.ndarray], pen: float, rng: np.random.Generator) -> np.ndarray:
    """Coverage by hand-drawn polylines, points (x, y) from 0 to 1."""
    cover = np.zeros(shape[:2], np.uint8)
    for line in lines:
        t = np.linspace(0, len(line) - 1, 40)
        points = np.stack([np.interp(t, np.arange(len(line)), np.array(line)[:, axis]) for axis in (0, 1)], 1)
        points = points * (shape[1], shape[0]) + 0.6 * pen * np.cumsum(rng.normal(0, 0.3, points.shape), 0)
        cv2.polylines(cover, [np.rint(points).astype(np.int32)], False, 255, max(1, round(pen)), cv2.LINE_AA)
    return cover.astype(np.float32) / 255


def _plain(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 5)
    return np.rint(_laid(_paper(cover.shape, (255, 255, 255)), cover, (0, 0, 0))).astype(np.uint8)


def _ballpoint(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, int(rng.integers(45, 80)), 4)
    return _taken(_lit(_laid(_paper(cover.shape), 0.9 * cover, _BLUE), rng), rng)


def _ruled_margin(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 1.5)
    page = _ruled(_paper(cover.shape), rng.uniform(85, 120), (150, 180, 220))
    place = int(rng.uniform(20, 60))
    page[:, place : place + 3] = (225, 140, 140)
    return _taken(_turned(_lit(_laid(page, 0.9 * cover, _BLUE), rng, 0.25), rng.uniform(-1.5, 1.5)), rng)


def _squared_pencil(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4)
    page = _ruled(_paper(cover.shape), rng.uniform(38, 60), (165, 185, 210), both=True)
    return _taken(_lit(_laid(page, cover * (0.8 + 0.1 * _noise(cover.shape, rng, 2)), _PENCIL), rng, 0.2), rng)


def _dark_mode(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 40, 3)
    return np.rint(_laid(_paper(cover.shape, (32, 33, 36)), cover, (225, 225, 230))).astype(np.uint8)


def _chalk(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 70, 7)
    board = _paper(cover.shape, (45, 70, 58)) + 6 * _noise(cover.shape, rng, 60)[..., None]
    cover = cover * np.clip(0.7 + 0.2 * _noise(cover.shape, rng), 0, 1)
    return _taken(_lit(_laid(board, cover, (235, 235, 225)), rng), rng)


def _whiteboard_glare(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 70, 8)
    page = _laid(_paper(cover.shape, (205, 208, 210)), 0.9 * cover, (35, 50, 120))
    y, x = _grid(cover.shape)
    aspect = cover.shape[1] / cover.shape[0]
    spot = np.exp(-(((x - rng.uniform(0.3, 0.7)) * aspect) ** 2 + (y - rng.uniform(0.35, 0.65)) ** 2) / 0.12)
    return _taken(_laid(page, rng.uniform(0.6, 0.8) * spot, (255, 255, 255)), rng)


def _transparent(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 50, 4, 0.3)
    colour = np.full((*cover.shape, 3), rng.choice((0, 255)), np.uint8)
    return np.dstack([colour, np.rint(255 * cover).astype(np.uint8)])


def _thumbnail(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 6, 0.3)
    picture = _taken(_laid(_paper(cover.shape), cover, _BLACK), rng)
    return cv2.resize(picture, (round(40 * picture.shape[1] / picture.shape[0]), 40), interpolation=cv2.INTER_AREA)


def _jpeg_15(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 40, 3)
    return _taken(_laid(_paper(cover.shape), cover, _BLACK), rng, 0.5, 1, 15)


def _large_page(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 32, 3, 0.2)
    page = np.zeros((1800, max(1300, cover.shape[1] + 200)), np.float32)
    top, left = rng.integers(100, 1000), rng.integers(50, page.shape[1] - cover.shape[1] - 50)
    page[top : top + cover.shape[0], left : left + cover.shape[1]] = cover
    return _taken(_lit(_laid(_paper(page.shape), 0.9 * page, _BLACK), rng), rng)


def _fine_pen(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, int(rng.integers(30, 60)), 1)
    return np.rint(_laid(_paper(cover.shape, (255, 255, 255)), np.minimum(1.6 * cover, 1), (0, 0, 0))).astype(np.uint8)


def _marker(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 90, 15)
    return _taken(_laid(_paper(cover.shape), cover, _BLACK), rng)


def _phone(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 1.5)
    page = _turned(_laid(_paper(cover.shape), 0.85 * cover, _BLUE), rng.choice((-1, 1)) * rng.uniform(3, 8))
    y, x = _grid(page.shape)
    shade = 0.5 + 0.5 * np.tanh((x + rng.uniform(-0.5, 0.5) * y - rng.uniform(0.3, 0.7)) / rng.uniform(0.01, 0.1))
    return _taken(_lit(page * (1 - 0.5 * shade)[..., None], rng), rng, 1.2, 6, 60)


def _desk(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 5, 2)
    return _taken(_on_desk(_lit(_laid(_paper(cover.shape), 0.9 * cover, _BLACK), rng, 0.2), rng), rng)


def _framed(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 1.5)
    a, b = 45 / cover.shape[1], 45 / cover.shape[0]
    box = np.array([(a, b), (1 - a, b), (1 - a, 1 - b), (a, 1 - b), (a, b)])
    box[:4] += rng.uniform(-0.15, 0.15, (4, 2)) * (a, b)
    cover = np.maximum(cover, _strokes(cover.shape, [box], 4, rng))
    return _taken(_lit(_laid(_paper(cover.shape), 0.9 * cover, _BLUE), rng), rng)


def _underlined(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 1.2)
    height, width = cover.shape
    start = max(rng.uniform(0, 0.4), 50 / width)
    levels = [1 - 45 / height, 1 - 33 / height][: rng.integers(1, 3)]
    lines = [np.array([(start, level), (1 - 50 / width, level)]) for level in levels]
    cover = np.maximum(cover, _strokes(cover.shape, lines, 4, rng))
    return _taken(_lit(_laid(_paper(cover.shape), 0.9 * cover, _BLUE), rng), rng)


def _low_contrast(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 40, 3, 0.3)
    return _taken(_laid(_paper(cover.shape, (165, 165, 162)), cover, (125, 125, 125)), rng, 0.7, 2, 80)


def _pepper(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    picture, chance = _plain(ink, rng), rng.random
    picture[chance(picture.shape[:2]) < 0.01] = 0
    picture[chance(picture.shape[:2]) < 0.005] = 255
    return picture


def _finger(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 1.5)
    return _taken(_with_finger(_lit(_laid(_paper(cover.shape), 0.9 * cover, _BLUE), rng), rng), rng)


def _with_finger(page: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reaching in at the lower edge, with its shadow; no higher than 70 px."""
    drawn = np.zeros(page.shape[:2], np.uint8)
    place = int(rng.uniform(0.1, 0.9) * page.shape[1]), page.shape[0] + 20
    cv2.ellipse(drawn, place, (45, 90), rng.uniform(-20, 20), 0, 360, 255, -1)
    tip = cv2.GaussianBlur(drawn.astype(np.float32) / 255, (0, 0), 2)
    page = page * (1 - 0.4 * cv2.GaussianBlur(np.roll(tip, 15, 1), (0, 0), 12))[..., None]
    return _laid(page, tip, (190, 130, 105))


def _red_marks(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 1.2)
    x = rng.uniform(0.2, 0.8)
    tick = np.array([(x - 0.06, 0.45), (x, 0.75), (x + 0.12, 0.1)])
    marked = _laid(_paper(cover.shape), 0.9 * _strokes(cover.shape, [tick], 5, rng), _RED)
    # Inks are transparent: where they cross, both are seen.
    return _taken(_lit(np.minimum(marked, _laid(_paper(cover.shape), 0.9 * cover, _BLACK)), rng, 0.2), rng)


def _lit_wedge(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 1.2)
    y, x = _grid(cover.shape)
    wedge = cv2.GaussianBlur((x + rng.uniform(0.2, 0.8) * y > rng.uniform(0.8, 1.1)).astype(np.float32), (0, 0), 3)
    return _taken(_laid(_paper(cover.shape), 0.85 * cover, _BLUE) * (0.4 + 0.6 * wedge)[..., None], rng)


def _neighbours(ink: Ink, rng: np.random.Generator) -> np.ndarray:
    cover = _written(ink, 60, 4, 0.6)
    rows = np.flatnonzero((cover > 0.3).any(axis=1))
    body = cover[rows[0] : rows[-1] + 1]
    gap = np.zeros((24, cover.shape[1]), np.float32)
    cover = np.concatenate([body[-16:, ::-1], gap, body, gap, body[:14]])
    return _taken(_lit(_laid(_paper(cover.shape), 0.9 * cover, _BLUE), rng), rng)


KINDS: dict[str, Callable[[Ink, np.random.Generator], np.ndarray]] = {
    "plain": _plain,
    "ballpoint": _ballpoint,
    "ruled with margin": _ruled_margin,
    "squared, pencil": _squared_pencil,
    "dark mode": _dark_mode,
    "chalk": _chalk,
    "whiteboard, glare": _whiteboard_glare,
    "transparent": _transparent,
    "thumbnail": _thumbnail,
    "jpeg 15": _jpeg_15,
    "large page": _large_page,
    "1 px pen": _fine_pen,
    "marker": _marker,
    "phone": _phone,
    "desk": _desk,
    "framed": _framed,
    "underlined": _underlined,
    "low contrast": _low_contrast,
    "pepper": _pepper,
    "finger": _finger,
    "red marks": _red_marks,
    "lit wedge": _lit_wedge,
    "neighbours": _neighbours,
}
"""Pictures of ink by the name of their kind; `plain` is the measure of the others."""


_SHEET = (420, 700)


def _blank_dots(rng: np.random.Generator) -> np.ndarray:
    page = _paper(_SHEET)
    page[20::40, 20::40] = page[21::40, 20::40] = page[20::40, 21::40] = page[21::40, 21::40] = (150, 150, 160)
    return _taken(page, rng)


def _blank_glare(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(_SHEET)
    spot = np.exp(-((x - 0.4) ** 2 + (y - 0.5) ** 2) / 0.03)
    return _taken(_laid(_paper(_SHEET, (205, 208, 210)), 0.8 * spot, (255, 255, 255)), rng)


def _blank_shadow(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(_SHEET)
    return _taken(_paper(_SHEET) * (1 - 0.5 / (1 + np.exp(-(x + 0.3 * y - 0.6) / 0.01)))[..., None], rng)


def _blank_holes(rng: np.random.Generator) -> np.ndarray:
    page = _paper(_SHEET)
    for y in (120, 300):
        cv2.circle(page, (45, y), 14, (70, 60, 55), -1, cv2.LINE_AA)
    return _taken(_lit(page, rng), rng)


def _blank_fold(rng: np.random.Generator) -> np.ndarray:
    page = _paper(_SHEET)
    page[208:212] *= 0.9
    page[212:] *= 0.96
    return _taken(page, rng)


def _blank_margin(rng: np.random.Generator) -> np.ndarray:
    page = _ruled(_paper(_SHEET), 45, (150, 180, 220))
    page[:, 80:83] = (225, 140, 140)
    return _taken(_turned(page, 1.0), rng)


BLANKS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "white": lambda rng: np.full((*_SHEET, 3), 255, np.uint8),
    "black": lambda rng: np.zeros((*_SHEET, 3), np.uint8),
    "scan": lambda rng: _taken(_paper(_SHEET), rng, 0, 1, 90),
    "photograph": lambda rng: _taken(_lit(_paper(_SHEET), rng), rng),
    "noisy": lambda rng: _taken(_lit(_paper(_SHEET, (150, 148, 140)), rng), rng, 0.8, 14),
    "dark noise": lambda rng: _taken(_paper(_SHEET, (14, 14, 15)), rng, 0, 5),
    "jpeg 10": lambda rng: _taken(_lit(_paper(_SHEET, (190, 188, 180)), rng), rng, 1, 6, 10),
    "ruled": lambda rng: _taken(_ruled(_paper(_SHEET), 50, (150, 180, 220)), rng),
    "squared": lambda rng: _taken(_ruled(_paper(_SHEET), 30, (165, 185, 210), both=True), rng),
    "ruled with margin": _blank_margin,
    "dotted": _blank_dots,
    "shadow": _blank_shadow,
    "glare": _blank_glare,
    "crumpled": lambda rng: _taken(_paper(_SHEET) + 10 * _noise(_SHEET, rng, 40)[..., None], rng),
    "recycled": lambda rng: _taken(_paper(_SHEET, (200, 196, 185)) + 7 * _noise(_SHEET, rng, 3)[..., None], rng),
    "folded": _blank_fold,
    "punched": _blank_holes,
    "finger": lambda rng: _taken(_with_finger(_lit(_paper(_SHEET), rng), rng), rng),
    "sheet on desk": lambda rng: _taken(_on_desk(_lit(_paper(_SHEET), rng, 0.2), rng), rng),
    "small grey": lambda rng: _taken(_lit(_paper((40, 130), (160, 160, 158)), rng, 0.2), rng, 0.8, 4, 60),
    "board": lambda rng: _taken(_lit(_paper(_SHEET, (45, 70, 58)) + 6 * _noise(_SHEET, rng, 60)[..., None], rng), rng),
}
"""Pictures without a formula by the name of their kind."""
