"""Greedy search, beam search and the scoring of given sequences, in NumPy: what `generate` does, without torch.

Both engines, PyTorch and ONNX Runtime, are searched with it.

Shapes: B images, K hypotheses of each, T tokens, V tokens that can be written. Ties are broken by order, so that a
search gives the same answer each time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .grammar_abm import NEVER, GrammarState, GrammarTables

# As in `generate`: the score of hypotheses that do not exist yet, and of tokens that nothing likely has.
_IMPOSSIBLE = np.float32(-1e9)


class SearchState(Protocol):
    """What a branch carries from step to step, for B images with K hypotheses each; K is 1 at the start."""

    def __len__(self) -> int:
        """B, images."""

    def select(self, parents: np.ndarray) -> None:
        """Each image's hypotheses `parents` (B, K'), in this order, repeated ones included."""

    def keep(self, images: np.ndarray) -> None:
        """Only some images, given by index."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Reads tokens (B, K), and returns log-probabilities (B, K, V) of the next ones."""

    @property
    def coverage(self) -> np.ndarray:
        """The sum of the attention maps so far, (B, K, h, w)."""


@dataclass(frozen=True)
class Task:
    """What a search looks for.

    Args:
        start, stop: the tokens with which a sequence begins and ends.
        max_length: most tokens of a sequence, both included.
        grammar: what may be written; anything if `None`.
        deadline: when to stop, on the clock `time.monotonic`; what has been written by then is cut off there.
    """

    start: int
    stop: int
    max_length: int
    grammar: GrammarTables | None
    deadline: float = math.inf

    def is_last(self, length: int) -> bool:
        """Whether sequences of `length` tokens must not get longer, for want of room or time."""
        return length >= self.max_length or time.monotonic() > self.deadline


@dataclass(frozen=True)
class Candidate:
    """What follows the start token: the ids, with the end token if it got that far, and their log-probabilities."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


class _Constraint:
    """What N sequences may be continued with."""

    def __init__(self, task: Task, sequences: int):
        self.task = task
        self.state = GrammarState(task.grammar, sequences) if task.grammar is not None else None

    def apply(self, log_probs: np.ndarray, length: int) -> np.ndarray:
        """Log-probabilities (N, V) of the token after `length` ones, minus infinity where it must not stand."""
        if self.state is None:
            return log_probs
        forbidden = self.state.forbidden(min(self.task.max_length - length, NEVER))[:, : log_probs.shape[1]]
        return np.where(forbidden, np.float32(-np.inf), np.maximum(log_probs, _IMPOSSIBLE))

    def follow(self, parents: np.ndarray, tokens: np.ndarray) -> None:
        """Sequence n becomes what sequence `parents[n]` was, and its token `tokens[n]`."""
        if self.state is not None:
            self.state.select(parents)
            self.state.read(tokens)


def greedy_search(state: SearchState, task: Task) -> list[list[Candidate]]:
    """The most probable token at each step; one candidate for each image."""
    images = np.arange(len(state))
    constraint = _Constraint(task, len(images))
    ids: list[list[int]] = [[] for _ in images]
    scores: list[list[float]] = [[] for _ in images]
    tokens = np.full(len(images), task.start)
    for length in range(1, task.max_length):
        log_probs = state.step(tokens[:, None])[:, 0]
        tokens = constraint.apply(log_probs, length).argmax(axis=1)
        for row, image in enumerate(images):
            ids[image].append(int(tokens[row]))
            scores[image].append(float(log_probs[row, tokens[row]]))
        going = np.flatnonzero(tokens != task.stop)
        if not len(going) or task.is_last(length + 1):
            break
        constraint.follow(going, tokens[going])
        if len(going) < len(images):
            images, tokens = images[going], tokens[going]
            state.keep(going)
    return [[Candidate(tuple(a), tuple(b))] for a, b in zip(ids, scores, strict=True)]


class _Beams:
    """The K hypotheses that each of B images still follows, and the best that have ended."""

    def __init__(self, images: int, beams: int, length: int):
        self.ids = np.zeros((images, beams, length), np.int64)
        self.log_probs = np.zeros((images, beams, length), np.float32)
        # At first there is one hypothesis: the others would only repeat it.
        self.totals = np.full((images, beams), _IMPOSSIBLE)
        self.totals[:, 0] = 0
        self.ended: list[list[tuple[np.float32, Candidate]]] = [[] for _ in range(images)]

    def grow(self, parents: np.ndarray, tokens: np.ndarray, own: np.ndarray, position: int) -> None:
        """Hypothesis k becomes what `parents[:, k]` was, with one more token and its log-probability."""
        rows = np.arange(len(parents))[:, None]
        self.ids, self.log_probs = self.ids[rows, parents], self.log_probs[rows, parents]
        self.ids[:, :, position], self.log_probs[:, :, position] = tokens, own

    def keep(self, images: np.ndarray) -> None:
        self.ids, self.log_probs, self.totals = self.ids[images], self.log_probs[images], self.totals[images]
        self.ended = [self.ended[index] for index in images]

    def end(self, image: int, parent: int, token: int, own: float, position: int, score: np.float32) -> None:
        """Enters a finished hypothesis where it is among the K best."""
        ids = (*self.ids[image, parent, :position].tolist(), token)
        log_probs = (*self.log_probs[image, parent, :position].tolist(), own)
        ended = self.ended[image]
        ended.append((score, Candidate(ids, log_probs)))
        ended.sort(key=lambda entry: -entry[0])  # stable: the earlier of equals stays in front
        del ended[self.totals.shape[1] :]

    def open(self, position: int, length_penalty: float) -> np.ndarray:
        """Pictures whose best hypothesis could still beat the worst of K ended ones, if it ended here."""
        best = self.totals[:, 0] / np.float32((position + 1) ** length_penalty)
        full = [len(ended) == self.totals.shape[1] for ended in self.ended]
        worst = np.array([row[-1][0] if whole else _IMPOSSIBLE for row, whole in zip(self.ended, full, strict=True)])
        return np.flatnonzero(best > worst)


def beam_search(state: SearchState, task: Task, num_beams: int, length_penalty: float = 1.0) -> list[list[Candidate]]:
    """For each image up to `num_beams` ended hypotheses, the best by `log p / length ** length_penalty` first.

    The search of `generate` with `early_stopping=False`: at each step the 2 · K best continuations are looked at; the
    ended ones among the first K are kept, the best K others go on. A image is finished, and leaves the batch, when
    its best hypothesis scores no better than all K that have ended.
    """
    state.select(np.zeros((len(state), num_beams), np.int64))
    results: list[list[Candidate]] = [[] for _ in range(len(state))]
    images = np.arange(len(results))
    beams = _Beams(len(results), num_beams, task.max_length)
    constraint = _Constraint(task, len(results) * num_beams)
    tokens = np.full((len(results), num_beams), task.start)
    for position in range(task.max_length - 1):
        log_probs = state.step(tokens)  # (B, K, V)
        allowed = constraint.apply(log_probs.reshape(-1, log_probs.shape[-1]), position + 1).reshape(log_probs.shape)
        last = task.is_last(position + 2)
        parents, tokens = _advance(beams, log_probs, allowed, task.stop, last, position, length_penalty)
        going = np.arange(0) if last else beams.open(position, length_penalty)
        for row in np.setdiff1d(np.arange(len(images)), going):
            # With more beams than formulas, those that never existed repeat others.
            distinct = {candidate.ids: candidate for _, candidate in reversed(beams.ended[row])}
            results[images[row]] = list(distinct.values())[::-1]
        if not len(going):
            break
        state.select(parents)
        if len(going) < len(images):
            images, parents, tokens = images[going], parents[going], tokens[going]
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


def score_candidates(
    state: SearchState, start: int, sequences: Sequence[Sequence[Sequence[int]]]
) -> list[list[list[float]]]:
    """Log-probabilities that a branch gives to the tokens of given sequences, each image's in a list.

    What sequences of an image have in common at their beginning is read once.

    Args:
        state: before the first token, of B images.
        start: the token with which each sequence begins; it is not part of `sequences`.
        sequences: of each image, its end token included where it has one.
    """
    scores: list[list[list[float]]] = [[[] for _ in row] for row in sequences]
    images = list(range(len(sequences)))
    at = [[0] * len(row) for row in sequences]  # the row of the state that each sequence has come to
    for position in range(max((len(ids) for row in sequences for ids in row), default=0)):
        going = [index for index, image in enumerate(images) if any(len(ids) > position for ids in sequences[image])]
        if len(going) < len(images):
            images = [images[index] for index in going]
            state.keep(np.array(going))
        # The distinct continuations of each image: where they come from, and the token that is read.
        rows: list[dict[tuple[int, int], int]] = [{} for _ in images]
        for continuations, image in zip(rows, images, strict=True):
            for index, ids in enumerate(sequences[image]):
                if len(ids) > position:
                    token = ids[position - 1] if position else start
                    at[image][index] = continuations.setdefault((at[image][index], token), len(continuations))
        widest = max(map(len, rows))
        # An image with fewer repeats its first one.
        pairs = np.array([[*row, *[next(iter(row))] * (widest - len(row))] for row in rows])  # (B, K, 2)
        state.select(pairs[..., 0])
        log_probs = state.step(pairs[..., 1])
        for row, image in enumerate(images):
            for index, ids in enumerate(sequences[image]):
                if len(ids) > position:
                    scores[image][index].append(float(log_probs[row, at[image][index], ids[position]]))
    return scores


__all__ = ["Candidate", "SearchState", "Task", "beam_search", "greedy_search", "score_candidates"]
