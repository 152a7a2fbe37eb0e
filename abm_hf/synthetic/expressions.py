"""Synthetic ink: any number of handwritten expressions with exact labels and symbols, from a seed.

A grammar draws an expression (`grammar.py`), a hand writes it (`layout.py`, `hand.py`, `glyphs.py`). For tests and
examples, and a source for pre-training.

The same seed gives the same ink in every process. Coordinates are whole device units and times whole milliseconds, so
that the last bits in which mathematical libraries differ from one platform to the next do not show.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ..ink.strokes import Ink, Symbol
from ..latex.normalization import LatexError, normalize_latex, parse_latex
from .grammar import ExpressionGrammar
from .hand import Hand, sample_strokes
from .layout import Layout, Written

#: Levels of braces inside each other that are written; CROHME has up to 5.
DEEPEST = 50


def synthetic_ink(
    seed: int,
    *,
    min_tokens: int = 1,
    max_tokens: int = 80,
    convention: str = "written",
    writer: int | None = None,
) -> Ink:
    """One handwritten expression.

    Args:
        seed (`int`): Not negative; the same seed gives the same ink.
        min_tokens, max_tokens (`int`, *optional*, defaults to 1 and 80):
            Bounds of the number of tokens of the label. Within them lengths are distributed as in CROHME.
        convention (`str`, *optional*, defaults to `"written"`):
            Of the label, see `normalize_latex`. `"written"`, that of CROHME's training labels, uses all 110 tokens;
            `"abm"`, that of its test labels, has neither `\\limits` nor `'`, which may leave a token or two fewer
            than `min_tokens`.
        writer (`int`, *optional*):
            Whose hand writes it; the seed decides when left out. Expressions of one writer share slant, proportions,
            favourite shapes, speed and device.

    Returns:
        [`Ink`]: `label` is the token string; `symbols` stand in the order of the label and
        every stroke belongs to exactly one; strokes are (x, y, t) with t in seconds; `annotations` name the writer.

    Raises:
        ValueError: `min_tokens` is under 1 or above `max_tokens`, the convention is unknown or the seed negative.
        ImportError: The Hershey fonts are not installed.
    """
    rng = _generator(seed)
    tokens = ExpressionGrammar(rng).expression(min_tokens, max_tokens)
    if convention != "written":
        tokens = normalize_latex(" ".join(tokens), convention=convention)
    return _write(tokens, rng, int(rng.integers(2**31)) if writer is None else writer)


def handwritten(latex: str | Sequence[str], seed: int, *, writer: int | None = None) -> Ink:
    """Writes a given expression by hand.

    Args:
        latex (`str` or `Sequence[str]`): Token string (or tokens) over the vocabulary of CROHME.
        seed (`int`): Not negative; the same seed gives the same ink.
        writer (`int`, *optional*): Whose hand writes it; the seed decides when left out.

    Raises:
        LatexError: It is not well-formed, holds a token that cannot be written (the error names it) or no symbol, or
            is nested deeper than [`DEEPEST`] levels.
    """
    rng = _generator(seed)
    tokens = latex.split() if isinstance(latex, str) else list(latex)
    return _write(tokens, rng, int(rng.integers(2**31)) if writer is None else writer)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _write(tokens: Sequence[str], rng: np.random.Generator, writer: int) -> Ink:
    depth = max(accumulate((token == "{") - (token == "}") for token in tokens), default=0)
    if depth > DEEPEST:
        raise LatexError(f"{depth} levels of nesting are more than the {DEEPEST} that can be written")
    hand = Hand.of(writer)
    block = Layout(hand, rng).lay_out(parse_latex(tokens))
    dense: list[np.ndarray] = []
    strokes_of: dict[Written, tuple[int, ...]] = {}
    for written in block.writing:
        traced = written.trace(hand, rng)
        strokes_of[written] = tuple(range(len(dense), len(dense) + len(traced)))
        dense += traced
    strokes = sample_strokes(_deform(dense, hand, rng), hand, rng)
    symbols = tuple(Symbol(written.token, strokes_of[written]) for written in block.label)
    return Ink(tuple(strokes), " ".join(tokens), symbols, {"writer": f"synthetic-{writer}", "source": "synthetic"})


def _deform(strokes: list[np.ndarray], hand: Hand, rng: np.random.Generator) -> list[np.ndarray]:
    """What happens to a line as a whole: it slopes, wanders, and is drawn out here and squeezed there."""
    points = np.concatenate(strokes)
    x, y = points[:, 0], points[:, 1]
    slope = hand.slope + rng.normal(0, 0.006)
    moved = np.stack([x * np.cos(slope) - y * np.sin(slope), x * np.sin(slope) + y * np.cos(slope)], axis=1)
    for amplitude, shortest, axes in (
        (hand.drift, 60, (1,)),
        (hand.elastic, 25, (0, 1)),
        (0.5 * hand.elastic, 12, (0, 1)),
    ):
        for axis in axes:
            period = shortest * np.exp(rng.uniform(0, 1))
            angle = 0.0 if axis == 1 and axes == (1,) else rng.uniform(0, 2 * np.pi)
            phase = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
            moved[:, axis] += amplitude * np.sin(phase + rng.uniform(0, 2 * np.pi))
    bounds = np.cumsum([len(stroke) for stroke in strokes])[:-1]
    return np.split(moved, bounds)
