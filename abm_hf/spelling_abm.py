r"""Other spellings of LaTeX signs, and what does not show: `\to` is `\rightarrow`, `\left(` is `(`."""

from collections.abc import Collection, Mapping, Sequence

SYNONYMS: Mapping[str, str] = {
    **{"\\lt": "<", "\\gt": ">", "\\to": "\\rightarrow", "\\le": "\\leq", "\\ge": "\\geq", "\\ne": "\\neq"},
    **{"\\dots": "\\ldots", "\\dotsc": "\\ldots", "\\dotso": "\\ldots", "\\dotsb": "\\cdots", "\\dotsm": "\\cdots"},
    **{"\\lbrack": "[", "\\rbrack": "]", "\\lbrace": "\\{", "\\rbrace": "\\}", "\\ast": "*", "\\colon": ":"},
    **{"\\vert": "|", "\\lvert": "|", "\\rvert": "|", "\\mid": "|", "\\|": "\\parallel", "\\Vert": "\\parallel"},
    **{"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\gets": "\\leftarrow"},
}
"""Other spellings of the same sign. A spelling that the vocabulary itself holds is left alone."""

_INVISIBLE_LISTING = r"""
$ ~ \( \) \[ \] \, \; \: \! \> \quad \qquad \enspace \thinspace \medspace \thickspace \negthinspace
\displaystyle \textstyle \scriptstyle \scriptscriptstyle \nolimits \displaylimits
\left \right \middle \nonumber \notag \strut \relax \protect
\big \Big \bigg \Bigg \bigl \Bigl \biggl \Biggl \bigr \Bigr \biggr \Biggr \bigm \Bigm \biggm \Biggm
"""
INVISIBLE = frozenset((*_INVISIBLE_LISTING.split(), "\\ "))
"""Delimiters, spaces, sizes and styles of mathematics: what they stand before stays as it is without them."""

FENCES = frozenset(("\\left", "\\right", "\\middle"))
"""What a dot follows where there is no bracket."""


def respell(tokens: Sequence[str], vocabulary: Collection[str]) -> list[str]:
    r"""Tokens in the spelling of `vocabulary`, as far as that is certain; what it lacks otherwise stays.

    `\left(` and `\left.` go with their sizes, `\le` becomes `\leq`. Where that takes a group apart, as for `\mathrm`,
    nothing is done.
    """
    respelled: list[str] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        index += 1
        if token in vocabulary:
            respelled.append(token)
        elif token in INVISIBLE or token == "\\":  # a lexer may cut the backslash off the space behind it
            index += token in FENCES and tokens[index : index + 1] == ["."]
        else:
            respelled.append(SYNONYMS.get(token, token))
    return respelled


__all__ = ["FENCES", "INVISIBLE", "SYNONYMS", "respell"]
