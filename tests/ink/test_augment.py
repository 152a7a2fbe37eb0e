"""Augmentation: labels stay true, ink stays on the page, the same seed gives the same result."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abm_hf.ink.augmentation import (
    AugmentConfig,
    ImageAugmentation,
    augment_image,
    augment_ink,
    drop_points,
    stroke_size,
)
from abm_hf.ink.rendering import render_ink
from abm_hf.ink.strokes import Ink, Symbol
from abm_hf.latex.normalization import is_well_formed
from abm_hf.synthetic.expressions import synthetic_ink
from abm_hf.synthetic.photographs import PhotoDegradation, photograph


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


UPRIGHT = Ink((np.array([[0.0, 0.0], [0.0, 100.0]]), np.array([[40.0, 0.0], [40.0, 100.0]])), "1 1")


def test_ink_augmentation_keeps_what_the_ink_means():
    for seed in range(15):
        ink = synthetic_ink(seed)
        changed = augment_ink(ink, rng(seed))
        assert (changed.label, changed.symbols, changed.annotations) == (ink.label, ink.symbols, ink.annotations)
        assert is_well_formed(changed.label)
        assert len(changed.strokes) == len(ink.strokes) and render_ink(changed).any()
        assert changed != ink
        for old, new in zip(ink.strokes, changed.strokes, strict=True):
            assert set(new[:, 2]) <= set(old[:, 2]) and new[0, 2] == old[0, 2] and new[-1, 2] == old[-1, 2]


def test_ink_augmentation_moves_symbols_less_than_their_size():
    still = AugmentConfig(scale=(1, 1), stretch=(1, 1), slant=0, rotation=0, drop_probability=0)
    for seed in range(15):
        ink = synthetic_ink(seed)
        changed = augment_ink(ink, rng(seed), still)
        moved = np.concatenate(changed.strokes)[:, :2] - np.concatenate(ink.strokes)[:, :2]
        assert np.abs(moved).max() < 0.4 * stroke_size(ink)


def test_same_seed_same_augmentation():
    ink, image = synthetic_ink(5), render_ink(synthetic_ink(5))
    assert augment_ink(ink, rng(1)) == augment_ink(ink, rng(1)) != augment_ink(ink, rng(2))
    assert np.array_equal(augment_image(image, rng(1)), augment_image(image, rng(1)))
    assert not np.array_equal(augment_image(image, rng(1)), augment_image(image, rng(2)))


def test_dropping_points_keeps_the_ends():
    ink = Ink(
        (np.arange(200.0).reshape(100, 2), np.array([[3.0, 4.0]])), "x y", (Symbol("x", (0,)), Symbol("y", (1,)))
    )
    dropped = drop_points(ink, rng(), 0.5)
    assert 25 < len(dropped.strokes[0]) < 75 and len(dropped.strokes[1]) == 1
    assert np.array_equal(dropped.strokes[0][[0, -1]], ink.strokes[0][[0, -1]])


def test_flat_and_single_point_ink_survive():
    for strokes in ([[5.0, 5.0]],), ([[0.0, 5.0], [100.0, 5.0]],), ([[0.0, 0.0]], [[0.0, 0.0]]):
        assert render_ink(augment_ink(Ink(strokes), rng())).any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.floats(0.5, 1.6),
    columns=st.floats(0.5, 1.6),
    shape=st.tuples(st.integers(30, 150), st.integers(30, 700)),
)
def test_images_keep_their_planned_size_and_all_ink_inside(seed, rows, columns, shape):
    # The frame of ink at the very edge is the hardest case: nothing may be cut off.
    image = np.zeros(shape, np.uint8)
    image[:3] = image[-3:] = 255
    image[:, :3] = image[:, -3:] = 255
    changed = augment_image(image, rng(seed), scale=(rows, columns))
    assert changed.shape == (round(shape[0] * rows), round(shape[1] * columns)) and changed.dtype == np.uint8
    assert changed.max() > 100
    assert not changed[0].any() and not changed[-1].any() and not changed[:, 0].any() and not changed[:, -1].any()


def test_strokes_never_break_off():
    from skimage.measure import label

    image = np.zeros((60, 200), np.uint8)
    image[29:32, 15:185] = 255
    for seed in range(60):
        assert label(augment_image(image, rng(seed)) > 0, connectivity=2).max() == 1


def test_images_stay_binary_when_asked():
    image = render_ink(synthetic_ink(4))
    binary = ImageAugmentation(binary_probability=1.0)
    grey = ImageAugmentation(binary_probability=0.0)
    for seed in range(10):
        assert set(np.unique(augment_image(image, rng(seed), augmentation=binary))) == {0, 255}
    assert len(np.unique(augment_image(image, rng(), augmentation=grey))) > 10


def test_width_of_strokes_goes_both_ways():
    image = render_ink(synthetic_ink(4, min_tokens=15))
    still = {"zoom": (1, 1), "stretch": (1, 1), "slant": 0.0, "rotation": 0.0, "elastic": 0.0}

    def ink_of(**options: float) -> float:
        config = ImageAugmentation(**still, **options)
        return float(np.mean([augment_image(image, rng(seed), augmentation=config).sum() for seed in range(10)]))

    plain = ink_of(thicker_probability=0.0, thinner_probability=0.0)
    assert ink_of(thicker_probability=1.0, thinner_probability=0.0) > 1.15 * plain
    assert ink_of(thicker_probability=0.0, thinner_probability=1.0) < 0.85 * plain


def test_scale_is_drawn_from_its_range_when_not_fixed():
    image = render_ink(synthetic_ink(4))
    factors = [augment_image(image, rng(seed), scale=None).shape[0] / image.shape[0] for seed in range(60)]
    assert 0.68 < min(factors) < 0.8 and 1.25 < max(factors) < 1.42


def test_an_empty_image_stays_empty():
    assert not augment_image(np.zeros((40, 50), np.uint8), rng()).any()


def test_wrong_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        augment_image(np.zeros((4, 4, 3), np.uint8), rng())
    with pytest.raises(ValueError, match="uint8"):
        augment_image(np.zeros((4, 4)), rng())
    with pytest.raises(ValueError, match="scale"):
        augment_image(np.zeros((4, 4), np.uint8), rng(), scale=0.0)
    with pytest.raises(ValueError, match="stretch"):
        ImageAugmentation(stretch=(1.2, 0.9))
    with pytest.raises(ValueError, match="elastic"):
        AugmentConfig(elastic=-1.0)
    with pytest.raises(ValueError, match="binary_probability"):
        ImageAugmentation(binary_probability=1.5)


def test_a_photograph_shows_all_ink_dark_on_light():
    image = render_ink(synthetic_ink(11, min_tokens=5, max_tokens=6))
    for seed in range(4):
        photo = photograph(image, rng(seed))
        assert photo.ndim == 3 and photo.shape[2] == 3 and photo.dtype == np.uint8
        assert photo.shape[0] > image.shape[0] and photo.shape[1] > image.shape[1]
        clean = photograph(
            image,
            rng(seed),
            PhotoDegradation(light=0, noise=0, blur=0, texture=0, ruled_probability=0, squared_probability=0),
        )
        grey = clean.mean(axis=2)
        dark = grey < grey.max() - 40
        assert 0.01 < dark.mean() < 0.3
        frame = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
        assert not frame.any()


def test_photographs_differ_by_seed_only():
    image = render_ink(synthetic_ink(11, max_tokens=8))
    assert np.array_equal(photograph(image, rng(1)), photograph(image, rng(1)))
    assert photograph(image, rng(1)).shape != photograph(image, rng(2)).shape


def test_printed_lines_cross_the_whole_picture():
    image = np.zeros((120, 300), np.uint8)
    image[60, 150] = 255
    plain = {"light": 0.0, "noise": 0.0, "blur": 0.0, "texture": 0.0, "perspective": 0.0, "shadow_probability": 0.0}
    photo = photograph(image, rng(3), PhotoDegradation(ruled_probability=1.0, squared_probability=0.0, **plain))
    rows = photo.mean(axis=(1, 2))
    assert (rows < np.median(rows) - 3).sum() >= 2


def test_wrong_photo_settings_are_refused():
    with pytest.raises(ValueError, match="jpeg"):
        PhotoDegradation(jpeg=(90, 40))
    with pytest.raises(ValueError, match="squared"):
        PhotoDegradation(ruled_probability=0.7, squared_probability=0.7)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        photograph(np.zeros((4, 4, 3), np.uint8), rng())
