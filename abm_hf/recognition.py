"""The one-liner: pictures or ink of formulas in, LaTeX out.

>>> import abm_hf
>>> abm_hf.recognize("formula.png").latex
'x^{2}+1'
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .data.ink import Ink, InkError
from .data.inkml import read_inkml
from .data.render import render_ink
from .image_processing_abm import ImageInputError
from .modeling_abm import ABMForConditionalGeneration
from .pretrained import checkpoint_path
from .processing_abm import ABMProcessor
from .reading_abm import Reading, read_formulas

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
INK_SUFFIXES = frozenset({".inkml"})


@dataclass(frozen=True)
class Recognition:
    """What was read in one picture.

    Args:
        latex: the most probable LaTeX, compact; `None` where the picture could not be read.
        score: its probability under the model, 0 to 1.
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


@dataclass(frozen=True)
class Explanation:
    """What the model looked at while writing.

    Args:
        tokens: the T tokens in the order in which the branch wrote them.
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


class Recognizer:
    """A model, its processor and a device, loaded once.

    Args:
        model: a directory, a Hub id, or the name of a packaged checkpoint; the packaged default if `None`.
        device: such as `"cpu"` or `"cuda:0"`; a GPU if there is one, by default.

    Raises:
        CheckpointError: if there is no such checkpoint.
        OSError, ValueError: if it cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None, device: str | torch.device | None = None):
        self.path = checkpoint_path(model)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = ABMProcessor.from_pretrained(self.path)
        self.model = ABMForConditionalGeneration.from_pretrained(self.path, dtype=torch.float32).to(self.device).eval()

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
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Recognition]:
        """Reads pictures or ink.

        Args:
            images: one or a list of paths (pictures or `.inkml`), PIL images, arrays, tensors, bytes or [`Ink`].
            num_beams: hypotheses followed at a time; 1 is greedy: faster, less accurate.
            top_k: readings returned for each picture.
            batch_size: pictures decoded together; they are sorted by size for this.
            max_length: most tokens of an answer.
            grammar: whether only well-formed LaTeX can be written.
            two_way: whether both branches propose and judge: more accurate, about three and a half times the work.
            errors: `"raise"` at the first picture that cannot be read, or `"return"` a [`Recognition`] with `error`.

        Returns:
            One result for each picture, in order.

        Raises:
            ImageInputError, InkError: for a picture or ink that cannot be read, with `errors="raise"`.
        """
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
        # Pictures of like size together: padding costs as much as ink.
        order = sorted(pictures, key=lambda index: pictures[index].shape[::-1])
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            began = time.perf_counter()
            inputs = self._batch([pictures[index] for index in batch])
            readings = read_formulas(
                self.model,
                self.processor.tokenizer,
                inputs["pixel_values"],
                inputs["pixel_mask"],
                num_beams=num_beams,
                top_k=top_k,
                max_length=max_length,
                grammar=grammar,
                two_way=two_way,
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
        if isinstance(image, Ink):
            return render_ink(image)
        processed = self.processor.image_processor(image, do_pad=False, do_rescale=False, return_tensors="np")
        return processed["pixel_values"][0][0].astype(np.uint8)

    @torch.inference_mode()
    def explain(self, image: Any, direction: str = "l2r", num_beams: int = 1, **kwargs: Any) -> Explanation:
        """Reads one picture with one branch and returns its attention.

        Args:
            image: as for `__call__`.
            direction: `"l2r"` or `"r2l"`; the tokens come in the order of writing.
            num_beams, kwargs: options of `generate`.

        Raises:
            ImageInputError, InkError: if the picture cannot be read.
            ValueError: if the model has no such branch.
        """
        picture = self.prepare(image)
        inputs = {name: value.to(self.device) for name, value in self._batch([picture]).items()}
        encoder_outputs = self.model.encoder(**inputs)
        written = self.model.generate(
            encoder_outputs=encoder_outputs, decoder_direction=direction, num_beams=num_beams, **kwargs
        )
        output = self.model(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=written[:, :-1],
            decoder_direction=direction,
            output_attentions=True,
        )
        probabilities = output.logits.softmax(-1).gather(-1, written[:, 1:, None])[0, :, 0]
        special = set(self.processor.tokenizer.all_special_ids)
        ids = written[0, 1:].tolist()
        kept = [step for step, token in enumerate(ids) if token not in special]
        stride = self.model.config.feature_stride
        rows, columns = (-(-side // stride) for side in picture.shape)
        return Explanation(
            tokens=tuple(self.processor.tokenizer.convert_ids_to_tokens([ids[step] for step in kept])),
            token_scores=tuple(probabilities[kept].tolist()),
            attention=output.cross_attentions[0, kept, :rows, :columns].cpu().numpy(),
            image=picture,
            stride=stride,
        )

    def _batch(self, pictures: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Model inputs for prepared pictures, padded to a size that recurs."""
        row, column = self.processor.image_processor.pad_to_multiple_of
        height = -(-max(picture.shape[0] for picture in pictures) // row) * row
        width = -(-max(picture.shape[1] for picture in pictures) // column) * column
        values = torch.zeros(len(pictures), 1, height, width)
        mask = torch.zeros(len(pictures), height, width, dtype=torch.bool)
        for index, picture in enumerate(pictures):
            rows, columns = picture.shape
            values[index, 0, :rows, :columns] = torch.from_numpy(picture) / 255
            mask[index, :rows, :columns] = True
        return {"pixel_values": values, "pixel_mask": mask}


def recognize(
    images: Any,
    *,
    model: str | Path | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Recognition | list[Recognition]:
    """Reads pictures or ink of handwritten formulas with the packaged checkpoint, or another.

    Args:
        images: a path, PIL image, array, tensor, bytes or [`Ink`]; or a list of them.
        model, device: see [`Recognizer`]. The model is loaded once and kept.
        options: see [`Recognizer.__call__`].

    Returns:
        A [`Recognition`] for a single picture; a list with one for each, in order, for a list.
    """
    results = _recognizer(str(model) if model is not None else None, str(device) if device else None)(
        images, **options
    )
    return results if isinstance(images, list | tuple) else results[0]


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


def as_list(images: Any) -> list[Any]:
    """One input or several, as a list."""
    return list(images) if isinstance(images, list | tuple) else [images]


def _recognition(candidates: Sequence[Reading], picture: np.ndarray, milliseconds: float) -> Recognition:
    best = candidates[0]
    return Recognition(best.latex, best.score, tuple(candidates), picture, milliseconds)


@lru_cache(maxsize=2)
def _recognizer(model: str | None, device: str | None) -> Recognizer:
    return Recognizer(model, device)
