"""Synthetic ink: exact labels, exact symbols, the same bytes for the same seed, and mathematics like CROHME's."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from abm_hf.data.latex import is_well_formed
from abm_hf.data.synthetic import STRUCTURE_TOKENS, synthetic_ink

SEEDS = range(200)


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
            assert (stroke[:, :2] == np.rint(stroke[:, :2])).all() and (stroke[:, :2] > -100).all()
            assert (np.diff(stroke[:, 2]) >= 0).all() and stroke[0, 2] > last
            last = stroke[-1, 2]


def test_same_seed_same_ink_in_another_process():
    program = (
        "import sys; sys.path.insert(0, 'tests'); from test_synthetic import digest, synthetic_ink\n"
        "print(' '.join(digest(synthetic_ink(seed)) for seed in range(5)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest(synthetic_ink(seed)) for seed in range(5)]
    assert digest(synthetic_ink(1)) != digest(synthetic_ink(2))
