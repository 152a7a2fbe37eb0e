"""Metrics for handwritten-mathematics recognition.

`ABMMetric` is loaded on first use, since it alone needs `evaluate`.
"""

from typing import Any

from .expression_rate import ExpressionScores, bootstrap_intervals, expression_rate, score_expressions

__all__ = ["ABMMetric", "ExpressionScores", "bootstrap_intervals", "expression_rate", "score_expressions"]


def __getattr__(name: str) -> Any:
    if name != "ABMMetric":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .abm_metric import ABMMetric

    return ABMMetric
