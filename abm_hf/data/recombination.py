"""New expressions from old ink: puts a part of one written expression in the place of a part of another.

[`substitute`] exchanges single symbols for others of their shape, or for the same one in another hand. [`recombine`]
exchanges script, numerator, denominator, radicand or the inside of a fence for a part of the same kind from other
ink: scaled to the same size of writing, with bars above and below stretched and everything to the right moved on. What
would collide is refused. The label changes with the ink and stays well-formed. Nothing happens unless it is called.
"""

from collections.abc import Sequence

import numpy as np

from ..ink.alignment import Alignment, Box, Slot, box_of, look_of
from ..ink.strokes import Ink, Symbol


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


def _box_of_slot(alignment: Alignment, slot: Slot) -> Box:
    return box_of([stroke for symbol in _strokes_of(alignment, slot) for stroke in symbol])


def _extent(box: Box, kind: str) -> float:
    """What makes symbols of one shape equally large: their height, or the larger side where some are flat."""
    width, height = box.right - box.left, box.bottom - box.top
    flat = kind in ("operator", "relation") or height < 0.3 * width
    return max(width, height) if flat else max(height, 1e-6 * width, 1e-9)


def _exchange(
    target: Alignment, mine: Slot, donor: Alignment, theirs: Slot, scale: float, max_growth: float
) -> Ink | None:
    old, new = _strokes_of(target, mine), _strokes_of(donor, theirs)
    old_box = box_of([stroke for symbol in old for stroke in symbol])
    new = [[stroke * scale for stroke in symbol] for symbol in new]
    box = box_of([stroke for symbol in new for stroke in symbol])
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


def _level(kind: str, old: Box, new: Box) -> float:
    """How far to move the new part down: it stands on, hangs from, or is centred on the line of the old one."""
    if kind in ("sup", "numerator"):
        return old.bottom - new.bottom
    if kind in ("sub", "denominator"):
        return old.top - new.top
    return old.middle[1] - new.middle[1]


def _others(target: Alignment, mine: Slot) -> list[tuple[str, list[np.ndarray]]]:
    """Look and strokes of every symbol outside the part."""
    symbols = target.ink.symbols[: mine.symbols[0]] + target.ink.symbols[mine.symbols[1] :]
    return [(look_of(s.label), [target.ink.strokes[index][:, :2] for index in s.strokes]) for s in symbols]


def _beside(target: Alignment, mine: Slot, old: Box) -> list[float]:
    """How much of the growth of the part each other symbol moves by: 0 to its left, 1 to its right.

    What stands above or below moves by half, to stay in the middle; but scripts begin at the same place.
    """
    shares = []
    for look, strokes in _others(target, mine):
        box = box_of(strokes)
        middle = box.middle[0]
        if _spans(look, box, old) or middle <= old.left:
            shares.append(0.0)
        elif middle >= old.right:
            shares.append(1.0)
        else:
            shares.append(1e-9 if mine.kind in ("sub", "sup") else 0.5)
    return shares


def _spans(look: str, box: Box, old: Box) -> bool:
    """Whether a symbol is a bar over or under the part, which grows with it."""
    slack = 0.1 * (old.right - old.left)
    return look in ("-", "\\sqrt") and box.left <= old.left + slack and box.right >= old.right - slack


def _make_room(target: Alignment, mine: Slot, old: Box, growth: float, beside: list[float]) -> list[list[np.ndarray]]:
    """The other symbols of the target, moved and stretched for a part that is wider by `growth`."""
    moved: list[list[np.ndarray]] = []
    for (look, strokes), share in zip(_others(target, mine), beside, strict=True):
        if _spans(look, box_of(strokes), old):
            moved.append([_stretched(stroke, old, growth) for stroke in strokes])
        else:
            moved.append([stroke + np.array([share * growth, 0.0]) for stroke in strokes])
    return moved


def _stretched(stroke: np.ndarray, old: Box, growth: float) -> np.ndarray:
    share = np.clip((stroke[:, 0] - old.left) / max(old.right - old.left, 1e-9), 0, 1)
    return np.column_stack([stroke[:, 0] + share * growth, stroke[:, 1]])


def _crowded(target: Alignment, mine: Slot, others: list[list[np.ndarray]], placed: list[list[np.ndarray]]) -> bool:
    """Whether symbols cover each other that did not before; roots and fences may cover what they enclose."""
    before = _others(target, mine)
    part = box_of([stroke for symbol in placed for stroke in symbol])
    boxes = [box_of(strokes) for strokes in others]
    solid = [look != "\\sqrt" for look, _ in before]
    if any(free and _cover(part, box) > 0.3 for box, free in zip(boxes, solid, strict=True)):
        return True
    old = [box_of(strokes) for _, strokes in before]
    for i in range(len(boxes)):
        for k in range(i):
            if solid[i] and solid[k] and _cover(boxes[i], boxes[k]) > _cover(old[i], old[k]) + 0.15:
                return True
    return False


def _cover(one: Box, other: Box) -> float:
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


def _strokes_of(alignment: Alignment, slot: Slot) -> list[list[np.ndarray]]:
    ink = alignment.ink
    return [[ink.strokes[i][:, :2] for i in symbol.strokes] for symbol in ink.symbols[slice(*slot.symbols)]]


def _writing_size(symbols: list[list[np.ndarray]]) -> float:
    """Mean height of the strokes that are not flat; of flat strokes, their width."""
    sides = np.array([np.ptp(stroke[:, :2], axis=0) for strokes in symbols for stroke in strokes])
    heights = sides[:, 1][10 * sides[:, 1] > sides.max()]
    return float(heights.mean() if len(heights) else sides.max()) or 1.0
