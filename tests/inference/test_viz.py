"""Attention pictures: geometry, colours, both themes, animation."""

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from abm_hf.inference import attention_pictures as viz


@dataclass(frozen=True)
class Explanation:
    tokens: tuple[str, ...]
    token_scores: tuple[float, ...]
    attention: np.ndarray
    image: np.ndarray
    stride: int = 16


@pytest.fixture
def explanation() -> Explanation:
    """Three tokens over 40 x 100 px: the first looks left, the second to the middle, the third right."""
    image = np.zeros((40, 100), np.uint8)
    image[18:22, 5:95] = 255
    attention = np.zeros((3, 3, 7), np.float32)
    attention[0, 1, 0] = attention[1, 1, 3] = attention[2, 1, 6] = 1
    return Explanation(("x", "+", r"\frac"), (0.99, 0.5, 0.07), attention, image)


def test_attention_lies_where_the_map_says(explanation: Explanation) -> None:
    for index, (left, right) in enumerate([(0, 16), (48, 64), (96, 100)]):
        heat = viz.upsample_attention(explanation.attention[index], (40, 100), 16)
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert left <= column < right and 16 <= row < 32
        assert heat.shape == (40, 100) and heat.min() >= 0 and heat.max() <= 1


def test_attention_is_relative_to_its_maximum(explanation: Explanation) -> None:
    sharp = viz.upsample_attention(explanation.attention[0], (40, 100), 16)
    faint = viz.upsample_attention(explanation.attention[0] / 1000, (40, 100), 16)
    np.testing.assert_allclose(sharp, faint, atol=1e-6)
    assert not viz.upsample_attention(np.zeros((3, 7)), (40, 100), 16).any()


@pytest.mark.parametrize("shape", [(2, 7), (3, 6)])
def test_a_map_that_does_not_cover_the_image_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not cover"):
        viz.upsample_attention(np.ones(shape), (40, 100), 16)
    with pytest.raises(ValueError, match=r"\(h, w\)"):
        viz.upsample_attention(np.ones((1, 3, 7)), (40, 100), 16)


@pytest.mark.parametrize(("theme", "paper", "ink"), [("light", 255, 24), ("dark", 24, 244)])
def test_ink_stays_readable_over_heat(theme: viz.Theme, paper: int, ink: int) -> None:
    image = np.zeros((2, 2), np.uint8)
    image[0] = 255
    heat = np.array([[0.0, 1.0], [0.0, 1.0]])
    shown = viz.overlay(image, heat, theme)
    assert shown.shape == (2, 2, 3)
    assert shown[0, 0, 0] == shown[0, 1, 0] == ink  # with or without heat
    assert shown[1, 0, 0] == paper
    ground, hot = shown[1, 0].astype(int), shown[1, 1].astype(int)
    assert abs(hot - ground).max() > 100  # heat stands out from the paper
    assert abs(hot - shown[0, 0]).max() > 100  # and the ink from the heat


def test_heat_rises_through_the_colours() -> None:
    colours = viz.heat_colours(np.linspace(0, 1, 50))
    assert colours.dtype == np.uint8 and colours.shape == (50, 3)
    assert (np.diff(colours[:, 1].astype(int)) <= 0).all()  # ever less green, so that order can be told without hue
    np.testing.assert_array_equal(viz.heat_colours(np.array([-1, 2, np.nan]))[[0, 2]], colours[[0, 0]])
    np.testing.assert_array_equal(viz.heat_colours(np.array([2.0]))[0], colours[-1])


def test_wrong_theme_or_shape_is_refused(explanation: Explanation) -> None:
    with pytest.raises(ValueError, match="theme must be one of"):
        viz.draw_token(explanation, 0, theme="sepia")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        viz.overlay(np.zeros((2, 2), np.uint8), np.zeros((2, 3)))


def test_coverage_sums_the_maps(explanation: Explanation) -> None:
    np.testing.assert_allclose(viz.coverage(explanation), explanation.attention.sum(0))
    nothing = replace(explanation, tokens=(), token_scores=(), attention=explanation.attention[:0])
    np.testing.assert_array_equal(viz.coverage(nothing), np.zeros((3, 7)))
    assert viz.draw_coverage(explanation).size == (100, 40)


def test_token_picture_differs_by_token(explanation: Explanation) -> None:
    first, last = viz.draw_token(explanation, 0), viz.draw_token(explanation, -1)
    assert first.size == last.size and first.width == 100 and first.height > 40
    assert np.asarray(first).tobytes() != np.asarray(last).tobytes()
    assert viz.draw_token(explanation, 2).tobytes() == last.tobytes()
    assert viz.draw_token(explanation, 0, scale=2).width == 200
    with pytest.raises(IndexError):
        viz.draw_token(explanation, 3)


def test_strip_holds_every_token(explanation: Explanation) -> None:
    cell = viz.draw_token(explanation, 0)
    strip = viz.attention_strip(explanation, columns=2)
    assert strip.size == (2 * cell.width, 2 * cell.height)
    third = strip.crop((0, cell.height, cell.width, 2 * cell.height))
    assert third.tobytes() == viz.draw_token(explanation, 2).tobytes()
    with pytest.raises(ValueError, match="one column"):
        viz.attention_strip(explanation, columns=0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_gif_has_a_frame_for_each_token_and_one_for_all(explanation: Explanation, theme: viz.Theme, tmp_path) -> None:
    path = tmp_path / "attention.gif"
    data = viz.attention_gif(explanation, path, theme=theme, milliseconds=300)
    assert path.read_bytes() == data
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.format == "GIF" and animation.n_frames == 4
        assert animation.size[0] == 200  # small pictures are doubled
        assert animation.info["duration"] == 300 and animation.info["loop"] == 0
        frames = []
        for index in range(animation.n_frames):
            animation.seek(index)
            frames.append(np.asarray(animation.convert("RGB")))
    corner = viz.overlay(np.zeros((1, 1), np.uint8), np.zeros((1, 1)), theme)[0, 0].astype(int)
    assert abs(frames[0][-1, 0].astype(int) - corner).max() <= 8  # the paper of the theme
    assert not np.array_equal(frames[0], frames[1])


def test_gif_of_a_large_picture_stays_within_its_area(explanation: Explanation) -> None:
    with Image.open(io.BytesIO(viz.attention_gif(explanation, max_pixels=1000))) as animation:
        height = animation.height - viz.draw_token(explanation, 0).height + 40  # without the caption
        assert animation.width * height == 1000


def test_nothing_read_is_said_and_not_drawn(explanation: Explanation) -> None:
    nothing = replace(explanation, tokens=(), token_scores=(), attention=explanation.attention[:0])
    for draw in (viz.attention_gif, viz.attention_strip):
        with pytest.raises(ValueError, match="nothing was read"):
            draw(nothing)
