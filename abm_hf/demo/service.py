"""From what a visitor sent to what the page shows: readings, attention, and refusals as sentences.

Everything here is plain data in and out, so that it is tested without Gradio and without a browser. One visitor's
request leaves nothing behind: what is shown later (attention, another setting) starts from the small normalised
picture that the page itself keeps and sends back.
"""

import base64
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from ..decoding_abm import DecodingOptions
from ..image_loading_abm import ImageInputError
from ..inference.attention_pictures import attention_gif
from ..inference.typesetting import to_mathml
from ..ink.strokes import Ink, InkError
from .inputs import MAX_MEGAPIXELS, RefusedError, check_picture, decode_base64

if TYPE_CHECKING:
    from ..inference.base import BaseRecognizer, Explanation

#: Seconds that one reading may take; the search stops there and says so.
TIME_LIMIT = 20.0
#: Seconds that a request waits for the ones before it.
WAIT_LIMIT = 60.0
#: Hypotheses shown.
HYPOTHESES = 5
#: Tokens of an answer at most; the longest label of CROHME has 96.
MAX_LENGTH = 160
#: Below this probability an answer is more likely wrong than right.
UNSURE = 0.5
#: Hypotheses followed by the beam search.
BEAMS = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How to read.

    Args:
        beam (`bool`): follow several hypotheses; slower and more accurate than greedy reading.
        rescore (`bool`): let the right-to-left branch rescore the hypotheses; without effect on greedy reading.
        grammar (`bool`): only well-formed LaTeX can be written.
    """

    beam: bool = True
    rescore: bool = True
    grammar: bool = True


class Service:
    """Reads what visitors send, one at a time.

    Args:
        recognizer ([`abm_hf.Recognizer`] or [`abm_hf.ABMOnnxModel`]): Its images are
            given a limit of pixels.
        time_limit (`float`, *optional*): Seconds that one reading may take.
        wait_limit (`float`, *optional*): Seconds that a request waits for its turn.
    """

    def __init__(self, recognizer: "BaseRecognizer", time_limit: float = TIME_LIMIT, wait_limit: float = WAIT_LIMIT):
        self.recognizer = recognizer
        self.wait_limit = wait_limit
        self._turn = threading.Lock()
        # Always the same thread: torch keeps buffers and a team of workers for each thread that ever ran a model, and
        # the web server's forty threads made that 200 MB.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="abm-model")
        self.time_limit = time_limit
        recognizer.limit_megapixels(MAX_MEGAPIXELS)

    @property
    def directions(self) -> tuple[str, ...]:
        """Branches of the model: `"l2r"`, `"r2l"`."""
        return tuple(self.recognizer.engine.directions)

    def read(self, source: bytes | Ink | np.ndarray, settings: Settings | None = None) -> dict[str, Any]:
        """Reads one formula.

        Returns:
            `latex`, `mathml` (or `None`), `score`, `unsure`, `complete`, `milliseconds`, `tokens`, `token_scores`,
            `hypotheses` (a list of `latex`, `mathml`, `score`, the most probable first), and `seen`, the normalised
            picture as a `data:` address of a PNG, ink bright on dark.

        Raises:
            RefusedError: It cannot be read, and why, or the demo is too busy.
        """
        settings = settings or Settings()
        options = self._options(settings)
        result = self._in_turn(lambda: self.recognizer([source], options=options)[0])
        hypotheses = [
            {"latex": found.latex, "mathml": to_mathml(found.latex), "score": found.score}
            for found in result.alternatives
        ]
        return {
            "latex": result.latex,
            "mathml": hypotheses[0]["mathml"] if hypotheses else to_mathml(result.latex),
            "score": result.score,
            "unsure": result.score < UNSURE,
            "complete": bool(getattr(result.alternatives[0], "finished", True)) if hypotheses else True,
            "milliseconds": round(result.milliseconds, 1),
            "tokens": list(result.tokens),
            "token_scores": [round(score, 4) for score in result.token_scores],
            "hypotheses": hypotheses,
            "seen": to_png(result.image),
        }

    def explain(self, seen: Any, tokens: Any) -> dict[str, Any]:
        """What each branch looks at in an image while it writes the answer.

        Args:
            seen (`str`): The image as [`Service.read`] returned it.
            tokens (`list[str]`): The answer, as [`Service.read`] returned it.

        Returns:
            `image` (the image again), `width`, `height` (pixels), and `branches`: for each direction its `tokens` in
            the order of the formula, their `scores`, and `maps`, base64 of `len(tokens) × rows × columns` bytes, each
            map scaled to a maximum of 255, each position covering `stride` × `stride` pixels.

        Raises:
            RefusedError: It is no such image or answer, or the demo is too busy.
        """
        picture = from_png(seen)
        branches = [
            self._branch(self._explain(picture, direction, tokens), direction) for direction in self.directions
        ]
        height, width = picture.shape
        return {"image": to_png(picture), "width": width, "height": height, "branches": branches}

    def gif(self, seen: Any, tokens: Any, direction: str, dark: bool = False) -> str:
        """The attention of one branch as an animation: a `data:` address of a GIF. Raises as [`Service.explain`]."""
        if direction not in self.directions:
            raise RefusedError(f"This model has no such direction: it has {', '.join(self.directions)}.")
        explanation = self._explain(from_png(seen), direction, tokens)
        if not explanation.tokens:
            raise RefusedError("Nothing was read, so there is no attention to show.")
        data = attention_gif(explanation, theme="dark" if dark else "light")
        return "data:image/gif;base64," + base64.b64encode(data).decode()

    def _options(self, settings: Settings) -> DecodingOptions:
        return DecodingOptions(
            num_beams=BEAMS if settings.beam else 1,
            top_k=HYPOTHESES if settings.beam else 1,
            max_length=MAX_LENGTH,
            grammar=settings.grammar,
            rescore=None if settings.rescore else False,
            max_time=self.time_limit,
        )

    def _explain(self, picture: np.ndarray, direction: str, tokens: Any) -> "Explanation":
        if not isinstance(tokens, list) or len(tokens) > MAX_LENGTH or not all(isinstance(t, str) for t in tokens):
            raise RefusedError("An answer is a list of LaTeX tokens, as the demo gave them.")
        try:
            return self._in_turn(lambda: self.recognizer.explain(picture, direction, tokens))
        except ValueError:
            raise RefusedError("This answer has tokens that the model does not know.") from None

    def _branch(self, explanation: "Explanation", direction: str) -> dict[str, Any]:
        # In the order of the formula, whichever way the branch wrote it: so the two can be compared.
        order = slice(None, None, -1 if direction == "r2l" else 1)
        maps = np.asarray(explanation.attention, dtype=np.float32)[order]  # (T, h, w)
        peak = maps.max(axis=(1, 2), keepdims=True) if maps.size else 1
        scaled = np.rint(255 * maps / np.maximum(peak, 1e-9)).astype(np.uint8)
        return {
            "direction": direction,
            "tokens": list(explanation.tokens)[order],
            "scores": [round(float(score), 4) for score in explanation.token_scores][order],
            "rows": maps.shape[1],
            "columns": maps.shape[2],
            "stride": explanation.stride,
            "maps": base64.b64encode(scaled.tobytes()).decode(),
        }

    def _in_turn(self, work: Callable[[], T]) -> T:
        """Runs `work` alone: on a CPU two readings at once only make both wait longer."""
        if not self._turn.acquire(timeout=self.wait_limit):
            raise RefusedError("Too many people are reading formulas right now: please try again in a minute.")
        try:
            return self._thread.submit(work).result()
        except (ImageInputError, InkError) as error:
            reason = getattr(error, "reason", str(error))
            raise RefusedError(f"This cannot be read: {reason}.") from error
        finally:
            self._turn.release()


def to_png(picture: np.ndarray | None) -> str | None:
    """An image, `uint8` (H, W), as a `data:` address of a PNG."""
    if picture is None:
        return None
    with io.BytesIO() as stream:
        Image.fromarray(picture).save(stream, "PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def from_png(text: Any) -> np.ndarray:
    """The inverse of [`to_png`], for what a visitor's page sends back: checked like any picture."""
    data = check_picture(decode_base64(text))
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("L"))
    except Exception:  # decoders raise what they please
        raise RefusedError("This is not a picture that the demo made.") from None
