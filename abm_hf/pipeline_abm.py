"""`pipeline("image-to-latex", model=…)`: pictures of formulas to LaTeX."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .reading_abm import read_formulas

_GENERATE_OPTIONS = (
    "num_beams",
    "top_k",
    "max_length",
    "max_time",
    "grammar",
    "two_way",
    "two_way_weight",
    "scales",
    "generate_kwargs",
)


class ImageToLatexPipeline(Pipeline):
    """
    Pictures of handwritten formulas to LaTeX.

    ```python
    >>> reader = pipeline("image-to-latex", model="path/or/hub-id")
    >>> reader("formula.png")
    [{'latex': 'x^{2}+1', 'score': 0.93}]
    >>> reader(["a.png", "b.png"], batch_size=2, top_k=3)  # a list of up to three answers for each picture
    ```

    Call options: `num_beams` (10), `top_k` (1), `max_length` (200), `grammar` (`True`: only well-formed LaTeX),
    `two_way` (`False`; `True` lets both branches propose and judge), `two_way_weight` (say of the right-to-left branch
    in that; what was tuned for the checkpoint), `scales` (sizes at which each picture is read, as factors; what was
    chosen for the checkpoint), `max_time` (seconds), `min_score` (0: answers that are less probable come out with
    `latex=None`), `generate_kwargs`.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self, min_score: float = 0.0, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {name: kwargs.pop(name) for name in _GENERATE_OPTIONS if name in kwargs}
        kwargs.pop("timeout", None)
        if kwargs:
            raise TypeError(f"unknown options {sorted(kwargs)}: there are min_score, {', '.join(_GENERATE_OPTIONS)}")
        return {}, forward, {"min_score": min_score}

    def preprocess(self, image: Any) -> dict[str, Tensor]:
        """One picture, of any kind that the image processor reads."""
        inputs = self.processor(images=image)
        return {"pixel_values": inputs["pixel_values"], "pixel_mask": inputs["pixel_mask"]}

    def _forward(
        self, inputs: dict[str, Tensor], generate_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        readings = read_formulas(
            self.model,
            self.processor.tokenizer,
            inputs["pixel_values"],
            inputs["pixel_mask"],
            **options,
            **(generate_kwargs or {}),
        )
        return {"readings": readings}

    def postprocess(self, outputs: dict[str, Any], min_score: float = 0.0) -> list[dict[str, Any]]:
        readings = outputs["readings"]
        # A batch comes apart into its pictures on the way here, a single picture does not.
        if readings and isinstance(readings[0], list):
            readings = readings[0]
        return [
            {"latex": reading.latex if reading.score >= min_score else None, "score": reading.score}
            for reading in readings
        ]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> PipelineIterator:
        """As the parent, with pictures of different sizes padded to one; the parent can only stack equal ones."""
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
