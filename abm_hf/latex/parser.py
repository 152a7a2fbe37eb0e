"""The grammar of the field's LaTeX token form, and its strict parser.

The token form writes one expression as LaTeX tokens with every brace explicit, `\\frac { x ^ { 2 } } { 3 }`.
[`parse_latex`] accepts exactly the sequences that this grammar derives, [`is_well_formed`] is its yes or no, and
grammar-constrained decoding guarantees it:

    row      := item*
    item     := nucleus ["\\limits"] script*          at most one subscript and one superscript, in either order
              | script+                              scripts on an empty base, as in ^ { 1 4 } C
    script   := ("_" | "^") group
    group    := "{" row "}"
    nucleus  := symbol | group
              | "\\frac" group group
              | "\\sqrt" ["[" row "]"] group           the first "]" ends the index
              | command ["[" row "]"] group{n}       see `ARGUMENT_COUNTS` and `INDEXED_COMMANDS`
              | "\\begin{name}" row "\\end{name}"
    symbol   := any other token: one character but none of $ % # ~, or a control sequence

"\\limits" stands directly after a large operator only and "&" only between "\\begin" and "\\end". A prime `'` is a
symbol, but as it is a superscript to LaTeX it cannot follow one. Parentheses, brackets, `\\{`, `\\}` and `|` are
ordinary symbols and need not balance; `\\left`, `\\right` and `\\over` do not occur. Nothing here is recursive:
nesting costs no Python stack, however deep it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .tree import (
    Command,
    Environment,
    Fraction,
    Group,
    Node,
    Root,
    Row,
    Scripts,
    Symbol,
    add_scripts,
    base_of,
    prime_conflict,
    takes_limits,
)


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
    **dict.fromkeys(("\\frac", "\\binom", "\\overset", "\\underset", "\\stackrel"), 2),
    **dict.fromkeys(("\\sqrt", "\\overline", "\\underline", "\\hat", "\\widehat", "\\tilde", "\\widetilde"), 1),
    **dict.fromkeys(("\\bar", "\\vec", "\\dot", "\\ddot", "\\check", "\\breve", "\\acute", "\\grave"), 1),
    **dict.fromkeys(("\\overrightarrow", "\\overleftarrow", "\\overbrace", "\\underbrace", "\\mathring"), 1),
    **dict.fromkeys(("\\xrightarrow", "\\xleftarrow", "\\xlongequal", "\\boxed", "\\cancel", "\\textcircled"), 1),
    **dict.fromkeys(("\\mathbb", "\\mathcal", "\\mathfrak", "\\mathscr", "\\mathop"), 1),
}
"""Commands that take brace groups in the token form, and how many. CROHME uses `\\frac` and `\\sqrt` only."""

INDEXED_COMMANDS = frozenset(("\\sqrt", "\\xrightarrow", "\\xleftarrow", "\\xlongequal"))
"""Commands that may take an index in brackets before their groups."""

_CONTROL_SEQUENCE = re.compile(r"\\(?:[A-Za-z]+|[^A-Za-z\s])")
_BEGIN = re.compile(r"\\begin\{[A-Za-z]+\*?\}")
_FORBIDDEN = frozenset("$%#~\\")
_MISPLACED = frozenset(("}", "\\left", "\\right", "\\middle", "\\begin", "\\end", "\\over", "\\atop", "\\choose"))


@dataclass
class _Frame:
    """A bracket that is still open: `opener` is the command it belongs to, `closer` the token that ends it."""

    opener: str
    closer: str | None  # None for the whole expression
    position: int
    items: list[Node] = field(default_factory=list)
    arguments: list[Row] = field(default_factory=list)
    index: Row | None = None


class _Parser:
    """One pass over the tokens with a stack of open brackets."""

    def __init__(self, tokens: Sequence[str]):
        self.tokens = tokens
        self.position = 0
        self.stack = [_Frame("", None, 0)]
        self.environments = 0

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
        elif token in _MISPLACED or token.startswith("\\end{"):
            raise self._error(f"{token!r} has no place here" + (f", {top.closer!r} is open" if top.closer else ""))
        elif token in ("_", "^"):
            self._check_script(token)
            self._open(_Frame(token, "}", self.position))
        elif token == "\\limits":
            self._limits()
        elif token == "{":
            self._push(_Frame("{", "}", self.position))
        elif token in INDEXED_COMMANDS and self.tokens[self.position + 1 : self.position + 2] == ["["]:
            self.position += 1
            self._push(_Frame(token, "]", self.position - 1))
        elif token in ARGUMENT_COUNTS:
            self._open(_Frame(token, "}", self.position))
        elif _BEGIN.fullmatch(token):
            self._push(_Frame(token, "\\end" + token[len("\\begin") :], self.position))
        else:
            self._symbol(token)

    def _push(self, frame: _Frame) -> None:
        self.environments += frame.opener.startswith("\\begin{")
        self.stack.append(frame)
        self.position += 1

    def _open(self, frame: _Frame) -> None:
        """Enters the brace group that has to follow the current token."""
        self.position += 1
        found = self.tokens[self.position] if self.position < len(self.tokens) else None
        if found != "{":
            shown = "the end" if found is None else repr(found)
            raise self._error(f"{frame.opener!r} needs a brace group, found {shown}")
        self._push(frame)

    def _close(self) -> None:
        frame = self.stack.pop()
        row = Row(tuple(frame.items))
        if frame.closer == "]":
            self._open(_Frame(frame.opener, "}", frame.position, index=row))
            return
        frame.arguments.append(row)
        if len(frame.arguments) < ARGUMENT_COUNTS.get(frame.opener, 1):
            frame.items = []
            self._open(frame)
            return
        self.environments -= frame.opener.startswith("\\begin{")
        self._finish(frame)
        self.position += 1

    def _finish(self, frame: _Frame) -> None:
        items = self.stack[-1].items
        if frame.opener in ("_", "^"):
            row = frame.arguments[0]
            scripts = Scripts(None, row) if frame.opener == "_" else Scripts(None, None, row, sub_first=False)
            merged = add_scripts(base_of(items), scripts)
            assert merged is not None  # _check_script saw to it
            items[len(items) - (base_of(items) is not None) :] = [merged]
        elif frame.opener == "{":
            items.append(Group(frame.arguments[0]))
        elif frame.opener == "\\frac":
            items.append(Fraction(*frame.arguments))
        elif frame.opener == "\\sqrt":
            items.append(Root(frame.arguments[0], frame.index))
        elif frame.opener.startswith("\\begin{"):
            items.append(Environment(frame.opener[len("\\begin{") : -1], frame.arguments[0]))
        else:
            items.append(Command(frame.opener, tuple(frame.arguments), frame.index))

    def _check_script(self, token: str) -> None:
        items = self.stack[-1].items
        empty = Row(())
        scripts = Scripts(None, empty) if token == "_" else Scripts(None, None, empty)
        base = base_of(items)
        merged = add_scripts(base, scripts)
        if merged is None or (base is not None and prime_conflict(items, len(items) - 1, merged)):
            raise self._error(f"a second {'subscript' if token == '_' else 'superscript'} on one base")

    def _limits(self) -> None:
        items = self.stack[-1].items
        base = base_of(items)
        if base is None or not takes_limits(base):
            raise self._error("'\\limits' is allowed directly after a large operator only")
        items[-1] = Scripts(base, limits=True)
        self.position += 1

    def _symbol(self, token: str) -> None:
        one_character = len(token) == 1 and not token.isspace() and token not in _FORBIDDEN
        if not one_character and not _CONTROL_SEQUENCE.fullmatch(token):
            raise self._error(f"{token!r} is not a token of LaTeX mathematics")
        if token == "&" and not self.environments:
            raise self._error("'&' is allowed between \\begin and \\end only")
        symbol = Symbol(token)
        items = self.stack[-1].items
        if prime_conflict(items, len(items), symbol):
            raise self._error(
                'a prime after a superscript is a second superscript: write it inside, "^ { 2 \\prime }"'
            )
        items.append(symbol)
        self.position += 1


def parse_latex(tokens: Sequence[str] | str) -> Row:
    """Parses the token form into a tree.

    Args:
        tokens (`Sequence[str]` or `str`): tokens, or a string of tokens separated by spaces.

    Returns:
        [`Row`]: the expression; `parse_latex(tokens).tokens()` gives the tokens back.

    Raises:
        LatexError: if the grammar at the top of this file does not derive the tokens; `.position` is the index of
            the token at fault (the number of tokens, if the end came too early).
    """
    return _Parser(tokens.split() if isinstance(tokens, str) else list(tokens)).parse()


def is_well_formed(tokens: Sequence[str] | str) -> bool:
    """Whether [`parse_latex`] accepts the tokens: the property that grammar-constrained decoding guarantees."""
    try:
        parse_latex(tokens)
    except LatexError:
        return False
    return True
