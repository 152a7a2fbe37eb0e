"""Puts the symbols of an expression where a writer would: scripts, fractions, roots, limits, growing fences.

Every part of the expression becomes a [`Block`] with its baseline at y = 0 (y up); a parent moves the blocks of its
children into place. Each block lists its symbols twice: in the order of the label and in the order of writing.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..latex.normalization import Fraction, Group, LatexError, Node, Root, Row, Scripts, Symbol
from .glyphs import Glyph, straight_glyph
from .hand import Hand, Mark, join_strokes, trace_mark
from .shapes import SHAPES, SPELT

#: Height of `+`, `=` and fraction bars above the baseline, in tenths of a small letter.
AXIS = 5.5
SMALLEST_SCALE = 0.36

_SPACED = frozenset("+-=<>") | {
    "\\pm",
    "\\times",
    "\\div",
    "\\cdot",
    "\\leq",
    "\\geq",
    "\\neq",
    "\\rightarrow",
    "\\in",
}
_OPENING = {"(": ")", "[": "]", "\\{": "\\}"}
_CLOSING = frozenset(_OPENING.values())
_SMALL_LETTERS = frozenset("aceimnorsuvwxzgjpqy") | {"\\alpha", "\\gamma", "\\mu", "\\pi", "\\sigma"}
_TALL_OPERATORS = frozenset(("\\sum", "\\int"))
_SIGNS_ON_AXIS = _SPACED | {"\\cdots", "\\infty"}


class Written:
    """One symbol in place: its token and the marks it is made of."""

    __slots__ = ("joined", "marks", "token")

    def __init__(self, token: str, marks: list[Mark], joined: bool = False):
        self.token = token
        self.marks = marks
        self.joined = joined

    def trace(self, hand: Hand, rng: np.random.Generator) -> list[np.ndarray]:
        """Its strokes, dense, y up."""
        parts = [trace_mark(mark, hand, rng) for mark in self.marks]
        return join_strokes(parts) if self.joined else [stroke for part in parts for stroke in part]


@dataclass
class Block:
    """A laid-out part of an expression: its symbols and its extent (left is 0, baseline is 0, y up)."""

    label: list[Written]
    writing: list[Written]
    width: float
    bottom: float
    top: float
    token: str | None = None  # of a single symbol

    def move(self, x: float, y: float) -> "Block":
        for written in self.label:
            for mark in written.marks:
                mark.x += x
                mark.y += y
        self.bottom += y
        self.top += y
        return self


@cache
def _bar_glyph(pieces: int) -> Glyph:
    """A bar of unit length with room to bow."""
    return straight_glyph([(6.0 * piece, 0.0) for piece in range(pieces + 1)])


@cache
def _root_glyph(pieces: int) -> Glyph:
    """A root sign whose control points are replaced in place: hook, stroke down, stroke up, bar of so many pieces."""
    hook = [(0.0, 6.0), (2.0, 8.0), (5.0, 0.0), (7.5, 8.0), (10.0, 16.0)]
    return straight_glyph(hook + [(10.0 + 6.0 * piece, 16.0) for piece in range(1, pieces + 1)])


class Layout:
    """Lays out expressions in one hand.

    Args:
        hand ([`Hand`]): Whose habits to follow.
        rng (`np.random.Generator`): What varies from symbol to symbol.
    """

    def __init__(self, hand: Hand, rng: np.random.Generator):
        self.hand = hand
        self.rng = rng

    def lay_out(self, row: Row) -> Block:
        """The whole expression.

        Raises:
            LatexError: It has no symbol, or one that no hand here can write (the error names it).
        """
        block = self._row(row, 1.0)
        if not block.label:
            raise LatexError("there is no symbol to write")
        return block

    # -- numbers that vary

    def _normal(self, mean: float, deviation: float) -> float:
        return float(self.rng.normal(mean, deviation))

    def _positive(self, mean: float, relative: float) -> float:
        return mean * float(np.exp(self.rng.normal(0.0, relative)))

    # -- nodes

    def _node(self, node: Node, scale: float, extent: tuple[float, float] | None = None) -> Block:
        if isinstance(node, Symbol):
            return self._symbol(node.token, scale, extent)
        if isinstance(node, Scripts):
            return self._scripts(node, scale, extent)
        if isinstance(node, Fraction):
            return self._fraction(node, scale)
        if isinstance(node, Root):
            return self._root(node, scale)
        if isinstance(node, Group):
            return self._row(node.body, scale)
        raise LatexError(f"no hand here can write {' '.join(node.tokens()[:1])!r}", token=node.tokens()[0])

    def _row(self, row: Row, scale: float) -> Block:
        blocks = self._row_blocks(row.items, scale)
        result = Block([], [], 0.0, 0.0, 0.0)
        end, before = 0.0, ""
        for item, block in zip(row.items, blocks, strict=True):
            first, last = _outer_tokens(item)
            if result.label:
                end += self._gap(before, first, scale)
            block.move(end, 0.0)
            end += block.width
            before = last
            if result.label:
                result.bottom, result.top = min(result.bottom, block.bottom), max(result.top, block.top)
            else:
                result.bottom, result.top = block.bottom, block.top
            result.label += block.label
            result.writing += block.writing
        result.width = end
        result.token = blocks[0].token if len(blocks) == 1 else None
        return result

    def _row_blocks(self, items: tuple[Node, ...], scale: float) -> list[Block]:
        """The blocks of a row, fences last: they grow with what they enclose."""
        pairs = _matching_fences(items)
        fences = {index for pair in pairs for index in pair}
        blocks: dict[int, Block] = {
            index: self._node(item, scale) for index, item in enumerate(items) if index not in fences
        }
        for opening, closing in pairs:  # inner pairs come first
            inside = [blocks[index] for index in range(opening + 1, closing)]
            bottom = min((block.bottom for block in inside), default=0.0) - self._normal(1.5, 1.0) * scale
            top = max((block.top for block in inside), default=10.0 * scale) + self._normal(1.5, 1.0) * scale
            for index in (opening, closing):
                blocks[index] = self._node(items[index], scale, (bottom, top))
        return [blocks[index] for index in range(len(items))]

    def _gap(self, before: str, after: str, scale: float) -> float:
        hand = self.hand
        gap = self._positive(hand.gap, hand.gap_noise)
        if before in _SPACED or after in _SPACED:
            gap += self._positive(hand.operator_gap, hand.gap_noise)
        if before == "," or before in SPELT or before in _TALL_OPERATORS or before == "\\ldots":
            gap += self._positive(1.5, 0.5)
        if "\\frac" in (before, after) or before == "\\limits":
            gap += self._positive(1.2, 0.5)
        if after in SPELT:
            gap += self._positive(1.0, 0.5)
        if after in (",", "!", "'", "\\prime"):
            gap *= 0.5
        # A point must not vanish in the foot of the digit beside it, nor may letters merge as a rule.
        least = 2.0 if "." in (before, after) else 1.5 if after in ("!", "'", "\\prime") else 0.6
        return max(gap, least) * scale

    def _symbol(self, token: str, scale: float, extent: tuple[float, float] | None) -> Block:
        if token in SPELT:
            return self._word(token, scale)
        if token not in SHAPES:
            raise LatexError(f"no hand here can write {token!r}", token=token)
        hand = self.hand
        glyph = hand.glyph(token, self.rng)
        size = scale * self._positive(1.0, hand.size_noise)
        if token in _SMALL_LETTERS:
            size *= hand.small_letters
        if token in _TALL_OPERATORS:
            size *= hand.operator_size
        width = size * hand.aspect * self._positive(1.0, 0.7 * hand.size_noise)
        y = self._normal(0.0, hand.baseline_noise) * scale
        _, low, _, high = glyph.box
        if extent is not None:
            bottom, top = extent
            # A fence around ordinary symbols is not measured against each of them.
            top, bottom = max(top, self._normal(14, 2) * scale), min(bottom, self._normal(-2.5, 1.2) * scale)
            size = (top - bottom) / (high - low)
            y = bottom - low * size
            width = min(width * max(1.0, (size / scale) ** 0.6), size)
        elif token in _TALL_OPERATORS:
            y = AXIS * scale - size * (low + high) / 2 + y
        elif token == "-" and self.rng.random() < 0.5:
            width *= self._positive(1.0, 0.25)
        tilt = self._normal(0.0, hand.tilt_noise)
        shear = hand.slant if token not in _SIGNS_ON_AXIS else 0.3 * hand.slant
        shear *= min(1.0, 22.0 * scale / max((high - low) * size, 1.0))  # tall fences and integrals lean less
        return self._placed(token, Mark(glyph, 0.0, y, width, size, tilt, shear))

    def _placed(self, token: str, mark: Mark) -> Block:
        left, low, right, high = mark.glyph.box
        lean = [mark.shear * mark.height * value for value in (low, high)]
        # The box of a leaning symbol would keep its neighbours too far away: half of the lean is enough.
        start = left * mark.width + 0.5 * (min(lean) + lean[0])
        end = right * mark.width + 0.5 * (max(lean) + lean[0])
        mark.x -= start
        written = Written(token, [mark])
        bottom, top = mark.y + low * mark.height, mark.y + high * mark.height
        return Block([written], [written], end - start, bottom, top, token)

    def _word(self, token: str, scale: float) -> Block:
        joined = self.rng.random() < 0.7 * self.hand.joined
        marks: list[Mark] = []
        end, bottom, top = 0.0, 0.0, 0.0
        size = self._positive(0.95, self.hand.size_noise) * scale
        for letter in SPELT[token]:
            block = self._symbol(letter, size, None)
            block.move(end, 0.0)
            end += block.width + self._positive(0.8 if joined else max(0.6, 0.55 * self.hand.gap), 0.3) * size
            marks += block.label[0].marks
            bottom, top = min(bottom, block.bottom), max(top, block.top)
        written = Written(token, marks, joined)
        return Block([written], [written], end, bottom, top, token)

    def _scripts(self, node: Scripts, scale: float, extent: tuple[float, float] | None) -> Block:
        empty = Block([], [], 0.0, 0.0, 10.0 * scale)
        base = empty if node.base is None else self._node(node.base, scale, extent)
        if self._puts_limits(base.token, node.limits):
            return self._with_limits(node, base, scale)
        return self._with_scripts(node, base, scale)

    def _puts_limits(self, token: str | None, limits: bool) -> bool:
        """Whether the scripts go below and above: habit more than `\\limits` decides about that."""
        likely = {"\\sum": 0.85, "\\lim": 0.97, "\\int": 0.65 if limits else 0.06}
        return token in likely and self.rng.random() < likely[str(token)]

    def _with_limits(self, node: Scripts, base: Block, scale: float) -> Block:
        small = max(SMALLEST_SCALE, scale * self.hand.script_size * 0.92)
        parts = {
            name: self._row(row, small) for name, row in (("sub", node.sub), ("sup", node.sup)) if row is not None
        }
        width = max([base.width, *(part.width for part in parts.values())])
        base.move((width - base.width) / 2, 0.0)
        for name, part in parts.items():
            gap = self._positive(0.9 * self.hand.line_gap, 0.4) * scale
            x = (width - part.width) / 2 + self._normal(0.0, 1.0) * scale
            part.move(x, base.bottom - gap - part.top if name == "sub" else base.top + gap - part.bottom)
        return self._joined_blocks(node, base, parts, width)

    def _with_scripts(self, node: Scripts, base: Block, scale: float) -> Block:
        hand = self.hand
        small = max(SMALLEST_SCALE, scale * self._positive(hand.script_size, 0.08))
        parts = {
            name: self._row(row, 0.9 * scale if _is_prime(row) else small)
            for name, row in (("sub", node.sub), ("sup", node.sup))
            if row is not None
        }
        floor = base.bottom if base.token is None or base.token in _TALL_OPERATORS or base.token in _CLOSING else 0.0
        height = base.top - floor
        width = base.width
        for name, part in parts.items():
            gap = max(0.6, self._positive(0.6 * hand.gap, hand.gap_noise)) * scale
            if name == "sup":
                overlap = min(0.42, self._normal(0.3, 0.08) / hand.script_rise) * min(height, 18 * scale)
                y = base.top - overlap - part.bottom
                if _is_prime(node.sup):
                    y = base.top + self._normal(2.0, 1.0) * scale - part.top
                    gap = max(gap, 1.3 * scale)
            else:
                overlap = min(0.42, self._normal(0.27, 0.07) / hand.script_rise) * min(height, 18 * scale)
                y = floor + overlap - part.top
                if base.token == "\\int":
                    gap -= 0.3 * base.width
            part.move(base.width + gap, y)
            width = max(width, base.width + gap + part.width)
        if len(parts) == 2 and parts["sup"].bottom - parts["sub"].top < 0.8 * scale:
            apart = 0.8 * scale - (parts["sup"].bottom - parts["sub"].top)
            parts["sup"].move(0.0, apart / 2)
            parts["sub"].move(0.0, -apart / 2)
        return self._joined_blocks(node, base, parts, width)

    def _joined_blocks(self, node: Scripts, base: Block, parts: dict[str, Block], width: float) -> Block:
        label = [parts[name] for name in (("sub", "sup") if node.sub_first else ("sup", "sub")) if name in parts]
        writing = label[::-1] if self.rng.random() < 0.15 else label
        everything = [base, *label]
        return Block(
            [written for block in everything for written in block.label],
            [written for block in [base, *writing] for written in block.writing],
            max(width, base.width),
            min(block.bottom for block in everything),
            max(block.top for block in everything),
        )

    def _fraction(self, node: Fraction, scale: float) -> Block:
        hand = self.hand
        inner = max(SMALLEST_SCALE, scale * self._positive(hand.fraction_size, 0.05))
        numerator, denominator = self._row(node.numerator, inner), self._row(node.denominator, inner)
        overhang = [max(1.0, self._positive(hand.overhang, 0.4)) * scale for _ in range(2)]
        length = max(numerator.width, denominator.width, 6 * scale) + sum(overhang)
        axis = (AXIS + self._normal(0.0, 0.8)) * scale
        for block, above in ((numerator, True), (denominator, False)):
            gap = self._positive(max(1.6, hand.line_gap), 0.35) * scale
            x = (length - block.width) / 2 + self._normal(0.0, 0.06) * (length - block.width)
            block.move(x, axis + gap - block.bottom if above else axis - gap - block.top)
        bar = self._bar(length, axis, scale)
        order = [numerator, bar, denominator] if self.rng.random() < 0.8 else [bar, numerator, denominator]
        return Block(
            bar.label + numerator.label + denominator.label,
            [written for block in order for written in block.writing],
            length,
            min(denominator.bottom, axis),
            max(numerator.top, axis),
        )

    def _bar(self, length: float, axis: float, scale: float) -> Block:
        pieces = int(np.clip(round(length / 9), 1, 12))
        control = np.zeros((pieces + 1, 2))
        control[:, 0] = np.linspace(0, length, pieces + 1)
        control[:, 1] = axis + np.linspace(-0.5, 0.5, pieces + 1) * self._normal(0.0, 0.035) * length
        control[:, 1] += self._normal(0.0, 0.35) * scale * np.sin(np.linspace(0, np.pi, pieces + 1))
        written = Written("\\frac", [Mark(_bar_glyph(pieces), 0.0, 0.0, 1.0, 1.0, control=control)])
        return Block([written], [written], length, axis, axis)

    def _root(self, node: Root, scale: float) -> Block:
        body = self._row(node.radicand, scale)
        hook = self._positive(5.5, 0.2) * scale
        clear = max(1.8, self._positive(0.95 * self.hand.line_gap, 0.35)) * scale
        inset = self._positive(2.6, 0.35) * scale
        low, high = body.bottom - self._normal(0.3, 0.8) * scale, body.top + clear
        end = hook + inset + body.width + self._positive(1.5, 0.5) * scale
        pieces = int(np.clip(round((end - hook) / 9), 1, 10))
        valley, knee = 0.55 * hook, low + self._positive(0.42, 0.2) * (high - low)
        control = np.array(
            [(0.0, knee - 1.5 * scale), (0.22 * hook, knee), (valley, low), ((valley + hook) / 2, (low + high) / 2)]
            + [(hook, high)]
            + [(hook + (end - hook) * piece / pieces, high) for piece in range(1, pieces + 1)]
        )
        control[5:, 1] += np.linspace(0, 1, pieces) * self._normal(0.0, 0.03) * (end - hook)
        sign = Written("\\sqrt", [Mark(_root_glyph(pieces), 0.0, 0.0, 1.0, 1.0, control=control)])
        body.move(hook + inset, 0.0)
        result = Block([sign], [sign], end, min(low, body.bottom), high)
        if node.index is not None:
            self._add_index(result, node.index, knee, 0.35 * hook, scale)
        writing_first = self.rng.random() < 0.9
        result.label += body.label
        result.writing = result.writing + body.writing if writing_first else body.writing + result.writing
        return result

    def _add_index(self, root: Block, index: Row, knee: float, right: float, scale: float) -> None:
        """Writes the index of a root over its hook; the block grows to the left if the index is wide."""
        part = self._row(index, max(SMALLEST_SCALE, 0.55 * scale))
        part.move(right - part.width, knee + self._positive(1.8, 0.3) * scale - part.bottom)
        shift = max(0.0, part.width - right)
        root.label += part.label
        root.writing = part.writing + root.writing if self.rng.random() < 0.3 else root.writing + part.writing
        root.top = max(root.top, part.top)
        root.move(shift, 0.0)
        root.width += shift


def _outer_tokens(node: Node) -> tuple[str, str]:
    """The tokens that decide about the space before and after a node."""
    if isinstance(node, Symbol):
        return node.token, node.token
    if isinstance(node, Fraction):
        return "\\frac", "\\frac"
    if isinstance(node, Scripts) and isinstance(node.base, Symbol):
        token = node.base.token
        return token, "\\limits" if token in _TALL_OPERATORS else token if token in SPELT else ""
    return "", ""


def _fence_token(node: Node) -> str:
    if isinstance(node, Scripts) and node.base is not None:
        node = node.base
    return node.token if isinstance(node, Symbol) else ""


def _matching_fences(items: tuple[Node, ...]) -> list[tuple[int, int]]:
    """Pairs of indices of fences that belong together, inner pairs first; bars pair up in turn."""
    pairs: list[tuple[int, int]] = []
    open_fences: list[tuple[int, str]] = []
    for index, item in enumerate(items):
        token = _fence_token(item)
        if token in _OPENING or (token == "|" and all(closer != "|" for _, closer in open_fences)):
            open_fences.append((index, _OPENING.get(token, "|")))
        elif token == "|" or token in _CLOSING:
            for depth in range(len(open_fences) - 1, -1, -1):
                if open_fences[depth][1] == token:
                    pairs.append((open_fences[depth][0], index))
                    del open_fences[depth:]
                    break
    return pairs


def _is_prime(row: Row | None) -> bool:
    return row is not None and len(row.items) == 1 and _fence_token(row.items[0]) in ("'", "\\prime")
