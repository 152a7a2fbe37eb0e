"""New expressions from old ink: puts a part of one written expression in the place of a part of another.

First each symbol of the ink is matched with its token in the label ([`align_symbols`]), which the segmentation of
CROHME does not say where a token occurs twice: top-down along the structure tree, every row is cut from left to right
and every fraction, root and script by its geometry, and the number of each token in every piece must come out right.
Ink for which it does not is refused rather than guessed.

Then [`substitute`] exchanges single symbols for others of their shape, or for the same one in another hand; and
[`recombine`] exchanges script, numerator, denominator, radicand or the inside of a fence for a part of the same
kind from other ink: scaled to the same size of writing, with bars above and below stretched and everything to the
right moved on. What would collide is refused. The label changes with the ink and stays well-formed. Nothing of this
happens unless it is called.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from abm_hf.data.ink import Ink, Symbol
from abm_hf.data.latex import LARGE_OPERATORS, Fraction, Group, Node, Root, Row, Scripts, parse_latex
from abm_hf.data.latex import Symbol as Leaf

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


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> tuple[float, float]:
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


class _Aligner:
    """Splits sets of symbols along the tree; every method returns symbols in the order of the label."""

    def __init__(self, ink: Ink):
        self.looks = [_look(symbol.label) for symbol in ink.symbols]
        self.boxes = [_box_of([ink.strokes[index] for index in symbol.strokes]) for symbol in ink.symbols]

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
        if Counter(self.looks[index] for index in members) != Counter(_look(token) for token in _written(node)):
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
        candidates = [index for index in members if self.looks[index] == _look(base.token)]
        if not candidates:
            raise _Mismatch
        if base.token in LARGE_OPERATORS:  # scripts may stick out to its left
            return [max(candidates, key=lambda index: self.boxes[index].bottom - self.boxes[index].top)]
        return [min(candidates, key=lambda index: self.boxes[index].left)]


def recombine(
    target: Alignment, donor: Alignment, rng: np.random.Generator, *, attempts: int = 10, max_growth: float = 1.2
) -> Ink | None:
    """Puts a part of `donor` in the place of a part of the same kind of `target`.

    Args:
        target, donor ([`Alignment`]): From [`align_symbols`].
        rng (`np.random.Generator`): Chooses the parts.
        attempts (`int`, *optional*, defaults to 10): How many pairs of parts to try.
        max_growth (`float`, *optional*, defaults to 1.2): How much higher what a fence or a root encloses may
            become; other parts may grow 1.4 times as much.

    Returns:
        [`Ink`] of x and y with the new label and symbols in its order, or `None` if no pair of parts fits.
    """
    pairs = [(mine, theirs) for mine in target.slots for theirs in donor.slots if mine.kind == theirs.kind]
    for choice in rng.permutation(len(pairs))[:attempts]:
        mine, theirs = pairs[choice]
        if target.tokens[slice(*mine.tokens)] != donor.tokens[slice(*theirs.tokens)]:
            old, new = _strokes_of(target, mine), _strokes_of(donor, theirs)
            scale = _writing_size(old) / _writing_size(new)
            ink = _exchange(target, mine, donor, theirs, scale, max_growth)
            if ink is not None:
                return ink
    return None


class SymbolBank:
    """All symbols of a collection of ink, by shape and token, to draw from.

    Args:
        alignments (`Sequence[Alignment]`): From [`align_symbols`].
    """

    def __init__(self, alignments: Sequence[Alignment]):
        self._found: dict[str, dict[str, list[tuple[Alignment, Slot]]]] = {}
        for alignment in alignments:
            for slot in alignment.symbols:
                tokens = self._found.setdefault(slot.kind, {})
                tokens.setdefault(alignment.tokens[slot.tokens[0]], []).append((alignment, slot))

    def draw(self, kind: str, rng: np.random.Generator) -> tuple[Alignment, Slot] | None:
        """A symbol of that kind; rare tokens come more often than their share, as the root of their number."""
        tokens = self._found.get(kind)
        if not tokens:
            return None
        names = list(tokens)
        shares = np.sqrt([len(tokens[name]) for name in names])
        found = tokens[names[int(rng.choice(len(names), p=shares / shares.sum()))]]
        return found[int(rng.integers(len(found)))]


def substitute(target: Alignment, bank: SymbolBank, rng: np.random.Generator, *, share: float = 0.5) -> Alignment:
    """Exchanges symbols for others of the same shape: digits for digits, relations for relations, an x for an n.

    Args:
        target ([`Alignment`]): From [`align_symbols`].
        bank ([`SymbolBank`]): Where the others come from.
        rng (`np.random.Generator`): Chooses the symbols.
        share (`float`, *optional*, defaults to 0.5): Of the symbols that are exchanged; fewer, where they do not fit.

    Returns:
        [`Alignment`]: `target` itself where nothing was exchanged.
    """
    for place in np.flatnonzero(rng.random(len(target.symbols)) < share):
        mine = target.symbols[place]
        drawn = bank.draw(mine.kind, rng)
        if drawn is None:
            continue
        donor, theirs = drawn
        scale = _extent(_box_of_slot(target, mine), mine.kind) / _extent(_box_of_slot(donor, theirs), mine.kind)
        ink = _exchange(target, mine, donor, theirs, scale, max_growth=1.2)
        if ink is not None and ink.label is not None:
            target = Alignment(ink, tuple(ink.label.split()), target.slots, target.symbols)
    return target


def _box_of_slot(alignment: Alignment, slot: Slot) -> _Box:
    return _box_of([stroke for symbol in _strokes_of(alignment, slot) for stroke in symbol])


def _extent(box: _Box, kind: str) -> float:
    """What makes symbols of one shape equally large: their height, or the larger side where some are flat."""
    width, height = box.right - box.left, box.bottom - box.top
    flat = kind in ("operator", "relation") or height < 0.3 * width
    return max(width, height) if flat else max(height, 1e-6 * width, 1e-9)


def _exchange(
    target: Alignment, mine: Slot, donor: Alignment, theirs: Slot, scale: float, max_growth: float
) -> Ink | None:
    old, new = _strokes_of(target, mine), _strokes_of(donor, theirs)
    old_box = _box_of([stroke for symbol in old for stroke in symbol])
    new = [[stroke * scale for stroke in symbol] for symbol in new]
    box = _box_of([stroke for symbol in new for stroke in symbol])
    height, old_height = box.bottom - box.top, old_box.bottom - old_box.top
    room = max(old_height, _writing_size(old))
    # Fences and roots do not grow in height; scripts, numerators and denominators have some air beside them.
    limit = max_growth if mine.kind in ("fence", "radicand") else 1.4 * max_growth
    if not 0.4 * room <= height <= limit * room:
        return None
    growth = (box.right - box.left) - (old_box.right - old_box.left)
    beside = _beside(target, mine, old_box)
    if growth < 0 and any(0 < share < 1 for share in beside):  # what stands above or below keeps its width
        start, growth = old_box.left - growth / 2, 0.0
    else:
        start = old_box.left
    place = np.array([start - box.left, _level(mine.kind, old_box, box)])
    placed = [[stroke + place for stroke in symbol] for symbol in new]
    others = _make_room(target, mine, old_box, growth, beside)
    if _crowded(target, mine, others, placed):
        return None
    tokens = [
        *target.tokens[: mine.tokens[0]],
        *donor.tokens[slice(*theirs.tokens)],
        *target.tokens[mine.tokens[1] :],
    ]
    labels = donor.ink.symbols[slice(*theirs.symbols)]
    symbols = target.ink.symbols
    pieces = [*zip(symbols[: mine.symbols[0]], others[: mine.symbols[0]], strict=True)]
    pieces += zip(labels, placed, strict=True)
    pieces += zip(symbols[mine.symbols[1] :], others[mine.symbols[0] :], strict=True)
    return _assemble(tokens, pieces)


def _level(kind: str, old: _Box, new: _Box) -> float:
    """How far to move the new part down: it stands on, hangs from, or is centred on the line of the old one."""
    if kind in ("sup", "numerator"):
        return old.bottom - new.bottom
    if kind in ("sub", "denominator"):
        return old.top - new.top
    return old.middle[1] - new.middle[1]


def _others(target: Alignment, mine: Slot) -> list[tuple[str, list[np.ndarray]]]:
    """Look and strokes of every symbol outside the part."""
    symbols = target.ink.symbols[: mine.symbols[0]] + target.ink.symbols[mine.symbols[1] :]
    return [(_look(s.label), [target.ink.strokes[index][:, :2] for index in s.strokes]) for s in symbols]


def _beside(target: Alignment, mine: Slot, old: _Box) -> list[float]:
    """How much of the growth of the part each other symbol moves by: 0 to its left, 1 to its right.

    What stands above or below moves by half, to stay in the middle; but scripts begin at the same place.
    """
    shares = []
    for look, strokes in _others(target, mine):
        box = _box_of(strokes)
        middle = box.middle[0]
        if _spans(look, box, old) or middle <= old.left:
            shares.append(0.0)
        elif middle >= old.right:
            shares.append(1.0)
        else:
            shares.append(1e-9 if mine.kind in ("sub", "sup") else 0.5)
    return shares


def _spans(look: str, box: _Box, old: _Box) -> bool:
    """Whether a symbol is a bar over or under the part, which grows with it."""
    slack = 0.1 * (old.right - old.left)
    return look in ("-", "\\sqrt") and box.left <= old.left + slack and box.right >= old.right - slack


def _make_room(target: Alignment, mine: Slot, old: _Box, growth: float, beside: list[float]) -> list[list[np.ndarray]]:
    """The other symbols of the target, moved and stretched for a part that is wider by `growth`."""
    moved: list[list[np.ndarray]] = []
    for (look, strokes), share in zip(_others(target, mine), beside, strict=True):
        if _spans(look, _box_of(strokes), old):
            moved.append([_stretched(stroke, old, growth) for stroke in strokes])
        else:
            moved.append([stroke + np.array([share * growth, 0.0]) for stroke in strokes])
    return moved


def _stretched(stroke: np.ndarray, old: _Box, growth: float) -> np.ndarray:
    share = np.clip((stroke[:, 0] - old.left) / max(old.right - old.left, 1e-9), 0, 1)
    return np.column_stack([stroke[:, 0] + share * growth, stroke[:, 1]])


def _crowded(target: Alignment, mine: Slot, others: list[list[np.ndarray]], placed: list[list[np.ndarray]]) -> bool:
    """Whether symbols cover each other that did not before; roots and fences may cover what they enclose."""
    before = _others(target, mine)
    part = _box_of([stroke for symbol in placed for stroke in symbol])
    boxes = [_box_of(strokes) for strokes in others]
    solid = [look != "\\sqrt" for look, _ in before]
    if any(free and _cover(part, box) > 0.3 for box, free in zip(boxes, solid, strict=True)):
        return True
    old = [_box_of(strokes) for _, strokes in before]
    for i in range(len(boxes)):
        for k in range(i):
            if solid[i] and solid[k] and _cover(boxes[i], boxes[k]) > _cover(old[i], old[k]) + 0.15:
                return True
    return False


def _cover(one: _Box, other: _Box) -> float:
    """Share of the smaller box that lies inside the other, the lesser of the shares of width and of height."""
    across = min(one.right, other.right) - max(one.left, other.left)
    down = min(one.bottom, other.bottom) - max(one.top, other.top)
    widths = min(one.right - one.left, other.right - other.left)
    heights = min(one.bottom - one.top, other.bottom - other.top)
    return max(0.0, min(across / max(widths, 1e-9), down / max(heights, 1e-9)))


def _assemble(tokens: list[str], pieces: Sequence[tuple[Symbol, list[np.ndarray]]]) -> Ink:
    strokes: list[np.ndarray] = []
    symbols = []
    for symbol, own in pieces:
        symbols.append(Symbol(symbol.label, tuple(range(len(strokes), len(strokes) + len(own)))))
        strokes += own
    return Ink(tuple(strokes), " ".join(tokens), tuple(symbols), {"source": "recombined"})


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


def _look(label: str) -> str:
    return _LOOKS.get(label, label)


def _strokes_of(alignment: Alignment, slot: Slot) -> list[list[np.ndarray]]:
    ink = alignment.ink
    return [[ink.strokes[i][:, :2] for i in symbol.strokes] for symbol in ink.symbols[slice(*slot.symbols)]]


def _writing_size(symbols: list[list[np.ndarray]]) -> float:
    """Mean height of the strokes that are not flat; of flat strokes, their width."""
    sides = np.array([np.ptp(stroke[:, :2], axis=0) for strokes in symbols for stroke in strokes])
    heights = sides[:, 1][10 * sides[:, 1] > sides.max()]
    return float(heights.mean() if len(heights) else sides.max()) or 1.0


def _box_of(strokes: Sequence[np.ndarray]) -> _Box:
    points = np.concatenate(strokes)[:, :2]
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return _Box(float(left), float(top), float(right), float(bottom))


def _union(boxes: Sequence[_Box]) -> _Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return _Box(min(lefts), min(tops), max(rights), max(bottoms))
