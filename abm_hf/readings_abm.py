"""What was read in a picture: hypotheses with their probabilities, whatever ran the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reading:
    """One hypothesis about a picture.

    Args:
        latex: compact LaTeX.
        score: its probability under the model, 0 to 1; with two-way search the geometric mean of both branches'.
        tokens: the LaTeX tokens.
        token_scores: the probability of each token, given the picture and the tokens before it.
        finished: whether it ended by itself; `False` where it was cut at the greatest length.
    """

    latex: str
    score: float
    tokens: tuple[str, ...] = field(repr=False)
    token_scores: tuple[float, ...] = field(repr=False)
    finished: bool = True


def make_reading(ids: Sequence[int], scores: Sequence[float], score: float | None, tokenizer: Any) -> Reading:
    """A hypothesis from its ids without the start token.

    Args:
        ids: up to an end token, behind which anything may follow.
        scores: the probability of each id.
        score: that of the whole, where it is not their product.
        tokenizer: with `eos_token_id`, `convert_ids_to_tokens` and `decode`.
    """
    finished = tokenizer.eos_token_id in ids
    length = ids.index(tokenizer.eos_token_id) if finished else len(ids)
    tokens = tuple(tokenizer.convert_ids_to_tokens(ids[:length]))
    return Reading(
        latex=tokenizer.decode(ids[:length], skip_special_tokens=True),
        score=math.prod(scores[: length + finished]) if score is None else score,
        tokens=tokens,
        token_scores=tuple(scores[:length]),
        finished=finished,
    )


def distinct_readings(readings: Sequence[Reading]) -> list[Reading]:
    """The most probable first, each text once: a search ranks by length-normalised scores and may repeat itself."""
    best: dict[str, Reading] = {}
    for reading in sorted(readings, key=lambda reading: -reading.score):
        best.setdefault(reading.latex, reading)
    return list(best.values())


__all__ = ["Reading", "distinct_readings", "make_reading"]
