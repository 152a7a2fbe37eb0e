"""What was read in a picture: hypotheses with their probabilities, whatever ran the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

JUDGED = 5
"""How many of a search's hypotheses are judged again at further sizes; with all of them, no more come out right."""


@dataclass(frozen=True)
class Reading:
    """One hypothesis about a picture.

    Args:
        latex: compact LaTeX.
        score: how probable it is that this is right, 0 to 1.
        tokens: the LaTeX tokens.
        token_scores: the probability of each token, given the picture and the tokens before it.
        finished: whether it ended by itself; `False` where it was cut at the greatest length.
        log_probability: what the model itself gives it, as a natural logarithm; with two-way search the weighted mean
            of both branches.
    """

    latex: str
    score: float
    tokens: tuple[str, ...] = field(repr=False)
    token_scores: tuple[float, ...] = field(repr=False)
    finished: bool = True
    log_probability: float = field(default=math.nan, repr=False)


def make_reading(
    ids: Sequence[int], scores: Sequence[float], log_probability: float | None, tokenizer: Any
) -> Reading:
    """A hypothesis from its ids without the start token, its score not calibrated.

    Args:
        ids: up to an end or pad token, behind which anything may follow.
        scores: the probability of each id.
        log_probability: that of the whole, where it is not the sum over the tokens.
        tokenizer: with `eos_token_id`, `pad_token_id`, `convert_ids_to_tokens` and `decode`.
    """
    finished = tokenizer.eos_token_id in ids
    end = tokenizer.eos_token_id if finished else tokenizer.pad_token_id
    length = ids.index(end) if end in ids else len(ids)
    if log_probability is None:
        log_probability = sum(math.log(score) if score > 0 else -math.inf for score in scores[: length + finished])
    return Reading(
        latex=tokenizer.decode(ids[:length], skip_special_tokens=True),
        score=math.exp(log_probability),
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids[:length])),
        token_scores=tuple(scores[:length]),
        finished=finished,
        log_probability=log_probability,
    )


def distinct_readings(readings: Sequence[Reading], temperature: float = 1.0) -> list[Reading]:
    """Each text once, in the order of the search, with scores that say how probable it is that a reading is right.

    The probability that a model gives to a whole formula is far too small: its errors are not as independent as the
    product over the tokens takes them to be. Its root, `p ** (1 / temperature)`, is what experience confirms. That of
    the first reading is its score; that of each further one holds in case that all before it are wrong. So the scores
    of a list never exceed one in all, do not depend on how many readings were asked for, and fall.

    Args:
        readings: in the order of the search, which is not that of `log_probability`: searches rank by the mean over
            the tokens, which favours long formulas and is right more often.
        temperature: fitted by `scripts/calibrate.py` and kept in the generation config; 1 trusts the model.
    """
    best: dict[str, Reading] = {}
    left = previous = 1.0
    for reading in readings:
        if reading.latex in best:
            continue
        previous = min(previous, left * math.exp(reading.log_probability / temperature))
        left -= previous
        best[reading.latex] = replace(reading, score=previous)
    return list(best.values())


def check_scales(scales: Any) -> tuple[float, ...]:
    """Sizes as factors, the first for the search.

    Raises:
        ValueError: if there is none, or one is out of the range from 0.25 to 4.
    """
    if (
        not isinstance(scales, list | tuple)
        or not scales
        or not all(isinstance(scale, int | float) for scale in scales)
    ):
        raise ValueError(f"scales must be one or more numbers, such as (1.0, 1.3), not {scales!r}")
    if not all(0.25 <= scale <= 4 for scale in scales):
        raise ValueError(f"scales are factors from 0.25 to 4, not {', '.join(map(str, scales))}")
    return tuple(float(scale) for scale in scales)


__all__ = ["JUDGED", "Reading", "check_scales", "distinct_readings", "make_reading"]
