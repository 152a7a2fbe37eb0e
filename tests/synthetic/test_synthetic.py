"""Synthetic ink: exact labels, exact symbols, the same bytes for the same seed, and mathematics like CROHME's."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from abm_hf.ink.inkml import read_inkml
from abm_hf.ink.rendering import render_ink
from abm_hf.latex.normalization import LatexError, is_well_formed
from abm_hf.synthetic.expressions import (
    handwritten,
    synthetic_ink,
)
from abm_hf.synthetic.glyphs import glyphs_of
from abm_hf.synthetic.grammar import ExpressionGrammar
from abm_hf.synthetic.shapes import SHAPES, SPELT
from abm_hf.tokenization_abm import ABMTokenizer

SEEDS = range(100)
#: They have no strokes.
STRUCTURE_TOKENS = frozenset(("{", "}", "^", "_", "\\limits"))


def visible_tokens(label: str) -> list[str]:
    """The tokens of a label that are written, worked out without the package: not the brackets of a root's index."""
    tokens = label.split()
    kept, closers = [], []
    for index, token in enumerate(tokens):
        if token == "[" and index and tokens[index - 1] == "\\sqrt":
            closers.append("]")
        elif token == "{":
            closers.append("}")
        elif closers and token == closers[-1]:
            closers.pop()
        elif token not in STRUCTURE_TOKENS:
            kept.append(token)
    return kept


def digest(ink) -> str:
    parts = [ink.label, repr(ink.symbols), *(stroke.tobytes().hex() for stroke in ink.strokes)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@pytest.fixture(scope="module")
def inks():
    return [synthetic_ink(seed) for seed in SEEDS]


def test_labels_are_well_formed_and_symbols_follow_them(inks):
    for ink in inks:
        assert is_well_formed(ink.label), ink.label
        assert [symbol.label for symbol in ink.symbols] == visible_tokens(ink.label), ink.label


def test_every_stroke_belongs_to_exactly_one_symbol(inks):
    for ink in inks:
        owned = sorted(index for symbol in ink.symbols for index in symbol.strokes)
        assert owned == list(range(len(ink.strokes))), ink.label
        assert all(symbol.strokes for symbol in ink.symbols)


def test_strokes_are_device_units_in_writing_time(inks):
    for ink in inks:
        last = -1.0
        for stroke in ink.strokes:
            assert stroke.shape[1] == 3 and len(stroke) >= 2
            assert (stroke[:, :2] == np.rint(stroke[:, :2])).all() and (stroke[:, :2] >= 0).all()
            assert (np.diff(stroke[:, 2]) >= 0).all() and stroke[0, 2] > last
            last = stroke[-1, 2]


def test_same_seed_same_ink_in_another_process():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_synthetic import digest, synthetic_ink\n"
        "print(' '.join(digest(synthetic_ink(seed)) for seed in range(5)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest(synthetic_ink(seed)) for seed in range(5)]
    assert digest(synthetic_ink(1)) != digest(synthetic_ink(2))


def expressions(count: int, **bounds: int) -> list[list[str]]:
    return [
        ExpressionGrammar(np.random.Generator(np.random.PCG64(seed))).expression(**bounds) for seed in range(count)
    ]


def box(ink, *labels: str) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) of the symbols with these labels, each the first that is left."""
    symbols = list(ink.symbols)
    boxes = []
    for label in labels:
        symbol = symbols.pop([symbol.label for symbol in symbols].index(label))
        points = np.concatenate([ink.strokes[index] for index in symbol.strokes])[:, :2]
        boxes.append((*points.min(axis=0), *points.max(axis=0)))
    return boxes


def crohme_tokens() -> set[str]:
    vocabulary = ABMTokenizer().get_vocab()
    return {token for token, number in vocabulary.items() if 2 <= number <= 111}


def test_all_110_tokens_occur_and_no_others():
    assert len(crohme_tokens()) == 110
    assert {token for tokens in expressions(4000) for token in tokens} == crohme_tokens()


def test_every_visible_token_can_be_written():
    visible = crohme_tokens() - STRUCTURE_TOKENS - {"\\frac", "\\sqrt"}
    assert visible == set(SHAPES) | set(SPELT)
    for token in sorted(visible):
        ink = handwritten([token], 3)
        assert [symbol.label for symbol in ink.symbols] == [token] and render_ink(ink).any()


def test_lengths_are_distributed_as_in_crohme():
    lengths = [len(tokens) for tokens in expressions(4000)]
    assert 14 < np.mean(lengths) < 16.5  # CROHME's labels: 15.5
    assert 36 <= np.quantile(lengths, 0.95) <= 41  # 38
    assert 0.03 < np.mean(np.equal(lengths, 1)) < 0.08  # 0.056
    nested = [max(np.cumsum([(t == "{") - (t == "}") for t in tokens])) for tokens in expressions(1000, min_tokens=11)]
    assert np.mean(np.greater_equal(nested, 2)) > 0.15 and np.mean(np.equal(nested, 0)) < 0.25


def test_lengths_keep_to_their_bounds():
    for low, high in ((1, 1), (2, 2), (1, 6), (7, 9), (23, 23), (30, 80)):
        lengths = {len(tokens) for tokens in expressions(100, min_tokens=low, max_tokens=high)}
        assert low <= min(lengths) and max(lengths) <= high
    with pytest.raises(ValueError, match="min_tokens"):
        synthetic_ink(0, min_tokens=5, max_tokens=4)


def test_parts_stand_where_mathematics_puts_them():
    for seed in range(20):
        ink = handwritten(r"\frac { a } { b } + x _ { 1 } ^ { 2 } = \sqrt { y }", seed)
        a, bar, b, x, one, two, root, y = box(ink, "a", "\\frac", "b", "x", "1", "2", "\\sqrt", "y")
        middle = {name: (p[1] + p[3]) / 2 for name, p in zip("a/bx12", (a, bar, b, x, one, two), strict=True)}
        assert middle["a"] < middle["/"] < middle["b"]
        assert middle["2"] < middle["x"] < middle["1"]
        assert one[0] > x[0] and two[0] > x[0] and bar[2] - bar[0] > 0.7 * (a[2] - a[0])
        assert root[0] < y[0] and root[1] < y[1] and root[2] > (y[0] + y[2]) / 2
        assert bar[0] < x[0] < root[0]


def test_fences_grow_with_what_they_enclose():
    def growth(label: str) -> float:
        pairs = [box(handwritten(label, seed), "(", "a") for seed in range(15)]
        return float(np.median([(fence[3] - fence[1]) / (letter[3] - letter[1]) for fence, letter in pairs]))

    assert growth(r"( \frac { a } { b } )") > 1.4 * growth("( a b )")


def test_a_writer_keeps_to_one_hand():
    def height(writer: int, seed: int) -> float:
        (letter,) = box(handwritten("l", seed, writer=writer), "l")
        return letter[3] - letter[1]

    same = np.std([np.log(height(7, seed)) for seed in range(12)])
    others = np.std([np.log(height(writer, 1)) for writer in range(12)])
    assert same < 0.5 * others
    assert synthetic_ink(3, writer=5).annotations["writer"] == "synthetic-5"


def test_what_cannot_be_written_is_named():
    with pytest.raises(LatexError, match="zeta"):
        handwritten(r"x + \zeta", 0)
    with pytest.raises(LatexError, match="hat"):
        handwritten(r"\hat { x }", 0)
    with pytest.raises(LatexError, match="no symbol"):
        handwritten("{ }", 0)
    with pytest.raises(LatexError):
        handwritten(r"\frac { a }", 0)
    with pytest.raises(LatexError, match="nesting"):
        handwritten("x ^ { " * 2000 + "x" + " }" * 2000, 0)
    with pytest.raises(LatexError, match="nesting"):
        handwritten("{ " * 2000 + "x" + " }" * 2000, 0)


def test_labels_follow_the_convention_asked_for():
    labels = {seed: synthetic_ink(seed, min_tokens=20).label.split() for seed in range(120)}
    limits = [seed for seed, tokens in labels.items() if "\\limits" in tokens or "'" in tokens]
    assert limits
    for seed in limits:
        ink = synthetic_ink(seed, min_tokens=20, convention="abm")
        assert not {"\\limits", "'"} & set(ink.label.split())
        assert [symbol.label for symbol in ink.symbols] == visible_tokens(ink.label)
    with pytest.raises(ValueError, match="convention"):
        synthetic_ink(0, convention="house")


def test_symbols_have_several_shapes():
    several = [token for token in SHAPES if len(glyphs_of(token)) > 1]
    assert len(several) > 0.9 * len(SHAPES)
    assert len(glyphs_of("x")) >= 5 and len(glyphs_of("1")) >= 4


def test_examples_are_what_their_labels_say():
    folder = Path(__file__).parents[2] / "examples"
    lines = [line.split("\t") for line in (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12 and all((folder / name).is_file() and is_well_formed(label) for name, label in lines)
    inks = {path.stem: read_inkml(path) for path in folder.glob("*.inkml")}
    assert len(inks) >= 3
    for name, label in lines:
        if Path(name).stem in inks:
            assert inks[Path(name).stem].label == label
