"""LaTeX labels: from whatever a data set writes to the field's token form.

[`lex_latex`] splits LaTeX into tokens, [`normalize_latex`] turns a raw truth into the token form of one of the
conventions below; the grammar of that form, its parser and its tree ([`parse_latex`], [`is_well_formed`]) live in
`latex_parser.py` and `latex_tree.py` and are re-exported here.

What is known of the conventions, by comparing the CROHME InkML truths with the labels published beside the images:

- `"abm"`: the test labels of WAP, BTTR and ABM. No `\\limits`, the subscript before the superscript, `\\prime` for
  every prime. 979 of the 986 labels of the 2014 test come out equal. Of the other seven, five are malformed as
  published (RIT_2014_51, 191, 216, 217, 225: a comma became a subscript, a brace closes too late), one truth is no
  LaTeX (309) and one makes a subscript of an equals sign (190).
- `"comer"`: the labels of CoMER, PosFormer and TAMER. As `abm`, but with `\\limits` after every `\\sum`, `\\int` and
  `\\lim` that has scripts, whether the truth writes it or not. This is inferred, since the files were not at hand: a
  published comparison of the two sets counts 105 `\\limits` in 81 labels of the 2014 test and six further differences
  (the five malformed labels, well-formed there as they are here, and `\\Pi` for `\\pi`). The rule gives exactly 105
  in 81; it also gives that set's numbers of tokens.
- `"written"`: the training labels published with the WAP, BTTR and ABM tests, which nobody normalised: order of
  scripts, `\\limits` and `'` as in the truth. 8,812 of 8,834 come out equal; the other 22 are errors of the published
  labels (19 drop zeros that were written, `1.40` to `1 . 4`). So the published training labels teach what the `abm`
  tests never accept: 195 of them change when they are normalised to `abm` (145 have `\\limits`, 36 a superscript
  first, 14 the other prime).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..spelling_abm import FENCES, INVISIBLE, SYNONYMS
from .parser import ARGUMENT_COUNTS, INDEXED_COMMANDS, LatexError, is_well_formed, parse_latex
from .tree import LARGE_OPERATORS, Command, Environment, Fraction, Group, LimitsRule, Node, Root, Row, Scripts, Symbol

__all__ = [
    "ARGUMENT_COUNTS",
    "CONVENTIONS",
    "CROHME_TOKENS",
    "INDEXED_COMMANDS",
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
    "normalize_latex",
    "parse_latex",
]

_LIMITS: Mapping[str, LimitsRule] = {"abm": "drop", "comer": "put", "written": "keep"}
CONVENTIONS = tuple(_LIMITS)

_CROHME_LISTING = r"""
0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p q r s t u v w x y z
A B C E F G H I L M N P R S T V X Y ( ) [ ] \{ \} | + - = < > / ! , . ' { } ^ _
\alpha \beta \gamma \theta \lambda \mu \pi \sigma \phi \Delta \sin \cos \tan \log \lim \limits \sum \int \infty
\frac \sqrt \times \div \pm \cdot \cdots \ldots \leq \geq \neq \in \forall \exists \prime \rightarrow
"""
CROHME_TOKENS = frozenset(_CROHME_LISTING.split())
"""The 110 tokens of the CROHME labels: the model's vocabulary without its special tokens."""

_SYMBOLS_LISTING = r"""
\delta \epsilon \varepsilon \zeta \eta \vartheta \iota \kappa \nu \xi \varpi \rho \varrho \varsigma \tau \upsilon
\varphi \chi \psi \omega \Gamma \Theta \Lambda \Xi \Pi \Sigma \Upsilon \Phi \Psi \Omega \hbar \ell \partial \nabla
\cot \sec \csc \arcsin \arccos \arctan \sinh \cosh \tanh \coth \ln \lg \exp \dim \ker \deg \arg \mod \approx \equiv
\sim \simeq \cong \propto \perp \parallel \subset \subseteq \supset \supseteq \notin \cup \cap \wedge \vee \circ \ast
\Rightarrow \Leftarrow \Leftrightarrow \leftrightarrow \leftarrow \mapsto \emptyset \varnothing \angle
\therefore \because
"""
_SYMBOLS = CROHME_TOKENS | LARGE_OPERATORS | frozenset(_SYMBOLS_LISTING.split())
"""Control words that are known to take no argument, so that a group behind them is a group of its own."""

_LOOKALIKES: Mapping[str, tuple[str, ...]] = {
    "\\Pi": ("\\pi",),  # as the label published for RIT_2014_133
    "\\parallel": ("|", "|"),  # as the labels published for RIT_2014_143 and RIT_2014_198
    "\\varphi": ("\\phi",),
    "\\leqslant": ("\\leq",),
    "\\geqslant": ("\\geq",),
    "\\longrightarrow": ("\\rightarrow",),
}
"""Signs that handwriting does not tell from others, for vocabularies that hold the others only."""

_TEXT_LISTING = r"""
\rm \it \bf \sf \tt \cal \mbox \hbox \vbox \vtop
\text \textrm \textnormal \textit \textbf \mathrm \mathit \mathbf \mathsf \mathtt
\mathnormal \boldsymbol \bm \operatorname \mathord \mathrel \mathbin \mathopen \mathclose \mathpunct
"""
_DROPPED = INVISIBLE | frozenset(_TEXT_LISTING.split())
"""What does not show, and text commands. Of `\\mathrm { d }` the group remains, and its braces go later."""

_DROPPED_WITH_ARGUMENT = frozenset(("\\hspace", "\\vspace", "\\label", "\\phantom", "\\hphantom", "\\vphantom"))
_UNSUPPORTED = frozenset(("\\over", "\\atop", "\\choose", "\\above", "\\def", "\\newcommand", "\\begin", "\\end"))
_ENVIRONMENTS = frozenset(
    ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "smallmatrix", "cases", "aligned", "gathered")
)

_TOKEN = re.compile(r"\\(begin|end)\s*\{\s*([A-Za-z]+\*?)\s*\}|\\(?:[A-Za-z]+|.)|\S", re.DOTALL)

# CROHME spells these out now and then; the published labels have "\log", "\lim" but "a _ { t a n }", and "sin", "cos"
# and "div" occur in 2013 truths of the same origin (RIT), so they are taken the same way. "\mathrm{div}" stays.
_SPELLED_OUT = re.compile(r"(?<![\\A-Za-z])(?:log|lim|sin|cos|(?<=\s)div)(?![A-Za-z])")
_SPACED_OUT: Mapping[tuple[str, ...], str] = {("l", "o", "g"): "\\log", ("l", "i", "m"): "\\lim"}
_GLUED = re.compile(r"\\([lg]t)(?=[A-Za-z](?![A-Za-z]))")  # "\gtM" for "\gt M"
_ABOVE = re.compile(r"\bABOVE\b")  # RIT writes "\sqrt {x} ABOVE {n}" for an index
_INDEX_ABOVE = "\\ABOVE"
_TAKES_ARGUMENTS = frozenset((*ARGUMENT_COUNTS, "_", "^", _INDEX_ABOVE))
_NO_ARGUMENT = frozenset(("&", "\\\\", "\\limits"))
_NEGATED: Mapping[str, str] = {"=": "\\neq", "\\in": "\\notin"}


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


def normalize_latex(
    raw: str, *, convention: str = "abm", vocabulary: Collection[str] | None = CROHME_TOKENS
) -> list[str]:
    """Turns a raw label into the field's token form.

    Dollar signs, space, `\\left` and `\\right`, sizes, styles and text commands go, other spellings of a sign become
    the usual one, scripts, fractions and roots get their braces, all other braces go.

    Args:
        raw (`str`): a label as CROHME, MathWriting or HME100K write it, or LaTeX mathematics from elsewhere.
        convention (`str`, defaults to `"abm"`): one of `"abm"`, `"comer"`, `"written"`; see the top of this file.
        vocabulary (`Collection[str]`, *optional*, defaults to the 110 CROHME tokens): the tokens that the result may
            use; `None` admits every token that [`parse_latex`] does. Which commands take groups is fixed, see
            `ARGUMENT_COUNTS`; an unknown one before a group is refused rather than taken apart.

    Returns:
        `list[str]`: the tokens; [`is_well_formed`] holds for them, and normalising them again changes nothing.

    Raises:
        LatexError: if the label is empty, is not LaTeX that can be read, or needs a token that is not in the
            vocabulary; `.token` names it.
        ValueError: if the convention is unknown.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown label convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")

    def spell(found: re.Match[str]) -> str:
        word = "\\" + found.group()
        return f"{word} " if vocabulary is None or word in vocabulary else found.group()

    text = _ABOVE.sub(r"\\ABOVE ", _GLUED.sub(r"\\\1 ", _SPELLED_OUT.sub(spell, raw)))
    tokens = _respell(lex_latex(text), vocabulary)
    if convention != "written" and (vocabulary is None or "\\prime" in vocabulary):
        tokens = _expand_primes(tokens)
    tree = _canonical(_move_indices(_Bracer(tokens).run()), convention)
    _check_arguments(tree)
    result = tree.tokens()
    words = _join_letters(result, vocabulary)
    if words != result:
        result = _canonical(words, convention).tokens()
    if not result:
        raise LatexError("the label is empty")
    unknown = sorted(set(result) - set(vocabulary)) if vocabulary is not None else []
    if unknown:
        raise LatexError(f"tokens outside the vocabulary: {' '.join(unknown)}", token=unknown[0])
    return result


def _canonical(tokens: list[str], convention: str) -> Row:
    try:
        tree = parse_latex(tokens)
    except LatexError as error:
        raise LatexError(f"{error}, in {' '.join(tokens)!r}", token=error.token) from error
    return tree.canonical(sort_scripts=convention != "written", limits=_LIMITS[convention])


def _join_letters(tokens: list[str], vocabulary: Collection[str] | None) -> list[str]:
    """MfrDB's `l o g` and `l i m`, written letter by letter, to `\\log` and `\\lim`, unless a letter stands before."""
    joined: list[str] = []
    index = 0
    while index < len(tokens):
        word = _SPACED_OUT.get(tuple(tokens[index : index + 3]))
        after_letter = index > 0 and len(tokens[index - 1]) == 1 and tokens[index - 1].isalpha()
        if word is None or after_letter or (vocabulary is not None and word not in vocabulary):
            joined.append(tokens[index])
            index += 1
        else:
            joined.append(word)
            index += 3
    return joined


def _respell(tokens: list[str], vocabulary: Collection[str] | None) -> list[str]:
    """Drops what does not show and settles on one spelling of each sign."""
    respelled: list[str] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        index += 1
        if token in _DROPPED:
            if (token in FENCES and following == ".") or (token == "\\operatorname" and following == "*"):
                index += 1
        elif token in _DROPPED_WITH_ARGUMENT:
            index = _end_of_group(tokens, index) if following == "{" else index + 1
        elif token == "\\not":
            if following not in _NEGATED:
                raise LatexError(f"'\\\\not' before {following!r} has no token of its own", token=token)
            respelled.append(_NEGATED[following])
            index += 1
        else:
            spellings = _spellings(token, vocabulary)
            if following == "{" and spellings[0] not in _SYMBOLS and _is_unknown_command(spellings[0]):
                raise LatexError(f"{token!r} may take the group behind it, but is not known to", token=token)
            respelled.extend(spellings)
    return respelled


def _is_unknown_command(token: str) -> bool:
    return re.fullmatch(r"\\[A-Za-z]+", token) is not None and token not in _TAKES_ARGUMENTS


def _spellings(token: str, vocabulary: Collection[str] | None) -> tuple[str, ...]:
    if token in ("%", "#"):
        return ("\\" + token,)  # whatever the vocabulary holds: bare, TeX would not print them
    if vocabulary is not None and token in vocabulary:
        return (token,)
    if token in _UNSUPPORTED or (token.startswith("\\begin{") and token[7:-1].rstrip("*") not in _ENVIRONMENTS):
        raise LatexError(f"{token!r} cannot be written in the token form", token=token)
    token = SYNONYMS.get(token, token)
    return (token,) if vocabulary is None or token in vocabulary else _LOOKALIKES.get(token, (token,))


def _end_of_group(tokens: list[str], start: int) -> int:
    """The index behind the group that opens at `start`."""
    level = 0
    for index in range(start, len(tokens)):
        level += (tokens[index] == "{") - (tokens[index] == "}")
        if level == 0:
            return index + 1
    raise LatexError(f"token {start}: '{{' is never closed", position=start, token="{")


def _expand_primes(tokens: list[str]) -> list[str]:
    """`f''` to `f ^ { \\prime \\prime }`, as TeX does, and a prime that is a script already to `\\prime`."""
    expanded: list[str] = []
    index = 0
    while index < len(tokens):
        if tokens[index] != "'":
            expanded.append(tokens[index])
            index += 1
            continue
        end = index
        while end < len(tokens) and tokens[end] == "'":
            end += 1
        primes = ["\\prime"] * (end - index)
        if not expanded or expanded[-1] in ("{", "^", "_", "&", "\\\\"):
            expanded += primes
        elif tokens[end : end + 2] == ["^", "{"]:
            expanded += ["^", "{", *primes]
            end += 2
        elif tokens[end : end + 1] == ["^"]:
            script = ["\\prime" if token == "'" else token for token in tokens[end + 1 : end + 2]]
            expanded += ["^", "{", *primes, *script, "}"]
            end += 2
        else:
            expanded += ["^", "{", *primes, "}"]
        index = end
    return expanded


@dataclass
class _Pending:
    """What a token still waits for: the end of a group or of an index, or `remaining` arguments."""

    kind: str  # "group", "index" or "arguments"
    opener: str
    remaining: int = 0
    is_argument: bool = False  # once complete, it completes an argument of the entry below


class _Bracer:
    """Puts braces around every argument that TeX would take: `x ^ 2` becomes `x ^ { 2 }`.

    One repair: a closing brace too many is dropped, as CoMER's labels of RIT_2014_191 and RIT_2014_216 do.
    """

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.braced: list[str] = []
        self.stack: list[_Pending] = []

    def run(self) -> list[str]:
        skip = False
        for index, token in enumerate(self.tokens):
            if skip:
                skip = False
                continue
            top = self.stack[-1] if self.stack else None
            wanted = top is not None and top.kind == "arguments"
            if token == "{":
                self.braced.append(token)
                self.stack.append(_Pending("group", token, is_argument=wanted))
            elif token == "}":
                self._close_group(top)
            elif token == "]" and top is not None and top.kind == "index":
                self.braced.append(token)
                self.stack[-1] = _Pending("arguments", top.opener, ARGUMENT_COUNTS[top.opener], top.is_argument)
            elif token in _TAKES_ARGUMENTS:
                skip = token in INDEXED_COMMANDS and self.tokens[index + 1 : index + 2] == ["["]
                self._command(token, wanted, indexed=skip)
            elif wanted:
                if token in _NO_ARGUMENT or token.startswith(("\\begin{", "\\end{")):
                    raise LatexError(f"{self.stack[-1].opener!r} needs an argument, found {token!r}", token=token)
                self.braced += ["{", token, "}"]
                self._argument_done()
            else:
                self.braced.append(token)
        if self.stack:
            raise LatexError(f"{self.stack[-1].opener!r} is not complete at the end", token=self.stack[-1].opener)
        return self.braced

    def _close_group(self, top: _Pending | None) -> None:
        if top is None:
            return
        if top.kind != "group":
            raise LatexError(f"{top.opener!r} is not complete before '}}'", token=top.opener)
        self.braced.append("}")
        self.stack.pop()
        if top.is_argument:
            self._argument_done()

    def _command(self, token: str, wanted: bool, *, indexed: bool) -> None:
        if wanted and token in ("_", "^", _INDEX_ABOVE):
            raise LatexError(f"{self.stack[-1].opener!r} needs an argument, found {token!r}", token=token)
        self.braced += [*(["{"] if wanted else []), token, *(["["] if indexed else [])]
        kind = "index" if indexed else "arguments"
        self.stack.append(_Pending(kind, token, ARGUMENT_COUNTS.get(token, 1), is_argument=wanted))

    def _argument_done(self) -> None:
        while self.stack:
            top = self.stack[-1]
            top.remaining -= 1
            if top.remaining:
                return
            self.stack.pop()
            if not top.is_argument:
                return
            self.braced.append("}")


def _move_indices(tokens: list[str]) -> list[str]:
    """RIT's `\\sqrt { x } ABOVE { n }` to `\\sqrt [ n ] { x }`; the tokens are braced already."""
    while _INDEX_ABOVE in tokens:
        above = tokens.index(_INDEX_ABOVE)
        end = _end_of_group(tokens, above + 1)
        level, start = 0, above
        while start > 0 and (level or start == above):
            start -= 1
            level += (tokens[start] == "}") - (tokens[start] == "{")
        if start == 0 or tokens[start - 1] != "\\sqrt":
            raise LatexError("'ABOVE' does not follow a root", position=above, token="ABOVE")
        index = tokens[above + 2 : end - 1]
        tokens = [*tokens[:start], "[", *index, "]", *tokens[start:above], *tokens[end:]]
    return tokens


def _check_arguments(tree: Row) -> None:
    for node in tree.walk():
        if isinstance(node, Fraction | Root | Command) and not all(
            part.items for part in node.parts() if isinstance(part, Row)
        ):
            name = node.parts()[0]
            raise LatexError(f"{name!r} has an empty argument", token=str(name))
