"""Metrics for handwritten-mathematics recognition."""

from .expression_rate import ExpressionScores, bootstrap_intervals, expression_rate, score_expressions

__all__ = ["ExpressionScores", "bootstrap_intervals", "expression_rate", "score_expressions"]
