"""Decoding beyond `generate`: LaTeX that is always well-formed, and search with both reading directions.

[`LatexGrammarLogitsProcessor`] leaves only tokens from which the grammar can still be satisfied. A branch scores any
sequence in one teacher-forced pass ([`score_sequences`]); the pictures are encoded once.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor

from .grammar_abm import NEVER, GrammarState, GrammarTables, compile_grammar
from .modeling_abm import ABMEncoderOutput, ABMForConditionalGeneration

# What a pass over many steps holds grows with steps × sequences × positions × channels of the attention. Reading a few
# steps at a time bounds it; the state carries over.
_ACTIVATION_BUDGET = 32_000_000


class LatexGrammarLogitsProcessor(LogitsProcessor):
    r"""Leaves only tokens that can still lead to a well-formed expression.

    Braces balance, commands get their groups, a script its argument and no base two of a kind, `\limits` a large
    operator; nothing ends while something is open; and what is open can be closed before `max_length`. The definition
    is `abm_hf.data.latex.is_well_formed`; the automaton behind it is in `grammar_abm.py`.

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
        special = set(tokenizer.all_special_ids)
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        vocabulary = tuple(None if index in special else token for index, token in enumerate(tokens))
        stop = tokenizer.eos_token_id if direction == "l2r" else tokenizer.bos_token_id
        return cls(compile_grammar(vocabulary, stop, direction), max_length)

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
        masked = scores.masked_fill(forbidden, float("-inf"))
        nothing_left = masked.amax(dim=1, keepdim=True) == float("-inf")
        return masked.masked_fill(nothing_left & ~forbidden, 0.0)

    def _follow(self, ids: np.ndarray) -> None:
        """Brings the state to the end of `ids` (N, T), whose first column is the start token."""
        parents = self._parents(ids[:, :-1])
        if parents is None:
            self._state = GrammarState(self.tables, len(ids))
            for column in ids[:, 1:].T:
                self._state.read(column)
        else:
            if len(parents) != len(self._ids) or (parents[1:] <= parents[:-1]).any():
                self._state.select(parents)
            self._state.read(ids[:, -1])
        self._ids = ids.copy()

    def _parents(self, prefixes: np.ndarray) -> np.ndarray | None:
        """Rows of the previous call that `prefixes` continue; `None` if they do not."""
        known = self._ids
        if not known.size or known.shape[1] != prefixes.shape[1]:
            return None
        if np.array_equal(known, prefixes):
            return np.arange(len(known))
        hashes = known @ _hash_weights(known.shape[1])
        order = hashes.argsort()
        found = hashes[order].searchsorted(prefixes @ _hash_weights(known.shape[1])).clip(max=len(order) - 1)
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


__all__ = ["LatexGrammarLogitsProcessor", "score_sequences"]
