"""Decoding with `generate`: LaTeX that is always well-formed, and rescoring by the other branch.

[`LatexGrammarLogitsProcessor`] leaves only tokens from which the grammar can still be satisfied. A branch scores any
sequence in one teacher-forced pass ([`score_sequences`]); [`rescored_generate`] is what `recognize` does, behind
`generate`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EosTokenCriteria, GenerationConfig, LogitsProcessor, MaxLengthCriteria, MaxTimeCriteria
from transformers.utils import ModelOutput

from ..decoding_abm import DecodingOptions, formula, rescore, score, search
from ..grammar_abm import NEVER, GrammarState, GrammarTables, tokenizer_grammar
from ..modeling_abm import ABMEncoderOutput, ABMForConditionalGeneration
from ..torch_engine_abm import TorchEngine

# A log-probability that nothing likely has, but finite; beam search gives the same to hypotheses that do not exist.
_IMPOSSIBLE = -1e9


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


@torch.no_grad()
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
        encoder_outputs ([`ABMEncoderOutput`]): of B images.
        sequences (`torch.LongTensor` of shape `(num_sequences, length)`): `y1 … yn eos`, without the start token and
            padded with the pad id; a multiple of B, consecutive sequences sharing an image. What follows the first
            end or pad id is ignored; a sequence without end token is scored for its tokens alone.
        direction (`str`, defaults to `"l2r"`): the branch that scores.

    Returns:
        `torch.FloatTensor` of shape `(num_sequences, length)`: log-probabilities, 0 at padding.

    Raises:
        ValueError: if the model has no such branch, or the sequences do not share the images evenly.
    """
    config = model.config
    is_token = (sequences != config.eos_token_id) & (sequences != config.pad_token_id) & (sequences >= 0)
    lengths = is_token.cumprod(dim=1).sum(dim=1, keepdim=True)  # (N, 1)
    # Each gets an end, which counts only where it had one.
    labels = F.pad(sequences, (0, 1), value=config.pad_token_id)
    ended = labels.gather(1, lengths) == config.eos_token_id
    labels = labels.scatter(1, lengths, config.eos_token_id)
    positions = torch.arange(labels.shape[1], device=labels.device)
    labels = labels.masked_fill(positions > lengths, -100)
    log_probs = model.teacher_forced(direction, encoder_outputs, labels)[0].float().log_softmax(-1)  # (N, T + 1, K)
    targets = model.targets(direction, labels)
    scored = log_probs.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return scored.masked_fill(positions >= lengths + ended.long(), 0.0)[:, :-1]


@dataclass
class RescoredOutput(ModelOutput):
    """
    The best formulas of each image, best first.

    Args:
        sequences (`torch.LongTensor` of shape `(batch_size * num_return_sequences, length)`): start token, tokens from
            left to right, end token, padding: what `generate` returns. Where an image has fewer candidates than asked
            for, the rest is the start and the end token with a score of minus infinity.
        scores (`torch.FloatTensor` of shape `(batch_size * num_return_sequences,)`): joint log-probability over
            `length ** length_penalty`.
        l2r_scores, r2l_scores (`torch.FloatTensor` of the same shape): log-probability by each branch, not normalised.
    """

    sequences: Tensor
    scores: Tensor = None  # type: ignore[assignment]  # a ModelOutput has one field without default
    l2r_scores: Tensor = None  # type: ignore[assignment]
    r2l_scores: Tensor = None  # type: ignore[assignment]


def rescored_generate(
    model: ABMForConditionalGeneration,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    latex_tokenizer: Any = None,
    grammar: bool = True,
    rescoring_weight: float | None = None,
    **model_kwargs: Any,
) -> Tensor | RescoredOutput:
    """Beam search from left to right, rescored by the right-to-left branch, behind `generate`.

    `model.generate(**inputs, custom_generate=rescored_generate, latex_tokenizer=processor.tokenizer)`; see
    [`decoding_abm.rescore`]. Besides these, `grammar`, `rescoring_weight`, `max_length`, `max_time`, `length_penalty`,
    `num_return_sequences` and `return_dict_in_generate` count. A formula that is cut off at `max_length` is given an
    end token all the same.

    Args:
        latex_tokenizer ([`ABMTokenizer`]): of the model. (`generate` keeps `tokenizer` for itself.)
        grammar (`bool`, defaults to `True`): whether only well-formed LaTeX can be written.
        rescoring_weight (`float`, *optional*): of the right-to-left branch, from 0 to 1; by default the one that was
            fitted for the checkpoint.

    Returns:
        The sequences, or [`RescoredOutput`] with `return_dict_in_generate=True`.

    Raises:
        ValueError: without a tokenizer, if the model lacks a branch, for sampling, a direction, or logits processors,
            stopping criteria and options that make some: they are for `generate`'s own search.
    """
    if latex_tokenizer is None:
        raise ValueError("pass latex_tokenizer=processor.tokenizer, from which the grammar is made")
    if generation_config.do_sample:
        raise ValueError("a rescored search does not sample: leave do_sample out")
    if model_kwargs.get("decoder_direction", "l2r") != "l2r":
        raise ValueError("a rescored search starts from left to right: leave decoder_direction out")
    known = (MaxLengthCriteria, MaxTimeCriteria, EosTokenCriteria)
    foreign = [*logits_processor, *(criterion for criterion in stopping_criteria if not isinstance(criterion, known))]
    if foreign:
        names = ", ".join(type(part).__name__ for part in foreign)
        raise ValueError(f"a rescored search takes no logits processors and stopping criteria: leave out {names}")
    engine, encoded = TorchEngine(model, latex_tokenizer), model_kwargs["encoder_outputs"]
    count = generation_config.num_return_sequences
    options = DecodingOptions(
        num_beams=generation_config.num_beams,
        top_k=count,
        max_length=generation_config.max_length,
        grammar=grammar,
        rescore=True,
        rescoring_weight=rescoring_weight,
        length_penalty=generation_config.length_penalty,
        max_time=generation_config.max_time,
    ).resolve(engine.settings, engine.directions)
    ranked = rescore(engine, encoded, search(engine, encoded, options), options)
    output = _output(engine, encoded, [row[:count] for row in ranked], options, model.device)
    return output if generation_config.return_dict_in_generate else output.sequences


def _output(
    engine: TorchEngine, encoded: Any, ranked: list[Any], options: DecodingOptions, device: torch.device
) -> RescoredOutput:
    config = engine.model.config
    formulas = [[formula(engine.tokenizer, candidate) for candidate, _ in row] for row in ranked]
    l2r = [[sum(candidate.log_probs) for candidate, _ in row] for row in ranked]
    r2l = [[sum(values) for values in row] for row in score(engine, encoded, formulas, "r2l")]
    penalty = options.length_penalty or 0.0
    joint = [
        [total / (len(ids) + 1) ** penalty for (_, total), ids in zip(row, texts, strict=True)]
        for row, texts in zip(ranked, formulas, strict=True)
    ]
    rows = [
        [config.bos_token_id, *ids, config.eos_token_id]
        for texts in formulas
        for ids in [*texts, *[()] * (options.top_k - len(texts))]
    ]
    sequences = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=config.pad_token_id
    )
    scores = [
        torch.tensor([value for row in values for value in [*row, *[-np.inf] * (options.top_k - len(row))]])
        for values in (joint, l2r, r2l)
    ]
    return RescoredOutput(sequences.to(device), *(part.to(device) for part in scores))


__all__ = ["LatexGrammarLogitsProcessor", "RescoredOutput", "rescored_generate", "score_sequences"]
