"""Decoding beyond `generate`: LaTeX that is always well-formed, and search with both reading directions.

[`LatexGrammarLogitsProcessor`] leaves only tokens from which the grammar can still be satisfied. A branch scores any
sequence in one teacher-forced pass ([`score_sequences`]); the pictures are encoded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EosTokenCriteria, GenerationConfig, LogitsProcessor, MaxLengthCriteria, MaxTimeCriteria
from transformers.utils import ModelOutput

from .grammar_abm import NEVER, GrammarState, GrammarTables, tokenizer_grammar
from .modeling_abm import ABMEncoderOutput, ABMForConditionalGeneration
from .torch_search_abm import find_hypotheses, stacked

# A log-probability that nothing likely has, but finite; beam search gives the same to hypotheses that do not exist.
_IMPOSSIBLE = -1e9

# What a pass over many steps holds grows with steps × sequences × positions × channels of the attention. Reading a few
# steps at a time bounds it; the state carries over. Buffers of this size are used again, larger ones cost page faults.
_ACTIVATION_BUDGET = 4_000_000


class LatexGrammarLogitsProcessor(LogitsProcessor):
    r"""Leaves only tokens that can still lead to a well-formed expression.

    Braces balance, commands get their groups, a script its argument and no base two of a kind, `\limits` a large
    operator; nothing ends while something is open; and what is open can be closed before `max_length`. The definition
    is `abm_hf.latex.normalization.is_well_formed`; the automaton behind it is in `grammar_abm.py`.

    Works for greedy search, beam search and sampling. The state follows from the ids alone: that of the previous call
    is taken up where the ids continue it, in whatever order beam search left them.

    Args:
        tables ([`GrammarTables`]): the grammar for a vocabulary and a direction; see `from_tokenizer`.
        max_length (`int`, *optional*): what `generate` is given: the longest sequence, start and end token included.
            Sequences then end in time, whatever the model would like. Without it, they may stop short.

    A row that could not be completed in any case (a prompt outside the grammar, or one that is too long for
    `max_length`) is led to its end as soon as possible. Where other processors forbid every token that the grammar
    allows, the grammar wins. At least one token is always possible.

    Example:

    ```python
    >>> grammar = LatexGrammarLogitsProcessor.from_tokenizer(tokenizer, max_length=200)
    >>> model.generate(**inputs, logits_processor=[grammar], max_length=200)
    ```
    """

    supports_continuous_batching = False

    def __init__(self, tables: GrammarTables, max_length: int | None = None):
        self.tables = tables
        self.max_length = max_length
        self._ids = np.zeros((0, 0), np.int64)
        self._state = GrammarState(tables, 0)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, *, direction: str = "l2r", max_length: int | None = None
    ) -> "LatexGrammarLogitsProcessor":
        """For the vocabulary of a tokenizer, whose special tokens are never written.

        Args:
            tokenizer ([`ABMTokenizer`]): or any other with one id for each LaTeX token.
            direction (`str`, defaults to `"l2r"`): `"r2l"` for the branch that writes from the end to the start.
            max_length (`int`, *optional*): see above.

        Raises:
            ValueError: if the direction is unknown.
        """
        return cls(tokenizer_grammar(tokenizer, direction), max_length)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (N, V) of the token after `input_ids` (N, T), minus infinity where the grammar rules it out."""
        vocabulary = self.tables.after.shape[1]
        if scores.shape[1] != vocabulary:
            raise ValueError(
                f"the model scores {scores.shape[1]} ids, the grammar knows {vocabulary}: build it from the tokenizer "
                "that belongs to the model"
            )
        self._follow(input_ids.numpy(force=True))
        room = NEVER if self.max_length is None else self.max_length - input_ids.shape[1]
        forbidden = torch.from_numpy(self._state.forbidden(room)).to(scores.device)
        # Finite before the mask: a row stays possible where other processors ruled out all that the grammar allows.
        return scores.clamp(min=_IMPOSSIBLE).masked_fill_(forbidden, float("-inf"))

    def _follow(self, ids: np.ndarray) -> None:
        """Brings the state to the end of `ids` (N, T), whose first column is the start token."""
        prefixes = ids[:, :-1]
        if np.array_equal(self._ids, prefixes):
            self._state.read(ids[:, -1])
        elif (parents := self._parents(prefixes)) is not None:
            self._state.select(parents)
            self._state.read(ids[:, -1])
        else:
            self._state = GrammarState(self.tables, len(ids))
            for column in ids[:, 1:].T:
                self._state.read(column)
        self._ids = ids.copy()

    def _parents(self, prefixes: np.ndarray) -> np.ndarray | None:
        """Rows of the previous call that `prefixes` continue; `None` if they do not."""
        known = self._ids
        if not known.size or known.shape[1] != prefixes.shape[1]:
            return None
        weights = _hash_weights(known.shape[1])
        hashes = known @ weights
        order = hashes.argsort()
        found = hashes[order].searchsorted(prefixes @ weights).clip(max=len(order) - 1)
        parents = order[found]
        return parents if np.array_equal(known[parents], prefixes) else None


def _hash_weights(length: int) -> np.ndarray:
    """Powers of an odd number, modulo 2⁶⁴: a polynomial hash of as many ids."""
    return np.full(length, 0x9E3779B97F4A7C15 - (1 << 64), np.int64).cumprod()


def score_sequences(
    model: ABMForConditionalGeneration,
    encoder_outputs: ABMEncoderOutput,
    sequences: Tensor,
    *,
    direction: str = "l2r",
) -> Tensor:
    """Log-probability of each token of finished sequences, as one branch sees them.

    Both directions read and answer in the order of the formula: position j speaks of token j. At the end token the
    left-to-right branch says how likely the formula ends there, the right-to-left one how likely it begins there.

    Args:
        model ([`ABMForConditionalGeneration`]): with a branch for `direction`.
        encoder_outputs ([`ABMEncoderOutput`]): of B pictures.
        sequences (`torch.LongTensor` of shape `(num_sequences, length)`): `y1 … yn eos`, without the start token and
            padded with the pad id; a multiple of B, consecutive sequences sharing a picture. What follows the first
            end or pad id is ignored; a sequence without end token is scored for its tokens alone.
        direction (`str`, defaults to `"l2r"`): the branch that scores.

    Returns:
        `torch.FloatTensor` of shape `(num_sequences, length)`: log-probabilities, 0 at padding.

    Raises:
        ValueError: if the model has no such branch, or the sequences do not share the pictures evenly.
    """
    images = len(encoder_outputs.last_hidden_state)
    if not len(sequences) or len(sequences) % images:
        raise ValueError(
            f"{len(sequences)} sequences cannot share {images} pictures evenly: pass as many for each, in a row"
        )
    config = model.config
    bos, eos, pad = config.bos_token_id, config.eos_token_id, config.pad_token_id
    is_token = ((sequences != eos) & (sequences != pad) & (sequences >= 0)).cumprod(dim=1).bool()
    lengths = is_token.sum(dim=1, keepdim=True)
    ends = F.pad(sequences, (0, 1), value=pad).gather(1, lengths) == eos  # (N, 1)
    positions = torch.arange(sequences.shape[1], device=sequences.device).expand_as(sequences)
    is_end = (positions == lengths) & ends
    # The permutation of `reading_order`: tokens reversed, the rest in place, and its own inverse.
    order = torch.where(is_token, lengths - 1 - positions, positions) if direction == "r2l" else positions
    first, last = (bos, eos) if direction == "l2r" else (eos, bos)
    targets = torch.where(is_token, sequences, pad).gather(1, order).masked_fill(is_end, last)
    read = F.pad(targets[:, :-1], (1, 0), value=first)
    scored = _token_log_probs(model, encoder_outputs, read, targets, direction)
    return scored.masked_fill(~(is_token | is_end), 0.0).gather(1, order)


def _token_log_probs(
    model: ABMForConditionalGeneration,
    encoder_outputs: ABMEncoderOutput,
    read: Tensor,
    targets: Tensor,
    direction: str,
) -> Tensor:
    """Log-probabilities (N, T) of `targets` after `read`, a few steps at a time."""
    positions = encoder_outputs.last_hidden_state.shape[1]
    width = model.config.attention_size + max(model.config.coverage_kernels) ** 2
    steps = max(1, _ACTIVATION_BUDGET // (len(read) * positions * width))
    state = None
    scored = []
    for start in range(0, read.shape[1], steps):
        output = model(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=read[:, start : start + steps],
            decoder_direction=direction,
            past_key_values=state,
            use_cache=True,
        )
        state = output.past_key_values
        log_probs = output.logits.float().log_softmax(-1)
        scored.append(log_probs.gather(-1, targets[:, start : start + steps, None]).squeeze(-1))
    return torch.cat(scored, dim=1) if scored else torch.zeros(targets.shape, device=targets.device)


@dataclass
class TwoWayOutput(ModelOutput):
    """
    The best formulas of each picture, best first.

    Args:
        sequences (`torch.LongTensor` of shape `(batch_size * num_return_sequences, length)`): start token, tokens from
            left to right, end token, padding: what `generate` returns. Where a picture has fewer candidates than asked
            for, the rest is the start and the end token with a score of minus infinity.
        scores (`torch.FloatTensor` of shape `(batch_size * num_return_sequences,)`): combined log-probability over
            `length ** length_penalty`.
        l2r_scores, r2l_scores (`torch.FloatTensor` of the same shape): log-probability by each branch, not normalised.
    """

    sequences: Tensor
    scores: Tensor = None  # type: ignore[assignment]  # a ModelOutput has one field without default
    l2r_scores: Tensor = None  # type: ignore[assignment]
    r2l_scores: Tensor = None  # type: ignore[assignment]


@torch.no_grad()
def two_way_search(
    model: ABMForConditionalGeneration,
    pixel_values: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    *,
    encoder_outputs: ABMEncoderOutput | None = None,
    grammar_tokenizer: Any = None,
    num_beams: int = 10,
    num_return_sequences: int = 1,
    weight: float = 0.5,
    length_penalty: float = 1.0,
    max_length: int = 200,
    max_time: float | None = None,
) -> TwoWayOutput:
    """Beam search in both directions; what one branch finds the other judges.

    The pictures are encoded once; the n-best list of each branch is scored by the other one in one teacher-forced
    pass, and both lists are merged. The score of a formula of n tokens, the end token included, is
    `((1 - weight) · log p_l2r + weight · log p_r2l) / n ** length_penalty`.

    Args:
        model ([`ABMForConditionalGeneration`]): with both branches.
        pixel_values, pixel_mask: as for `model.forward`; not needed with `encoder_outputs`.
        encoder_outputs ([`ABMEncoderOutput`], *optional*): of an earlier call of the encoder.
        grammar_tokenizer ([`ABMTokenizer`], *optional*): with it, all candidates are well-formed; see
            [`LatexGrammarLogitsProcessor`].
        num_beams (`int`, defaults to 10): of each search, and the length of its n-best list.
        num_return_sequences (`int`, defaults to 1): at most `2 * num_beams`.
        weight (`float`, defaults to 0.5): of the right-to-left branch, from 0 to 1.
        length_penalty (`float`, defaults to 1.0): exponent of the length, in the searches and in the score.
        max_length (`int`, defaults to 200): of a hypothesis, start and end token included. One that is cut off there
            is given an end token all the same, which only the other branch judges; with a grammar there is none.
        max_time (`float`, *optional*): seconds for both searches, half for each. They are cut off there.

    Returns:
        [`TwoWayOutput`].

    Raises:
        ValueError: if the model lacks a branch, or a number is out of its range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be from 0 (left to right alone) to 1 (right to left alone), it is {weight}")
    if not 0 < num_return_sequences <= 2 * num_beams:
        raise ValueError(
            f"num_return_sequences must be from 1 to {2 * num_beams}, twice num_beams, it is {num_return_sequences}"
        )
    if missing := {"l2r", "r2l"} - set(model.config.directions):
        raise ValueError(f"two-way search needs both branches, this model has no {' and no '.join(sorted(missing))}")
    if encoder_outputs is None:
        encoder_outputs = model.encoder(pixel_values, pixel_mask)
    lists = [
        n_best(
            model,
            encoder_outputs,
            direction,
            grammar_tokenizer,
            num_beams,
            length_penalty,
            max_length,
            max_time / 2 if max_time is not None else None,
        )
        for direction in ("l2r", "r2l")
    ]
    candidates, totals = _union(lists, model.config.pad_token_id)  # (B, n, T), (B, n, 2)
    lengths = (candidates != model.config.pad_token_id).sum(dim=-1)
    # Not 0 · -inf where a weight is 0.
    combined = torch.lerp(totals[..., 0].clamp(min=_IMPOSSIBLE), totals[..., 1].clamp(min=_IMPOSSIBLE), weight)
    combined = (combined / lengths**length_penalty).masked_fill(totals.amin(-1) == float("-inf"), float("-inf"))
    return _best(candidates, combined, totals, num_return_sequences, model.config)


def two_way_generate(
    model: ABMForConditionalGeneration,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    two_way_weight: float = 0.5,
    grammar_tokenizer: Any = None,
    **model_kwargs: Any,
) -> Tensor | TwoWayOutput:
    """[`two_way_search`] behind `generate`: `model.generate(..., custom_generate=two_way_generate, num_beams=10)`.

    Besides these, `two_way_weight`, `grammar_tokenizer`, `max_length`, `max_time`, `length_penalty`,
    `num_return_sequences` and `return_dict_in_generate` count.

    Returns:
        The sequences, or [`TwoWayOutput`] with `return_dict_in_generate=True`.

    Raises:
        ValueError: for sampling, a direction, or logits processors, stopping criteria and options that make some: they
            are for a single search.
    """
    if generation_config.do_sample:
        raise ValueError("two-way search does not sample: leave do_sample out")
    if model_kwargs.get("decoder_direction", "l2r") != "l2r":
        raise ValueError("two-way search reads in both directions: leave decoder_direction out")
    known = (MaxLengthCriteria, MaxTimeCriteria, EosTokenCriteria)
    foreign = [*logits_processor, *(criterion for criterion in stopping_criteria if not isinstance(criterion, known))]
    if foreign:
        names = ", ".join(type(part).__name__ for part in foreign)
        raise ValueError(f"two-way search takes no logits processors and stopping criteria: leave out {names}")
    output = two_way_search(
        model,
        encoder_outputs=model_kwargs["encoder_outputs"],
        grammar_tokenizer=grammar_tokenizer,
        num_beams=generation_config.num_beams,
        num_return_sequences=generation_config.num_return_sequences,
        weight=two_way_weight,
        length_penalty=generation_config.length_penalty,
        max_length=generation_config.max_length,
        max_time=generation_config.max_time,
    )
    return output if generation_config.return_dict_in_generate else output.sequences


def n_best(
    model: ABMForConditionalGeneration,
    encoder_outputs: ABMEncoderOutput,
    direction: str,
    tokenizer: Any,
    num_beams: int,
    length_penalty: float,
    max_length: int,
    max_time: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One direction's hypotheses as formulas `y1 … yn eos` (B, num_beams, T) and both log-probabilities (..., 2).

    Those that do not exist (there are fewer formulas than beams) have log-probabilities of minus infinity.
    """
    found = find_hypotheses(
        model,
        encoder_outputs,
        direction,
        num_beams=num_beams,
        max_length=max_length,
        tokenizer=tokenizer,
        length_penalty=length_penalty,
        max_time=max_time,
    )
    written, log_probs, known = (
        part.to(model.device) for part in stacked(found, num_beams, model.config.pad_token_id)
    )
    formulas, _ = formulas_of(written, direction, model.config, close=True)
    other = score_sequences(model, encoder_outputs, formulas, direction="r2l" if direction == "l2r" else "l2r").sum(1)
    own = log_probs.sum(1)
    totals = torch.stack([own, other] if direction == "l2r" else [other, own], dim=-1)
    totals = totals.masked_fill(~known[:, None], float("-inf"))
    return formulas.unflatten(0, (-1, num_beams)), totals.unflatten(0, (-1, num_beams))


def exists(scores: Tensor) -> Tensor:
    """Which `sequences_scores` of beam search belong to hypotheses: where there are fewer than beams, it fills up."""
    return scores > _IMPOSSIBLE / 10


def formulas_of(written: Tensor, direction: str, config: Any, *, close: bool = False) -> tuple[Tensor, Tensor]:
    """What a branch wrote, in the order of the formula.

    Args:
        written (`torch.LongTensor` of shape `(N, T)`): without the start token.
        direction (`str`): of the branch, `"l2r"` or `"r2l"`.
        config ([`ABMConfig`]): for its special tokens.
        close (`bool`): whether formulas that were cut off are given an end token, too.

    Returns:
        `y1 … yn eos` (N, T + 1), padded, and the number of steps that each took (N,).
    """
    stop = config.eos_token_id if direction == "l2r" else config.bos_token_id
    is_token = ((written != stop) & (written != config.pad_token_id)).cumprod(dim=1).bool()
    lengths = is_token.sum(dim=1, keepdim=True)
    positions = torch.arange(written.shape[1], device=written.device).expand_as(written)
    order = torch.where(is_token, lengths - 1 - positions, positions) if direction == "r2l" else positions
    tokens = written.gather(1, order).masked_fill(~is_token, config.pad_token_id)
    ended = (written == stop).any(dim=1, keepdim=True) | close
    ends = torch.where(ended, config.eos_token_id, config.pad_token_id)
    formulas = F.pad(tokens, (0, 1), value=config.pad_token_id).scatter(1, lengths, ends)
    return formulas, (lengths.squeeze(1) + 1).clamp(max=written.shape[1])


def _union(lists: Sequence[tuple[Tensor, Tensor]], pad: int) -> tuple[Tensor, Tensor]:
    """Both lists of a picture as one, (B, n, T) and (B, n, 2); of equal formulas, all but the first are ruled out."""
    length = max(formulas.shape[-1] for formulas, _ in lists)
    formulas = torch.cat([F.pad(rows, (0, length - rows.shape[-1]), value=pad) for rows, _ in lists], dim=1)
    totals = torch.cat([both for _, both in lists], dim=1)
    found = (totals > float("-inf")).any(dim=-1)
    equal = (formulas[:, :, None] == formulas[:, None]).all(dim=-1) & found[:, None]
    return formulas, totals.masked_fill(equal.tril(diagonal=-1).any(dim=-1, keepdim=True), float("-inf"))


def _best(
    candidates: Tensor, combined: Tensor, totals: Tensor, num_return_sequences: int, config: Any
) -> TwoWayOutput:
    scores, ranking = combined.topk(num_return_sequences, dim=1)
    sequences = candidates.gather(1, ranking[..., None].expand(-1, -1, candidates.shape[-1]))
    nothing = torch.full_like(sequences[:1, :1], config.pad_token_id)
    nothing[..., 0] = config.eos_token_id
    sequences = torch.where(scores[..., None] == float("-inf"), nothing, sequences).flatten(0, 1)
    sequences = sequences[:, : int((sequences != config.pad_token_id).sum(dim=1).max())]
    totals = totals.gather(1, ranking[..., None].expand(-1, -1, 2)).flatten(0, 1)
    return TwoWayOutput(
        F.pad(sequences, (1, 0), value=config.bos_token_id), scores.flatten(), totals[:, 0], totals[:, 1]
    )


__all__ = [
    "LatexGrammarLogitsProcessor",
    "TwoWayOutput",
    "score_sequences",
    "two_way_generate",
    "two_way_search",
]
