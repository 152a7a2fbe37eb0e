"""Photographs of handwriting, made from images in the field's form: to train and to test the path from a telephone.

Everything a camera adds and the recogniser has to undo: a pen's colour on paper's, printed lines, light that falls
from one side, the shadow of a hand, perspective, lens blur, sensor noise and JPEG.
"""

import math
from dataclasses import dataclass

import numpy as np

try:
    import cv2
except ImportError as error:  # pragma: no cover
    raise ImportError("photographs need OpenCV: pip install opencv-python-headless") from error

#: Pens (RGB): pencil, black, blue and red ball pen, felt pen.
_INKS = np.array(
    [(90, 90, 95), (35, 35, 40), (40, 60, 150), (25, 40, 110), (160, 40, 45), (10, 10, 15)], dtype=np.float32
)
#: Printed lines (RGB): blue, grey, red-brown.
_RULES = np.array([(150, 180, 220), (185, 185, 190), (215, 175, 165)], dtype=np.float32)


@dataclass(frozen=True)
class PhotoDegradation:
    """What happens between paper and picture. Probabilities are shares of pictures.

    Args:
        scale (`tuple[float, float]`): Pixels of the photograph for each pixel of the image.
        margin (`tuple[float, float]`): Paper around the ink, in heights of the image.
        paper (`tuple[float, float]`): Brightness of the paper, 0 to 255.
        texture (`float`): Largest standard deviation of the paper's own unevenness, in grey levels.
        ruled_probability, squared_probability (`float`): Lined paper, squared paper; blank paper is the rest.
        light (`float`): Largest loss of light from one side of the picture to the other, 0 to 1.
        shadow_probability (`float`): A soft-edged shadow over part of the picture.
        perspective (`float`): Largest shift of a corner, relative to the picture's shorter side.
        blur (`float`): Largest standard deviation of the lens blur, in pixels of the photograph.
        noise (`float`): Largest standard deviation of the sensor noise, in grey levels.
        jpeg (`tuple[int, int]`): Range of the JPEG quality; (100, 100) compresses almost without loss.
    """

    scale: tuple[float, float] = (1.2, 3.0)
    margin: tuple[float, float] = (0.1, 0.6)
    paper: tuple[float, float] = (175.0, 250.0)
    texture: float = 4.0
    ruled_probability: float = 0.2
    squared_probability: float = 0.2
    light: float = 0.45
    shadow_probability: float = 0.3
    perspective: float = 0.06
    blur: float = 1.2
    noise: float = 6.0
    jpeg: tuple[int, int] = (40, 95)

    def __post_init__(self) -> None:
        for name in ("scale", "margin", "paper", "jpeg"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "scale" and low == 0):
                raise ValueError(f"{name} must be an ascending range of usable values, not {(low, high)}")
        if not 0 <= self.light < 1 or self.ruled_probability + self.squared_probability > 1:
            raise ValueError("light must be under 1, and no more than all pictures can be ruled or squared")


def photograph(image: np.ndarray, rng: np.random.Generator, degradation: PhotoDegradation | None = None) -> np.ndarray:
    """What a telephone would see of this ink on paper.

    Args:
        image (`np.ndarray` of shape `(H, W)`, uint8): Ink bright on 0, as in the field's images.
        rng (`np.random.Generator`): The only source of randomness.
        degradation ([`PhotoDegradation`], *optional*): The default ranges when left out.

    Returns:
        `np.ndarray` of shape `(rows, columns, 3)`, uint8 RGB: dark ink on light paper, larger than the image. All ink
        is in the picture.

    Raises:
        ValueError: The image is not two-dimensional uint8.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a uint8 image of shape (H, W) is needed, got {image.dtype} of shape {image.shape}")
    limits = degradation or PhotoDegradation()
    ink = _place(image, rng, limits)  # (rows, columns) float32, 0 to 1
    lines = _printed_lines(ink.shape, image.shape[0], rng, limits)
    view = _perspective(ink.shape, rng, limits)
    size = ink.shape[::-1]
    ink = cv2.warpPerspective(ink, view, size, flags=cv2.INTER_LINEAR)
    # A sheet is larger than the picture of it: its lines go on beyond the edge.
    lines = cv2.warpPerspective(lines, view, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    paper = rng.uniform(*limits.paper) * np.array([1.0, 1.0, rng.uniform(0.86, 1.02)], dtype=np.float32)
    page = np.minimum(paper, 255) + _texture(ink.shape, rng, limits)[..., None]
    rule = np.minimum(_RULES[rng.integers(len(_RULES))], page.mean())
    page += (lines * rng.uniform(0.3, 0.8))[..., None] * (rule - page)
    strength = rng.uniform(0.72, 0.98) * ink * (1 + _texture(ink.shape, rng, limits) / 60)  # pens skip on rough paper
    page += np.clip(strength, 0, 1)[..., None] * (_INKS[rng.integers(len(_INKS))] - page)
    page *= _light(ink.shape, rng, limits)[..., None]
    return _camera(page.astype(np.float32), rng, limits)


def _place(image: np.ndarray, rng: np.random.Generator, limits: PhotoDegradation) -> np.ndarray:
    """The ink on a larger sheet, at the photograph's resolution, its edges soft as a pen's."""
    scale = rng.uniform(*limits.scale)
    # Perspective moves the corners inwards by at most its own share: that much paper must be around the ink.
    height = image.shape[0]
    least = limits.perspective * min(image.shape) * 1.5 + 2
    top, bottom, left, right = (round(least + rng.uniform(*limits.margin) * height) for _ in range(4))
    sheet = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    size = (round(sheet.shape[1] * scale), round(sheet.shape[0] * scale))
    enlarged = cv2.resize(sheet.astype(np.float32) / 255, size, interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(enlarged, (0, 0), 0.35 * scale)
    # A steep ramp instead of the soft edge, at a level that makes the pen broader or finer.
    level = rng.uniform(0.3, 0.5)
    return np.clip((soft - level) * 4 + 0.5, 0, 1)


def _printed_lines(
    shape: tuple[int, ...], height: int, rng: np.random.Generator, limits: PhotoDegradation
) -> np.ndarray:
    """Coverage by the lines of ruled or squared paper, 0 to 1."""
    lines = np.zeros(shape, np.float32)
    kind = rng.random()
    if kind >= limits.ruled_probability + limits.squared_probability:
        return lines
    squared = kind >= limits.ruled_probability
    spacing = max(10.0, shape[0] / height * rng.uniform(18, 34) * (1 if squared else 1.8))
    width = max(1, round(spacing / 22))
    for axis in range(2 if squared else 1):
        start = rng.uniform(0, spacing)
        for place in np.arange(start, shape[axis], spacing):
            index = [slice(None), slice(None)]
            index[axis] = slice(int(place), int(place) + width)
            lines[tuple(index)] = 1
    return lines


def _perspective(shape: tuple[int, ...], rng: np.random.Generator, limits: PhotoDegradation) -> np.ndarray:
    """A matrix that pulls the corners of the sheet inwards, each by its own amount: nothing leaves the picture."""
    rows, columns = shape
    corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], dtype=np.float32)
    inwards = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)], dtype=np.float32)
    shift = rng.uniform(0, limits.perspective, (4, 2)).astype(np.float32) * min(shape)
    return cv2.getPerspectiveTransform(corners, corners + inwards * shift)


def _texture(shape: tuple[int, ...], rng: np.random.Generator, limits: PhotoDegradation) -> np.ndarray:
    """Unevenness of paper at two sizes, in grey levels."""
    strength = rng.uniform(0, limits.texture)
    fine = rng.standard_normal(shape, dtype=np.float32)
    coarse = rng.standard_normal((shape[0] // 12 + 2, shape[1] // 12 + 2), dtype=np.float32)
    return strength * (0.5 * fine + cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC))


def _light(shape: tuple[int, ...], rng: np.random.Generator, limits: PhotoDegradation) -> np.ndarray:
    """Factor of the light at each pixel: a gradient, dark corners, perhaps a shadow."""
    rows, columns = (
        np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None],
        np.linspace(-1, 1, shape[1], dtype=np.float32),
    )
    angle = rng.uniform(0, 2 * math.pi)
    along = columns * math.cos(angle) + rows * math.sin(angle)  # -√2 to √2
    light = 1 - rng.uniform(0, limits.light) * (along + math.sqrt(2)) / (2 * math.sqrt(2))
    light *= 1 - rng.uniform(0, 0.4 * limits.light) * (columns**2 + rows**2) / 2
    if rng.random() < limits.shadow_probability:
        angle, place, softness = rng.uniform(0, 2 * math.pi), rng.uniform(-0.6, 0.6), rng.uniform(0.03, 0.4)
        edge = columns * math.cos(angle) + rows * math.sin(angle) - place
        light *= 1 - rng.uniform(0.1, 0.8) * limits.light / (1 + np.exp(np.clip(-edge / softness, -30, 30)))
    return light


def _camera(page: np.ndarray, rng: np.random.Generator, limits: PhotoDegradation) -> np.ndarray:
    blur = rng.uniform(0, limits.blur)
    if blur > 0.2:
        page = cv2.GaussianBlur(page, (0, 0), blur)
    page = page + rng.standard_normal(page.shape[:2], dtype=np.float32)[..., None] * rng.uniform(0, limits.noise)
    picture = np.clip(page, 0, 255).astype(np.uint8)
    quality = int(rng.integers(limits.jpeg[0], limits.jpeg[1] + 1))
    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(decoded[..., ::-1])
