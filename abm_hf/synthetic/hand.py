"""How one person writes: the habits of a hand, and the pen that turns placed glyphs into strokes of points.

A [`Hand`] is what stays the same over a page (slant, proportions, favourite shapes, care, speed, the device); what
changes from symbol to symbol is drawn again each time within its limits.
"""

import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from .glyphs import Glyph, glyphs_of, reshape_glyph


@dataclass(eq=False)
class Hand:
    """The habits of one writer. Lengths are in tenths of the height of a small letter, angles in radians.

    Args:
        slant (`float`): Shear to the right of upright strokes.
        aspect (`float`): Width of symbols relative to the shapes in `synthetic_shapes`.
        small_letters (`float`): Height of small letters relative to capitals and digits.
        wobble (`float`): Standard deviation by which the pen misses the points of a shape.
        corner_cut (`float`): 0 turns sharply at corners, 1 rounds them.
        joined (`float`): 0 prints, 1 writes joined-up shapes.
        size_noise, tilt_noise, baseline_noise (`float`):
            Spread of size (relative), tilt and height from symbol to symbol.
        gap (`float`): Space between neighbours.
        operator_gap (`float`): Further space around operators and relations.
        gap_noise (`float`): Relative spread of the spaces.
        script_size (`float`): Size of scripts relative to their base.
        script_rise (`float`): How far scripts stand from the middle of their base, relative to the usual.
        line_gap (`float`): Space between what stands above each other, as around fraction bars.
        fraction_size (`float`): Size of numerators and denominators relative to the line.
        operator_size (`float`): Size of sums and integrals relative to their shapes.
        overhang (`float`): How far bars reach over what they cover.
        slope (`float`): Angle of the line of writing.
        drift (`float`): Amplitude of the slow wander of the line.
        elastic (`float`): Amplitude of the slow distortion of everything.
        speed (`float`): Pen speed on a straight stretch, small-letter heights each second.
        rate (`float`): Points the device reports each second.
        resolution (`float`): Device units in a tenth of a small letter.
        writer (`int`): Number of the writer, from which favourite shapes and their proportions follow.
    """

    slant: float
    aspect: float
    small_letters: float
    wobble: float
    corner_cut: float
    joined: float
    size_noise: float
    tilt_noise: float
    baseline_noise: float
    gap: float
    operator_gap: float
    gap_noise: float
    script_size: float
    script_rise: float
    line_gap: float
    fraction_size: float
    operator_size: float
    overhang: float
    slope: float
    drift: float
    elastic: float
    speed: float
    rate: float
    resolution: float
    writer: int
    _favourites: dict[str, int] = field(default_factory=dict)
    _shapes: dict[tuple[str, int], Glyph] = field(default_factory=dict)

    @classmethod
    def of(cls, writer: int) -> "Hand":
        """The hand of a writer, whom a number stands for."""
        rng = np.random.Generator(np.random.PCG64(writer))
        care = rng.beta(2, 2.2)  # one number that makes the irregularities of a hurried writer go together
        normal, uniform = rng.normal, rng.uniform
        return cls(
            slant=float(np.clip(normal(0.1, 0.16), -0.3, 0.55)),
            aspect=float(np.exp(normal(0.02, 0.14))),
            small_letters=float(np.clip(np.exp(normal(0.05, 0.13)), 0.8, 1.5)),
            wobble=0.2 + 0.48 * care * uniform(0.5, 1.3),
            corner_cut=float(np.clip(normal(0.5, 0.35), 0, 1.2)),
            joined=float(rng.beta(0.9, 1.3)),
            size_noise=0.04 + 0.1 * care * uniform(0.4, 1.3),
            tilt_noise=np.radians(1.2 + 4.5 * care * uniform(0.3, 1.3)),
            baseline_noise=0.3 + 1.3 * care * uniform(0.3, 1.3),
            gap=float(np.exp(normal(1.15, 0.45))),
            operator_gap=float(np.exp(normal(1.15, 0.75))),
            gap_noise=uniform(0.2, 0.6),
            script_size=float(np.clip(normal(0.66, 0.09), 0.45, 0.9)),
            script_rise=float(np.clip(normal(1.15, 0.3), 0.6, 2.2)),
            line_gap=float(np.exp(normal(1.05, 0.35))),
            fraction_size=float(np.clip(normal(0.88, 0.09), 0.65, 1.05)),
            operator_size=float(np.exp(normal(0.2, 0.2))),
            overhang=float(np.exp(normal(0.8, 0.6))),
            slope=float(np.radians(normal(0.2, 1.4))),
            drift=0.9 * care * uniform(0, 1.6),
            elastic=0.2 + 0.9 * care * uniform(0, 1.4),
            speed=float(np.exp(normal(2.3, 0.35))),
            rate=float(np.exp(uniform(np.log(28), np.log(140)))),
            resolution=float(np.exp(uniform(np.log(2.5), np.log(40)))),
            writer=writer,
        )

    def glyph(self, token: str, rng: np.random.Generator) -> Glyph:
        """This writer's way to write a token: nearly always the favourite shape, sometimes another.

        Favourites and their proportions depend on the writer alone, `rng` decides about this one time.
        """
        glyphs = glyphs_of(token)
        if token not in self._favourites:
            own = _generator_for(self.writer, token)
            self._favourites[token] = self._choose(glyphs, own.random())
        chosen = self._favourites[token] if rng.random() < 0.93 else self._choose(glyphs, rng.random())
        key = (token, chosen)
        if key not in self._shapes:
            self._shapes[key] = reshape_glyph(glyphs[chosen], _generator_for(self.writer, f"{token} {chosen}"))
        return self._shapes[key]

    def _choose(self, glyphs: tuple[Glyph, ...], uniform: float) -> int:
        weights = [glyph.weight * (0.05 + (self.joined if glyph.joined else 1 - self.joined)) for glyph in glyphs]
        return min(bisect_right(list(accumulate(weights)), uniform * sum(weights)), len(glyphs) - 1)


def _generator_for(writer: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([writer, zlib.crc32(name.encode())]))


@dataclass(eq=False)
class Mark:
    """A glyph put in its place. `x, y` is where its origin goes (y up), `width` and `height` its scales."""

    glyph: Glyph
    x: float
    y: float
    width: float
    height: float
    tilt: float = 0.0
    shear: float = 0.0
    #: Replaces the control points of a one-stroke glyph whose form depends on its place.
    control: np.ndarray | None = None


def trace_mark(mark: Mark, hand: Hand, rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes of one glyph in place: arrays of shape `(P, 2)`, y up, densely sampled."""
    small = min(abs(mark.width), abs(mark.height))
    # A small symbol is written less exactly than a large one, relative to its size.
    noise = hand.wobble * small ** (-0.35) if mark.control is None else hand.wobble * 0.75
    cut = float(np.clip(hand.corner_cut + rng.normal(0, 0.2), 0, 1.2))
    matrix = np.array([[mark.width, 0.0], [mark.shear * mark.height, mark.height]])  # row vectors: point @ matrix
    if mark.tilt:
        cosine, sine = np.cos(mark.tilt), np.sin(mark.tilt)
        matrix = matrix @ np.array([[cosine, sine], [-sine, cosine]])
    strokes = []
    for stroke in mark.glyph.strokes:
        control = stroke.control if mark.control is None else mark.control
        moved = control + rng.normal(0.0, noise, control.shape)
        moved[0] += rng.normal(0.0, 0.4 * noise, 2)
        moved[-1] += rng.normal(0.0, 0.7 * noise, 2)  # pens lift carelessly: strokes end short or overshoot
        curve = stroke.curve @ moved if cut < 0.05 else (1 - cut) * (stroke.curve @ moved) + cut * (stroke.cut @ moved)
        strokes.append(curve @ matrix + (mark.x, mark.y))
    return strokes


def join_strokes(letters: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Writes the letters of a word in one go: their first strokes become one, dots and bars follow afterwards."""
    body = np.concatenate([letter[0] for letter in letters])
    return [body, *(stroke for letter in letters for stroke in letter[1:])]


def sample_strokes(strokes: list[np.ndarray], hand: Hand, rng: np.random.Generator) -> list[np.ndarray]:
    """What the device reports: points at equal intervals of time, in whole device units.

    The pen slows down in curves by the two-thirds power law (Lacquaniti et al. 1983) and at both ends of a stroke.

    Args:
        strokes (`list[np.ndarray]`): Dense strokes of shape `(P, 2)` with y up, in writing order.

    Returns:
        `list[np.ndarray]`: Strokes of shape `(N, 3)`: x right, y down, time in seconds. Coordinates are not negative.
    """
    corner = np.concatenate(strokes)
    left, top = corner[:, 0].min(), corner[:, 1].max()
    reported, clock = [], 0.0
    for stroke in strokes:
        times = _pen_times(stroke, hand)
        count = max(2, int(np.ceil(times[-1] * hand.rate * rng.uniform(0.85, 1.15))))
        at = np.linspace(0, times[-1], count)
        points = np.empty((count, 3))
        points[:, 0] = np.interp(at, times, stroke[:, 0]) - left
        points[:, 1] = top - np.interp(at, times, stroke[:, 1])
        points[:, :2] = np.rint(points[:, :2] * hand.resolution)
        points[:, 2] = np.rint((clock + at) * 1000) / 1000
        reported.append(points)
        clock += times[-1] + rng.uniform(0.08, 0.45)
    return reported


def _pen_times(stroke: np.ndarray, hand: Hand) -> np.ndarray:
    """Seconds since pen-down at each point of a dense stroke."""
    steps = np.diff(stroke, axis=0)
    lengths = np.sqrt((steps * steps).sum(axis=1)) + 1e-6
    turn = np.zeros(len(lengths))
    if len(steps) > 1:
        cross = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
        dot = (steps[:-1] * steps[1:]).sum(axis=1)
        turn[1:] = np.abs(np.arctan2(cross, dot)) / (0.5 * (lengths[:-1] + lengths[1:]))
    along = np.cumsum(lengths)
    to_end = np.minimum(along, along[-1] - along + lengths[-1])
    speed = 10 * hand.speed * (1 + 6 * turn) ** (-1 / 3) * np.minimum(1, 0.3 + 0.18 * to_end)
    return np.r_[0.0, np.cumsum(lengths / speed)]
