"""Which stroke belongs to which token: matches the symbols of segmented ink with the tokens of its label.

The segmentation of CROHME does not say where a token occurs twice. So, top-down along the structure tree, every row is
cut from left to right and every fraction, root and script by its geometry, and the number of each token in every piece
must come out right. Ink for which it does not is refused rather than guessed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..latex.normalization import LARGE_OPERATORS, Fraction, Group, LatexError, Node, Root, Row, Scripts, parse_latex
from ..latex.normalization import Symbol as Leaf
from .strokes import Ink

#: Spellings that segmentations use for the tokens of labels, and tokens that look alike once written.
_LOOKS = {"\\lt": "<", "\\gt": ">", "COMMA": ",", "\\frac": "-", "\\cdots": "\\ldots", "\\cdot": ".", "'": "\\prime"}
_OPENING = {"(": ")", "[": "]", "\\{": "\\}"}
#: Symbols that stand in each other's place: as tall, on the same line, and of one role. All others only in their own.
_SHAPES = {
    token: shape
    for shape, tokens in {
        "digit": "0 1 2 3 4 5 6 7 8 9",
        "small": "a c e m n o r s u v w x z \\alpha \\pi \\sigma",
        "tall": "A B C E F G H I L M N P R S T V X Y b d f h i k l t \\Delta \\theta \\lambda",
        "hanging": "g j p q y \\beta \\gamma \\mu \\phi",
        "operator": "+ - \\pm \\times \\div",
        "relation": "= \\neq \\leq \\geq \\lt \\gt",
        "function": "\\sin \\cos \\tan \\log",
    }.items()
    for token in tokens.split()
}


@dataclass(frozen=True)
class Slot:
    """A part of an expression that another of the same kind can take the place of.

    Args:
        kind (`str`): `"sub"`, `"sup"`, `"numerator"`, `"denominator"`, `"radicand"` or `"fence"`; of a single symbol
            its shape, or its token.
        tokens (`tuple[int, int]`): First token of the part, and the one after its last.
        symbols (`tuple[int, int]`): The same among the symbols in the order of the label.
    """

    kind: str
    tokens: tuple[int, int]
    symbols: tuple[int, int]


@dataclass(frozen=True)
class Alignment:
    """Ink whose symbols stand in the order of its label's visible tokens.

    Args:
        ink ([`Ink`]): The ink, its `symbols` in that order and its `label` in the token form.
        tokens (`tuple[str, ...]`): The label.
        slots (`tuple[Slot, ...]`): Its exchangeable parts.
        symbols (`tuple[Slot, ...]`): Its exchangeable symbols.
    """

    ink: Ink
    tokens: tuple[str, ...]
    slots: tuple[Slot, ...]
    symbols: tuple[Slot, ...]

    @classmethod
    def of(cls, ink: Ink) -> "Alignment":
        """Of ink whose symbols stand in the order of its label already, as in what [`recombine`] gives.

        Raises:
            LatexError: The label is not in the token form.
        """
        tokens = tuple((ink.label or "").split())
        return cls(ink, tokens, *_slots(parse_latex(tokens)))


class _Mismatch(Exception):
    """Geometry and label do not agree."""


class Box(NamedTuple):
    """The sides of strokes' bounding box, in the ink's units, y down."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> tuple[float, float]:
        """x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def align_symbols(ink: Ink, label: str | None = None) -> Alignment | None:
    """Matches every symbol of the ink with its token.

    Args:
        ink ([`Ink`]): Ink with symbols that own every stroke exactly once.
        label (`str`, *optional*): Its label in the token form; `ink.label` when left out.

    Returns:
        [`Alignment`], or `None` where symbols and label do not agree or geometry leaves doubt.

    Raises:
        LatexError: The label is not in the token form (see `normalize_latex`).
    """
    words = tuple((ink.label or "" if label is None else label).split())
    tree = parse_latex(words)
    owned = sorted(index for symbol in ink.symbols for index in symbol.strokes)
    if owned != list(range(len(ink.strokes))):
        return None
    try:
        order = _Aligner(ink).row(tree, list(range(len(ink.symbols))))
    except _Mismatch:
        return None
    symbols = tuple(ink.symbols[index] for index in order)
    return Alignment.of(Ink(ink.strokes, " ".join(words), symbols, ink.annotations))


def strokes_of_tokens(ink: Ink, tokens: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The strokes of every token that is written, in the order of the label; see [`written_places`].

    Args:
        ink ([`Ink`]): With symbols in the label's order, or in any that [`align_symbols`] can bring into it.
        tokens (`Sequence[str]`): The label.

    Returns:
        Indices of strokes for each, or `None` where they are not known or the label cannot be parsed.
    """
    try:
        looks = [look_of(tokens[place]) for place in written_places(tokens)]
        if [look_of(symbol.label) for symbol in ink.symbols] != looks:
            aligned = align_symbols(ink, " ".join(tokens)) if ink.symbols else None
            if aligned is None:
                return None
            ink = aligned.ink
    except LatexError:
        return None
    return [symbol.strokes for symbol in ink.symbols]


def written_places(tokens: Sequence[str]) -> list[int]:
    """Indices of the tokens of a label that a hand writes: not those of braces and scripts, or a root's brackets.

    Raises:
        LatexError: The label is not in the token form.
    """
    places: list[int] = []

    def walk(node: Node, place: int) -> int:
        if isinstance(node, Leaf):
            places.append(place)
            return place + 1
        for part in node.parts():
            if isinstance(part, Node):
                place = walk(part, place)
                continue
            if part in ("\\frac", "\\sqrt"):
                places.append(place)
            place += 1
        return place

    walk(parse_latex(tuple(tokens)), 0)
    return places


class _Aligner:
    """Splits sets of symbols along the tree; every method returns symbols in the order of the label."""

    def __init__(self, ink: Ink):
        self.looks = [look_of(symbol.label) for symbol in ink.symbols]
        self.boxes = [box_of([ink.strokes[index] for index in symbol.strokes]) for symbol in ink.symbols]

    def row(self, row: Row, members: list[int]) -> list[int]:
        for side in (lambda box: box.middle[0], lambda box: box.left):
            ordered = sorted(members, key=lambda index: side(self.boxes[index]))
            try:
                return self._cut(row.items, ordered)
            except _Mismatch:
                continue
        raise _Mismatch

    def _cut(self, items: Sequence[Node], ordered: list[int]) -> list[int]:
        result, start = [], 0
        for item in items:
            size = len(_written(item))
            result += self._node(item, ordered[start : start + size])
            start += size
        if start != len(ordered):
            raise _Mismatch
        return result

    def _node(self, node: Node, members: list[int]) -> list[int]:
        self._agree(node, members)
        if isinstance(node, Leaf):
            return members
        if isinstance(node, Group):
            return self.row(node.body, members)
        if isinstance(node, Fraction):
            return self._fraction(node, members)
        if isinstance(node, Root):
            return self._root(node, members)
        if isinstance(node, Scripts) and node.base is not None:
            return self._scripts(node, node.base, members)
        raise _Mismatch

    def _agree(self, node: Node, members: Sequence[int]) -> None:
        if Counter(self.looks[index] for index in members) != Counter(look_of(token) for token in _written(node)):
            raise _Mismatch

    def _fraction(self, node: Fraction, members: list[int]) -> list[int]:
        bars = [index for index in members if self.looks[index] == "-"]
        bar = max(bars, key=lambda index: self.boxes[index].right - self.boxes[index].left)
        level = self.boxes[bar].middle[1]
        above = [index for index in members if index != bar and self.boxes[index].middle[1] < level]
        below = [index for index in members if index != bar and self.boxes[index].middle[1] >= level]
        self._agree(node.numerator, above)
        self._agree(node.denominator, below)
        return [bar, *self.row(node.numerator, above), *self.row(node.denominator, below)]

    def _root(self, node: Root, members: list[int]) -> list[int]:
        sign = min((i for i in members if self.looks[i] == "\\sqrt"), key=lambda index: self.boxes[index].left)
        rest = sorted((i for i in members if i != sign), key=lambda index: self.boxes[index].middle[0])
        size = len(_written(node.index)) if node.index is not None else 0
        index, body = rest[:size], rest[size:]
        result = [sign]
        if node.index is not None:
            self._agree(node.index, index)
            result += self.row(node.index, index)
        self._agree(node.radicand, body)
        return result + self.row(node.radicand, body)

    def _scripts(self, node: Scripts, base: Node, members: list[int]) -> list[int]:
        parts = self._base(base, members)
        rest = [index for index in members if index not in parts]
        level = _union([self.boxes[index] for index in parts]).middle[1]
        low = [index for index in rest if self.boxes[index].middle[1] > level]
        high = [index for index in rest if self.boxes[index].middle[1] <= level]
        found: list[int] = []
        for kind in ("sub", "sup") if node.sub_first else ("sup", "sub"):
            row, own = (node.sub, low) if kind == "sub" else (node.sup, high)
            if row is None:
                if own:
                    raise _Mismatch
                continue
            self._agree(row, own)
            found += self.row(row, own)
        return parts + found

    def _base(self, base: Node, members: list[int]) -> list[int]:
        if not isinstance(base, Leaf):
            ordered = sorted(members, key=lambda index: self.boxes[index].middle[0])
            return self._node(base, ordered[: len(_written(base))])
        candidates = [index for index in members if self.looks[index] == look_of(base.token)]
        if not candidates:
            raise _Mismatch
        if base.token in LARGE_OPERATORS:  # scripts may stick out to its left
            return [max(candidates, key=lambda index: self.boxes[index].bottom - self.boxes[index].top)]
        return [min(candidates, key=lambda index: self.boxes[index].left)]


def _slots(tree: Row) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """Every exchangeable part and symbol of the tree, found by walking it with the positions of its tokens in hand."""
    slots: list[Slot] = []
    symbols: list[Slot] = []

    def walk(node: Node, token: int, symbol: int) -> tuple[int, int]:
        kinds = _kinds(node)
        if isinstance(node, Leaf):
            kind = _SHAPES.get(node.token, node.token)
            symbols.append(Slot(kind, (token, token + 1), (symbol, symbol + 1)))
            return token + 1, symbol + 1
        starts = []
        for part in node.parts():
            starts.append((token, symbol))
            if isinstance(part, str):
                token, symbol = token + 1, symbol + (part in ("\\frac", "\\sqrt"))
            else:
                end = walk(part, token, symbol)
                if id(part) in kinds:
                    slots.append(Slot(kinds[id(part)], (token, end[0]), (symbol, end[1])))
                token, symbol = end
        starts.append((token, symbol))
        if isinstance(node, Row):
            for opening, closing in _fences(node):
                (t0, s0), (t1, s1) = starts[opening + 1], starts[closing]
                slots.append(Slot("fence", (t0, t1), (s0, s1)))
        return token, symbol

    walk(tree, 0, 0)
    return tuple(slot for slot in slots if slot.symbols[0] < slot.symbols[1]), tuple(symbols)


def _kinds(node: Node) -> dict[int, str]:
    """Which children of a node can be exchanged, by their identity."""
    if isinstance(node, Fraction):
        return {id(node.numerator): "numerator", id(node.denominator): "denominator"}
    if isinstance(node, Root):
        return {id(node.radicand): "radicand"}
    if isinstance(node, Scripts) and not (isinstance(node.base, Leaf) and node.base.token in LARGE_OPERATORS):
        return {id(row): kind for kind, row in (("sub", node.sub), ("sup", node.sup)) if row is not None}
    return {}


def _fences(row: Row) -> list[tuple[int, int]]:
    """Pairs of places in a row with a fence that opens and the one that closes it; the latter may have scripts."""
    pairs: list[tuple[int, int]] = []
    waiting: list[tuple[int, str]] = []
    for place, item in enumerate(row.items):
        node = item.base if isinstance(item, Scripts) else item
        token = node.token if isinstance(node, Leaf) else ""
        if token in _OPENING:
            waiting.append((place, _OPENING[token]))
        elif waiting and token == waiting[-1][1]:
            pairs.append((waiting.pop()[0], place))
    return pairs


def _written(node: Node) -> list[str]:
    """The tokens below a node that are written, in the order of the label."""
    if isinstance(node, Leaf):
        return [node.token]
    tokens: list[str] = []
    for part in node.parts():
        if isinstance(part, Node):
            tokens += _written(part)
        elif part in ("\\frac", "\\sqrt"):
            tokens.append(part)
    return tokens


def look_of(label: str) -> str:
    """The token that stands for all that look like `label` once written, or are other spellings of it."""
    return _LOOKS.get(label, label)


def box_of(strokes: Sequence[np.ndarray]) -> Box:
    """Around strokes of x, y and perhaps more."""
    points = np.concatenate(strokes)[:, :2]
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return Box(float(left), float(top), float(right), float(bottom))


def _union(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))
