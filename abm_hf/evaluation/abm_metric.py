"""[`expression_rate`] as an `evaluate.Metric`, for code that is written against that interface.

It needs no network: `ABMMetric()` is the metric, there is nothing to load by name.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from .expression_rate import Expression, expression_rate, split_tokens

_DESCRIPTION = "Expression recognition rates of handwritten mathematics, token error rate and tree rates."
_INPUTS = """
Args:
    predictions: token strings (LaTeX tokens separated by spaces) or token lists; None counts as wrong.
    references: the labels, likewise.
    convention: name of the label convention, written into the result; "abm" by default.
Returns:
    exprate, exprate_1, exprate_2, exprate_3, wer, structure_rate, tree_rate (percent), count, missing, evaluator,
    convention.
"""
_MISSING = "\0"  # stands for None in the table of strings that evaluate gathers: no token can contain it


class ABMMetric(evaluate.Metric):
    """The rates of [`expression_rate`] behind `compute`, `add` and `add_batch`.

    Args:
        keep_in_memory (`bool`, *optional*): gather in memory instead of in a file of the cache directory. Defaults to
            `True` for a single process; several processes need the file.
        kwargs: those of `evaluate.Metric`: `num_process`, `process_id`, `experiment_id`, `cache_dir`, ...

    Example:

    ```python
    >>> metric = ABMMetric()
    >>> metric.add_batch(predictions=["x ^ { 2 }"], references=["x ^ { 3 }"])
    >>> metric.compute()["exprate_1"]
    100.0
    ```
    """

    def __init__(self, *args: Any, keep_in_memory: bool | None = None, **kwargs: Any):
        single = kwargs.get("num_process", 1) == 1
        super().__init__(*args, keep_in_memory=single if keep_in_memory is None else keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    # evaluate copies the methods below without their closures, hence no bare super().
    def add_batch(
        self,
        *,
        predictions: Sequence[Expression | None] | None = None,
        references: Sequence[Expression] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds predictions with their references."""
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError("give as many predictions as references, and None where there is no prediction")
        evaluate.Metric.add_batch(
            self,
            predictions=[_stored(item, f"predictions[{index}]") for index, item in enumerate(predictions)],
            references=[_stored(item, f"references[{index}]") for index, item in enumerate(references)],
            **kwargs,
        )

    def add(self, *, prediction: Expression | None = None, reference: Expression | None = None, **kwargs: Any) -> None:
        """Adds one prediction with its reference."""
        if reference is None:
            raise ValueError("reference is None: leave expressions without a label out")
        evaluate.Metric.add(
            self, prediction=_stored(prediction, "prediction"), reference=_stored(reference, "reference"), **kwargs
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], convention: str = "abm"
    ) -> dict[str, float | int | str]:
        return expression_rate(
            predictions=[None if item == _MISSING else item.split() for item in predictions],
            references=[item.split() for item in references],
            convention=convention,
        )


def _stored(expression: Expression | None, name: str) -> str:
    return _MISSING if expression is None else " ".join(split_tokens(expression, name))
