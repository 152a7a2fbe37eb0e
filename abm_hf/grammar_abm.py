r"""The grammar of the token form as a pushdown automaton in tables, for constrained decoding in both directions.

The language is that of `parse_latex` (`data/latex_parser.py`), with which the tests compare it:

    row      := item*
    item     := nucleus ["\limits"] script*  |  script+
    script   := ("_" | "^") group                     at most one of each on one base
    group    := "{" row "}"
    nucleus  := symbol | group | command ["[" row "]"] group{n} | "\begin{name}" row "\end{name}"

It is stricter where TeX is. Directly within an index, outside of braces, there is no "[": of `\sqrt[\sqrt[3]{x}]{2}`
the first "]" would end the index (and parsers that pair brackets take `\sqrt[a[b]{c}` amiss). A prime is a superscript
of what is before it, and unless a superscript follows it at once the two do not become one: `x'_{1}'` and
`x'_{1}^{2}` have two.

Read from left to right it is deterministic. Read from right to left, a group is met before the command that takes it
and an index before the root that it belongs to; what is still undecided stays finite, so this automaton is
deterministic too (see [`_Backward`]).

A control of an automaton says what the innermost open bracket admits next; the stack holds the controls in which the
outer ones go on. Besides its moves, each control knows the fewest tokens that close it, so that a decoder can tell
what still fits before a maximal length.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

ARGUMENT_COUNTS: dict[str, int] = {
    **dict.fromkeys(("\\frac", "\\binom", "\\overset", "\\underset", "\\stackrel"), 2),
    **dict.fromkeys(("\\sqrt", "\\overline", "\\underline", "\\hat", "\\widehat", "\\tilde", "\\widetilde"), 1),
    **dict.fromkeys(("\\bar", "\\vec", "\\dot", "\\ddot", "\\check", "\\breve", "\\acute", "\\grave"), 1),
    **dict.fromkeys(("\\overrightarrow", "\\overleftarrow", "\\overbrace", "\\underbrace", "\\mathring"), 1),
    **dict.fromkeys(("\\xrightarrow", "\\xleftarrow", "\\xlongequal", "\\boxed", "\\cancel", "\\textcircled"), 1),
    **dict.fromkeys(("\\mathbb", "\\mathcal", "\\mathfrak", "\\mathscr", "\\mathop"), 1),
}
"""Commands that take brace groups, and how many."""

INDEXED_COMMANDS = frozenset(("\\sqrt", "\\xrightarrow", "\\xleftarrow", "\\xlongequal"))
"""Commands that may take an index in brackets before their group (of which they have one each)."""

LARGE_OPERATORS = frozenset(
    [
        *("\\sum", "\\prod", "\\coprod", "\\int", "\\iint", "\\iiint", "\\oint"),
        *("\\bigcup", "\\bigcap", "\\bigvee", "\\bigwedge", "\\bigoplus", "\\bigotimes", "\\biguplus", "\\bigsqcup"),
        *("\\lim", "\\limsup", "\\liminf", "\\max", "\\min", "\\sup", "\\inf", "\\det", "\\gcd", "\\Pr"),
    ]
)
r"""Symbols that may be followed by `\limits`; so may `\mathop { ... }`."""

NEVER = 1 << 20
"""The cost of what cannot be: more tokens than any sequence has."""

_SYMBOL = re.compile(r"[^\s$%#~\\]|\\(?:[A-Za-z]+|[^A-Za-z\s])")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{([A-Za-z]+\*?)\}")
_MISPLACED = frozenset(("\\left", "\\right", "\\middle", "\\begin", "\\end", "\\over", "\\atop", "\\choose"))
_SYNTAX = frozenset(("{", "}", "[", "]", "_", "^", "&", "'", "\\limits"))

# How a row may end, by what its last base can still take: all ("free"), \limits too, no second subscript, no second
# superscript, neither. "prime": behind primes, which take another prime or a superscript that follows at once.
_FREE, _LARGE, _PRIME, _SUB, _SUP, _BOTH = "free", "large", "prime", "sub", "sup", "both"
_ENDINGS = frozenset((_FREE, _LARGE, _PRIME, _SUB, _SUP, _BOTH))
_AFTER: dict[str, dict[str, str]] = {
    "plain": dict.fromkeys(_ENDINGS, _FREE),
    "large": dict.fromkeys(_ENDINGS, _LARGE),
    "'": {_FREE: _PRIME, _LARGE: _PRIME, _PRIME: _PRIME, _SUB: _SUB},
    "\\limits": {_LARGE: _FREE},
    "_": {_FREE: _SUB, _LARGE: _SUB, _PRIME: _BOTH, _SUP: _BOTH},
    "^": {_FREE: _SUP, _LARGE: _SUP, _PRIME: _SUP, _SUB: _BOTH},
}


class Role(NamedTuple):
    """What a token is to the grammar; tokens of one role can stand for each other."""

    kind: str  # "symbol", "command", "begin", "end", "stop" or the token itself
    item: str = "plain"  # the row of `_AFTER` that it makes, for symbols and commands
    groups: int = 0
    indexed: bool = False
    name: str = ""  # of an environment


class Move(NamedTuple):
    """What reading a token does: go to `then` (`None`: back to the control on the stack), having pushed `later`."""

    then: Hashable | None
    later: Hashable | None = None


_OVER = "over"  # the control after the end, and after anything that the grammar does not admit


def role_of(token: str) -> Role | None:
    """The role of a token; `None` if it is no token of the grammar."""
    if token in ARGUMENT_COUNTS:
        item = "large" if token == "\\mathop" else "plain"
        return Role("command", item, ARGUMENT_COUNTS[token], token in INDEXED_COMMANDS)
    if token in _SYNTAX:
        return Role(token)
    if environment := _ENVIRONMENT.fullmatch(token):
        return Role(environment[1], name=environment[2])
    if token in _MISPLACED or not _SYMBOL.fullmatch(token):
        return None
    return Role("symbol", "large" if token in LARGE_OPERATORS else "plain")


class _Row(NamedTuple):
    """Within a row that `closer` ends ("stop" for the whole expression), left to right."""

    ending: str
    closer: str
    in_environment: bool


class _Need(NamedTuple):
    """Before the groups of a command or a script."""

    groups: int
    indexed: bool
    in_environment: bool


class _Forward:
    """Left to right, as the parser does it."""

    start = _Row(_FREE, "stop", False)

    def move(self, control: Hashable, role: Role) -> Move | None:
        if isinstance(control, _Need):
            return self._argument(control, role)
        assert isinstance(control, _Row)
        if role.kind + role.name == control.closer:
            return Move(_OVER if role.kind == "stop" else None)
        if role.kind in ("}", "end", "stop") or (role.kind == "&" and not control.in_environment):
            return None
        if role.kind in ("_", "^", "'", "\\limits"):
            ending = _AFTER[role.kind].get(control.ending)
        else:
            ending = _AFTER[role.item][control.ending]
        if ending is None or (role.kind == "[" and control.closer == "]"):
            return None
        after = control._replace(ending=ending)
        inside = control.in_environment
        match role.kind:
            case "_" | "^":
                return Move(_Need(1, False, inside), after)
            case "{":
                return Move(_Row(_FREE, "}", inside), after)
            case "command":
                return Move(_Need(role.groups, role.indexed and control.closer != "]", inside), after)
            case "begin":
                return Move(_Row(_FREE, "end" + role.name, True), after)
        return Move(after)

    def _argument(self, control: _Need, role: Role) -> Move | None:
        inside = control.in_environment
        if role.kind == "{":
            later = _Need(control.groups - 1, False, inside) if control.groups > 1 else None
            return Move(_Row(_FREE, "}", inside), later)
        if role.kind == "[" and control.indexed:
            return Move(_Row(_FREE, "]", inside), control._replace(indexed=False))
        return None


class _Place(NamedTuple):
    """Within a row that `closer` ends, right to left.

    `endings`: how the row may end to the left of here, given what is to the right. `groups`: groups just read whose
    owner is not known yet, at most two. `bracket`: what may be an index has its "]" ("ended") or also its "["
    ("begun").
    """

    endings: frozenset[str]
    groups: int
    bracket: str
    closer: str
    in_environment: bool


class _Backward:
    r"""Right to left: the mirror image, determinised.

    Three things are known only further left. How a row may end: the set of endings that suit what has been read, by
    the subset construction over `_AFTER`. Who owns a group: up to two are kept waiting; an owner takes those that it
    needs, the others are items of their own. Whether a "]" before a group ends an index or is a symbol: that shows at
    the next bracket of the row. It was an index if that is a "[" with a root to its left; otherwise all were symbols.
    Until then the row reads in the same way for both.
    """

    start = _Place(_ENDINGS, 0, "", "stop", False)

    def move(self, control: Hashable, role: Role) -> Move | None:
        assert isinstance(control, _Place)
        if role.kind + role.name == control.closer:
            settled = self._settle(control, 0)
            at_start = settled is not None and _FREE in settled.endings
            return Move(_OVER if role.kind == "stop" else None) if at_start else None
        if role.kind in ("{", "begin", "stop") or (role.kind == "&" and not control.in_environment):
            return None
        if role.kind == "}":
            return self._group(control)
        if role.kind == "command" and role.indexed and control.bracket == "begun":
            return Move(self._place(control, "plain"))
        taken = {"_": 1, "^": 1, "command": role.groups}.get(role.kind, 0)
        place = self._settle(control, taken)
        if place is None:
            return None
        item = role.kind if role.kind in _AFTER else role.item
        after = self._place(place, item)
        if after is None:
            return None
        if role.kind == "end":
            return Move(self.start._replace(closer="begin" + role.name, in_environment=True), after)
        if role.kind == "[":
            return Move(after._replace(bracket="begun" if control.bracket == "ended" else ""))
        if role.kind == "]":
            return Move(after._replace(bracket="ended" if control.groups else ""))
        return Move(after)

    def _group(self, control: _Place) -> Move | None:
        """A group more: if two wait already, the one furthest to the right is an item of its own."""
        place = self._settle(control, 1) if control.groups > 1 else control
        if place is None:
            return None
        inner = self.start._replace(closer="{", in_environment=control.in_environment)
        return Move(inner, self._over_bracket(place)._replace(groups=min(control.groups + 1, 2)))

    def _settle(self, control: _Place, taken: int) -> _Place | None:
        """`control` after all waiting groups but `taken` have become items; `None` if that cannot be."""
        if control.groups < taken:
            return None
        return control if control.groups == taken else self._place(control, "plain")

    def _place(self, control: _Place, item: str) -> _Place | None:
        """`control` before an item, which it must suit."""
        endings = frozenset(ending for ending in _ENDINGS if _AFTER[item].get(ending) in control.endings)
        return self._over_bracket(control)._replace(endings=endings, groups=0) if endings else None

    def _over_bracket(self, control: _Place) -> _Place:
        """`control` after a token that is no root: a "[" just before it was a symbol."""
        return control._replace(bracket="") if control.bracket == "begun" else control


@dataclass(frozen=True)
class GrammarTables:
    """An automaton over C controls and V tokens; the last control is the one after the end, the first the start.

    Args:
        then (C · V): the next control, -1 for the one on the stack.
        later (C · V): the control to push, -1 for none.
        after (C, V): the fewest tokens that complete a sequence after this one, without what the stack adds; `NEVER`
            where the token cannot stand.
        least (C): the minimum of `after`.
        closing (C + 1): the fewest tokens that leave a control, that is, what it adds while it waits on the stack; one
            more, 0, for the index -1.
    """

    then: np.ndarray
    later: np.ndarray
    after: np.ndarray
    least: np.ndarray
    closing: np.ndarray


@lru_cache(maxsize=16)
def compile_grammar(vocabulary: tuple[str | None, ...], stop: int, direction: str) -> GrammarTables:
    """Tables for a vocabulary.

    Args:
        vocabulary (`tuple` of `str` or `None`): tokens by id; `None` for those that are never written.
        stop (`int`): the id that ends a sequence.
        direction (`str`): `"l2r"` or `"r2l"`.

    Raises:
        ValueError: if the direction is unknown.
    """
    if direction not in ("l2r", "r2l"):
        raise ValueError(f"unknown direction {direction!r}: choose 'l2r' or 'r2l'")
    roles = [None if token is None else role_of(token) for token in vocabulary]
    roles[stop] = Role("stop")
    distinct = [role for role in dict.fromkeys(roles) if role is not None]
    moves = _explore(_Forward() if direction == "l2r" else _Backward(), distinct)
    return _tabulate(moves, roles)


def tokenizer_grammar(tokenizer: Any, direction: str) -> GrammarTables:
    """Tables for the vocabulary of a tokenizer with one id for each LaTeX token; special tokens are never written.

    Raises:
        ValueError: if the direction is unknown.
    """
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    vocabulary = tuple(None if index in special else token for index, token in enumerate(tokens))
    stop = tokenizer.eos_token_id if direction == "l2r" else tokenizer.bos_token_id
    return compile_grammar(vocabulary, stop, direction)


def _explore(automaton: _Forward | _Backward, roles: list[Role]) -> dict[Hashable, dict[Role, Move]]:
    """The moves of all controls that can be reached, the start first and `_OVER` last."""
    moves: dict[Hashable, dict[Role, Move]] = {}
    waiting: list[Hashable] = [automaton.start]
    while waiting:
        control = waiting.pop()
        if control in moves or control == _OVER:
            continue
        found = {role: automaton.move(control, role) for role in roles}
        moves[control] = {role: move for role, move in found.items() if move is not None}
        for move in moves[control].values():
            waiting += [reached for reached in (move.then, move.later) if reached is not None]
    moves[_OVER] = {Role("stop"): Move(_OVER)}
    return moves


def _tabulate(moves: dict[Hashable, dict[Role, Move]], roles: list[Role | None]) -> GrammarTables:
    number = {control: index for index, control in enumerate(moves)}
    shape = (len(moves), len(roles))
    then, later = np.full(shape, number[_OVER]), np.full(shape, -1)
    legal = np.zeros(shape, bool)
    for control, row in moves.items():
        for token, role in enumerate(roles):
            if role is None or role not in row:
                continue
            move = row[role]
            place = number[control], token
            legal[place] = True
            then[place] = -1 if move.then is None else number[move.then]
            later[place] = -1 if move.later is None else number[move.later]
    closing = np.full(len(moves) + 1, NEVER, np.int32)  # narrow: its like is compared for each token of each row
    closing[[number[_OVER], -1]] = 0
    while True:
        after = np.where(legal, closing[then] + closing[later], NEVER).clip(max=NEVER)
        shorter = np.minimum(closing[:-1], 1 + after.min(axis=1))
        if (shorter == closing[:-1]).all():
            break
        closing[:-1] = shorter
    return GrammarTables(then.ravel(), later.ravel(), after, least=after.min(axis=1), closing=closing)


class GrammarState:
    """Where the automaton is in each of N sequences: controls, and the stacks of those to return to.

    `owed` (N,) counts the tokens without which the stack cannot be left.
    """

    def __init__(self, tables: GrammarTables, sequences: int):
        self.tables = tables
        self.control = np.zeros(sequences, np.int64)
        self.depth = np.zeros(sequences, np.int64)
        self.owed = np.zeros(sequences, np.int32)
        self.stack = np.zeros((sequences, 16), np.int64)

    def select(self, rows: np.ndarray) -> None:
        """Keep the sequences `rows`, in this order."""
        self.control, self.depth = self.control[rows], self.depth[rows]
        self.owed, self.stack = self.owed[rows], self.stack[rows]

    def read(self, tokens: np.ndarray) -> None:
        """Goes on by one token (N,) in each sequence."""
        tables = self.tables
        place = self.control * tables.after.shape[1] + tokens
        self.control, later = tables.then[place], tables.later[place]
        if len(pushing := np.flatnonzero(later >= 0)):
            level, pushed = self.depth[pushing], later[pushing]
            if level.max() == self.stack.shape[1]:
                self.stack = np.concatenate([self.stack, np.zeros_like(self.stack)], axis=1)
            self.stack[pushing, level] = pushed
            self.depth[pushing] += 1
            self.owed[pushing] += tables.closing[pushed]
        if len(popping := np.flatnonzero(self.control < 0)):
            self.depth[popping] -= 1
            popped = self.stack[popping, self.depth[popping]]
            self.control[popping] = popped
            self.owed[popping] -= tables.closing[popped]

    def forbidden(self, room: int) -> np.ndarray:
        """Tokens (N, V) that cannot stand next, or after which more than `room` - 1 tokens would be needed.

        Where there is too little room for any token, the one that needs least may stand.
        """
        tables = self.tables
        most = np.maximum(room - 1 - self.owed, tables.least[self.control])
        return tables.after[self.control] > most[:, None]


__all__ = [
    "ARGUMENT_COUNTS",
    "INDEXED_COMMANDS",
    "LARGE_OPERATORS",
    "GrammarState",
    "GrammarTables",
    "compile_grammar",
    "tokenizer_grammar",
]
