"""What recognizers have in common, whatever runs the network: inputs, batches, results. Without torch."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..decoding_abm import DecodingOptions, Engine, Hypothesis, decode, ends
from ..file_names import expand
from ..image_loading_abm import ImageInputError, holds_several
from ..ink.inkml import looks_like_inkml, read_inkml
from ..ink.rendering import render_ink
from ..ink.strokes import Ink, InkError
from .typesetting import render_latex, to_mathml

# HEIC cannot be read, but who has such pictures in a folder is to be told.
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
INK_SUFFIXES = frozenset({".inkml"})


@dataclass(frozen=True)
class Recognition:
    """What was recognized in one image.

    Args:
        latex: the most probable LaTeX, compact; `None` where the image could not be read.
        score: how probable it is that this is right, 0 to 1.
        alternatives: all hypotheses, the most probable first (as many as `top_k` asked for).
        image: what the model saw, `uint8` (H, W), ink bright on dark.
        milliseconds: that it took to load, and the image's share, by its pixels, of what its batch took.
        error: why there is no answer, in one line.
    """

    latex: str | None
    score: float
    alternatives: tuple[Hypothesis, ...] = field(default=(), repr=False)
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


@dataclass(frozen=True)
class Explanation:
    """What a branch looked at, step by step, if it writes a given formula.

    Args:
        tokens: the T tokens in the order in which the branch writes them.
        token_scores: their probabilities.
        attention: `float32` (T, h, w), each map summing to 1; a position covers `stride` × `stride` pixels.
        image: what the model saw, `uint8` (H, W).
        stride: pixels for each feature position.
    """

    tokens: tuple[str, ...]
    token_scores: tuple[float, ...]
    attention: np.ndarray = field(repr=False)
    image: np.ndarray = field(repr=False)
    stride: int


class BaseRecognizer(ABC):
    """Recognizes images or ink in batches of like size. What prepares images and runs the network is the subclass's.

    Args:
        engine: runs the network.
        feature_stride: pixels for each feature position.
        pad_to_multiple_of: height and width (px) of a batch are multiples of these.
    """

    engine: Engine
    feature_stride: int
    pad_to_multiple_of: tuple[int, int]

    @abstractmethod
    def normalize(self, image: Any) -> np.ndarray:
        """One image to what the model sees of it: `uint8` (H, W), ink bright on dark.

        Raises:
            ImageInputError: if it cannot be read.
        """

    def __call__(
        self,
        images: Any,
        *,
        batch_size: int = 16,
        errors: Literal["raise", "return"] = "raise",
        options: DecodingOptions | None = None,
        **decoding: Any,
    ) -> list[Recognition]:
        """Recognizes images or ink.

        Args:
            images: one or several paths (pictures or `.inkml`), bytes or open binary files of such, PIL images,
                arrays, tensors or [`Ink`]. Several are a list, a data set's column, a generator, or an array or tensor
                of four axes, an image for each entry of the first.
            batch_size: images decoded together; they are sorted by size for this.
            errors: `"raise"` at the first image that cannot be read, or `"return"` a [`Recognition`] with `error`.
            options: how formulas are searched.
            decoding: instead of `options`, its fields: `num_beams`, `top_k`, `max_length`, `grammar`, `rescore`,
                `rescoring_weight`, `rescoring_size`, `length_penalty`, `max_time`, see [`DecodingOptions`].

        Returns:
            One result for each image, in order.

        Raises:
            ImageInputError, InkError: for an image or ink that cannot be read, with `errors="raise"`.
            ValueError: for options that contradict each other or the model.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if errors not in ("raise", "return"):
            raise ValueError(f"errors must be 'raise' or 'return', not {errors!r}")
        options = options_from(options, decoding).resolve(self.engine.settings, self.engine.directions)
        results: dict[int, Recognition] = {}
        prepared: dict[int, np.ndarray] = {}
        loading: dict[int, float] = {}
        for index, image in enumerate(as_list(images)):
            began = time.perf_counter()
            try:
                prepared[index] = self.prepare(image)
            except (ImageInputError, InkError) as error:
                if errors == "raise":
                    raise
                results[index] = Recognition(None, 0.0, error=str(error))
            loading[index] = time.perf_counter() - began
        # Images of like size together: padding costs as much as ink.
        order = sorted(prepared, key=lambda index: prepared[index].shape[::-1])
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            began = time.perf_counter()
            found = self.decode([prepared[index] for index in batch], options)
            seconds, pixels = time.perf_counter() - began, sum(prepared[index].size for index in batch)
            for index, hypotheses in zip(batch, found, strict=True):
                milliseconds = 1000 * (seconds * prepared[index].size / pixels + loading[index])
                results[index] = _recognition(hypotheses, prepared[index], milliseconds)
        return [results[index] for index in sorted(results)]

    def decode(self, images: Sequence[np.ndarray], options: DecodingOptions | None = None) -> list[list[Hypothesis]]:
        """The hypotheses about each of some images as `prepare` returns them, the most probable first."""
        return decode(self.engine, *pad_images(images, self.pad_to_multiple_of), options)

    def explain(self, image: Any, direction: str = "l2r", latex_tokens: Sequence[str] | None = None) -> Explanation:
        """What one branch looks at while it writes the answer.

        Args:
            image: as for `__call__`.
            direction: `"l2r"` or `"r2l"`; the tokens come in the order of writing.
            latex_tokens: the formula, from left to right; by default the answer of `__call__`.

        Raises:
            ImageInputError, InkError: if the image cannot be read.
            ValueError: if the model has no such branch, or a token is not in its vocabulary.
        """
        DecodingOptions(direction=direction).resolve(self.engine.settings, self.engine.directions)
        prepared = self.prepare(image)
        encoded = self.engine.encode(*pad_images([prepared], self.pad_to_multiple_of))
        if latex_tokens is None:
            hypotheses = self.decode([prepared])[0]
            latex_tokens = hypotheses[0].tokens if hypotheses else ()
        tokens = list(latex_tokens if direction == "l2r" else latex_tokens[::-1])
        ids = self.engine.tokenizer.convert_tokens_to_ids(tokens)
        missing = (None, self.engine.tokenizer.unk_token_id)
        if unknown := [token for token, index in zip(tokens, ids, strict=True) if index in missing]:
            raise ValueError(f"tokens that are not in the vocabulary: {' '.join(map(str, unknown))}")
        rows, columns = (-(-side // self.feature_stride) for side in prepared.shape)
        state, read = self.engine.start(encoded, direction), ends(self.engine.tokenizer, direction)[0]
        before, scores, maps = state.coverage, [], []
        for index in ids:
            log_probs = state.step(np.array([[read]]))
            after = state.coverage
            scores.append(float(np.exp(log_probs[0, 0, index])))
            maps.append((after - before)[0, 0, :rows, :columns])  # what a step adds to the coverage is its attention
            before, read = after, index
        attention = np.stack(maps) if maps else np.zeros((0, rows, columns), np.float32)
        return Explanation(tuple(tokens), tuple(scores), attention, prepared, self.feature_stride)

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights: a checkpoint that goes on training keeps its name."""

    @abstractmethod
    def limit_megapixels(self, limit: float) -> None:
        """Refuse images of more megapixels, whatever the processor's own limit is."""

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


def options_from(options: DecodingOptions | None, decoding: Mapping[str, Any]) -> DecodingOptions:
    """The options, or those made of keyword arguments.

    Raises:
        TypeError: for an unknown option, or if both are given.
        ValueError: see [`DecodingOptions`].
    """
    if options is None:
        known = [entry.name for entry in fields(DecodingOptions)]
        if unknown := sorted(set(decoding) - set(known)):
            raise TypeError(f"unknown options {', '.join(unknown)}: there are {', '.join(known)}")
        return DecodingOptions(**decoding)
    if decoding:
        raise TypeError(f"pass options, or {', '.join(sorted(decoding))} on their own, not both")
    return options


def pad_images(images: Sequence[np.ndarray], multiples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Prepared images as one batch, padded below and to the right.

    Args:
        images: `uint8` (H, W) each.
        multiples: height and width (px) of the batch are multiples of these, so that sizes recur.

    Returns:
        `float32` values (B, 1, H, W) in [0, 1], and a `bool` mask (B, H, W), `True` for pixels of an image.
    """
    height, width = (
        -(-max(image.shape[axis] for image in images) // multiples[axis]) * multiples[axis] for axis in (0, 1)
    )
    values = np.zeros((len(images), 1, height, width), np.float32)
    mask = np.zeros((len(images), height, width), bool)
    for index, image in enumerate(images):
        rows, columns = image.shape
        values[index, 0, :rows, :columns] = image / np.float32(255)
        mask[index, :rows, :columns] = True
    return values, mask


def iter_inputs(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The files to read for the given files and folders; folders give their pictures and ink, in order of name.

    Hidden files and folders are left out: copies of editors and systems, such as `.ipynb_checkpoints` and `._a.png`.

    Raises:
        FileNotFoundError: if a folder holds none.
        ValueError: for an empty name, which would be the current folder.
    """
    for name in paths:
        if not str(name):
            raise ValueError("an empty name is no input: is a variable of the shell not set?")
        path = expand(name)
        if not is_folder(path):
            yield path
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES | INK_SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
        if not found:
            raise FileNotFoundError(f"{path}: a folder without pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) or ink")
        yield from found


def is_folder(path: str | Path) -> bool:
    """Whether this names a folder that is there."""
    try:
        return expand(path).is_dir()
    except OSError:  # such as a name that is too long: reading it will tell
        return False


def are_several(images: Any) -> bool:
    """Whether this is a collection of inputs (see [`holds_several`]) and not one."""
    return not isinstance(images, Ink) and holds_several(images)


def as_list(images: Any) -> list[Any]:
    """One input or several, as a list."""
    if not are_several(images):
        return [images]
    return list(images) if hasattr(images, "__iter__") else [images[index] for index in range(len(images))]


def _recognition(hypotheses: Sequence[Hypothesis], image: np.ndarray, milliseconds: float) -> Recognition:
    if not hypotheses:
        return Recognition(None, 0.0, (), image, milliseconds, "no formula was found: allow more tokens or beams")
    best = hypotheses[0]
    return Recognition(best.latex, best.score, tuple(hypotheses), image, milliseconds)
