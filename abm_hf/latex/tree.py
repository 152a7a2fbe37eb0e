"""The tree of an expression: what stands in, over, under and beside what.

[`parse_latex`] builds it. Nodes give their tokens back, and a canonical form in which labels of different writing
conventions agree. Nothing here is recursive: nesting costs no Python stack, however deep it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

LARGE_OPERATORS = frozenset(
    [
        *("\\sum", "\\prod", "\\coprod", "\\int", "\\iint", "\\iiint", "\\oint"),
        *("\\bigcup", "\\bigcap", "\\bigvee", "\\bigwedge", "\\bigoplus", "\\bigotimes", "\\biguplus", "\\bigsqcup"),
        *("\\lim", "\\limsup", "\\liminf", "\\max", "\\min", "\\sup", "\\inf", "\\det", "\\gcd", "\\Pr"),
    ]
)
"""Symbols that may be followed by `\\limits`; so may `\\mathop { ... }`."""

LimitsRule = Literal["drop", "keep", "put"]

_PUT_LIMITS = frozenset(("\\sum", "\\int", "\\lim"))
_SEPARATORS = frozenset(("&", "\\\\"))


class Node:
    """A part of an expression. Nodes are immutable, hashable, and equal when their types and tokens are."""

    def parts(self) -> "Sequence[str | Node]":
        """The tokens of syntax and the child nodes that make up this node, in order; nothing for a symbol."""
        raise NotImplementedError

    def tokens(self) -> list[str]:
        """The token form of this node, exactly as it was parsed."""
        return [part if isinstance(part, str) else part.token for part in _leaves(self)]

    def structure(self) -> tuple[str, ...]:
        """The canonical form with every symbol replaced by `"."`: equal for trees that differ in symbols only."""
        leaves = _leaves(self.canonical())
        return tuple(leaf if isinstance(leaf, str) else "&" if _is_separator(leaf) else "." for leaf in leaves)

    def canonical(self, *, sort_scripts: bool = True, limits: LimitsRule = "drop") -> "Row":
        """The tree without what does not show in handwriting.

        Redundant braces, empty scripts and `\\limits` go, and the subscript comes first: two labels of the same
        expression in different writing conventions have equal canonical trees.

        Args:
            sort_scripts (`bool`, defaults to `True`): put the subscript first; otherwise the order stays.
            limits (`str`, defaults to `"drop"`): `"keep"` leaves `\\limits` where it is, `"put"` sets it on every
                `\\sum`, `\\int` and `\\lim` with scripts.
        """
        builder = _Canonical(sort_scripts, limits)
        for node in reversed(list(self.walk())):  # children before their parents
            builder.visit(node)
        return builder.row(self)

    @property
    def depth(self) -> int:
        """Levels of nesting: 0 for a plain row of symbols, 1 for `x ^ { 2 }`, 2 for `\\frac { x ^ { 2 } } { 3 }`."""
        deepest = 0
        stack: list[tuple[Node, int]] = [(self.canonical(), 0)]
        while stack:
            node, level = stack.pop()
            deepest = max(deepest, level)
            for part in node.parts():
                if isinstance(part, Node):
                    stack.append((part, level + isinstance(part, Row)))
        return deepest

    def walk(self) -> "Iterator[Node]":
        """This node and every node below it, in reading order, each before its children."""
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(part for part in reversed(node.parts()) if isinstance(part, Node))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and type(self) is type(other) and self.tokens() == other.tokens()

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.tokens())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({' '.join(self.tokens())!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Symbol(Node):
    """One token that is written as one symbol."""

    token: str

    def parts(self) -> Sequence[str | Node]:
        return ()


@dataclass(frozen=True, eq=False, repr=False)
class Row(Node):
    """Nodes side by side."""

    items: tuple[Node, ...]

    def parts(self) -> Sequence[str | Node]:
        return self.items


@dataclass(frozen=True, eq=False, repr=False)
class Group(Node):
    """A row in braces of its own, `{ a b }`: one base for scripts, otherwise without effect."""

    body: Row

    def parts(self) -> Sequence[str | Node]:
        return ("{", self.body, "}")


@dataclass(frozen=True, eq=False, repr=False)
class Scripts(Node):
    """A base (`None` where it is empty) with a subscript, a superscript or both.

    `limits` tells that `\\limits` stood after the base, `sub_first` which script came first.
    """

    base: Node | None
    sub: Row | None = None
    sup: Row | None = None
    limits: bool = False
    sub_first: bool = True

    def parts(self) -> Sequence[str | Node]:
        base = () if self.base is None else (self.base,)
        limits = ("\\limits",) if self.limits else ()
        sub = () if self.sub is None else ("_", "{", self.sub, "}")
        sup = () if self.sup is None else ("^", "{", self.sup, "}")
        return (*base, *limits, *sub, *sup) if self.sub_first else (*base, *limits, *sup, *sub)


@dataclass(frozen=True, eq=False, repr=False)
class Fraction(Node):
    """`\\frac { numerator } { denominator }`."""

    numerator: Row
    denominator: Row

    def parts(self) -> Sequence[str | Node]:
        return ("\\frac", "{", self.numerator, "}", "{", self.denominator, "}")


@dataclass(frozen=True, eq=False, repr=False)
class Root(Node):
    """`\\sqrt { radicand }`, or `\\sqrt [ index ] { radicand }`."""

    radicand: Row
    index: Row | None = None

    def parts(self) -> Sequence[str | Node]:
        index = () if self.index is None else ("[", self.index, "]")
        return ("\\sqrt", *index, "{", self.radicand, "}")


@dataclass(frozen=True, eq=False, repr=False)
class Command(Node):
    """Any other command with its brace groups, `\\overline { x }`, and its index in brackets if it has one."""

    name: str
    arguments: tuple[Row, ...]
    index: Row | None = None

    def parts(self) -> Sequence[str | Node]:
        index = () if self.index is None else ("[", self.index, "]")
        return (self.name, *index, *(part for argument in self.arguments for part in ("{", argument, "}")))


@dataclass(frozen=True, eq=False, repr=False)
class Environment(Node):
    """`\\begin{name} body \\end{name}`; the separators `&` and `\\\\` are symbols of the body."""

    name: str
    body: Row

    def parts(self) -> Sequence[str | Node]:
        return (f"\\begin{{{self.name}}}", self.body, f"\\end{{{self.name}}}")


def _leaves(root: Node) -> Iterator[str | Symbol]:
    """Tokens of syntax as `str` and symbols as [`Symbol`], in order."""
    stack: list[str | Node] = [root]
    while stack:
        part = stack.pop()
        if isinstance(part, str | Symbol):
            yield part
        else:
            stack.extend(reversed(part.parts()))


def _is_separator(node: Node) -> bool:
    return isinstance(node, Symbol) and node.token in _SEPARATORS


def _is_prime(node: Node) -> bool:
    return isinstance(node, Symbol) and node.token == "'"


def takes_limits(node: Node) -> bool:
    """Whether `\\limits` may follow: a large operator, or `\\mathop { ... }`."""
    return (isinstance(node, Symbol) and node.token in LARGE_OPERATORS) or (
        isinstance(node, Command) and node.name == "\\mathop"
    )


def base_of(items: Sequence[Node]) -> Node | None:
    """What a script after `items` belongs to; nothing at the start of a row, of a cell and of a line."""
    return None if not items or _is_separator(items[-1]) else items[-1]


def add_scripts(base: Node | None, scripts: Scripts) -> Scripts | None:
    """`scripts` put on `base`; `None` where that would make two subscripts or two superscripts."""
    if not isinstance(base, Scripts):
        return Scripts(base, scripts.sub, scripts.sup, scripts.limits, scripts.sub_first)
    if None not in (base.sub, scripts.sub) or None not in (base.sup, scripts.sup):
        return None
    sub_first = base.sub is not None or (base.sup is None and scripts.sub_first)
    return Scripts(
        base.base, base.sub or scripts.sub, base.sup or scripts.sup, base.limits or scripts.limits, sub_first
    )


def prime_conflict(items: Sequence[Node], end: int, node: Node) -> bool:
    """Whether `node` behind `items[:end]` is a prime that makes a second superscript, or has a second subscript."""
    lead, sub = (node.base, node.sub) if isinstance(node, Scripts) else (node, None)
    if lead is None or not _is_prime(lead):
        return False
    while sub is not None and end > 0 and _is_prime(items[end - 1]):
        end -= 1
    nucleus = items[end - 1] if end > 0 else None
    if not isinstance(nucleus, Scripts):
        return False
    return (nucleus.sup is not None) or (sub is not None and nucleus.sub is not None)


class _Canonical:
    """Builds the canonical items of a node from those of its children, which come first."""

    def __init__(self, sort_scripts: bool, limits: LimitsRule):
        self.sort_scripts = sort_scripts
        self.limits = limits
        self.done: dict[int, list[Node]] = {}

    def visit(self, node: Node) -> None:
        self.done[id(node)] = self._items(node)

    def row(self, node: Node) -> Row:
        return Row(tuple(self.done[id(node)]))

    def _items(self, node: Node) -> list[Node]:
        match node:
            case Row(items):
                return self._join(items)
            case Group(body):
                return self.done[id(body)]
            case Scripts():
                return self._scripts(node)
            case Fraction(numerator, denominator):
                return [Fraction(self.row(numerator), self.row(denominator))]
            case Root(radicand, index):
                return [Root(self.row(radicand), None if index is None else self.row(index))]
            case Command(name, arguments, index):
                rows = tuple(self.row(argument) for argument in arguments)
                if name == "\\mathop" and len(rows[0].items) == 1 and takes_limits(rows[0].items[0]):
                    return [rows[0].items[0]]
                return [Command(name, rows, None if index is None else self.row(index))]
            case Environment(name, body):
                return [Environment(name, self.row(body))]
        return [node]

    def _join(self, children: Sequence[Node]) -> list[Node]:
        """The children side by side. Braces that kept scripts apart stay where dropping them would change the tree."""
        items: list[Node] = []
        for child in children:
            for node in self.done[id(child)]:
                if isinstance(node, Scripts) and node.base is None and (base := base_of(items)) is not None:
                    merged = add_scripts(base, node)
                    if merged is not None and not prime_conflict(items, len(items) - 1, merged):
                        items[-1] = self._sorted(merged)
                        continue
                    node = self._sorted(replace(node, base=Group(Row(()))))
                elif prime_conflict(items, len(items), node):
                    group = Group(Row((Symbol("'"),)))
                    node = replace(node, base=group) if isinstance(node, Scripts) else group
                items.append(node)
        return items

    def _scripts(self, node: Scripts) -> list[Node]:
        sub, sup = (None if row is None or not self.done[id(row)] else self.row(row) for row in (node.sub, node.sup))
        items = [] if node.base is None else list(self.done[id(node.base)])
        limits = self._has_limits(node.limits, items[-1] if items else None)
        if sub is None and sup is None:
            return items
        scripts = Scripts(None, sub, sup, limits, node.sub_first)
        merged = add_scripts(base_of(items), scripts)
        if merged is None or prime_conflict(items, len(items) - 1, merged) or (items and _is_separator(items[-1])):
            return [self._sorted(replace(scripts, base=Group(Row(tuple(items)))))]
        return [*items[:-1], self._sorted(merged)]

    def _has_limits(self, written: bool, base: Node | None) -> bool:
        if isinstance(base, Command):  # without it the script of \mathop would move from below it to beside it
            return written
        put = self.limits == "put" and isinstance(base, Symbol) and base.token in _PUT_LIMITS
        return put or (written and self.limits != "drop")

    def _sorted(self, scripts: Scripts) -> Scripts:
        return replace(scripts, sub_first=True) if self.sort_scripts else scripts
