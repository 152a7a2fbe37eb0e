"""From a list of examples to the tensors the model takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..spelling_abm import respell
from .bucketing import padded_size

IGNORED = -100
"""Label of padded positions: what PyTorch's cross-entropy leaves out."""


class ABMCollator:
    """Pads images to a grid and labels to the longest of the batch.

    Works with the project's loop, with any `DataLoader` and as `data_collator` of `transformers.Trainer`.

    Args:
        multiple: Padded heights and widths are multiples of these numbers of pixels.
        tokenizer: Needed only for examples that bring `latex` (in any spacing) instead of `labels`.

    An example is a mapping with an image under `image` (anything `np.asarray` turns into an array (H, W) of 0 to 255,
    ink bright) or `pixel_values` ((H, W) or (1, H, W), 0 to 1), and `labels` (token ids, the end token included) or
    `latex`. Other keys are ignored.

    Returns a dict with

    - `pixel_values` (`torch.FloatTensor` of shape `(batch, 1, height, width)`): ink 1 on 0.
    - `pixel_mask` (`torch.BoolTensor` of shape `(batch, height, width)`): where the images are.
    - `labels` (`torch.LongTensor` of shape `(batch, tokens)`): padded with -100; only when the examples have labels.

    Raises:
        ValueError: For an empty batch, an example without an image, an image that is not two-dimensional.
    """

    def __init__(self, multiple: tuple[int, int] = (32, 64), tokenizer: Any = None) -> None:
        self.multiple = multiple
        self.tokenizer = tokenizer

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not examples:
            raise ValueError("cannot make a batch of no examples")
        images = [_image_of(example) for example in examples]
        rows, columns = padded_size(
            max(image.shape[0] for image in images), max(image.shape[1] for image in images), self.multiple
        )
        pixels = np.zeros((len(images), 1, rows, columns), dtype=np.float32)
        mask = np.zeros((len(images), rows, columns), dtype=bool)
        for number, image in enumerate(images):
            height, width = image.shape
            pixels[number, 0, :height, :width] = image
            mask[number, :height, :width] = True
        batch = {"pixel_values": torch.from_numpy(pixels), "pixel_mask": torch.from_numpy(mask)}
        labels = [self._labels_of(example) for example in examples]
        if any(label is not None for label in labels):
            batch["labels"] = pad_labels(labels)
        return batch

    def _labels_of(self, example: Mapping[str, Any]) -> list[int] | None:
        if example.get("labels") is not None:
            return [int(token) for token in example["labels"]]
        if example.get("latex") is not None and self.tokenizer is not None:
            return label_ids(self.tokenizer, " ".join(self._tokens(example["latex"])))
        return None

    def _tokens(self, latex: str) -> list[str]:
        return respell(self.tokenizer.lex(latex), self.tokenizer.get_vocab())


def _image_of(example: Mapping[str, Any]) -> np.ndarray:
    """The example's picture as float32 (H, W), 0 to 1."""
    if example.get("pixel_values") is not None:
        image = np.asarray(example["pixel_values"], dtype=np.float32)
        if image.ndim == 3 and image.shape[0] == 1:
            image = image[0]
    elif example.get("image") is not None:
        image = np.asarray(example["image"], dtype=np.float32) / np.float32(255)
    else:
        raise ValueError(f"an example needs an image or pixel_values; this one has {sorted(example)}")
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"an image must have the shape (height, width), not {image.shape}: convert it to grey first")
    return image


def pad_labels(labels: Sequence[Sequence[int] | None]) -> torch.Tensor:
    """Label lists as one tensor (batch, longest), padded with -100."""
    if any(label is None for label in labels):
        raise ValueError("some examples of the batch have labels and others have none")
    complete = [label for label in labels if label is not None]
    padded = np.full((len(complete), max(len(label) for label in complete)), IGNORED, dtype=np.int64)
    for number, label in enumerate(complete):
        padded[number, : len(label)] = label
    return torch.from_numpy(padded)


def label_ids(tokenizer: Any, latex: str) -> list[int]:
    """Token ids of a token string with the end token appended.

    Raises:
        ValueError: Naming the tokens that the vocabulary does not have.
    """
    tokens = latex.split()
    ids = tokenizer.convert_tokens_to_ids(tokens)
    unknown = sorted({token for token, number in zip(tokens, ids, strict=True) if number == tokenizer.unk_token_id})
    if unknown:
        raise ValueError(f"the vocabulary has no token {', '.join(map(repr, unknown))} (in {latex!r})")
    return [*ids, tokenizer.eos_token_id]
