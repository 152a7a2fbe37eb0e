"""Greedy and beam search in NumPy, over any function that takes a step: what `generate` does, without torch.

Both backends search with it (`search_abm`, `onnx_model`).

Shapes: B pictures, K hypotheses of each, T tokens, V tokens that can be written. Ties are broken by order, so that a
search gives the same answer each time.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from .grammar_abm import NEVER, GrammarState, GrammarTables

# As in `generate`: the score of hypotheses that do not exist yet, and of tokens that nothing likely has.
_IMPOSSIBLE = np.float32(-1e9)


class SearchState(Protocol):
    """What a branch carries from step to step, for B pictures with K hypotheses each."""

    def __len__(self) -> int:
        """B, pictures."""

    def select(self, parents: np.ndarray) -> None:
        """Each picture's hypotheses `parents` (B, K), in this order."""

    def keep(self, pictures: np.ndarray) -> None:
        """Only some pictures, given by index."""


State = TypeVar("State", bound=SearchState)

Step = Callable[[State, np.ndarray], np.ndarray]
"""Reads tokens (B, K), advances the state, and returns log-probabilities (B, K, V) of the next ones."""


@dataclass
class StepState:
    """The state of a branch whose steps are a function of arrays.

    Args:
        keys (B, D, L), values (B, L, C), mask (B, h, w): of the pictures, the same at each step.
        hidden (B, K, H), coverage (B, K, h, w): of the hypotheses.
    """

    keys: np.ndarray
    values: np.ndarray
    mask: np.ndarray
    hidden: np.ndarray
    coverage: np.ndarray

    def __len__(self) -> int:
        return len(self.hidden)

    def select(self, parents: np.ndarray) -> None:
        rows = np.arange(len(parents))[:, None]
        self.hidden, self.coverage = self.hidden[rows, parents], self.coverage[rows, parents]

    def keep(self, pictures: np.ndarray) -> None:
        self.keys, self.values, self.mask = self.keys[pictures], self.values[pictures], self.mask[pictures]
        self.hidden, self.coverage = self.hidden[pictures], self.coverage[pictures]


@dataclass(frozen=True)
class Task:
    """What a search looks for.

    Args:
        start, stop: the tokens with which a sequence begins and ends.
        max_length: most tokens of a sequence, both included.
        grammar: what may be written; anything if `None`.
        lengths: B numbers of tokens after the start at which a picture's hypotheses end, not before and not after: to
            measure a branch that has not been trained.
        deadline: when to stop, on the clock `time.monotonic`; what has been written by then is cut off there.
    """

    start: int
    stop: int
    max_length: int
    grammar: GrammarTables | None
    lengths: tuple[int, ...] | None = None
    deadline: float = math.inf

    def is_last(self, length: int) -> bool:
        """Whether sequences of `length` tokens must not get longer, for want of room or time."""
        return length >= self.max_length or time.monotonic() > self.deadline


@dataclass(frozen=True)
class Hypothesis:
    """What follows the start token: the ids, with the end token if it got that far, and their log-probabilities."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


class _Constraint:
    """What N sequences may be continued with, as many for each picture."""

    def __init__(self, task: Task, pictures: int, beams: int = 1):
        self.task = task
        self.state = GrammarState(task.grammar, pictures * beams) if task.grammar is not None else None
        self.lengths = np.repeat(task.lengths, beams) if task.lengths is not None else None

    def apply(self, log_probs: np.ndarray, length: int) -> np.ndarray:
        """Log-probabilities (N, V) of the token after `length` ones, minus infinity where it must not stand."""
        if self.state is not None:
            forbidden = self.state.forbidden(min(self.task.max_length - length, NEVER))[:, : log_probs.shape[1]]
            log_probs = np.where(forbidden, np.float32(-np.inf), np.maximum(log_probs, _IMPOSSIBLE))
        if self.lengths is not None:
            log_probs = log_probs.copy()
            ending = length >= self.lengths
            log_probs[ending] = -np.inf
            log_probs[:, self.task.stop] = np.where(ending, 0, -np.inf)
        return log_probs

    def follow(self, parents: np.ndarray, tokens: np.ndarray) -> None:
        """Sequence n becomes what sequence `parents[n]` was, and its token `tokens[n]`."""
        if self.state is not None:
            self.state.select(parents)
            self.state.read(tokens)
        if self.lengths is not None:
            self.lengths = self.lengths[parents]


def greedy_search(step: Step[State], state: State, task: Task) -> list[list[Hypothesis]]:
    """The most probable token at each step; one hypothesis for each picture. `state` has one for each, too."""
    pictures = np.arange(len(state))
    constraint = _Constraint(task, len(pictures))
    ids: list[list[int]] = [[] for _ in pictures]
    scores: list[list[float]] = [[] for _ in pictures]
    tokens = np.full(len(pictures), task.start)
    for length in range(1, task.max_length):
        log_probs = step(state, tokens[:, None])[:, 0]
        tokens = constraint.apply(log_probs, length).argmax(axis=1)
        for row, picture in enumerate(pictures):
            ids[picture].append(int(tokens[row]))
            scores[picture].append(float(log_probs[row, tokens[row]]))
        going = np.flatnonzero(tokens != task.stop)
        if not len(going) or task.is_last(length + 1):
            break
        constraint.follow(going, tokens[going])
        if len(going) < len(pictures):
            pictures, tokens = pictures[going], tokens[going]
            state.keep(going)
    return [[Hypothesis(tuple(a), tuple(b))] for a, b in zip(ids, scores, strict=True)]


class _Beams:
    """The K hypotheses that each of B pictures still follows, and the best that have ended."""

    def __init__(self, pictures: int, beams: int, length: int):
        self.ids = np.zeros((pictures, beams, length), np.int64)
        self.log_probs = np.zeros((pictures, beams, length), np.float32)
        # At first there is one hypothesis: the others would only repeat it.
        self.totals = np.full((pictures, beams), _IMPOSSIBLE)
        self.totals[:, 0] = 0
        self.ended: list[list[tuple[np.float32, Hypothesis]]] = [[] for _ in range(pictures)]

    def grow(self, parents: np.ndarray, tokens: np.ndarray, own: np.ndarray, position: int) -> None:
        """Hypothesis k becomes what `parents[:, k]` was, with one more token and its log-probability."""
        rows = np.arange(len(parents))[:, None]
        self.ids, self.log_probs = self.ids[rows, parents], self.log_probs[rows, parents]
        self.ids[:, :, position], self.log_probs[:, :, position] = tokens, own

    def keep(self, pictures: np.ndarray) -> None:
        self.ids, self.log_probs, self.totals = self.ids[pictures], self.log_probs[pictures], self.totals[pictures]
        self.ended = [self.ended[index] for index in pictures]

    def end(self, picture: int, parent: int, token: int, own: float, position: int, score: np.float32) -> None:
        """Enters a finished hypothesis where it is among the K best."""
        ids = (*self.ids[picture, parent, :position].tolist(), token)
        log_probs = (*self.log_probs[picture, parent, :position].tolist(), own)
        ended = self.ended[picture]
        ended.append((score, Hypothesis(ids, log_probs)))
        ended.sort(key=lambda entry: -entry[0])  # stable: the earlier of equals stays in front
        del ended[self.totals.shape[1] :]

    def open(self, position: int, length_penalty: float) -> np.ndarray:
        """Pictures whose best hypothesis could still beat the worst of K ended ones, if it ended here."""
        best = self.totals[:, 0] / np.float32((position + 1) ** length_penalty)
        full = [len(ended) == self.totals.shape[1] for ended in self.ended]
        worst = np.array([row[-1][0] if whole else _IMPOSSIBLE for row, whole in zip(self.ended, full, strict=True)])
        return np.flatnonzero(best > worst)


def beam_search(
    step: Step[State], state: State, task: Task, num_beams: int, length_penalty: float = 1.0
) -> list[list[Hypothesis]]:
    """For each picture up to `num_beams` ended hypotheses, the best by `log p / length ** length_penalty` first.

    The search of `generate` with `early_stopping=False`: at each step the 2 · K best continuations are looked at; the
    ended ones among the first K are kept, the best K others go on. A picture is finished, and leaves the batch, when
    its best hypothesis scores no better than all K that have ended. `state` has K hypotheses for each picture.
    """
    results: list[list[Hypothesis]] = [[] for _ in range(len(state))]
    pictures = np.arange(len(results))
    beams = _Beams(len(results), num_beams, task.max_length)
    constraint = _Constraint(task, len(results), num_beams)
    tokens = np.full((len(results), num_beams), task.start)
    for position in range(task.max_length - 1):
        log_probs = step(state, tokens)  # (B, K, V)
        allowed = constraint.apply(log_probs.reshape(-1, log_probs.shape[-1]), position + 1).reshape(log_probs.shape)
        last = task.is_last(position + 2)
        parents, tokens = _advance(beams, log_probs, allowed, task.stop, last, position, length_penalty)
        going = np.arange(0) if last else beams.open(position, length_penalty)
        for row in np.setdiff1d(np.arange(len(pictures)), going):
            results[pictures[row]] = [hypothesis for _, hypothesis in beams.ended[row]]
        if not len(going):
            break
        state.select(parents)
        if len(going) < len(pictures):
            pictures, parents, tokens = pictures[going], parents[going], tokens[going]
            state.keep(going)
            beams.keep(going)
        constraint.follow((going[:, None] * num_beams + parents).ravel(), tokens.ravel())
    return results


def _advance(
    beams: _Beams,
    log_probs: np.ndarray,
    allowed: np.ndarray,
    stop: int,
    last: bool,
    position: int,
    length_penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Takes the best continuations into `beams`; the parents and tokens (B, K) of those that go on.

    With `last` none does: all are cut off.
    """
    images, num_beams, vocabulary = allowed.shape
    totals = (allowed + beams.totals[..., None]).reshape(images, -1)
    best = np.argsort(-totals, axis=1, kind="stable")[:, : 2 * num_beams]
    rows = np.arange(images)[:, None]
    totals = totals[rows, best]
    parents, tokens = best // vocabulary, best % vocabulary
    own = log_probs[rows, parents, tokens]
    stops = (tokens == stop) | last
    scores = totals / np.float32((position + 1) ** length_penalty)
    for row, column in np.argwhere(stops[:, :num_beams] & np.isfinite(scores[:, :num_beams])):
        beams.end(
            row, parents[row, column], int(tokens[row, column]), float(own[row, column]), position, scores[row, column]
        )
    running = totals + np.where(stops, _IMPOSSIBLE, np.float32(0))
    order = np.argsort(-running, axis=1, kind="stable")[:, :num_beams]
    beams.totals = running[rows, order]
    parents, tokens = parents[rows, order], tokens[rows, order]
    beams.grow(parents, tokens, own[rows, order], position)
    return parents, tokens


def score_hypotheses(step: Step[State], state: State, read: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-probabilities (B, K, T) of `targets` for a branch that reads `read`, both (B, K, T) and below V."""
    scored = []
    for position in range(read.shape[-1]):
        log_probs = step(state, read[..., position])
        scored.append(np.take_along_axis(log_probs, targets[..., position, None], axis=-1)[..., 0])
    return np.stack(scored, axis=-1)
