"""Labels: the grammar against an independent oracle, the tree, and the normaliser against the published labels."""

import html
import os
import random
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from abm_hf.latex.normalization import (
    CONVENTIONS,
    CROHME_TOKENS,
    Fraction,
    LatexError,
    Root,
    Row,
    Scripts,
    Symbol,
    is_well_formed,
    lex_latex,
    normalize_latex,
    parse_latex,
)
from abm_hf.tokenization_abm import ABM_VOCABULARY

# `ABM_HF_FUZZ_EXAMPLES=10000` (and `--timeout=0`) for the full run.
fuzz = settings(
    max_examples=int(os.environ.get("ABM_HF_FUZZ_EXAMPLES", "300")),
    deadline=None,  # a hang meets the suite's timeout; a busy machine is none
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# --------------------------------------------------------------------------------------------------------------- lexer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (r"\frac{x^2}{3}", [r"\frac", "{", "x", "^", "2", "}", "{", "3", "}"]),
        (r"\frac { x ^ { 2 } } { 3 }", [r"\frac", r"{", r"x", r"^", r"{", r"2", r"}", r"}", r"{", r"3", r"}"]),
        (r"\{a\}\\\alpha b", [r"\{", "a", r"\}", r"\\", r"\alpha", "b"]),
        (r"\begin{matrix}1&2\end {matrix}", [r"\begin{matrix}", "1", "&", "2", r"\end{matrix}"]),
        ("a\\ b\\\n c", ["a", "\\ ", "b", "\\ ", "c"]),
        ("", []),
    ],
)
def test_lexing(text: str, tokens: list[str]) -> None:
    assert lex_latex(text) == tokens


def test_a_lone_backslash_is_refused_with_its_position() -> None:
    with pytest.raises(LatexError) as caught:
        lex_latex("a b \\")
    assert caught.value.position == 2


# ------------------------------------------------------------------------------------------------------------- grammar

WELL_FORMED = [
    "",
    "x",
    "x ^ { 2 }",
    "x _ { 1 } ^ { 2 }",
    "x ^ { 2 } _ { 1 }",
    r"\frac { 1 } { 2 } ^ { 3 }",
    r"\sqrt { 2 }",
    r"\sqrt [ 3 ] { 2 }",
    r"\sqrt [ \sqrt [ 3 ] { ] } ] { 2 }",
    r"\int \limits _ { a } ^ { b } f ( x ) d x",
    r"\sum \limits",
    r"( 1 , 2 ]",
    r"\{ x | x > 0",
    "^ { 1 4 } C",
    "{ x ^ { 2 } } ^ { 3 }",
    "{ }",
    "x ' ' ^ { 2 }",
    "x _ { 1 } ' ^ { 2 }",
    r"\begin{matrix} a & ^ { 2 } \\ c & d \end{matrix}",
    r"\xrightarrow [ a ] { b }",
    r"\mathop { x } \limits _ { y }",
    r"\overline { x } + \textcircled { 1 }",
]
MALFORMED = [
    ("}", 0),
    ("{ x", 0),
    ("x ^ 2", 2),
    ("x ^", 2),
    ("x ^ { 1 } ^ { 2 }", 5),
    ("x _ { 1 } ^ { 2 } _ { 3 }", 9),
    (r"\frac { 1 }", 4),
    (r"\frac 1 2", 1),
    (r"\frac { 1 } x { 2 }", 4),
    (r"\sqrt x", 1),
    (r"\sqrt [ 3 { x }", 0),
    (r"\sqrt [ 3 } { x }", 3),
    (r"x \limits _ { 1 }", 1),
    (r"\limits", 0),
    (r"\sum \limits \limits _ { 1 }", 2),
    (r"\left ( x \right )", 0),
    ("a & b", 1),
    (r"a \over b", 1),
    (r"\begin x", 0),
    (r"\begin{matrix} a", 0),
    (r"\begin{matrix} a \end{cases}", 2),
    ("x ^ { 2 } '", 5),
    ("x _ { 1 } ' _ { 2 }", 6),
    ("a <eol> b", 1),
    ("a % b", 1),
    ("xy", 0),
    ("_", 1),
]


@pytest.mark.parametrize("text", WELL_FORMED)
def test_well_formed(text: str) -> None:
    assert is_well_formed(text)
    assert is_well_formed(text.split())
    assert parse_latex(text).tokens() == text.split()


@pytest.mark.parametrize(("text", "position"), MALFORMED)
def test_malformed_input_is_located(text: str, position: int) -> None:
    assert not is_well_formed(text)
    with pytest.raises(LatexError) as caught:
        parse_latex(text)
    assert caught.value.position == position


_LETTERS = {"x": "x", "S": r"\sum", "l": r"\limits", "f": r"\frac", "r": r"\sqrt"} | {c: c for c in "{}[]^_"}


def _oracle(word: str) -> bool:
    """The grammar by reduction with regular expressions: nothing in common with the parser."""
    base, plain = r"(?:S(?!l)|Sl|[x\[\]G])", r"(?:S(?!l)|Sl|[x\[G])"
    scripts = "(?:ud|du|u|d)?"
    row, index = f"{scripts}(?:{base}{scripts})*", f"{scripts}(?:{plain}{scripts})*"
    rules = [
        (rf"r\[{index}\]G", "x"),
        (r"rG", "x"),
        (r"fGG", "x"),
        (r"\^G", "u"),
        (r"_G", "d"),
        (rf"\{{{row}\}}", "G"),
    ]
    while True:
        for pattern, replacement in rules:
            shorter = re.sub(pattern, replacement, word, count=1)
            if shorter != word:
                word = shorter
                break
        else:
            return re.fullmatch(row, word) is not None


def test_the_parser_agrees_with_the_oracle() -> None:
    generator = random.Random(0)
    pieces = ["x", "x", "S", "Sl", "l", "f{x}{x}", "f{x}", "r{x}", "r[x]{x}", "r[", "]", "[", "{", "}", "^{x}", "_{x}"]
    pieces += ["^", "_", "^{", "_{", "f{", "}{", "}"]
    accepted = 0
    for _ in range(4000):
        word = "".join(generator.choice(pieces) for _ in range(generator.randint(1, 7)))
        word += "}" * max(0, word.count("{") - word.count("}"))
        tokens = [_LETTERS[letter] for letter in word]
        assert is_well_formed(tokens) == _oracle(word), tokens
        accepted += _oracle(word)
    assert 400 < accepted < 3600  # both answers are really exercised


KINDS = {
    "empty": ["{", "}"],
    "fraction": [r"\frac", "{", "2", "}"],
    "root": [r"\sqrt"],
    "index": [r"\sqrt", "[", "n", "]"],
    "mathop": [r"\mathop"],
}


@st.composite
def well_formed(draw: st.DrawFn, depth: int = 2) -> list[str]:
    """Token forms drawn from the grammar."""

    def group() -> list[str]:
        return ["{", *(draw(well_formed(depth=depth - 1)) if depth else draw(st.sampled_from(["x", "2", "'"]))), "}"]

    tokens: list[str] = []
    for kind in draw(st.lists(st.sampled_from(["symbol", "group", "operator", *KINDS]), min_size=1, max_size=3)):
        if kind == "operator":
            tokens += [draw(st.sampled_from([r"\sum", r"\int", r"\lim"])), *draw(st.sampled_from([[], [r"\limits"]]))]
        elif kind == "group":
            tokens += group()
        elif kind == "symbol":
            tokens += [draw(st.sampled_from(["a", "+", r"\alpha", "'"]))]
        else:
            tokens += KINDS[kind]
            tokens += group()
        for mark in draw(st.sampled_from(["", "", "_", "^", "_^", "^_"])):
            tokens += [mark, *group()]
    return tokens


@settings(fuzz, max_examples=max(100, fuzz.max_examples // 4))  # drawing from the grammar is slow
@given(well_formed())
# Scripts that cannot be merged with their base's are sorted, too.
@example(["{", "{", "a", "^", "{", "x", "}", "}", "^", "{", "a", "}", "}", "_", "{", "a", "}"])
def test_trees_give_their_tokens_back_and_have_a_stable_canonical_form(tokens: list[str]) -> None:
    try:
        tree = parse_latex(tokens)
    except LatexError as error:
        assert "superscript" in str(error) or "subscript" in str(error)  # a prime at an unlucky place
        return
    assert tree.tokens() == tokens
    for sort_scripts in (True, False):
        for limits in ("drop", "keep", "put"):
            canonical = tree.canonical(sort_scripts=sort_scripts, limits=limits)
            again = parse_latex(canonical.tokens())
            assert again.canonical(sort_scripts=sort_scripts, limits=limits) == canonical
            assert again.structure() == tree.structure()
            assert again.canonical() == tree.canonical()


# ---------------------------------------------------------------------------------------------------------------- tree


def test_the_tree_says_what_stands_where() -> None:
    tree = parse_latex(r"\frac { x ^ { 2 } _ { i } } { \sqrt [ 3 ] { y } } \int \limits _ { a } b")
    fraction, integral, letter = tree.items
    assert isinstance(fraction, Fraction)
    scripts = fraction.numerator.items[0]
    assert isinstance(scripts, Scripts)
    assert scripts.base == Symbol("x")
    assert scripts.sub == Row((Symbol("i"),)) and scripts.sup == Row((Symbol("2"),)) and not scripts.sub_first
    root = fraction.denominator.items[0]
    assert isinstance(root, Root) and root.index == Row((Symbol("3"),))
    assert isinstance(integral, Scripts) and integral.limits and integral.sup is None
    assert letter == Symbol("b")
    assert sum(isinstance(node, Symbol) for node in tree.walk()) == 8
    with pytest.raises(AttributeError):
        letter.token = "c"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "depth"),
    [("a + b", 0), ("{ a } + b", 0), ("x ^ { 2 }", 1), (r"\frac { x ^ { 2 } } { 3 }", 2), (r"\sqrt [ n ] { 2 }", 1)],
)
def test_depth(text: str, depth: int) -> None:
    assert parse_latex(text).depth == depth


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x _ { 1 } ^ { 2 }", "x ^ { 2 } _ { 1 }"),
        (r"\int \limits _ { a } ^ { b }", r"\int ^ { b } _ { a }"),
        ("{ { x } ^ { 2 } }", "x ^ { { 2 } }"),
        ("{ ( a ) } ^ { 2 }", "( a ) ^ { 2 }"),
        ("x _ { }", "x"),
        (r"\mathop { \lim } \limits _ { x }", r"\lim _ { x }"),
    ],
)
def test_writing_conventions_do_not_matter_to_the_canonical_tree(first: str, second: str) -> None:
    assert parse_latex(first) != parse_latex(second)
    assert parse_latex(first).canonical() == parse_latex(second).canonical()
    assert hash(parse_latex(first).canonical()) == hash(parse_latex(second).canonical())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x _ { 1 }", "x ^ { 1 }"),
        ("{ x ^ { 2 } } ^ { 3 }", "x ^ { 2 3 }"),
        (r"\sqrt { x } y", r"\sqrt { x y }"),
        (r"\sqrt [ 2 ] { x }", r"\sqrt { x }"),
        ("x y", "x"),
        (r"\mathop { = } \limits ^ { x }", "= ^ { x }"),
    ],
)
def test_different_structures_differ(first: str, second: str) -> None:
    assert parse_latex(first).canonical() != parse_latex(second).canonical()
    assert parse_latex(first).structure() != parse_latex(second).structure()


def test_the_structure_ignores_symbols() -> None:
    assert (
        parse_latex(r"\frac { a } { b } + x ^ { 2 }").structure()
        == parse_latex(r"\frac { 1 } { \pi } = y ^ { n }").structure()
    )


def test_canonical_forms_can_keep_or_put_limits() -> None:
    tree = parse_latex(r"\sum ^ { n } _ { i } \int \limits _ { a } \lim + \sum")
    assert " ".join(tree.canonical().tokens()) == r"\sum _ { i } ^ { n } \int _ { a } \lim + \sum"
    put = tree.canonical(limits="put")
    assert " ".join(put.tokens()) == r"\sum \limits _ { i } ^ { n } \int \limits _ { a } \lim + \sum"
    kept = tree.canonical(sort_scripts=False, limits="keep")
    assert kept.tokens() == tree.tokens()


@pytest.mark.parametrize("opening", [["^", "{"], [r"\sqrt", "{"], ["{"], [r"\frac", "{", "1", "}", "{"]])
def test_nesting_is_not_limited_by_the_stack(opening: list[str]) -> None:
    tokens = [*opening * 5_000, "x", *["}"] * 5_000]
    tree = parse_latex(tokens)
    assert tree.tokens() == tokens
    assert tree.depth == (0 if opening == ["{"] else 5_000)
    assert tree == parse_latex(tokens) and hash(tree) == hash(parse_latex(tokens))
    assert is_well_formed(tree.canonical().tokens())


# ---------------------------------------------------------------------------------------------------------- normaliser


def test_the_default_vocabulary_is_the_models() -> None:
    assert {token for token in ABM_VOCABULARY if not token.startswith("<") or token == "<"} == CROHME_TOKENS
    assert len(CROHME_TOKENS) == 110


@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        (r"$x_k + y^2$", "x _ { k } + y ^ { 2 }"),
        (r" { \mbox { a } _ { { \mbox { c } } } } ", "a _ { c }"),
        (r"\frac12 + \frac {\sqrt x} 2", r"\frac { 1 } { 2 } + \frac { \sqrt { x } } { 2 }"),
        (r"x^\frac12", r"x ^ { \frac { 1 } { 2 } }"),
        (r"x^\sqrt[3]y", r"x ^ { \sqrt [ 3 ] { y } }"),
        (r"\sqrt[{n+1}]{x}", r"\sqrt [ n + 1 ] { x }"),
        (r"\left ( x \right )^2 \Big[ y \Big]", r"( x ) ^ { 2 } [ y ]"),
        (r"\left. x \right|_0^1", r"x | _ { 0 } ^ { 1 }"),
        (r"\mathrm dx\,\mathrm{card}\;A", "d x c a r d A"),
        (r"a\lt b \gt c \le d \ge e \ne f \to g", r"a < b > c \leq d \geq e \neq f \rightarrow g"),
        (r"M\ltN", "M < N"),
        (r"1,\dots,n", r"1 , \ldots , n"),
        (r"\lbrack a \rbrack", "[ a ]"),
        (r"2 \Pi | x \parallel y |", r"2 \pi | x | | y |"),
        (r"\int^b_a \limits_{}", None),
        (r"\int\limits^b_a f", r"\int _ { a } ^ { b } f"),
        (r"x_{} + y", "x + y"),
        (
            r"f'(x) + f'' + f'^2 + f^{'}",
            r"f ^ { \prime } ( x ) + f ^ { \prime \prime } + f ^ { \prime 2 } + f ^ { \prime }",
        ),
        (r"f'^'", r"f ^ { \prime \prime }"),
        (r"f'^{n+1}", r"f ^ { \prime n + 1 }"),
        (r"l o g x + lim _ {x} + sin [x] + a div b", r"\log x + \lim _ { x } + \sin [ x ] + a \div b"),
        ("2 l o g x A l o g limx", r"2 \log x A l o g l i m x"),
        (r"a_{tan} + sinc + \mathrm{div} v", "a _ { t a n } + s i n c + d i v v"),
        (r"\sqrt {\sqrt {x} ABOVE {n}} ABOVE {m}", r"\sqrt [ m ] { \sqrt [ n ] { x } }"),
        (r"\lim _ {y \rightarrow x}} f (y)", r"\lim _ { y \rightarrow x } f ( y )"),
        (r"{x^2}^3 {x_1}^2", r"{ x ^ { 2 } } ^ { 3 } x _ { 1 } ^ { 2 }"),
        (r"{}^{14} C a{}_2", r"^ { 1 4 } C a _ { 2 }"),
        (r"\not= \dfrac ab", r"\neq \frac { a } { b }"),
        (r"x \hspace{1cm} y \phantom z", "x y"),
        ("x ^ { 2 }", "x ^ { 2 }"),
    ],
)
def test_normalising(raw: str, tokens: str | None) -> None:
    if tokens is None:
        with pytest.raises(LatexError):
            normalize_latex(raw)
    else:
        assert " ".join(normalize_latex(raw)) == tokens


def test_conventions() -> None:
    raw = r"\sum^n_{i} x'^{2} \int\limits_a \lim f^{'}"
    assert " ".join(normalize_latex(raw)) == r"\sum _ { i } ^ { n } x ^ { \prime 2 } \int _ { a } \lim f ^ { \prime }"
    comer = r"\sum \limits _ { i } ^ { n } x ^ { \prime 2 } \int \limits _ { a } \lim f ^ { \prime }"
    assert " ".join(normalize_latex(raw, convention="comer")) == comer
    written = r"\sum ^ { n } _ { i } x ' ^ { 2 } \int \limits _ { a } \lim f ^ { ' }"
    assert " ".join(normalize_latex(raw, convention="written")) == written
    with pytest.raises(ValueError, match="abm, comer, written"):
        normalize_latex("x", convention="wap")


@pytest.mark.parametrize(
    ("raw", "token"),
    [
        (r"\omega + x", r"\omega"),
        (r"\mathbb{R}", r"\mathbb"),
        ("D", "D"),
        (r"{a \over b}", r"\over"),
        (r"\begin{array}{cc}a&b\end{array}", r"\begin{array}"),
        (r"x^2^3", "^"),
        (r"\frac{}{2}", r"\frac"),
        (r"\sqrt{\frac{1}}", r"\frac"),
        (r"x^", "^"),
        (r"{x", "{"),
        (r"x ABOVE {2}", "ABOVE"),
        (r"\not<", r"\not"),
    ],
)
def test_what_cannot_be_expressed_is_named(raw: str, token: str) -> None:
    with pytest.raises(LatexError) as caught:
        normalize_latex(raw)
    assert caught.value.token == token
    assert token in str(caught.value)


@pytest.mark.parametrize("raw", ["", " $ $ ", r"\,", "{}"])
def test_an_empty_label_is_refused(raw: str) -> None:
    with pytest.raises(LatexError, match="empty"):
        normalize_latex(raw)


def test_other_vocabularies() -> None:
    assert normalize_latex(r"\mathbb{R} \Pi", vocabulary=None) == [r"\mathbb", "{", "R", "}", r"\Pi"]
    assert normalize_latex("答 : 5 0 %", vocabulary=None) == ["答", ":", "5", "0", r"\%"]
    # HME100K has \vert and \mid where CROHME has "|": a spelling that the vocabulary holds is left alone.
    hme100k = {"a", "b", r"\vert", r"\geqslant", r"\mid", "_", "{", "}", r"\mathop", r"\lim", r"\limits"}
    assert normalize_latex(r"\vert a \mid b \geqslant", vocabulary=hme100k) == [
        r"\vert",
        "a",
        r"\mid",
        "b",
        r"\geqslant",
    ]
    assert normalize_latex(r"\vert a \geqslant b") == ["|", "a", r"\geq", "b"]
    assert normalize_latex(r"\mathop { \lim } \limits _ a", vocabulary=hme100k) == [r"\lim", "_", "{", "a", "}"]
    assert normalize_latex("sin", vocabulary={"s", "i", "n"}) == ["s", "i", "n"]
    assert normalize_latex(r"\omega{t} \perp{x}", vocabulary=None) == [r"\omega", "t", r"\perp", "x"]
    assert normalize_latex(r"\heartsuit x", vocabulary=None) == [r"\heartsuit", "x"]
    with pytest.raises(LatexError, match="overarc"):
        normalize_latex(r"\overarc{AB}", vocabulary=None)
    matrix = r"\begin{pmatrix} 1 & x ^ { 2 } \\ 0 & 1 \end{pmatrix}"
    assert " ".join(normalize_latex(r"\begin{pmatrix}1&x^2\\0&1\end{pmatrix}", vocabulary=None)) == matrix


RAW_PIECES = [*"xyz12+()[]{}^_'$,", r"\frac", r"\sqrt", r"\sqrt[", r"\sum", r"\limits", r"\left", r"\right", r"\mbox{"]
RAW_PIECES += [
    r"\mathrm",
    "^{",
    "_{",
    "}}",
    " ",
    "\\",
    r"\\",
    "&",
    r"\begin{matrix}",
    r"\end{matrix}",
    "ABOVE",
    r"\lt",
]
RAW_PIECES += ["sin", "%", "<eol>", "\n", r"\not", r"\hspace", r"\mathop{", r"\textcircled", "é", "答"]


@fuzz
@given(
    st.one_of(st.text(max_size=60), st.lists(st.sampled_from(RAW_PIECES), max_size=30).map("".join)),
    st.sampled_from(CONVENTIONS),
    st.booleans(),
)
def test_any_text_gives_a_well_formed_label_or_a_latex_error(raw: str, convention: str, restricted: bool) -> None:
    vocabulary = CROHME_TOKENS if restricted else None
    try:
        tokens = normalize_latex(raw, convention=convention, vocabulary=vocabulary)
    except LatexError:
        return
    assert is_well_formed(tokens)
    assert normalize_latex(" ".join(tokens), convention=convention, vocabulary=vocabulary) == tokens
    assert lex_latex(" ".join(tokens)) == tokens
    if restricted:
        assert CROHME_TOKENS.issuperset(tokens)


@fuzz
@given(st.lists(st.one_of(st.sampled_from(sorted(CROHME_TOKENS)), st.text(max_size=3)), max_size=60))
def test_any_tokens_parse_or_give_a_latex_error(tokens: list[str]) -> None:
    try:
        tree = parse_latex(tokens)
    except LatexError as error:
        assert error.position is not None and 0 <= error.position <= len(tokens)
        return
    assert tree.tokens() == tokens
    assert is_well_formed(tree.canonical().tokens())


# ----------------------------------------------------------------------------------------------------------- real data


def _published(archive: Path, part: str) -> dict[str, list[str]]:
    with zipfile.ZipFile(archive) as file:
        lines = file.read(f"data/{part}/caption.txt").decode().splitlines()
    return {name: label.split() for name, label in (line.split("\t") for line in lines)}


def _truths(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*.inkml"):
        match = re.search(r'<annotation typ[ex]="truth">(.*?)</annotation>', path.read_text("utf-8", "replace"), re.S)
        if match:
            found[path.stem] = html.unescape(match.group(1))
    return found


def _equal(truths: dict[str, str], labels: dict[str, list[str]], convention: str) -> int:
    equal = 0
    for name, label in labels.items():
        try:
            equal += normalize_latex(truths[name], convention=convention) == label
        except LatexError:
            continue
    return equal


def test_every_published_label_is_well_formed_and_a_fixed_point(crohme_offline: Path) -> None:
    for part, convention, count in (("train", "written", 8835), ("2014", "abm", 986)):
        labels = _published(crohme_offline, part)
        assert len(labels) == count
        for label in labels.values():
            assert is_well_formed(label)
            assert normalize_latex(" ".join(label), convention=convention) == label


def test_the_2014_truths_give_the_published_labels(crohme_offline: Path, crohme_inkml: Path) -> None:
    labels, truths = _published(crohme_offline, "2014"), _truths(crohme_inkml / "test2014")
    assert _equal(truths, labels, "abm") >= 979


def test_the_rule_for_limits_gives_the_published_counts(crohme_offline: Path) -> None:
    # A published comparison of CoMER's labels of the 2014 test with these counts 105 \limits in 81 labels.
    labels = [
        normalize_latex(" ".join(label), convention="comer") for label in _published(crohme_offline, "2014").values()
    ]
    assert sum(label.count(r"\limits") for label in labels) == 105
    assert sum(r"\limits" in label for label in labels) == 81


def test_the_training_truths_give_the_published_labels(crohme_offline: Path, crohme_inkml: Path) -> None:
    labels, truths = _published(crohme_offline, "train"), _truths(crohme_inkml / "train")
    assert _equal(truths, labels, "written") >= 8812
    renewed = {name: normalize_latex(" ".join(label)) for name, label in labels.items()}
    assert sum(renewed[name] != label for name, label in labels.items()) == 195
    assert _equal(truths, renewed, "abm") >= 8812
