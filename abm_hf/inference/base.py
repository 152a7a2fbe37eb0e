"""What recognizers have in common, whatever runs the network: inputs, batches, results. Without torch."""

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from ..image_loading_abm import ImageInputError
from ..ink.inkml import looks_like_inkml, read_inkml
from ..ink.rendering import render_ink
from ..ink.strokes import Ink, InkError
from ..readings_abm import Reading
from .typesetting import render_latex, to_mathml

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
INK_SUFFIXES = frozenset({".inkml"})


@dataclass(frozen=True)
class Recognition:
    """What was read in one picture.

    Args:
        latex: the most probable LaTeX, compact; `None` where the picture could not be read.
        score: how probable it is that this is right, 0 to 1.
        alternatives: all readings, the most probable first (as many as `top_k` asked for).
        image: what the model saw, `uint8` (H, W), ink bright on dark.
        milliseconds: the picture's share of the time that its batch took, reading and normalising included.
        error: why there is no answer, in one line.
    """

    latex: str | None
    score: float
    alternatives: tuple[Reading, ...] = field(default=(), repr=False)
    image: np.ndarray | None = field(default=None, repr=False)
    milliseconds: float = 0.0
    error: str | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """LaTeX tokens of the answer."""
        return self.alternatives[0].tokens if self.alternatives else ()

    @property
    def token_scores(self) -> tuple[float, ...]:
        """Probability of each token of the answer."""
        return self.alternatives[0].token_scores if self.alternatives else ()

    @property
    def mathml(self) -> str | None:
        """The answer as MathML; `None` where there is no answer, or it is not well formed.

        Raises:
            ImportError: if latex2mathml is not installed.
        """
        return to_mathml(self.latex)

    def render(self, *, font_size: float = 20, dpi: int = 200, color: str = "black") -> Image.Image:
        """The answer as a picture of typeset mathematics, see [`abm_hf.render_latex`].

        Raises:
            TypesetError: if there is no answer, or matplotlib's mathtext cannot draw it.
            ImportError: if matplotlib is not installed.
        """
        return render_latex(self.latex, font_size=font_size, dpi=dpi, color=color)


class BaseRecognizer(ABC):
    """Reads pictures or ink in batches of like size; how a batch is read is the subclass's."""

    @abstractmethod
    def normalize(self, image: Any) -> np.ndarray:
        """One picture to what the model sees of it: `uint8` (H, W), ink bright on dark.

        Raises:
            ImageInputError: if it cannot be read.
        """

    @abstractmethod
    def read(self, pictures: Sequence[np.ndarray], **options: Any) -> list[list[Reading]]:
        """The readings of each of some prepared pictures, the most probable first.

        Args:
            pictures: as `prepare` returns them.
            options: `num_beams`, `top_k`, `max_length`, `grammar`, `two_way` and, where they are given,
                `two_way_weight` and `scales`; see `__call__`.
        """

    def __call__(
        self,
        images: Any,
        *,
        num_beams: int = 10,
        top_k: int = 1,
        batch_size: int = 16,
        max_length: int = 200,
        grammar: bool = True,
        two_way: bool = False,
        two_way_weight: float | None = None,
        scales: Sequence[float] | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Recognition]:
        """Reads pictures or ink.

        Args:
            images: one or a list of paths (pictures or `.inkml`), bytes or open binary files of such, PIL images,
                arrays, tensors or [`Ink`]; or an array or tensor of four axes, a picture for each entry of the first.
            num_beams: hypotheses followed at a time; 1 is greedy: faster, less accurate.
            top_k: readings returned for each picture.
            batch_size: pictures decoded together; they are sorted by size for this.
            max_length: most tokens of an answer, start and end included.
            grammar: whether only well-formed LaTeX can be written.
            two_way: whether both branches propose and judge: more accurate, about three and a half times the work.
            two_way_weight: say of the right-to-left branch in that, 0 to 1; what was tuned for the checkpoint if
                `None`.
            scales: sizes at which each picture is read, as factors: formulas are searched at the first one, and judged
                at all. What was chosen for the checkpoint if `None`.
            errors: `"raise"` at the first picture that cannot be read, or `"return"` a [`Recognition`] with `error`.

        Returns:
            One result for each picture, in order.

        Raises:
            ImageInputError, InkError: for a picture or ink that cannot be read, with `errors="raise"`.
            ValueError: for options that contradict each other or the model.
        """
        if min(num_beams, top_k, batch_size) < 1:
            raise ValueError(
                f"num_beams, top_k and batch_size must be at least 1, they are {num_beams}, {top_k} and {batch_size}"
            )
        if errors not in ("raise", "return"):
            raise ValueError(f"errors must be 'raise' or 'return', not {errors!r}")
        results: dict[int, Recognition] = {}
        pictures: dict[int, np.ndarray] = {}
        loading: dict[int, float] = {}
        for index, image in enumerate(as_list(images)):
            began = time.perf_counter()
            try:
                pictures[index] = self.prepare(image)
            except (ImageInputError, InkError) as error:
                if errors == "raise":
                    raise
                results[index] = Recognition(None, 0.0, error=str(error))
            loading[index] = time.perf_counter() - began
        tuned = {"two_way_weight": two_way_weight, "scales": scales}
        given = {name: value for name, value in tuned.items() if value is not None}
        # Pictures of like size together: padding costs as much as ink.
        order = sorted(pictures, key=lambda index: pictures[index].shape[::-1])
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            began = time.perf_counter()
            readings = self.read(
                [pictures[index] for index in batch],
                num_beams=num_beams,
                top_k=top_k,
                max_length=max_length,
                grammar=grammar,
                two_way=two_way,
                **given,
            )
            share = (time.perf_counter() - began) / len(batch)
            for index, candidates in zip(batch, readings, strict=True):
                milliseconds = 1000 * (share + loading[index])
                results[index] = _recognition(candidates, pictures[index], milliseconds)
        return [results[index] for index in sorted(results)]

    def prepare(self, image: Any) -> np.ndarray:
        """What the model will see of one picture or ink: `uint8` (H, W), ink bright on dark.

        Raises:
            ImageInputError, InkError: if it cannot be read.
        """
        if isinstance(image, str | os.PathLike) and Path(image).suffix.lower() in INK_SUFFIXES:
            image = read_inkml(image)
        elif hasattr(image, "read"):
            image = image.read()
        if isinstance(image, bytes) and looks_like_inkml(image):
            image = read_inkml(image)
        if isinstance(image, Ink):
            return render_ink(image)
        return self.normalize(image)


def pad_pictures(pictures: Sequence[np.ndarray], multiples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Prepared pictures as one batch, padded below and to the right.

    Args:
        pictures: `uint8`, or `float32` of 0 to 255, (H, W) each.
        multiples: height and width (px) of the batch are multiples of these, so that sizes recur.

    Returns:
        `float32` values (B, 1, H, W) in [0, 1], and a `bool` mask (B, H, W), `True` for pixels of a picture.
    """
    height, width = (
        -(-max(picture.shape[axis] for picture in pictures) // multiples[axis]) * multiples[axis] for axis in (0, 1)
    )
    values = np.zeros((len(pictures), 1, height, width), np.float32)
    mask = np.zeros((len(pictures), height, width), bool)
    for index, picture in enumerate(pictures):
        rows, columns = picture.shape
        values[index, 0, :rows, :columns] = picture / np.float32(255)
        mask[index, :rows, :columns] = True
    return values, mask


def resize_picture(picture: np.ndarray, scale: float) -> np.ndarray:
    """A prepared picture at another size, `float32` of 0 to 255, as `resizing_abm.resized` does it with torch."""
    if scale == 1:
        return picture
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in picture.shape)
    margin = math.ceil(1 / scale) + 1
    padded = np.pad(picture.astype(np.float32), ((0, margin), (0, margin)))
    return cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)[:height, :width]


def iter_inputs(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The files to read for the given files and folders; folders give their pictures and ink, in order of name.

    Raises:
        FileNotFoundError: if a folder holds none.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES | INK_SUFFIXES and file.is_file()
        )
        if not found:
            raise FileNotFoundError(f"{path}: a folder without pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) or ink")
        yield from found


def are_several(images: Any) -> bool:
    """Whether this is a list of inputs, or an array or tensor (B, C, H, W) or (B, H, W, C) of them, and not one."""
    return isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4


def as_list(images: Any) -> list[Any]:
    """One input or several, as a list."""
    return list(images) if are_several(images) else [images]


def _recognition(candidates: Sequence[Reading], picture: np.ndarray, milliseconds: float) -> Recognition:
    if not candidates:
        return Recognition(None, 0.0, (), picture, milliseconds, "no reading was found: allow more tokens or beams")
    best = candidates[0]
    return Recognition(best.latex, best.score, tuple(candidates), picture, milliseconds)
