"""From encoded images to LaTeX with probabilities: search, rescoring by the other branch, calibrated scores.

Written once, in NumPy, over an [`Engine`]: PyTorch (`torch_engine_abm`) or ONNX Runtime. A search keeps to the grammar
of LaTeX (`grammar_abm`). The candidates that the left-to-right branch finds are then rescored by the right-to-left
branch in one teacher-forced pass: it sees the end of a formula first, so its errors are others. Where the best ones
are still close, both branches score them once more on a larger image. What each part brings and costs is in
docs/decoding.md.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import cv2
import numpy as np

from .grammar_abm import tokenizer_grammar
from .search_abm import Candidate, SearchState, Task, beam_search, greedy_search, score_candidates

_DEFAULT_RESCORING_WEIGHT = 0.5

# Nats per token by which a candidate may fall behind the best one before it is not worth rescoring: before the first
# pass of the right-to-left branch, and before the pass on a larger image. Chosen on CROHME 2013, see docs/decoding.md.
_MARGIN, _CLOSE = 0.2, 0.1
# Candidates of an image that are scored on a larger image.
_FINALISTS = 5


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How formulas are searched. What is `None` comes from the checkpoint's generation config, see [`resolve`].

    Args:
        num_beams (`int`, *optional*): hypotheses followed at a time, 10 by default; 1 is greedy search.
        top_k (`int`, defaults to 1): hypotheses returned for each image; raises `num_beams` where it is smaller.
        max_length (`int`, *optional*): most tokens of an answer, start and end included; 200 by default.
        grammar (`bool`, defaults to `True`): whether only well-formed LaTeX can be written.
        direction (`str`, defaults to `"l2r"`): the branch that searches, `"l2r"` or `"r2l"`.
        rescore (`bool`, *optional*): whether the other branch rescores what beam search found from left to right; by
            default it does where the model has both. `False` is the protocol of the paper.
        rescoring_weight (`float`, *optional*): weight of the right-to-left branch in that, from 0 to 1.
        rescoring_size (`float`, *optional*): factor by which images are enlarged for a second pass of both branches
            where the best candidates are close; 1 leaves it out.
        length_penalty (`float`, *optional*): exponent of the length by which log-probabilities are divided; 1 by
            default, the mean over the tokens.
        max_time (`float`, *optional*): seconds that the search may take; answers are cut off there. No limit by
            default.

    Raises:
        ValueError: if a value is out of its range, or options contradict each other.
    """

    num_beams: int | None = None
    top_k: int = 1
    max_length: int | None = None
    grammar: bool = True
    direction: str = "l2r"
    rescore: bool | None = None
    rescoring_weight: float | None = None
    rescoring_size: float | None = None
    length_penalty: float | None = None
    max_time: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("top_k", 1), ("max_length", 3)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | np.integer) or value < least):
                why = ": it counts the start and the end token" if name == "max_length" else ""
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}{why}")
        if self.direction not in ("l2r", "r2l"):
            raise ValueError(f"direction must be 'l2r' or 'r2l', not {self.direction!r}")
        if self.rescoring_weight is not None and not 0 <= self.rescoring_weight <= 1:
            raise ValueError(
                "rescoring_weight must be from 0 (left to right alone) to 1 (right to left alone), not "
                f"{self.rescoring_weight}"
            )
        if self.rescoring_size is not None and not 0.5 <= self.rescoring_size <= 2:
            raise ValueError(f"rescoring_size must be a factor from 0.5 to 2, not {self.rescoring_size}")
        for name in ("rescoring_weight", "rescoring_size"):
            if getattr(self, name) is not None and self.rescore is False:
                raise ValueError(f"{name} has no effect without rescoring: leave it out, or rescore=False")
        if self.rescore and self.direction != "l2r":
            raise ValueError("rescoring starts from left to right: leave direction out, or rescore")
        if self.max_time is not None and self.max_time < 0:
            raise ValueError(f"max_time must be a number of seconds, not {self.max_time}")

    def resolve(self, settings: Mapping[str, Any], directions: Sequence[str]) -> "DecodingOptions":
        """The same with every value that applies to a model.

        Args:
            settings: its generation config, as a mapping.
            directions: its branches.

        Raises:
            ValueError: if the model lacks a branch that is asked for.
        """
        missing = {"l2r", "r2l"} - set(directions)
        if self.direction in missing:
            raise ValueError(f"this model has no branch {self.direction!r}: it has {sorted(directions)}")
        if self.rescore and missing:
            raise ValueError(f"rescoring needs both branches, this model has no {missing.pop()}")

        def chosen(name: str, default: Any) -> Any:
            own = getattr(self, name)
            return own if own is not None else settings[name] if settings.get(name) is not None else default

        num_beams = max(chosen("num_beams", 10), self.top_k)
        rescore = self.rescore
        if rescore is None:
            rescore = num_beams > 1 and self.direction == "l2r" and not missing
        return replace(
            self,
            num_beams=num_beams,
            max_length=chosen("max_length", 200),
            rescore=rescore,
            rescoring_weight=chosen("rescoring_weight", _DEFAULT_RESCORING_WEIGHT) if rescore else None,
            rescoring_size=chosen("rescoring_size", 1.0) if rescore else None,
            length_penalty=chosen("length_penalty", 1.0),
            max_time=chosen("max_time", None),
        )


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis about an image.

    Args:
        latex: compact LaTeX.
        score: how probable it is that this is right, 0 to 1.
        tokens: the LaTeX tokens.
        token_scores: the probability of each token by the branch that searched, given the image and the tokens that
            it had written before.
        finished: whether it ended by itself; `False` where it was cut at the greatest length.
        log_probability: what the model itself gives it, as a natural logarithm; with rescoring the weighted mean of
            both branches.
    """

    latex: str
    score: float
    tokens: tuple[str, ...] = field(repr=False)
    token_scores: tuple[float, ...] = field(repr=False)
    finished: bool = True
    log_probability: float = field(default=math.nan, repr=False)


class Engine(Protocol):
    """What runs the network.

    Args:
        tokenizer: of the checkpoint, with `bos_token_id`, `eos_token_id`, `convert_ids_to_tokens` and `decode`.
        directions: the branches, `"l2r"` and `"r2l"`.
        settings: the checkpoint's generation config.
        feature_stride: pixels for each feature position.
    """

    tokenizer: Any

    @property
    def directions(self) -> Sequence[str]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def feature_stride(self) -> int: ...

    def encode(self, pixel_values: np.ndarray, pixel_mask: np.ndarray) -> Any:
        """Features of images: values (B, 1, H, W) in [0, 1] and a `bool` mask (B, H, W)."""

    def start(self, encoded: Any, direction: str) -> SearchState:
        """The state of a branch before its first token."""


def decode(
    engine: Engine, pixel_values: np.ndarray, pixel_mask: np.ndarray, options: DecodingOptions | None = None
) -> list[list[Hypothesis]]:
    """Finds the formulas of images.

    Args:
        pixel_values: `float32` (B, 1, H, W) in [0, 1], ink bright on dark.
        pixel_mask: `bool` (B, H, W), `True` at pixels of an image.

    Returns:
        For each image its distinct hypotheses, the most probable first. Fewer than `top_k` where the search found no
        more.

    Raises:
        ValueError: for options that contradict the model.
    """
    options = (options or DecodingOptions()).resolve(engine.settings, engine.directions)
    encoded = engine.encode(pixel_values, pixel_mask)
    found = search(engine, encoded, options)
    if options.rescore:
        ranked = rescore(engine, encoded, found, options)
        if options.rescoring_size != 1:
            ranked = rescore_enlarged(engine, pixel_values, pixel_mask, ranked, options)
    else:
        ranked = [[(candidate, sum(candidate.log_probs)) for candidate in row] for row in found]
    temperature = _score_temperature(engine.settings, options)
    return [
        distinct_hypotheses(
            [make_hypothesis(engine.tokenizer, *pair, options.direction) for pair in row], temperature
        )[: options.top_k]
        for row in ranked
    ]


def search(engine: Engine, encoded: Any, options: DecodingOptions) -> list[list[Candidate]]:
    """What one branch finds on each image: up to `num_beams` candidates in the order of writing, the best first.

    Args:
        options: as [`DecodingOptions.resolve`] gives them.
    """
    assert options.num_beams is not None and options.max_length is not None and options.length_penalty is not None
    grammar = tokenizer_grammar(engine.tokenizer, options.direction) if options.grammar else None
    deadline = math.inf if options.max_time is None else time.monotonic() + options.max_time
    task = Task(*ends(engine.tokenizer, options.direction), options.max_length, grammar, deadline)
    state = engine.start(encoded, options.direction)
    if options.num_beams == 1:
        return greedy_search(state, task)
    return beam_search(state, task, options.num_beams, options.length_penalty)


def score(
    engine: Engine, encoded: Any, formulas: Sequence[Sequence[Sequence[int]]], direction: str
) -> list[list[list[float]]]:
    """Log-probabilities that a branch gives to formulas, a list of them for each image.

    Args:
        formulas: token ids from left to right, without start and end.

    Returns:
        For each formula those of its tokens and of its end, in the order in which the branch writes them.
    """
    first, last = ends(engine.tokenizer, direction)
    written = [[(*(ids if direction == "l2r" else ids[::-1]), last) for ids in row] for row in formulas]
    return score_candidates(engine.start(encoded, direction), first, written)


Ranked = list[list[tuple[Candidate, float]]]
"""The candidates of each image with their joint log-probability, the best first."""


def rescore(engine: Engine, encoded: Any, found: Sequence[Sequence[Candidate]], options: DecodingOptions) -> Ranked:
    """Ranks what the left-to-right branch found with the right-to-left branch.

    The joint log-probability is `(1 - w) · log p_l2r + w · log p_r2l`; candidates are ranked by that over
    `length ** length_penalty`, the end token counted. Those that are far behind are not scored: they follow in their
    order, with what the left-to-right branch gave them.
    """
    weight = options.rescoring_weight
    assert weight is not None
    totals = [[(candidate, sum(candidate.log_probs)) for candidate in row] for row in found]
    close = [_close(engine, row, _MARGIN, 1.0) for row in totals]
    formulas = [[formula(engine.tokenizer, candidate) for candidate, _ in row] for row in close]
    ranked = []
    for row, chosen, scored in zip(totals, close, score(engine, encoded, formulas, "r2l"), strict=True):
        joint = [
            (candidate, (1 - weight) * own + weight * sum(others))
            for (candidate, own), others in zip(chosen, scored, strict=True)
        ]
        ranked.append(_sorted(engine, joint, options) + [pair for pair in row if pair not in chosen])
    return ranked


def rescore_enlarged(
    engine: Engine, pixel_values: np.ndarray, pixel_mask: np.ndarray, ranked: Ranked, options: DecodingOptions
) -> Ranked:
    """Ranks close candidates by the mean of their joint log-probability at two sizes of the image."""
    size, weight, penalty = options.rescoring_size, options.rescoring_weight, options.length_penalty
    assert size is not None and weight is not None and penalty is not None
    close = [_close(engine, row, _CLOSE, penalty)[:_FINALISTS] for row in ranked]
    open_images = [index for index, row in enumerate(close) if len(row) > 1]
    if not open_images:
        return ranked
    encoded = engine.encode(
        *_enlarged(pixel_values[open_images], pixel_mask[open_images], size, engine.feature_stride)
    )
    formulas = [[formula(engine.tokenizer, candidate) for candidate, _ in close[index]] for index in open_images]
    scored = [score(engine, encoded, formulas, direction) for direction in ("l2r", "r2l")]
    ranked = list(ranked)
    for index, l2r, r2l in zip(open_images, *scored, strict=True):
        joint = [
            (candidate, (own + (1 - weight) * sum(forward) + weight * sum(backward)) / 2)
            for (candidate, own), forward, backward in zip(close[index], l2r, r2l, strict=True)
        ]
        ranked[index] = _sorted(engine, joint, options) + [pair for pair in ranked[index] if pair not in close[index]]
    return ranked


def _close(
    engine: Engine, row: Sequence[tuple[Candidate, float]], margin: float, penalty: float
) -> list[tuple[Candidate, float]]:
    """Those candidates that are at most `margin` behind the first one, by log-probability over length."""
    means = [total / _length(engine, candidate) ** penalty for candidate, total in row]
    return [pair for pair, mean in zip(row, means, strict=True) if mean >= means[0] - margin]


def _sorted(
    engine: Engine, row: Sequence[tuple[Candidate, float]], options: DecodingOptions
) -> list[tuple[Candidate, float]]:
    assert options.length_penalty is not None
    penalty = options.length_penalty
    return sorted(row, key=lambda pair: -pair[1] / _length(engine, pair[0]) ** penalty)


def _length(engine: Engine, candidate: Candidate) -> int:
    """Tokens of a candidate, an end token counted even where it was cut off."""
    return len(formula(engine.tokenizer, candidate)) + 1


def _enlarged(values: np.ndarray, mask: np.ndarray, size: float, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, 1, H, W) and their masks (B, H, W), enlarged by `size`, with sides padded to a multiple."""
    extents = (mask.any(axis=axis).sum(axis=1).max() for axis in (2, 1))
    height, width = (math.ceil(side * size / multiple) * multiple for side in extents)
    large = np.zeros((len(values), 1, height, width), np.float32)
    large_mask = np.zeros((len(values), height, width), bool)
    for index in range(len(values)):
        rows, columns = (math.ceil(mask[index].any(axis=axis).sum() * size) for axis in (1, 0))
        # With the zeros beyond the image, which its border fades into.
        image = cv2.resize(values[index, 0], None, fx=size, fy=size, interpolation=cv2.INTER_LINEAR)
        large[index, 0, : min(rows, len(image)), : min(columns, image.shape[1])] = image[:rows, :columns]
        large_mask[index, :rows, :columns] = True
    return large, large_mask


def ends(tokenizer: Any, direction: str) -> tuple[int, int]:
    """The tokens with which a branch begins and ends."""
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    return (first, last) if direction == "l2r" else (last, first)


def formula(tokenizer: Any, candidate: Candidate, direction: str = "l2r") -> tuple[int, ...]:
    """The tokens of a candidate from left to right, without an end token."""
    stop = ends(tokenizer, direction)[1]
    ids = candidate.ids[:-1] if candidate.ids and candidate.ids[-1] == stop else candidate.ids
    return ids if direction == "l2r" else ids[::-1]


def make_hypothesis(
    tokenizer: Any, candidate: Candidate, log_probability: float, direction: str = "l2r"
) -> Hypothesis:
    """A hypothesis from what a branch wrote, its score not calibrated."""
    ids = formula(tokenizer, candidate, direction)
    probabilities = tuple(math.exp(value) for value in candidate.log_probs[: len(ids)])
    return Hypothesis(
        latex=tokenizer.decode(list(ids), skip_special_tokens=True),
        score=math.exp(log_probability),
        tokens=tuple(tokenizer.convert_ids_to_tokens(list(ids))),
        token_scores=probabilities if direction == "l2r" else probabilities[::-1],
        finished=len(ids) < len(candidate.ids),
        log_probability=log_probability,
    )


def distinct_hypotheses(hypotheses: Sequence[Hypothesis], temperature: float = 1.0) -> list[Hypothesis]:
    """Each text once, in the order of the search, with scores that say how probable it is that one is right.

    The probability that a model gives to a whole formula is far too small: its errors are not as independent as the
    product over the tokens takes them to be. Its root, `p ** (1 / temperature)`, is what experience confirms. That of
    the first hypothesis is its score; that of each further one holds in case that all before it are wrong. So the
    scores of a list never exceed one in all, do not depend on how many were asked for, and fall.

    Args:
        hypotheses: in the order of the search, which is not that of `log_probability`: searches rank by the mean over
            the tokens, which favours long formulas and is right more often.
        temperature: fitted by `scripts/calibrate.py` and kept in the generation config; 1 trusts the model.
    """
    best: dict[str, Hypothesis] = {}
    left = previous = 1.0
    for hypothesis in hypotheses:
        if hypothesis.latex in best:
            continue
        previous = min(previous, left * math.exp(hypothesis.log_probability / temperature))
        left -= previous
        best[hypothesis.latex] = replace(hypothesis, score=previous)
    return list(best.values())


def _score_temperature(settings: Mapping[str, Any], options: DecodingOptions) -> float:
    """What was fitted for this kind of search; for right to left, where that was not, what left to right has."""
    left_to_right = settings.get("score_temperature", 1.0)
    if options.rescore:
        return settings.get("rescored_score_temperature", 1.0)
    return left_to_right if options.direction == "l2r" else settings.get("r2l_score_temperature", left_to_right)


__all__ = ["DecodingOptions", "Engine", "Hypothesis", "decode", "rescore", "rescore_enlarged", "score", "search"]
