"""Recognition with PyTorch: on GPUs, and where attention is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..image_loading_abm import ImageInputError
from ..modeling_abm import ABMForConditionalGeneration
from ..pretrained import checkpoint_path
from ..processing_abm import ABMProcessor
from ..reading_abm import read_formulas
from ..readings_abm import Reading
from ..runtime import Precision, encoder_dtype
from .base import BaseRecognizer, pad_pictures


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


class Recognizer(BaseRecognizer):
    """A model, its processor and a device, loaded once.

    Args:
        model: a directory, a Hub id, or the name of a packaged checkpoint; the packaged default if `None`.
        device: such as `"cpu"` or `"cuda:0"`; a GPU if there is one, by default.
        precision: of the encoder: `"float32"`, `"bfloat16"`, `"int8"`, or `"auto"`, the fastest that the processor
            computes in. In all but the first, the attention's largest product is in bfloat16 where the processor has
            it, and a few answers in a hundred differ, for better or worse; see docs/speed.md.

    Raises:
        CheckpointError: if there is no such checkpoint.
        OSError, ValueError: if it cannot be loaded, or the processor lacks the precision.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
    ):
        self.path = checkpoint_path(model)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = ABMProcessor.from_pretrained(self.path)
        self.model = ABMForConditionalGeneration.from_pretrained(self.path, dtype=torch.float32).to(self.device).eval()
        self.model.fuse(encoder_dtype(precision, self.device))

    def normalize(self, image: Any) -> np.ndarray:
        processed = self.processor.image_processor(image, do_pad=False, do_rescale=False, return_tensors="np")
        pictures = processed["pixel_values"]
        if len(pictures) != 1:
            raise ImageInputError(f"{len(pictures)} pictures in the place of one")
        return pictures[0][0].astype(np.uint8)

    def read(self, pictures: Sequence[np.ndarray], **options: Any) -> list[list[Reading]]:
        inputs = self._batch(pictures)
        return read_formulas(
            self.model, self.processor.tokenizer, inputs["pixel_values"], inputs["pixel_mask"], **options
        )

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
        values, mask = pad_pictures(pictures, self.processor.image_processor.pad_to_multiple_of)
        return {"pixel_values": torch.from_numpy(values), "pixel_mask": torch.from_numpy(mask)}
