"""Expression recognition rates, as the handwritten-mathematics literature reports them.

With `d` the Levenshtein distance between the tokens of a prediction and of its label:

- ExpRate, <=1, <=2, <=3: the share of expressions with `d` = 0, `d` <= 1, ...; the denominator is the number of
  references, so that a prediction that is missing counts as wrong;
- WER: the sum of all `d` over the sum of all label lengths. Both equal what the released ABM script computes when
  every expression has a prediction;
- structure rate: the trees are equal when every symbol counts as the same one;
- tree-equal rate: the trees are equal up to writing convention (order of scripts, `\\limits`, redundant braces), so
  that it means the same in every label convention.

A label or prediction that is not well formed has no tree: such a pair counts as equal only if its tokens are.
Hence exprate <= tree_rate <= structure_rate always.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from ..latex.normalization import LatexError, Row, lex_latex, parse_latex

_SPECIAL = re.compile(r"<\w+>|\\")  # <eol>, <unk>; and a lone backslash, which a model may write

EVALUATOR = "abm_hf.expression_rate"

Expression = str | Sequence[str]


@dataclass(frozen=True)
class ExpressionScores:
    """How each expression fared; all arrays have shape `(count,)`.

    Attributes:
        distance (`np.ndarray` of int64): token edit distance; the label's length where the prediction is missing.
        length (`np.ndarray` of int64): number of tokens of the label.
        missing (`np.ndarray` of bool): there is no prediction.
        same_structure (`np.ndarray` of bool): equal trees, symbols ignored.
        same_tree (`np.ndarray` of bool): equal trees, writing convention ignored.
    """

    distance: np.ndarray
    length: np.ndarray
    missing: np.ndarray
    same_structure: np.ndarray
    same_tree: np.ndarray

    def __len__(self) -> int:
        return len(self.distance)

    def within(self, errors: int) -> np.ndarray:
        """Which expressions were predicted with at most `errors` token errors, bool of shape `(count,)`."""
        return (self.distance <= errors) & ~self.missing

    def rates(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Percentages for each row of `weights` (`(resamples, count)`, times each expression is counted)."""
        weights = np.ones((1, len(self)), dtype=np.int64) if weights is None else weights
        hits = {
            "exprate": self.within(0),
            "exprate_1": self.within(1),
            "exprate_2": self.within(2),
            "exprate_3": self.within(3),
            "structure_rate": self.same_structure,
            "tree_rate": self.same_tree,
        }
        rates = {name: 100.0 * (weights @ hit.astype(np.int64)) / weights.sum(axis=1) for name, hit in hits.items()}
        rates["wer"] = 100.0 * (weights @ self.distance) / np.maximum(weights @ self.length, 1)
        return rates


def score_expressions(
    *, predictions: Sequence[Expression | None], references: Sequence[Expression]
) -> ExpressionScores:
    """Scores each prediction against its reference.

    Args:
        predictions (`Sequence` of `str`, `Sequence[str]` or `None`): token strings (tokens separated by spaces) or
            token lists; `None` where there is no prediction.
        references (`Sequence` of `str` or `Sequence[str]`): the labels, in the same order.

    Raises:
        ValueError: if the lengths differ, a reference is `None`, or a string is not in token form.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise ValueError("predictions and references are lists with one entry for each expression, not one string")
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references: give one for each, in the same order, "
            "and None where there is no prediction"
        )
    distance, length, missing, same_structure, same_tree = [], [], [], [], []
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if reference is None:
            raise ValueError(f"references[{index}] is None: leave expressions without a label out")
        wanted = split_tokens(reference, f"references[{index}]")
        got = None if prediction is None else split_tokens(prediction, f"predictions[{index}]")
        trees = (False, False) if got is None else _compare_trees(got, wanted)
        distance.append(len(wanted) if got is None else Levenshtein.distance(got, wanted))
        length.append(len(wanted))
        missing.append(got is None)
        same_structure.append(trees[0])
        same_tree.append(trees[1])
    return ExpressionScores(
        np.array(distance, dtype=np.int64),
        np.array(length, dtype=np.int64),
        np.array(missing, dtype=bool),
        np.array(same_structure, dtype=bool),
        np.array(same_tree, dtype=bool),
    )


def expression_rate(
    *,
    predictions: Sequence[Expression | None],
    references: Sequence[Expression],
    convention: str = "abm",
) -> dict[str, float | int | str]:
    """Recognition rates of a set of predictions.

    Args:
        predictions (`Sequence` of `str`, `Sequence[str]` or `None`): token strings or token lists; `None` counts as
            wrong.
        references (`Sequence` of `str` or `Sequence[str]`): the labels, in the same order.
        convention (`str`, defaults to `"abm"`): name of the references' label convention, written into the result.

    Returns:
        `dict`: `exprate`, `exprate_1`, `exprate_2`, `exprate_3`, `wer`, `structure_rate`, `tree_rate` in percent;
        `count`, the number of references; `missing`, how many had no prediction; `evaluator`; `convention`.

    Raises:
        ValueError: if there is nothing to score, the lengths differ, or a string is not in token form.
    """
    scores = score_expressions(predictions=predictions, references=references)
    if not len(scores):
        raise ValueError("there are no references: nothing to score")
    rates: dict[str, float | int | str] = {name: float(rate[0]) for name, rate in scores.rates().items()}
    return {
        **rates,
        "count": len(scores),
        "missing": int(scores.missing.sum()),
        "evaluator": EVALUATOR,
        "convention": convention,
    }


def bootstrap_intervals(
    scores: ExpressionScores, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of every rate, resampling expressions.

    Args:
        scores ([`ExpressionScores`]): what [`score_expressions`] returned.
        resamples (`int`, defaults to 2000): how many times the set is drawn anew, with replacement.
        confidence (`float`, defaults to 0.95): share of the resamples inside the interval.
        seed (`int`, defaults to 0): the same seed gives the same intervals.

    Returns:
        `dict[str, tuple[float, float]]`: lower and upper end in percent, under the names of [`expression_rate`].

    Raises:
        ValueError: if there are no scores, `resamples` is not positive or `confidence` is not between 0 and 1.
    """
    if not len(scores) or resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"need at least one score, one resample and a confidence between 0 and 1, got {len(scores)} scores, "
            f"resamples={resamples}, confidence={confidence}"
        )
    generator = np.random.default_rng(seed)
    share = np.full(len(scores), 1.0 / len(scores))
    drawn: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, 100):  # in chunks: 100 x count weights at a time, whatever `resamples` is
        weights = generator.multinomial(len(scores), share, size=min(100, resamples - start))
        for name, rate in scores.rates(weights).items():
            drawn.setdefault(name, []).append(rate)
    tails = [50.0 * (1.0 - confidence), 50.0 * (1.0 + confidence)]
    ends = {name: np.percentile(np.concatenate(rates), tails) for name, rates in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def split_tokens(expression: Expression, name: str = "expression") -> list[str]:
    """The tokens of a token string or token list.

    Raises:
        ValueError: if a string is LaTeX but not in token form; `name` says which one in the message.
    """
    if not isinstance(expression, str):
        return list(expression)
    tokens = expression.split()
    for token in tokens:
        if not _SPECIAL.fullmatch(token) and len(lex_latex(token)) > 1:
            raise ValueError(
                f"{name} is not in token form: {token!r} is more than one token. Separate the tokens by spaces "
                f"({' '.join(lex_latex(token))!r}) or pass a list of tokens"
            )
    return tokens


def _canonical(tokens: list[str]) -> Row | None:
    try:
        return parse_latex(tokens).canonical()
    except LatexError:
        return None


def _compare_trees(prediction: list[str], reference: list[str]) -> tuple[bool, bool]:
    """Equal structure, equal tree."""
    if prediction == reference:
        return True, True
    first, second = _canonical(prediction), _canonical(reference)
    if first is None or second is None or first.structure() != second.structure():
        return False, False
    return True, first == second
