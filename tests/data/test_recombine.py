"""Recombination: symbols find their tokens, and what is put together is what its label says."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from lxml import etree

from abm_hf.data.prepare import load_prepared, prepare_dataset
from abm_hf.data.recombination import SymbolBank, recombine, substitute
from abm_hf.data.source import PrepareError
from abm_hf.ink.alignment import align_symbols
from abm_hf.ink.inkml import read_inkml, write_inkml
from abm_hf.ink.rendering import render_ink
from abm_hf.ink.strokes import Ink
from abm_hf.latex.normalization import LatexError, is_well_formed, normalize_latex, parse_latex
from abm_hf.synthetic.expressions import handwritten, synthetic_ink


def shuffled(ink: Ink, seed: int) -> Ink:
    order = np.random.default_rng(seed).permutation(len(ink.symbols))
    return Ink(ink.strokes, ink.label, tuple(ink.symbols[index] for index in order), ink.annotations)


def aligned(ink: Ink):
    alignment = align_symbols(ink)
    assert alignment is not None
    return alignment


def test_shuffled_symbols_find_their_tokens_again():
    found = 0
    for seed in range(80):
        ink = synthetic_ink(seed)
        alignment = align_symbols(shuffled(ink, seed))
        if alignment is not None:
            found += 1
            assert alignment.ink.symbols == ink.symbols, ink.label
    assert found >= 76


def test_ink_that_does_not_fit_its_label_is_refused():
    ink = handwritten(r"\frac { a } { b } + x ^ { 2 }", 4)
    assert align_symbols(ink) is not None
    assert align_symbols(ink, r"\frac { b } { a } + x ^ { 2 }") is None  # upside down
    assert align_symbols(ink, r"\frac { a } { b } + x _ { 2 }") is None
    assert align_symbols(ink, r"\frac { a } { b } + x ^ { 3 }") is None
    assert align_symbols(ink, r"x ^ { 2 } + \frac { a } { b }") is None  # in another order
    assert align_symbols(Ink(ink.strokes, ink.label, ink.symbols[:-1])) is None  # strokes that belong to nothing
    with pytest.raises(LatexError):
        align_symbols(ink, r"\frac { a")


def test_slots_are_the_parts_between_their_brackets():
    ink = handwritten(r"\sqrt [ 3 ] { a } + ( \frac { b c } { d } ) ^ { n } - \sum _ { i } x _ { k }", 2)
    alignment = aligned(ink)
    parts = {
        (slot.kind, " ".join(alignment.tokens[slice(*slot.tokens)]), len(range(*slot.symbols)))
        for slot in alignment.slots
    }
    assert parts == {
        ("radicand", "a", 1),
        ("fence", r"\frac { b c } { d }", 4),
        ("numerator", "b c", 2),
        ("denominator", "d", 1),
        ("sup", "n", 1),
        ("sub", "k", 1),
    }


def test_recombined_ink_is_what_its_label_says():
    rng = np.random.default_rng(0)
    inks = [align_symbols(synthetic_ink(seed, min_tokens=8, max_tokens=40)) for seed in range(60)]
    usable = [alignment for alignment in inks if alignment is not None and alignment.slots]
    made = again = 0
    for number, target in enumerate(usable):
        ink = recombine(target, usable[number - 1], rng)
        if ink is None:
            continue
        made += 1
        assert is_well_formed(ink.label) and ink.label != target.ink.label
        owned = [index for symbol in ink.symbols for index in symbol.strokes]
        assert owned == list(range(len(ink.strokes))) and render_ink(ink).any()
        # Read anew, without its order, the ink gives the same symbols for the same label.
        realigned = align_symbols(shuffled(ink, number))
        again += realigned is not None and realigned.ink.symbols == ink.symbols
    assert made >= 10 and again >= 0.85 * made


def test_a_longer_numerator_stretches_its_bar_and_moves_what_follows():
    target = aligned(handwritten(r"\frac { a } { 2 } + y", 1))
    donor = aligned(handwritten(r"\frac { b + c + d } { k ^ { k } }", 5))
    for seed in range(20):
        ink = recombine(target, donor, np.random.default_rng(seed))
        if ink is not None and ink.label == r"\frac { b + c + d } { 2 } + y":
            break
    else:
        pytest.fail("the numerator was never exchanged")

    def extent(ink: Ink, number: int) -> tuple[float, float]:
        x = np.concatenate([ink.strokes[index] for index in ink.symbols[number].strokes])[:, 0]
        return float(x.min()), float(x.max())

    bar, b, d, plus = (extent(ink, number) for number in (0, 1, 5, 7))
    assert bar[0] < b[0] + 0.2 * (bar[1] - bar[0]) and bar[1] > d[0] and plus[0] > d[1] - 0.1 * (bar[1] - bar[0])


def test_same_seed_same_recombination():
    one, other = (aligned(handwritten(label, 3)) for label in (r"x ^ { 2 } + a _ { 1 }", r"y ^ { n } b _ { k }"))
    results = [recombine(one, other, np.random.default_rng(7)) for _ in range(2)]
    assert results[0] is not None and results[0] == results[1]


def test_nothing_in_common_gives_nothing():
    one, other = aligned(handwritten("x ^ { 2 }", 3)), aligned(handwritten(r"\sqrt { x }", 3))
    assert recombine(one, other, np.random.default_rng(0)) is None


def test_crohme_symbols_go_where_its_mathml_has_them(crohme_inkml: Path):
    """Identical symbols come in the order in which the files' own MathML refers to them."""
    refused = wrong = 0
    files = sorted((crohme_inkml / "train" / "KAIST").glob("*.inkml"))[::20]
    for path in files:
        ink = read_inkml(path)
        alignment = align_symbols(ink, " ".join(normalize_latex(ink.label or "", convention="written")))
        if alignment is None:
            refused += 1
            continue
        position, reference = mathml_of(path)
        places = defaultdict(list)
        for symbol in alignment.ink.symbols:
            places[symbol.label].append(position[reference[frozenset(symbol.strokes)]])
        # Fractions' bars stand before both halves in labels, and nowhere in particular in MathML.
        wrong += any(order != sorted(order) for label, order in places.items() if label != "-")
    assert wrong == 0 and refused <= 0.1 * len(files)


def mathml_of(path: Path) -> tuple[dict[str, int], dict[frozenset[int], str]]:
    """Places of the ids in the MathML, and the id that each symbol, a set of strokes, refers to."""
    root = etree.parse(path, etree.XMLParser(recover=True)).getroot()
    name = "{http://www.w3.org/XML/1998/namespace}id"
    ids = [element.get(name) for element in root.iter("{http://www.w3.org/1998/Math/MathML}*") if element.get(name)]
    strokes = {trace.get("id"): number for number, trace in enumerate(root.iter("{*}trace"))}
    references = {}
    for group in root.iter("{*}traceGroup"):
        own = frozenset(strokes[view.get("traceDataRef")] for view in group.findall("{*}traceView"))
        target = group.find("{*}annotationXML")
        if own and target is not None:
            references[own] = target.get("href")
    return {identifier: place for place, identifier in enumerate(ids)}, references


def test_symbols_change_for_others_of_their_shape():
    inks = [
        aligned(handwritten(label, seed)) for seed, label in enumerate((r"x ^ { 2 } + a _ { 1 } = \sin y", "3 n - b"))
    ]
    bank, rng = SymbolBank(inks), np.random.default_rng(0)
    labels = set()
    for _ in range(40):
        ink = substitute(inks[0], bank, rng, share=0.7).ink
        parse_latex(ink.label or "")
        x, power, two, plus = (ink.label or "").split()[:2] + (ink.label or "").split()[3:6:2]
        assert x in ("x", "a", "n") and power == "^" and two in "123" and plus in "+-"
        realigned = align_symbols(ink)
        assert realigned is not None and realigned.ink.symbols == ink.symbols
        labels.add(ink.label)
    assert len(labels) > 10


def test_an_empty_bank_changes_nothing():
    target = aligned(handwritten("x + 1", 3))
    assert substitute(target, SymbolBank([]), np.random.default_rng(0), share=1.0) is target


def test_a_tree_of_ink_is_recombined(tmp_path: Path):
    folder = tmp_path / "tree" / "train" / "own"
    folder.mkdir(parents=True)
    for seed, label in enumerate((r"x ^ { 2 } + a", "3 n - b", r"\frac { 1 } { y }")):
        write_inkml(handwritten(label, seed), folder / f"{seed}.inkml")
    reports = [
        prepare_dataset("crohme-recombined", tmp_path / "tree", tmp_path / name, variations=20, shard_size=size)
        for name, size in (("one", 1024), ("two", 7))
    ]
    assert [report.total.kept for report in reports] == [60, 60]
    rows = [load_prepared(tmp_path / name)["train"]["latex"] for name in ("one", "two")]
    assert rows[0] == rows[1] and len(set(rows[0])) > 20


def test_only_recombination_has_variations(tmp_path: Path):
    with pytest.raises(PrepareError, match="variations"):
        prepare_dataset("crohme-inkml", tmp_path, tmp_path / "out", variations=2)
