"""A recognizer without a network: it answers at once and depends on what it is shown, so that pages can be tested."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from abm_hf.decoding_abm import DecodingOptions
from abm_hf.image_loading_abm import ImageInputError, read_picture
from abm_hf.ink.rendering import render_ink
from abm_hf.ink.strokes import Ink

LATEX = r"x^{2}<\frac{a}{b}"
TOKENS = ("x", "^", "{", "2", "}", "<", r"\frac", "{", "a", "}", "{", "b", "}")
WIDE = "+".join(f"x_{{{index}}}" for index in range(40))
STRIDE = 16


@dataclass(frozen=True)
class Hypothesis:
    latex: str
    score: float
    tokens: tuple[str, ...] = TOKENS
    token_scores: tuple[float, ...] = (0.9,) * len(TOKENS)
    finished: bool = True


@dataclass(frozen=True)
class Recognition:
    latex: str
    score: float
    alternatives: tuple[Hypothesis, ...]
    image: np.ndarray
    milliseconds: float = 12.3
    error: str | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.alternatives[0].tokens

    @property
    def token_scores(self) -> tuple[float, ...]:
        return self.alternatives[0].token_scores


@dataclass(frozen=True)
class Explanation:
    tokens: tuple[str, ...]
    token_scores: tuple[float, ...]
    attention: np.ndarray
    image: np.ndarray
    stride: int = STRIDE


@dataclass
class FakeRecognizer:
    """Everything is [`LATEX`]; a line across the pad is [`WIDE`]; a single stroke has little confidence."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    directions: tuple[str, ...] = ("l2r", "r2l")
    latex: str | None = None

    def __post_init__(self) -> None:
        self.engine = SimpleNamespace(directions=self.directions)
        self.max_megapixels = 50.0

    def limit_megapixels(self, limit: float) -> None:
        self.max_megapixels = limit

    def __call__(self, images: Any, options: DecodingOptions) -> list[Recognition]:
        (source,) = images
        self.calls.append({"source": source, "options": options})
        picture = prepare(source)
        strokes = len(source.strokes) if isinstance(source, Ink) else 2
        latex = self.latex or (WIDE if is_flat(source) else LATEX)
        score = 0.31 if strokes == 1 else 0.87
        found = [Hypothesis(latex, score), Hypothesis(r"x^{2}\le\frac{a}{b}", 0.05), Hypothesis("x^{2}", 0.01)]
        return [Recognition(latex, score, tuple(found[: options.top_k]), picture)]

    def explain(self, image: Any, direction: str = "l2r", latex_tokens: Any = TOKENS) -> Explanation:
        picture = prepare(image)
        rows, columns = (-(-side // STRIDE) for side in picture.shape)
        maps = np.zeros((len(TOKENS), rows, columns), np.float32)
        for index in range(len(TOKENS)):
            maps[index, rows // 2, index * columns // len(TOKENS)] = 1
        maps = maps if direction == "l2r" else maps[::-1]
        tokens = TOKENS if direction == "l2r" else TOKENS[::-1]
        return Explanation(tokens, (0.9,) * (len(TOKENS) - 1) + (0.2,), maps, picture)


def is_flat(source: Any) -> bool:
    """Whether ink is a line across the pad."""
    if not isinstance(source, Ink):
        return False
    left, top, right, bottom = source.bounds
    return right - left > 20 * (bottom - top + 1)


def prepare(source: Any) -> np.ndarray:
    """Ink as the model sees it, or a picture's brightness."""
    if isinstance(source, Ink):
        return render_ink(source)
    picture = read_picture(source, 16)
    grey = picture if picture.ndim == 2 else picture.mean(axis=2).astype(np.uint8)
    if not isinstance(source, np.ndarray) and grey.mean() > 127:
        grey = 255 - grey
    if grey.max() == grey.min():
        raise ImageInputError("there is no ink in it")
    return grey
