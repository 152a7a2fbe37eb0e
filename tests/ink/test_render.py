"""Rendering: the published rule, point by point and against the published bitmaps, and what it leaves open.

`ABM_HF_CROHME_EVERY=1 python -m pytest tests/ink/test_render.py -k published -s` compares all 9,820 bitmaps, not a
sample, and prints the numbers; `ABM_HF_FUZZ_EXAMPLES=10000` runs the fuzz tests in full.
"""

import os
import sys
import zipfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abm_hf.ink.inkml import read_inkml
from abm_hf.ink.rendering import MAX_PIXELS, render_ink
from abm_hf.ink.strokes import Ink, InkError

fuzz = settings(max_examples=int(os.environ.get("ABM_HF_FUZZ_EXAMPLES", "200")), deadline=20_000)
EVERY = int(os.environ.get("ABM_HF_CROHME_EVERY", "40"))


def ink_at(image: np.ndarray) -> set[tuple[int, int]]:
    """(column, row) of every pixel with ink."""
    return {(int(x), int(y)) for y, x in np.argwhere(image)}


def square(x: int, y: int, side: int = 3) -> set[tuple[int, int]]:
    half = side // 2
    return {(x + i, y + j) for i in range(-half, half + 1) for j in range(-half, half + 1)}


# --- the rule ---


def test_a_vertical_line():
    """56 units high, so k = 56 and s = 1/2: rows 13 to 41 under the brush, in an image of 26 x 54."""
    image = render_ink(Ink(([[100, 200], [100, 256]],)))
    assert image.shape == (28 + 26, 26)
    assert image.dtype == np.uint8 and set(np.unique(image)) == {0, 255}
    assert ink_at(image) == {(x, y) for x in (12, 13, 14) for y in range(12, 43)}


def test_k_is_the_floor_of_the_mean_over_tall_traces():
    """Heights 100, 51, 10: the last is not more than a tenth of the first; (100 + 51) / 2 = 75.5, k = 75."""
    ink = Ink(([[0, 0], [0, 100]], [[500, 0], [500, 51]], [[1000, 0], [1000, 10]]))
    assert render_ink(ink).shape == (int(100 * 28 / 75) + 26, int(1000 * 28 / 75) + 26)
    taller = Ink((*ink.strokes[:2], [[1000, 0], [1000, 11]]))  # now it counts: (100 + 51 + 11) / 3 = 54
    assert render_ink(taller).shape == (int(100 * 28 / 54) + 26, int(1000 * 28 / 54) + 26)


def test_positions_are_truncated_where_they_are_not_where_they_start():
    """s = 1/2: 1 and 4 fall to 0 and 2, two pixels apart; 2 and 5 to 1 and 2, only one; -1 and 2 to 0 and 1."""
    for left, right, columns in ((1, 4, 28), (2, 5, 27), (-1, 2, 27)):
        assert render_ink(Ink(([[left, 0], [right, 56]],))).shape == (54, columns)


def test_positions_are_single_precision():
    """438 · 28 / 24 is 511, but a little less in single precision, and so in the published image of 18_em_14."""
    assert render_ink(Ink(([[0, 0], [0, 24]], [[438, 0], [438, 24]]))).shape[1] == 510 + 26


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=2, max_size=12), st.integers(1, 3))
def test_up_to_three_decimals_are_the_unit(points, decimals):
    """11.7 cm is drawn as 117 mm is."""
    units = np.array(points, dtype=np.float64)
    units[0, 0] += 1 - units[0, 0] % 10  # ends in 1: fewer decimals would not do
    assert np.array_equal(render_ink(Ink((units / 10**decimals,))), render_ink(Ink((units,))))


def test_more_decimals_are_rounded_half_up_to_three():
    ink = Ink(([[0.0004, 0.1], [0.0565, 0.1561]], [[0.02049, 0.1], [0.0205, 0.15]]))
    same = Ink(([[0, 100], [57, 156]], [[20, 100], [21, 150]]))
    assert np.array_equal(render_ink(ink), render_ink(same))


def slow_line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Bresenham's line by the error term, a tie moving on: the oracle."""
    (x, y), (dx, dy) = start, (abs(end[0] - start[0]), abs(end[1] - start[1]))
    sx, sy = (1 if end[0] > start[0] else -1), (1 if end[1] > start[1] else -1)
    error, pixels = 2 * min(dx, dy) - max(dx, dy), [(x, y)]
    for _ in range(max(dx, dy)):
        if error >= 0:
            x, y = (x, y + sy) if dx > dy else (x + sx, y)
            error -= 2 * max(dx, dy)
        error += 2 * min(dx, dy)
        x, y = (x + sx, y) if dx > dy else (x, y + sy)
        pixels.append((x, y))
    return pixels


places = st.tuples(st.integers(0, 60), st.integers(0, 28))


@fuzz
@given(st.lists(st.lists(places, min_size=1, max_size=6), min_size=1, max_size=4))
def test_lines_against_a_slow_oracle(strokes):
    strokes = [[(0, 0), *stroke, (7, 28)] for stroke in strokes]  # all 28 high: k is 28, and a unit a pixel
    expected = {pixel for stroke in strokes for ends in pairwise(stroke) for pixel in slow_line(*ends)}
    image = render_ink(Ink(tuple(strokes)), thickness=1, margin=2)
    assert ink_at(image) == {(x + 2, y + 2) for x, y in expected}


def test_a_stroke_of_one_point_is_a_dot():
    image = render_ink(Ink(([[0, 0], [0, 28]], [[40, 10]])))
    assert square(13 + 40, 13 + 10) <= ink_at(image)
    assert len(ink_at(image)) == 3 * 31 + 9


def test_the_pen_is_up_between_strokes():
    assert not render_ink(Ink(([[0, 0], [0, 28]], [[40, 0], [40, 28]])))[:, 20:45].any()


def test_time_is_not_drawn():
    strokes = [[0, 0], [5, 28], [9, 3]]
    assert np.array_equal(
        render_ink(Ink((strokes,))), render_ink(Ink(([[*p, 1e6 * t] for t, p in enumerate(strokes)],)))
    )


# --- its parameters ---

LETTER = Ink(([[0, 0], [30, 56], [60, 0]], [[15, 30], [45, 30]]))


def test_height_scales_both_axes():
    ink = Ink(([[0, 0], [0, 100]], [[300, 0], [300, 100]]))
    assert render_ink(ink, height=50).shape == (50 + 26, 150 + 26)


@pytest.mark.parametrize("thickness", [1, 2, 3, 4, 7])
def test_thickness_is_the_side_of_the_brush(thickness):
    image = render_ink(Ink(([[0, 0], [0, 28]],)), thickness=thickness)
    assert image.any(axis=0).sum() == thickness
    assert image.any(axis=1).sum() == 28 + thickness


def test_margin():
    bare, wide = (render_ink(LETTER, thickness=1, margin=margin) for margin in (0, 20))
    assert bare.shape == (28 + 1, 30 + 1)
    assert wide.shape == (28 + 40, 30 + 40)
    assert ink_at(wide) == {(x + 20, y + 20) for x, y in ink_at(bare)}


@pytest.mark.parametrize(
    "arguments", [{"height": 0}, {"height": np.nan}, {"thickness": 0}, {"margin": -1}, {"max_pixels": 600}]
)
def test_bad_parameters_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        render_ink(LETTER, **arguments)


# --- where the published rule says nothing ---


@pytest.mark.parametrize("unit", [1, 1000, 0.001, 1e-7])
@pytest.mark.parametrize("origin", [0, 1234, -5678])
def test_a_dot(unit, origin):
    for stroke in ([[3, 4]], [[3, 4], [3, 4]]):
        image = render_ink(Ink((np.array(stroke) * unit + origin,)))
        assert image.shape == (26, 26)
        assert ink_at(image) == square(13, 13)


@pytest.mark.parametrize("wobble", [0, 10, 99])
def test_flat_ink_is_scaled_by_its_width(wobble):
    """A lone minus sign becomes as wide as a letter is high, not a line across a thousand pixels."""
    image = render_ink(Ink(([[0, 0], [500, wobble], [1000, 0]],)))
    assert image.shape == (26 + wobble * 28 // 1000, 26 + 28)


def test_ink_as_high_as_a_tenth_of_its_width_is_not_flat():
    assert render_ink(Ink(([[0, 0], [500, 100], [1000, 0]],))).shape == (26 + 28, 26 + 280)


def test_dots_alone_are_scaled_by_their_distance():
    assert render_ink(Ink(([[0, 0]], [[0, 7]]))).shape == (26 + 28, 26)
    assert render_ink(Ink(([[0, 0]], [[5, 0]], [[10, 0]]))).shape == (26, 26 + 28)


@pytest.mark.parametrize("unit", [1e-4, 1e-6, 1e-12, 1e-300, 1e-318])
def test_tiny_units_keep_their_detail(unit):
    tiny = render_ink(Ink(tuple(stroke * unit for stroke in LETTER.strokes)))
    whole = render_ink(LETTER)
    assert np.abs(np.subtract(tiny.shape, whole.shape)).max() <= 2
    assert tiny.any(axis=0).sum() == pytest.approx(whole.any(axis=0).sum(), abs=2)


def test_far_ink_is_not_blurred():
    assert np.array_equal(render_ink(Ink(tuple(s + 9.9e8 for s in LETTER.strokes))), render_ink(LETTER))


@pytest.mark.parametrize("max_pixels", [784, 2000, 10**5, MAX_PIXELS])
@pytest.mark.parametrize("size", [(10**6, 10**6), (10**9, 56), (56, 10**9), (10**9, 0), (0, 10**9)])
def test_large_ink_is_drawn_smaller(size, max_pixels):
    far = Ink((*LETTER.strokes, [list(size)]))
    image = render_ink(far, max_pixels=max_pixels)
    assert 0.4 * max_pixels <= image.size <= max_pixels


def test_large_ink_never_exceeds_the_limit():
    ink = Ink(tuple(stroke * 99.7 for stroke in LETTER.strokes))
    for max_pixels in range(900, 1400):
        assert 0.8 * max_pixels <= render_ink(ink, max_pixels=max_pixels).size <= max_pixels
    uneven = Ink(([[1, 0], [1, 56]], [[62, 0], [62, 56]]))  # 30.5 pixels wide, which here take 31 columns
    for max_pixels in range(3000, 3100):
        assert render_ink(uneven, max_pixels=max_pixels).size <= max_pixels


def test_ink_without_end_is_refused():
    zigzag = np.stack([np.tile([0, 9999], 20000), np.arange(40000) % 1001], axis=1)
    with pytest.raises(InkError, match="pixels long"):
        render_ink(Ink((zigzag,)))


coordinates = (
    st.floats(-1e9, 1e9) | st.floats(-1e-300, 1e-300) | st.floats(-100, 100) | st.integers(-1000, 1000).map(float)
)


@fuzz
@pytest.mark.filterwarnings("error")
@given(
    st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=6), min_size=1, max_size=5),
    st.floats(0.5, 200),
    st.integers(1, 9),
    st.integers(0, 20),
    st.integers(42**2, 10**5),
)
def test_any_ink_is_drawn(strokes, height, thickness, margin, max_pixels):
    image = render_ink(Ink(tuple(strokes)), height=height, thickness=thickness, margin=margin, max_pixels=max_pixels)
    assert image.size <= max_pixels
    assert image.any()
    assert min(image.shape) >= max(2 * margin, 1)


# --- the published bitmaps ---


def published(archive: Path, folder: Path, part: str) -> Iterable[tuple[Path, np.ndarray]]:
    """InkML file and published bitmap of one part (`train` or `2014`): image names are the stems of the ink files."""
    inks = {path.stem: path for path in folder.rglob("*.inkml") if "test2013" not in path.parts}
    with zipfile.ZipFile(archive) as images:
        names = sorted(name for name in images.namelist() if name.startswith(f"data/{part}/img/") and name[-1] != "/")
        for name in names[::EVERY]:
            bitmap = cv2.imdecode(np.frombuffer(images.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
            yield inks[Path(name).stem], bitmap


def compare(pairs: Iterable[tuple[Path, np.ndarray]]) -> dict[str, float]:
    """How renderings agree with published bitmaps: counts, and the mean IoU of those of equal size."""
    counts = dict.fromkeys(("images", "unreadable", "within_one_pixel", "same_size", "equal"), 0)
    overlaps = []
    for path, bitmap in pairs:
        counts["images"] += 1
        try:
            image = render_ink(read_inkml(path))
        except InkError:
            counts["unreadable"] += 1
            continue
        counts["within_one_pixel"] += bool(np.abs(np.subtract(image.shape, bitmap.shape)).max() <= 1)
        if image.shape == bitmap.shape:
            counts["same_size"] += 1
            counts["equal"] += bool((image == bitmap).all())
            overlaps.append(np.logical_and(image, bitmap).sum() / np.logical_or(image, bitmap).sum())
    return {**counts, "iou": float(np.mean(overlaps))}


@pytest.mark.parametrize("part", ["train", "2014"])
def test_published_bitmaps(crohme_offline, crohme_inkml, part):
    result = compare(published(crohme_offline, crohme_inkml, part))
    sys.stdout.write(f"\n{part}: {result}\n")
    assert result["unreadable"] <= 1  # MfrDB0104, which has a published image but is not UTF-8
    assert result["equal"] == result["same_size"] == result["images"] - result["unreadable"] > 0
