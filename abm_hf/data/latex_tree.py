"""The grammar of the field's LaTeX token form: a strict parser, and the small tree it builds.

The token form writes one expression as LaTeX tokens with every brace explicit, `\\frac { x ^ { 2 } } { 3 }`.
[`parse_latex`] accepts exactly the sequences that this grammar derives and [`is_well_formed`] is its yes or no; it
is what grammar-constrained decoding guarantees:

    row      := item*
    item     := nucleus ["\\limits"] script*          at most one subscript and one superscript, in either order;
                                                     "\\limits" directly after a large operator only
              | script+                              scripts on an empty base, as in ^ { 1 4 } C
    script   := ("_" | "^") group
    group    := "{" row "}"
    nucleus  := symbol | group
              | "\\frac" group group
              | "\\sqrt" ["[" row "]"] group           the first "]" of the index ends it
              | command group{n}                     the commands of `ARGUMENT_COUNTS`
              | "\\begin{name}" row "\\end{name}"       "&" is a symbol only in here
    symbol   := any other token: one character but none of $ % # ~, or a control sequence

Parentheses, brackets, `\\{`, `\\}`, `|` and the prime `'` are ordinary symbols and need not balance. Nothing here is
recursive: nesting costs no Python stack, however deep it is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


class LatexError(ValueError):
    """LaTeX that cannot be read or expressed.

    Attributes:
        position (`int` or `None`): index of the offending token, where there is one.
        token (`str` or `None`): the offending token itself.
    """

    def __init__(self, message: str, *, position: int | None = None, token: str | None = None):
        super().__init__(message)
        self.position = position
        self.token = token


ARGUMENT_COUNTS: Mapping[str, int] = {
    "\\frac": 2,
    "\\binom": 2,
    "\\overset": 2,
    "\\underset": 2,
    "\\stackrel": 2,
    "\\sqrt": 1,
    **dict.fromkeys(("\\overline", "\\underline", "\\hat", "\\widehat", "\\tilde", "\\widetilde", "\\bar"), 1),
    **dict.fromkeys(("\\vec", "\\dot", "\\ddot", "\\check", "\\breve", "\\acute", "\\grave", "\\mathring"), 1),
    **dict.fromkeys(("\\overrightarrow", "\\overleftarrow", "\\overbrace", "\\underbrace"), 1),
    **dict.fromkeys(("\\xrightarrow", "\\xleftarrow", "\\boxed", "\\cancel", "\\textcircled"), 1),
    **dict.fromkeys(("\\mathbb", "\\mathcal", "\\mathfrak", "\\mathscr", "\\mathbf"), 1),
}
"""Commands that take brace groups in the token form, and how many. CROHME uses the first and `\\sqrt` only."""

LARGE_OPERATORS = frozenset(
    ("\\sum", "\\prod", "\\coprod", "\\int", "\\iint", "\\iiint", "\\oint")
    + ("\\bigcup", "\\bigcap", "\\bigvee", "\\bigwedge", "\\bigoplus", "\\bigotimes", "\\biguplus", "\\bigsqcup")
    + ("\\lim", "\\limsup", "\\liminf", "\\max", "\\min", "\\sup", "\\inf", "\\det", "\\gcd", "\\Pr")
)
"""Symbols that may be followed by `\\limits`."""

_CONTROL_SEQUENCE = re.compile(r"\\(?:[A-Za-z]+|[^A-Za-z\s]|(?:begin|end)\{[A-Za-z]+\*?\})")
_FORBIDDEN = frozenset("$%#~")


class Node:
    """A part of an expression. Nodes are immutable, hashable, and equal when their tokens are."""

    def parts(self, canonical: bool = False) -> "Sequence[str | Node]":
        """The tokens and the child nodes that make up this node, in order."""
        raise NotImplementedError

    def tokens(self) -> list[str]:
        """The token form of this node, exactly as it was parsed."""
        return [part if isinstance(part, str) else part.token for part in _leaves(self, canonical=False)]

    def canonical_tokens(self) -> list[str]:
        """The token form without what does not show: subscript first, no `\\limits`, no redundant braces."""
        return [part if isinstance(part, str) else part.token for part in _leaves(self, canonical=True)]

    def canonical(self) -> "Row":
        """The tree of [`~Node.canonical_tokens`]: equal for two labels that differ in writing convention only."""
        return parse_latex(self.canonical_tokens())

    def structure(self) -> tuple[str, ...]:
        """The canonical form with every symbol replaced by `"."`: equal for trees that differ in symbols only."""
        return tuple(part if isinstance(part, str) else "." for part in _leaves(self, canonical=True))

    @property
    def depth(self) -> int:
        """Levels of nesting: 0 for a plain row of symbols, 1 for `x ^ { 2 }`, 2 for `\\frac { x ^ { 2 } } { 3 }`."""
        deepest = level = 0
        for token in self.canonical_tokens():
            if token == "{":
                level += 1
                deepest = max(deepest, level)
            elif token == "}":
                level -= 1
        return deepest

    def walk(self) -> "Iterator[Node]":
        """This node and every node below it, in reading order."""
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

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        return ()


@dataclass(frozen=True, eq=False, repr=False)
class Row(Node):
    """Nodes side by side."""

    items: tuple[Node, ...]

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        return self.items


@dataclass(frozen=True, eq=False, repr=False)
class Group(Node):
    """A row in braces of its own, `{ a b }`: one base for scripts, otherwise without effect."""

    body: Row

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        return (self.body,) if canonical else ("{", self.body, "}")


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

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        base = () if self.base is None else (self.base,)
        limits = ("\\limits",) if self.limits and not canonical else ()
        sub = () if self.sub is None else ("_", "{", self.sub, "}")
        sup = () if self.sup is None else ("^", "{", self.sup, "}")
        return (*base, *limits, *sub, *sup) if canonical or self.sub_first else (*base, *limits, *sup, *sub)


@dataclass(frozen=True, eq=False, repr=False)
class Fraction(Node):
    """`\\frac { numerator } { denominator }`."""

    numerator: Row
    denominator: Row

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        return ("\\frac", "{", self.numerator, "}", "{", self.denominator, "}")


@dataclass(frozen=True, eq=False, repr=False)
class Root(Node):
    """`\\sqrt { radicand }`, or `\\sqrt [ index ] { radicand }`."""

    radicand: Row
    index: Row | None = None

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        index = () if self.index is None else ("[", self.index, "]")
        return ("\\sqrt", *index, "{", self.radicand, "}")


@dataclass(frozen=True, eq=False, repr=False)
class Command(Node):
    """Any other command with its brace groups, `\\overline { x }`."""

    name: str
    arguments: tuple[Row, ...]

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        return (self.name, *(part for argument in self.arguments for part in ("{", argument, "}")))


@dataclass(frozen=True, eq=False, repr=False)
class Environment(Node):
    """`\\begin{name} body \\end{name}`; the separators `&` and `\\\\` are symbols of the body."""

    name: str
    body: Row

    def parts(self, canonical: bool = False) -> Sequence[str | Node]:
        return (f"\\begin{{{self.name}}}", self.body, f"\\end{{{self.name}}}")


def _leaves(root: Node, canonical: bool) -> Iterator[str | Symbol]:
    """Tokens of syntax as `str` and symbols as [`Symbol`], in order, without recursion."""
    stack: list[str | Node] = [root]
    while stack:
        part = stack.pop()
        if isinstance(part, str | Symbol):
            yield part
        else:
            stack.extend(reversed(part.parts(canonical)))


@dataclass
class _Frame:
    """A bracket that is still open: `opener` is the command it belongs to, `closer` the token that ends it."""

    opener: str
    closer: str
    position: int
    items: list[Node] = field(default_factory=list)
    arguments: list[Row] = field(default_factory=list)


class _Parser:
    """One pass over the tokens with a stack of open brackets."""

    def __init__(self, tokens: Sequence[str]):
        self.tokens = tokens
        self.position = 0
        self.stack = [_Frame("", "", 0)]

    def parse(self) -> Row:
        while self.position < len(self.tokens):
            self._step(self.tokens[self.position])
        if len(self.stack) > 1:
            frame = self.stack[-1]
            raise self._error(f"{frame.opener!r} is never closed by {frame.closer!r}", frame.position)
        return Row(tuple(self.stack[0].items))

    def _error(self, problem: str, position: int | None = None) -> LatexError:
        position = self.position if position is None else position
        token = self.tokens[position] if position < len(self.tokens) else None
        return LatexError(f"token {position}: {problem}", position=position, token=token)

    def _step(self, token: str) -> None:
        top = self.stack[-1]
        if token == top.closer:
            self._close()
        elif token in ("}", "\\left", "\\right") or token.startswith("\\end{"):
            raise self._error(f"{token!r} has no place here" + (f", {top.closer!r} is open" if top.closer else ""))
        elif token in ("_", "^"):
            self._check_script(token)
            self._open(token)
        elif token == "\\limits":
            self._limits()
        elif token == "{":
            self._push(_Frame("{", "}", self.position))
        elif token == "\\sqrt" and self._peek() == "[":
            self.position += 1
            self._push(_Frame("\\sqrt", "]", self.position - 1))
        elif token in ARGUMENT_COUNTS:
            self._open(token)
        elif token.startswith("\\begin{"):
            self._push(_Frame(token, "\\end" + token[len("\\begin") :], self.position))
        else:
            self._symbol(token)

    def _peek(self) -> str | None:
        return self.tokens[self.position + 1] if self.position + 1 < len(self.tokens) else None

    def _push(self, frame: _Frame) -> None:
        self.stack.append(frame)
        self.position += 1

    def _open(self, opener: str, arguments: Sequence[Row] = (), position: int | None = None) -> None:
        """Enters the brace group that has to follow the current token."""
        start = self.position if position is None else position
        if self._peek() != "{":
            self.position += 1
            found = "the end" if self.position >= len(self.tokens) else repr(self.tokens[self.position])
            raise self._error(f"{opener!r} needs a brace group, found {found}")
        self.position += 1
        self._push(_Frame(opener, "}", start, arguments=list(arguments)))

    def _close(self) -> None:
        frame = self.stack.pop()
        arguments = [*frame.arguments, Row(tuple(frame.items))]
        if frame.closer == "]" or len(arguments) < self._wanted(frame):
            self._open(frame.opener, arguments, frame.position)
            return
        self.position += 1
        items = self.stack[-1].items
        if frame.opener in ("_", "^"):
            self._attach(frame.opener, arguments[0])
        elif frame.opener == "{":
            items.append(Group(arguments[0]))
        elif frame.opener == "\\frac":
            items.append(Fraction(arguments[0], arguments[1]))
        elif frame.opener == "\\sqrt":
            items.append(Root(arguments[-1], arguments[0] if len(arguments) == 2 else None))
        elif frame.opener.startswith("\\begin{"):
            items.append(Environment(frame.opener[len("\\begin{") : -1], arguments[0]))
        else:
            items.append(Command(frame.opener, tuple(arguments)))

    @staticmethod
    def _wanted(frame: _Frame) -> int:
        return 1 if frame.opener == "\\sqrt" else ARGUMENT_COUNTS.get(frame.opener, 1)

    def _base(self) -> Node | None:
        """What a script at this place belongs to; nothing at the start of a row, of a cell and of a line."""
        items = self.stack[-1].items
        last = items[-1] if items else None
        return None if isinstance(last, Symbol) and last.token in ("&", "\\\\") else last

    def _check_script(self, token: str) -> None:
        base = self._base()
        if isinstance(base, Scripts) and (base.sub if token == "_" else base.sup) is not None:
            raise self._error(f"a second {'subscript' if token == '_' else 'superscript'} on one base")

    def _attach(self, kind: str, row: Row) -> None:
        items = self.stack[-1].items
        base = self._base()
        old = base if isinstance(base, Scripts) else Scripts(base)
        if base is not None:
            items.pop()
        if kind == "_":
            items.append(Scripts(old.base, row, old.sup, old.limits, sub_first=old.sup is None))
        else:
            items.append(Scripts(old.base, old.sub, row, old.limits, sub_first=old.sub is not None))

    def _limits(self) -> None:
        base = self._base()
        if not isinstance(base, Symbol) or base.token not in LARGE_OPERATORS:
            raise self._error("'\\limits' is allowed directly after a large operator only")
        self.stack[-1].items[-1] = Scripts(base, limits=True)
        self.position += 1

    def _symbol(self, token: str) -> None:
        one_character = len(token) == 1 and not token.isspace() and token not in _FORBIDDEN and token != "\\"
        if not one_character and not _CONTROL_SEQUENCE.fullmatch(token):
            raise self._error(f"{token!r} is not a token of LaTeX mathematics")
        if token == "&" and not any(frame.opener.startswith("\\begin{") for frame in self.stack):
            raise self._error("'&' is allowed between \\begin and \\end only")
        self.stack[-1].items.append(Symbol(token))
        self.position += 1


def parse_latex(tokens: Sequence[str] | str) -> Row:
    """Parses the token form into a tree.

    Args:
        tokens (`Sequence[str]` or `str`): tokens, or a string of tokens separated by spaces.

    Returns:
        [`Row`]: the expression; `parse_latex(tokens).tokens()` gives the tokens back.

    Raises:
        LatexError: if the tokens are not derived by the grammar at the top of this file; `.position` is the index of
            the token at fault (the number of tokens, if the end came too early).
    """
    return _Parser(tokens.split() if isinstance(tokens, str) else tokens).parse()


def is_well_formed(tokens: Sequence[str] | str) -> bool:
    """Whether [`parse_latex`] accepts the tokens: the property that grammar-constrained decoding guarantees."""
    try:
        parse_latex(tokens)
    except LatexError:
        return False
    return True
