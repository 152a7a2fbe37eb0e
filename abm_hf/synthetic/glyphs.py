"""Single-stroke glyphs that bend like handwriting: a glyph is a linear map from a few control points to a dense curve.

Moving the control points of a stroke by a little noise and multiplying by its fixed matrix gives a smooth, new way to
write it, so that drawing a symbol costs one small matrix product. The curves are Catmull-Rom splines with centripetal
knots (Catmull and Rom 1974; Yuksel et al. 2011) between corners; a second matrix draws the same stroke with its
corners cut, as a hurried hand does. Shapes come from `synthetic_shapes` and from the Hershey fonts (PyPI package
Hershey-Fonts).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from .shapes import SHAPES

#: Which characters of which single-stroke Hershey fonts serve as further shapes: font -> (weight, joined-up,
#: characters to tokens). `cursive` is a school hand; `futural` is a draughtsman's print.
HERSHEY: dict[str, tuple[float, bool, dict[str, str]]] = {
    "cursive": (1.0, True, {c: c for c in "abcdefghijklmnopqrstuvwxyzCELNVY"}),
    "futural": (0.8, False, {c: c for c in "0123456789abcdefghijkmnopqrstuvwxyzABCEFGHILMNPRSTVXY!"}),
    "greek": (
        0.8,
        False,
        {"a": "\\alpha", "b": "\\beta", "g": "\\gamma", "l": "\\lambda", "m": "\\mu", "p": "\\pi", "s": "\\sigma"}
        | {"f": "\\phi", "q": "\\theta", "D": "\\Delta"},
    ),
    "mathlow": (
        0.6,
        False,
        {"h": "\\in", "_": "\\infty", "v": "\\exists", "i": "\\rightarrow", "!": "\\pm", "x": "\\div"},
    ),
}
#: Distance between points of a dense curve and length of stroke between control points, in tenths of a small letter.
POINT_STEP = 0.7
CONTROL_STEP = 6.0
#: Height over which a hurried hand cuts a corner (standard deviation of the smoothing, same unit).
CORNER_RADIUS = 1.1
#: Hershey's capitals are 21 units high, with y down and the baseline at 9; its digits are as high as its capitals, and
#: its small letters higher (`futural`) or lower (`cursive`) than ours.
_HERSHEY_BASELINE = 9.0
_HERSHEY_CAPITAL, _HERSHEY_DIGIT = 17 / 21, 15 / 21
_HERSHEY_SMALL = {"futural": 0.73, "cursive": 1.0}
#: Strokes no longer than this are dots; hands set them after the rest of the symbol, Hershey's fonts before.
_DOT = 3.5
#: Standard deviations of what distinguishes one person's shapes from another's: for x and for y, the shares of
#: u, v, uv, u², v², where u and v run from -1/2 to 1/2 over the glyph.
_PERSONAL = np.array([[0.14, 0.06, 0.20, 0.11, 0.14], [0.04, 0.07, 0.12, 0.12, 0.15]])
_SHARP_TURN = np.cos(np.radians(55))


@dataclass(frozen=True, eq=False)
class GlyphStroke:
    """One stroke of a glyph.

    Args:
        control (`np.ndarray` of shape `(K, 2)`): Points the curve passes through, y up.
        curve (`np.ndarray` of shape `(P, K)`): `curve @ control` is the stroke with its corners.
        cut (`np.ndarray` of shape `(P, K)`): `cut @ control` is the stroke with its corners cut.
    """

    control: np.ndarray
    curve: np.ndarray
    cut: np.ndarray


@dataclass(frozen=True, eq=False)
class Glyph:
    """One way to write a symbol.

    Args:
        strokes (`tuple[GlyphStroke, ...]`): In writing order.
        weight (`float`): How common it is among the glyphs of its symbol.
        joined (`bool`): Whether it belongs to a joined-up hand.
        box (`tuple[float, float, float, float]`): Left, bottom, right, top of its curves, y up.
    """

    strokes: tuple[GlyphStroke, ...]
    weight: float
    joined: bool
    box: tuple[float, float, float, float]


@cache
def glyphs_of(token: str) -> tuple[Glyph, ...]:
    """All glyphs of a visible token, own shapes first.

    Raises:
        KeyError: The token has no shape of its own (`{`, `\\frac`, `\\sin`, ...).
    """
    glyphs = [_parse_shape(shape) for shape in SHAPES[token]]
    for font, (weight, joined, characters) in HERSHEY.items():
        for character, written in characters.items():
            if written == token:
                glyphs.append(_make_glyph(_hershey_strokes(font, character), weight, joined))
    return tuple(glyphs)


def straight_glyph(points: Sequence[tuple[float, float]]) -> Glyph:
    """A glyph of one stroke with a corner at every point, for bars and root signs."""
    return _make_glyph([(np.asarray(points, dtype=np.float64), [True] * len(points))], 1.0, False)


def reshape_glyph(glyph: Glyph, rng: np.random.Generator) -> Glyph:
    """The same glyph as one particular person has learnt to write it: wider or narrower, with a larger head or foot,
    bent, and every part of it a little different."""
    left, bottom, right, top = glyph.box
    middle = np.array([(left + right) / 2, (bottom + top) / 2])
    # Thin glyphs (1, -, a point) are not distorted in proportion to the side that they lack.
    size = np.maximum([right - left, top - bottom], 0.2 * max(right - left, top - bottom))
    terms = rng.normal(0, _PERSONAL)  # (2, 5): for x and y, what each term below contributes
    strokes = []
    for stroke in glyph.strokes:
        u, v = ((stroke.control - middle) / size).T
        bent = terms @ np.stack([u, v, u * v, u * u, v * v])  # (2, K)
        noise = rng.normal(0, np.minimum(0.4, 0.05 * size), stroke.control.shape)
        strokes.append(GlyphStroke(stroke.control + size * bent.T + noise, stroke.curve, stroke.cut))
    return Glyph(tuple(strokes), glyph.weight, glyph.joined, _box_of(strokes))


def _box_of(strokes: Sequence[GlyphStroke]) -> tuple[float, float, float, float]:
    points = np.concatenate([stroke.curve @ stroke.control for stroke in strokes])
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    return float(left), float(bottom), float(right), float(top)


def _parse_shape(shape: str) -> Glyph:
    weight, _, rest = shape.rpartition("*")
    joined = "~" in rest
    strokes = []
    for stroke in rest.replace("~", "").split(";"):
        points = stroke.split()
        corners = [point.endswith("!") for point in points]
        control = np.array([[float(value) for value in point.rstrip("!").split(",")] for point in points])
        strokes.append((control, corners))
    return _make_glyph(strokes, float(weight or 1), joined)


def _hershey_strokes(font: str, character: str) -> list[tuple[np.ndarray, list[bool]]]:
    scale = _HERSHEY_DIGIT if character.isdigit() else _HERSHEY_CAPITAL
    if character.islower():
        scale = _HERSHEY_SMALL.get(font, scale)
    strokes = []
    for stroke in _hershey_font(font).strokes_for_text(character):
        points = np.asarray(stroke, dtype=np.float64)
        points = points[np.r_[True, (np.diff(points, axis=0) != 0).any(axis=1)]]
        if len(points) < 2:
            continue
        points = np.stack([points[:, 0], _HERSHEY_BASELINE - points[:, 1]], axis=1) * scale
        strokes.append(_thinned(points))
    return sorted(strokes, key=lambda stroke: np.ptp(stroke[0], axis=0).max() <= _DOT)


@cache
def _hershey_font(font: str) -> Any:
    try:
        from HersheyFonts import HersheyFonts
    except ImportError as error:
        raise ImportError("synthetic ink needs the Hershey fonts: pip install Hershey-Fonts") from error
    fonts = HersheyFonts()
    fonts.load_default_font(font)
    return fonts


def _thinned(points: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """A font's polyline with its corners found and every other vertex of its curves left out.

    The fonts draw curves as polylines of many short edges; noise on every vertex would tremble instead of bend.
    """
    edges = np.diff(points, axis=0)
    edges /= np.linalg.norm(edges, axis=1, keepdims=True)
    corner = np.r_[False, (edges[:-1] * edges[1:]).sum(axis=1) < _SHARP_TURN, False]
    keep = corner.copy()
    keep[[0, -1]] = True
    for index in range(1, len(points) - 1):
        keep[index] |= not keep[index - 1]
    return points[keep], corner[keep].tolist()


def _make_glyph(strokes: list[tuple[np.ndarray, list[bool]]], weight: float, joined: bool) -> Glyph:
    made = tuple(_make_stroke(*_subdivided(control, corners)) for control, corners in strokes)
    return Glyph(made, weight, joined, _box_of(made))


def _subdivided(control: np.ndarray, corners: list[bool]) -> tuple[np.ndarray, list[bool]]:
    """Adds control points inside long straight parts, so that they can bow."""
    points, flags = [control[0]], [True]
    for index in range(1, len(control)):
        sharp = corners[index] or index == len(control) - 1
        if sharp and flags[-1]:  # both ends are corners, so the part between them is straight
            pieces = max(1, round(float(np.linalg.norm(control[index] - control[index - 1])) / CONTROL_STEP))
            for piece in range(1, pieces):
                points.append(control[index - 1] + (control[index] - control[index - 1]) * piece / pieces)
                flags.append(False)
        points.append(control[index])
        flags.append(sharp)
    return np.array(points), flags


def _make_stroke(control: np.ndarray, corners: list[bool]) -> GlyphStroke:
    bounds = [index for index, corner in enumerate(corners) if corner]
    count = len(control)
    parts = []
    for first, last in pairwise(bounds):
        part = _spline_matrix(control[first : last + 1])
        rows = np.zeros((len(part), count))
        rows[:, first : last + 1] = part
        parts.append(rows if first == 0 else rows[1:])
    curve = np.concatenate(parts)
    return GlyphStroke(control, curve, _smoothing_matrix(curve @ control) @ curve)


def _spline_matrix(control: np.ndarray) -> np.ndarray:
    """Matrix (P, K) of the centripetal Catmull-Rom spline through K points, P about one for each `POINT_STEP`."""
    count = len(control)
    chords = np.linalg.norm(np.diff(control, axis=0), axis=1)
    knots = np.r_[0, np.cumsum(np.sqrt(np.maximum(chords, 1e-3)))]
    slopes = np.zeros((count, count))  # tangent at each point as a linear map of the points
    for i in range(count):
        before, after = max(i - 1, 0), min(i + 1, count - 1)
        slopes[i, after] += 1 / (knots[after] - knots[before])
        slopes[i, before] -= 1 / (knots[after] - knots[before])
    rows = [np.eye(count)[:1]]
    for i, chord in enumerate(chords):
        t = np.linspace(0, 1, max(2, round(chord / POINT_STEP)) + 1)[1:, None]
        span = knots[i + 1] - knots[i]
        unit = np.eye(count)
        rows.append(
            (2 * t**3 - 3 * t**2 + 1) * unit[i]
            + (t**3 - 2 * t**2 + t) * span * slopes[i]
            + (3 * t**2 - 2 * t**3) * unit[i + 1]
            + (t**3 - t**2) * span * slopes[i + 1]
        )
    return np.concatenate(rows)


def _smoothing_matrix(points: np.ndarray) -> np.ndarray:
    """Gaussian smoothing along the curve that leaves its two ends in place."""
    along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    # The width shrinks towards the ends, where there is nothing beyond to average with.
    width = np.minimum(CORNER_RADIUS, np.minimum(along, along[-1] - along) / 2 + 1e-6)[:, None]
    weights = np.exp(-0.5 * ((along[:, None] - along[None, :]) / width) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)
