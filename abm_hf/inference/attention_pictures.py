"""Attention as pictures: what a branch looked at for each token, over the image that the model saw.

Everything is drawn with NumPy and Pillow alone. An attention map sums to one over positions of `stride` × `stride`
pixels; it is shown relative to its own maximum, since a sharp and a broad glance differ in height by an order of
magnitude. The colours run through amber to magenta: told apart from black ink on white and from white ink on black.
"""

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Theme = Literal["light", "dark"]

#: Paper, ink and caption colours.
_COLOURS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    "light": ((255, 255, 255), (24, 24, 27), (82, 82, 91)),
    "dark": ((24, 24, 27), (244, 244, 245), (161, 161, 170)),
}
#: Heat from none to most, at equal distances; the blend is weakest where there is none.
_HEAT = np.array([(255, 196, 0), (255, 128, 16), (240, 62, 92), (196, 30, 140)], np.float32)
_CAPTION = 34  # pixels below a picture for its token


class ExplanationLike(Protocol):
    """What is drawn: [`abm_hf.Explanation`], or anything with its fields."""

    @property
    def tokens(self) -> Sequence[str]: ...
    @property
    def token_scores(self) -> Sequence[float]: ...
    @property
    def attention(self) -> np.ndarray: ...
    @property
    def image(self) -> np.ndarray: ...
    @property
    def stride(self) -> int: ...


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours of heat values in [0, 1], `uint8` of shape `(*values.shape, 3)`; values outside are clipped."""
    place = np.clip(np.nan_to_num(values), 0, 1).astype(np.float32) * (len(_HEAT) - 1)
    lower = np.minimum(place.astype(int), len(_HEAT) - 2)
    part = (place - lower)[..., None]
    return np.rint(_HEAT[lower] * (1 - part) + _HEAT[lower + 1] * part).astype(np.uint8)


def upsample_attention(attention: np.ndarray, size: tuple[int, int], stride: int) -> np.ndarray:
    """Attention at the resolution of the image, relative to its maximum.

    Args:
        attention (`np.ndarray` of shape `(h, w)`): one map, not negative.
        size (`tuple[int, int]`): rows and columns of the image, in pixels; at most `stride` times those of the map.
        stride (`int`): pixels for each position of the map.

    Returns:
        `np.ndarray` of `float32`, shape `size`, in [0, 1]; zero everywhere for a map without any attention.

    Raises:
        ValueError: the map is not two-dimensional or does not cover the image.
    """
    if attention.ndim != 2:
        raise ValueError(f"one map of shape (h, w) is needed, not {attention.shape}")
    rows, columns = attention.shape
    if rows * stride < size[0] or columns * stride < size[1]:
        raise ValueError(f"a map of {rows} x {columns} positions of {stride} px does not cover an image of {size}")
    peak = float(attention.max(initial=0))
    if not peak > 0:
        return np.zeros(size, np.float32)
    relative = Image.fromarray((attention / peak).astype(np.float32))
    large = np.asarray(relative.resize((columns * stride, rows * stride), Image.Resampling.BICUBIC))
    return np.clip(large[: size[0], : size[1]], 0, 1)


def overlay(image: np.ndarray, heat: np.ndarray, theme: Theme = "light", strength: float = 0.85) -> np.ndarray:
    """Lays heat over a picture.

    Args:
        image (`np.ndarray` of `uint8`, shape `(H, W)`): ink bright on dark, as the model saw it.
        heat (`np.ndarray` of shape `(H, W)`): values in [0, 1].
        theme (`str`, *optional*): `"light"` draws dark ink on light paper, `"dark"` the opposite.
        strength (`float`, *optional*): how much of the paper the strongest heat covers.

    Returns:
        `np.ndarray` of `uint8`, shape `(H, W, 3)`. The ink stays on top of the heat.

    Raises:
        ValueError: unknown theme, or image and heat differ in shape.
    """
    paper, ink, _ = _theme(theme)
    if image.shape != heat.shape:
        raise ValueError(f"image {image.shape} and heat {heat.shape} must have one shape")
    cover = (np.sqrt(np.clip(heat, 0, 1)) * strength)[..., None]
    ground = np.asarray(paper, np.float32) * (1 - cover) + heat_colours(heat) * cover
    written = image.astype(np.float32)[..., None] / 255
    return np.rint(ground * (1 - written) + np.asarray(ink, np.float32) * written).astype(np.uint8)


def coverage(explanation: ExplanationLike) -> np.ndarray:
    """How much each position was attended to in all, `float32` (h, w): the sum of the maps, about 1 where it was
    looked at for one token's worth, 0 where ink was overlooked."""
    attention = np.asarray(explanation.attention, np.float32)
    return attention.sum(axis=0) if len(attention) else np.zeros(attention.shape[1:], np.float32)


def draw_coverage(explanation: ExplanationLike, theme: Theme = "light") -> Image.Image:
    """The coverage over the image: ink that stays bare was never looked at."""
    image = np.asarray(explanation.image)
    heat = upsample_attention(coverage(explanation), (image.shape[0], image.shape[1]), explanation.stride)
    return Image.fromarray(overlay(image, heat, theme))


def draw_token(explanation: ExplanationLike, index: int, theme: Theme = "light", scale: float = 1) -> Image.Image:
    """The image with the attention of token `index` over it and the token below.

    Args:
        explanation: tokens, attention and image.
        index (`int`): which token, from 0; negative ones count from the end.
        theme (`str`, *optional*): `"light"` or `"dark"`.
        scale (`float`, *optional*): enlarges the picture.

    Raises:
        IndexError: there is no such token.
    """
    image = np.asarray(explanation.image)
    heat = upsample_attention(
        np.asarray(explanation.attention)[index], (image.shape[0], image.shape[1]), explanation.stride
    )
    picture = Image.fromarray(overlay(image, heat, theme))
    caption = f"{explanation.tokens[index]}   {explanation.token_scores[index]:.0%}"
    return _captioned(_scaled(picture, scale), caption, theme)


def attention_strip(explanation: ExplanationLike, theme: Theme = "light", columns: int = 4) -> Image.Image:
    """All tokens in one picture, row by row in the order of reading.

    Raises:
        ValueError: there is no token, or less than one column.
    """
    frames = list(_frames(explanation, theme))
    if columns < 1:
        raise ValueError(f"at least one column is needed, not {columns}")
    return _tiled(frames, columns, theme)


def attention_gif(
    explanation: ExplanationLike,
    path: str | Path | None = None,
    *,
    theme: Theme = "light",
    milliseconds: int = 500,
    max_pixels: int = 250_000,
) -> bytes:
    """The attention as an animation, a frame for each token and the coverage at the end.

    Args:
        explanation: tokens, attention and image.
        path (`str` or `Path`, *optional*): where to write it, too.
        theme (`str`, *optional*): `"light"` or `"dark"`.
        milliseconds (`int`, *optional*): time of each frame.
        max_pixels (`int`, *optional*): area of the pictures (px); they are doubled in size as far as that allows, and
            larger ones are scaled down to it.

    Returns:
        `bytes` of the GIF.

    Raises:
        ValueError: there is no token.
        OSError: `path` cannot be written.
    """
    _check_tokens(explanation)
    count = len(explanation.tokens)
    scale = min(2.0, (max_pixels / np.asarray(explanation.image).size) ** 0.5)
    samples = [_frame(explanation, index, theme, scale) for index in range(0, count, max(1, count // 6))]
    # One palette for all frames: a palette for each makes the paper flicker.
    palette = _tiled(samples, 1, theme).quantize(128)
    indexed = [
        _frame(explanation, index, theme, scale).quantize(palette=palette, dither=Image.Dither.NONE)
        for index in range(count + 1)
    ]
    with io.BytesIO() as stream:
        indexed[0].save(
            stream,
            "GIF",
            save_all=True,
            append_images=indexed[1:],
            duration=[milliseconds] * (len(indexed) - 1) + [3 * milliseconds],
            loop=0,
        )
        data = stream.getvalue()
    if path is not None:
        Path(path).write_bytes(data)
    return data


def _frame(explanation: ExplanationLike, index: int, theme: Theme, scale: float) -> Image.Image:
    """The picture of token `index`, or of all tokens together after the last."""
    if index < len(explanation.tokens):
        return draw_token(explanation, index, theme, scale)
    return _captioned(_scaled(draw_coverage(explanation, theme), scale), "all tokens", theme)


def _frames(explanation: ExplanationLike, theme: Theme) -> Iterator[Image.Image]:
    _check_tokens(explanation)
    return (draw_token(explanation, index, theme) for index in range(len(explanation.tokens)))


def _check_tokens(explanation: ExplanationLike) -> None:
    if not len(explanation.tokens):
        raise ValueError("nothing was read, so there is no attention to draw")


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


def _tiled(pictures: Sequence[Image.Image], columns: int, theme: Theme) -> Image.Image:
    """Pictures in a grid; a cell is as large as the largest."""
    width, height = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * columns, height * rows), _theme(theme)[0])
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def _captioned(picture: Image.Image, caption: str, theme: Theme) -> Image.Image:
    """The picture with a line of text below it."""
    paper, _, text = _theme(theme)
    sheet = Image.new("RGB", (picture.width, picture.height + _CAPTION), paper)
    sheet.paste(picture, (0, 0))
    place = (picture.width / 2, picture.height + _CAPTION / 2)
    ImageDraw.Draw(sheet).text(place, caption, fill=text, font=_font(), anchor="mm")
    return sheet


@lru_cache(maxsize=1)
def _font() -> Any:
    return ImageFont.load_default(18)


def _theme(theme: str) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]:
    try:
        return _COLOURS[theme]
    except KeyError:
        raise ValueError(f"theme must be one of {sorted(_COLOURS)}, not {theme!r}") from None
