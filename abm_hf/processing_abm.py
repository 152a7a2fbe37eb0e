"""ABMProcessor: pictures and LaTeX to the model's inputs, and the model's output back to LaTeX."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType

from .image_processing_abm import ABMImageProcessor, refuse_unknown
from .spelling_abm import respell
from .tokenization_abm import ABMTokenizer

# What the loss leaves out.
_NO_LABEL = -100
_TEXT_OPTIONS = ("truncation", "max_length", "padding", "pad_to_multiple_of", "add_special_tokens", "return_tensors")


class ABMProcessor(ProcessorMixin):
    r"""
    Processor of ABM: an [`ABMImageProcessor`] for pictures and an [`ABMTokenizer`] for labels.

    `decode`, `batch_decode` and `post_process_image_text_to_text` hand the model's ids to the tokenizer.

    Args:
        image_processor ([`ABMImageProcessor`], *optional*): defaults to one with its default settings.
        tokenizer ([`ABMTokenizer`], *optional*): defaults to one with the released vocabulary.

    Example:

    ```python
    >>> processor = ABMProcessor()
    >>> inputs = processor(images="formula.png", text=r"\frac{x}{2}")
    >>> loss = model(**inputs).loss
    ```
    """

    def __init__(
        self,
        image_processor: ABMImageProcessor | None = None,
        tokenizer: ABMTokenizer | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(
            ABMImageProcessor() if image_processor is None else image_processor,
            ABMTokenizer() if tokenizer is None else tokenizer,
            chat_template=chat_template,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        images_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Prepare pictures, labels, or both.

        Args:
            images: one picture or several, of any kind that [`ABMImageProcessor`] reads.
            text (`str` or `list[str]`, *optional*): the LaTeX of each picture, in any spacing. Where the vocabulary
                lacks a token, its other spelling is taken (`\\to` for `\\rightarrow`), and what does not show goes
                (`\\left`, `\\,`).
            images_kwargs, text_kwargs (`dict`, *optional*): options for one side only.
            kwargs: options of the image processor, and `return_tensors` (`"pt"`, the default, or `"np"`), `truncation`
                and `max_length` (tokens, `eos` included), `padding`, `add_special_tokens` for the labels.

        Returns:
            [`BatchFeature`] with `pixel_values` `(B, 1, H, W)` and `pixel_mask` `(B, H, W)` for pictures, `labels`
            (`int64` of shape `(B, T)`: `y1 … yn eos`, then −100) for text.

        Raises:
            TypeError: an option does not exist; the error names the one that it looks like.
            ValueError: neither pictures nor text are given, or not one text for each picture; or a text has tokens
                that the vocabulary lacks, which no model could learn: the error names them.
            ImageInputError: a picture cannot be used.
        """
        options_of_images = self.image_processor._valid_kwargs_names
        refuse_unknown(kwargs, [*options_of_images, *_TEXT_OPTIONS, "images_kwargs", "text_kwargs", "images", "text"])
        refuse_unknown(images_kwargs or (), options_of_images)
        refuse_unknown(text_kwargs or (), _TEXT_OPTIONS)
        if images is None and text is None:
            raise ValueError("ABMProcessor needs images, text, or both.")
        both = dict(kwargs)
        # `pad_to_multiple_of` means (height, width) here; labels take theirs through `text_kwargs` alone.
        for_text = {name: both[name] for name in _TEXT_OPTIONS if name in both and name != "pad_to_multiple_of"}
        for_images = {name: both[name] for name in options_of_images if name in both}
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, **for_images, **(images_kwargs or {})))
        if text is not None:
            data["labels"] = self._labels(text, **for_text, **(text_kwargs or {}))
        if images is not None and text is not None and len(data["labels"]) != len(data["pixel_values"]):
            raise ValueError(f"{len(data['pixel_values'])} images but {len(data['labels'])} texts: pass one for each.")
        return BatchFeature(data)

    def _labels(self, text: str | list[str], return_tensors: Any = "pt", **options: Any) -> Any:
        """Ids of each text, padded with −100 to one length."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(item, str) for item in texts):
            raise ValueError("text must be a string or a list of strings, not empty.")
        spelled = [self._spelled(item) for item in texts]
        encoded = self.tokenizer(spelled, **{"padding": True, **options}, return_tensors="np")
        labels = np.where(encoded["attention_mask"] == 1, encoded["input_ids"], _NO_LABEL).astype(np.int64)
        return torch.from_numpy(labels) if return_tensors in ("pt", TensorType.PYTORCH) else labels

    def _spelled(self, text: str) -> str:
        """A label in the vocabulary's spelling."""
        vocabulary = self.tokenizer.get_vocab()
        tokens = self.tokenizer.lex(text)
        # No label either: the model's output ends before them.
        reserved = [token for token in (self.tokenizer.pad_token, self.tokenizer.unk_token) if token in text]
        if not reserved and all(token in vocabulary for token in tokens):
            return text
        respelled = respell(tokens, vocabulary)
        if unknown := [token for token in dict.fromkeys(respelled) if token not in vocabulary] or reserved:
            raise ValueError(
                f"the label {text!r} has tokens that the vocabulary lacks: {' '.join(unknown)}. Leave it out, or "
                "bring it to the vocabulary first, as abm_hf.normalize_latex does for most LaTeX"
            )
        return " ".join(respelled)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Load both parts as what they are, so that loading works whether or not the Auto classes know them."""
        return [
            part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in (ABMImageProcessor, ABMTokenizer)
        ]

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` returns."""
        return [*self.image_processor.model_input_names, "labels"]


__all__ = ["ABMProcessor"]
