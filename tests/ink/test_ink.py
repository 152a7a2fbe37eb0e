"""Ink: what it accepts, what it refuses, and that it stays as it was made."""

import pickle

import numpy as np
import pytest

from abm_hf.ink.strokes import MAX_COORDINATE, Ink, InkError, Symbol

SQUARE = [[0, 0], [10, 0], [10, 20]]


def test_strokes_become_read_only_arrays():
    theirs = np.array(SQUARE, dtype=np.float64)
    ink = Ink((theirs, [[5, 5]]))
    assert [stroke.dtype for stroke in ink.strokes] == [np.float64, np.float64]
    with pytest.raises(ValueError, match="read-only"):
        ink.strokes[0][0, 0] = 1
    theirs[0, 0] = 1  # the caller's own array is not locked


def test_bounds_ignore_time():
    assert Ink(([[3, 4, 1000], [1, 9, 2000]], [[2, 2, -5]])).bounds == (1, 2, 3, 9)


@pytest.mark.parametrize(
    ("strokes", "reason"),
    [
        ((), "no strokes"),
        (([],), r"stroke 0 has shape \(0,\)"),
        (([[1, 2]], np.zeros((0, 2))), r"stroke 1 has shape \(0, 2\)"),
        (([[1, 2, 3, 4]],), r"shape \(1, 4\)"),
        (([1, 2],), r"shape \(2,\)"),
        (([[1, 2]], [[1, 2, 3]]), "stroke 1 has 3 columns, the first stroke 2"),
        (([["a", "b"]],), "stroke 0 is not an array of numbers"),
        (([[1, 2], [3]],), "stroke 0 is not an array of numbers"),
        (([[0, 0]], [[0, 0], [0, np.nan]]), "point 1 of stroke 1"),
        (([[0, 0, np.inf]],), "point 0 of stroke 0"),
        (([[0, -2 * MAX_COORDINATE]],), "coordinates within"),
    ],
)
def test_bad_strokes_are_refused(strokes, reason):
    with pytest.raises(InkError, match=reason):
        Ink(strokes)


def test_time_may_be_of_any_size():
    assert Ink(([[0, 0, 1.7e12]],)).strokes[0][0, 2] == 1.7e12


@pytest.mark.parametrize("strokes", [(), (2,), (-1,), (0, 5)])
def test_symbols_must_name_strokes_that_exist(strokes):
    with pytest.raises(InkError, match="symbol 'x' refers to strokes"):
        Ink((SQUARE, SQUARE), symbols=(Symbol("x", strokes),))


def test_inks_compare_by_value():
    ink = Ink((SQUARE,), label="x", symbols=(Symbol("x", (0,)),), annotations={"writer": "w"})
    assert ink == Ink((SQUARE,), label="x", symbols=[Symbol(" x ", [np.int64(0)])], annotations={"writer": "w"})
    assert ink != Ink((SQUARE,), label="y", symbols=ink.symbols, annotations=ink.annotations)
    assert ink != Ink((SQUARE[:2],), label="x", symbols=ink.symbols, annotations=ink.annotations)
    assert ink != Ink((SQUARE, SQUARE), label="x", symbols=ink.symbols, annotations=ink.annotations)
    assert ink != "x"


@pytest.mark.parametrize("label", [None, "", "  \n"])
def test_a_blank_label_is_no_label(label):
    assert Ink((SQUARE,), label=label).label is None


def test_annotations_are_a_copy():
    annotations = {"writer": "w"}
    ink = Ink((SQUARE,), annotations=annotations)
    annotations["writer"] = "v"
    assert ink.annotations == {"writer": "w"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InkError("broken"), "broken"),
        (InkError("broken", "a.inkml"), "a.inkml: broken"),
        (InkError("broken", "a.inkml", 7), "a.inkml:7: broken"),
        (InkError("broken", line=7), "line 7: broken"),
    ],
)
def test_errors_say_where_and_cross_processes(error, text):
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == text
    assert (again.reason, again.file, again.line) == (error.reason, error.file, error.line)


def test_ink_crosses_processes():
    ink = Ink((SQUARE,), label="x", symbols=(Symbol("x", (0,)),), annotations={"writer": "w"})
    assert pickle.loads(pickle.dumps(ink)) == ink
