"""LaTeX as the field writes it: lexing, and the strict token form with its parser.

The parser and its tree live in `latex_tree.py` and are re-exported here.
"""

import re

from .latex_tree import (
    ARGUMENT_COUNTS,
    LARGE_OPERATORS,
    Command,
    Environment,
    Fraction,
    Group,
    LatexError,
    Node,
    Root,
    Row,
    Scripts,
    Symbol,
    is_well_formed,
    parse_latex,
)


__all__ = [
    "ARGUMENT_COUNTS",
    "LARGE_OPERATORS",
    "Command",
    "Environment",
    "Fraction",
    "Group",
    "LatexError",
    "Node",
    "Root",
    "Row",
    "Scripts",
    "Symbol",
    "is_well_formed",
    "lex_latex",
    "parse_latex",
]

_TOKEN = re.compile(r"\\(begin|end)\s*\{\s*([A-Za-z]+\*?)\s*\}|\\(?:[A-Za-z]+|.)|\S", re.DOTALL)


def lex_latex(text: str) -> list[str]:
    """Splits LaTeX into tokens: control sequences, single characters, `\\begin{name}` and `\\end{name}` as one each.

    Space between tokens is dropped, so a token string gives its own tokens back. Nothing is interpreted: see
    [`normalize_latex`] for that.

    Raises:
        LatexError: if the text ends in a lone backslash.
    """
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "\\":
            raise LatexError("the text ends in a lone backslash", position=len(tokens), token=token)
        if match.group(1) is not None:
            token = f"\\{match.group(1)}{{{match.group(2)}}}"
        elif token[1:].isspace():
            token = "\\ "
        tokens.append(token)
    return tokens
