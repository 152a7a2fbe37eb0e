"""`pipeline("image-to-latex", model=…)`: images of formulas to LaTeX."""

import os
import shutil
from dataclasses import fields
from pathlib import Path
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .decoding_abm import DecodingOptions
from .image_loading_abm import holds_several
from .torch_engine_abm import recognize_images


class ImageToLatexPipeline(Pipeline):
    """
    Images of handwritten formulas to LaTeX.

    ```python
    >>> recognizer = pipeline("image-to-latex", model="path/or/hub-id")
    >>> recognizer("formula.png")
    [{'latex': 'x^{2}+1', 'score': 0.93}]
    >>> recognizer(["a.png", "b.png"], batch_size=2, top_k=3)  # a list of up to three answers for each image
    ```

    Options, when it is made or called: those of [`DecodingOptions`], such as `num_beams` (10), `top_k` (1), `grammar`
    (`True`: only well-formed LaTeX), `rescore` (by both branches where the model has them; `False` is left to right
    alone), `max_time` (seconds); and `min_score` (0: answers that are less probable come out with `latex=None`).
    Sampling and the other options of `generate` are `model.generate`'s.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = [entry.name for entry in fields(DecodingOptions)]
        forward = {name: kwargs.pop(name) for name in known if name in kwargs}
        postprocess = {name: kwargs.pop(name) for name in ("min_score",) if name in kwargs}
        kwargs.pop("timeout", None)
        if kwargs:
            raise TypeError(f"unknown options {', '.join(sorted(kwargs))}: there are min_score, {', '.join(known)}")
        DecodingOptions(**forward)  # refuses now what would fail for each image
        return {}, forward, postprocess

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """
        Read one picture, or several.

        Args:
            inputs: a picture of any kind that the image processor reads, or a list, tuple, column or array of them; a
                generator or a data set of torch (such as `KeyDataset`) is read as its answers are asked for.
                `images` is another name for it.
            kwargs: see the class, and `batch_size` and `num_workers`.

        Returns:
            A list of up to `top_k` answers for one picture; a list of such lists for several, or an iterator over them
            where the input has no length or is a data set of torch.
        """
        inputs = kwargs.pop("images", inputs)
        if isinstance(inputs, list | Dataset | GeneratorType) or not holds_several(inputs):
            return super().__call__(inputs, **kwargs) if not isinstance(inputs, list) or inputs else []
        answers = super().__call__((image for image in inputs), **kwargs)
        return list(answers) if hasattr(inputs, "__len__") else answers

    def preprocess(self, image: Any) -> dict[str, Tensor]:
        """One image, of any kind that the image processor reads."""
        inputs = self.processor(images=image)
        return {"pixel_values": inputs["pixel_values"], "pixel_mask": inputs["pixel_mask"]}

    def _forward(self, inputs: dict[str, Tensor], **options: Any) -> Any:
        hypotheses = recognize_images(
            self.model,
            self.processor.tokenizer,
            inputs["pixel_values"],
            inputs["pixel_mask"],
            DecodingOptions(**options),
        )
        return {"hypotheses": hypotheses}

    def postprocess(self, outputs: dict[str, Any], min_score: float = 0.0) -> list[dict[str, Any]]:
        hypotheses = outputs["hypotheses"]
        # A batch comes apart into its images on the way here, a single image does not.
        if hypotheses and isinstance(hypotheses[0], list):
            hypotheses = hypotheses[0]
        return [
            {"latex": hypothesis.latex if hypothesis.score >= min_score else None, "score": hypothesis.score}
            for hypothesis in hypotheses
        ]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """As the parent, and with the code that loads it again, also where that came from a checkpoint itself."""
        super().save_pretrained(save_directory, **kwargs)
        for module in Path(__file__).parent.glob("*_abm.py"):
            shutil.copyfile(module, Path(save_directory) / module.name)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> PipelineIterator:
        """As the parent, with images of different sizes padded to one; the parent can only stack equal ones."""
        if hasattr(inputs, "__len__"):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset, num_workers = PipelineIterator(inputs, self.preprocess, preprocess_params), min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=_padded_batch)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)


def _padded_batch(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pictures, each a batch of one, as one batch: padded below and to the right."""
    height = max(item["pixel_values"].shape[-2] for item in items)
    width = max(item["pixel_values"].shape[-1] for item in items)
    return {
        name: torch.cat(
            [
                torch.nn.functional.pad(
                    item[name], (0, width - item[name].shape[-1], 0, height - item[name].shape[-2])
                )
                for item in items
            ]
        )
        for name in ("pixel_values", "pixel_mask")
    }
