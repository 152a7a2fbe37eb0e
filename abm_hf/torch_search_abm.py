"""What a branch finds on pictures: the search of `generate`, with less between the steps.

For beam search `generate` goes through a hundred small tensor operations between two steps, which on a CPU and for one
picture take half as long as the step itself. Here hypotheses are kept in NumPy (`numpy_search_abm`), as for ONNX.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from .grammar_abm import tokenizer_grammar
from .modeling_abm import ABMDecoderBranch, ABMEncoderOutput, ABMForConditionalGeneration
from .search_abm import Hypothesis, Task, beam_search, greedy_search

# What may stand in a generation config without changing which formulas a search finds.
_WITHOUT_EFFECT = {
    "_from_model_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "max_length",
    "max_time",  # both are passed on
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "r2l_score_temperature",
    "reading_scales",
    "score_temperature",
    "transformers_version",
    "two_way_score_temperature",
    "two_way_weight",
    "use_cache",
}


class BranchState:
    """A branch over B pictures with K hypotheses each, as `numpy_search_abm` carries it from step to step.

    Args:
        branch, encoder_outputs: what reads, and what it reads.
        hypotheses: K.
    """

    def __init__(self, branch: ABMDecoderBranch, encoder_outputs: ABMEncoderOutput, hypotheses: int):
        self.branch = branch
        self.hypotheses = hypotheses
        self.cache = branch.start(encoder_outputs, len(encoder_outputs.last_hidden_state) * hypotheses)

    def __len__(self) -> int:
        return len(self.cache.hidden) // self.hypotheses

    def select(self, parents: np.ndarray) -> None:
        """Each picture's hypotheses `parents` (B, K), in this order."""
        if self.hypotheses > 1:
            rows = torch.from_numpy(np.arange(len(parents))[:, None] * self.hypotheses + parents)
            self.cache.reorder_cache(rows.flatten().to(self.cache.hidden.device))

    def keep(self, pictures: np.ndarray) -> None:
        """Only some pictures, given by index."""
        kept = torch.zeros(len(self), dtype=torch.bool)
        kept[torch.from_numpy(pictures)] = True
        self.cache.keep_only(kept.to(self.cache.hidden.device))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Reads tokens (B, K); log-probabilities (B, K, V) of the next ones."""
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).view(-1, 1).to(self.cache.hidden.device)
        logits, _ = self.branch(ids, self.cache)
        return logits[:, 0].float().log_softmax(-1).view(*tokens.shape, -1).numpy(force=True)


@torch.no_grad()
def find_hypotheses(
    model: ABMForConditionalGeneration,
    encoder_outputs: ABMEncoderOutput,
    direction: str,
    *,
    num_beams: int,
    max_length: int,
    tokenizer: Any = None,
    length_penalty: float = 1.0,
    lengths: Sequence[int] | None = None,
    max_time: float | None = None,
) -> list[list[Hypothesis]]:
    """What `generate` finds for each of B pictures, up to `num_beams` hypotheses in its order.

    Args:
        model: in evaluation mode, with a branch for `direction`.
        encoder_outputs: of the pictures.
        direction: `"l2r"` or `"r2l"`; the ids come in the order of writing.
        num_beams, max_length, length_penalty: as in `generate`; one beam is greedy search.
        tokenizer: with it, the grammar of its vocabulary is kept to.
        lengths: B numbers of steps after which a picture's hypotheses end, in place of when the branch would end them:
            to measure a branch that has not been trained.
        max_time: seconds, as in `generate`: hypotheses are cut off there.
    """
    ends = model.config.bos_token_id, model.config.eos_token_id
    start, stop = ends if direction == "l2r" else ends[::-1]
    grammar = tokenizer_grammar(tokenizer, direction) if tokenizer is not None else None
    deadline = math.inf if max_time is None else time.monotonic() + max_time
    task = Task(start, stop, max_length, grammar, tuple(lengths) if lengths is not None else None, deadline)
    state = BranchState(model._branch(direction), encoder_outputs, num_beams)
    if num_beams == 1:
        return greedy_search(BranchState.step, state, task)
    return beam_search(BranchState.step, state, task, num_beams, length_penalty)


def stacked(found: Sequence[Sequence[Hypothesis]], count: int, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` hypotheses of each of B pictures.

    Returns:
        ids (B · count, T), padded; their log-probabilities, 0 at padding; and which rows are hypotheses (B · count).
    """
    rows = [row[index] if index < len(row) else None for row in found for index in range(count)]
    longest = max((len(row.ids) for row in rows if row is not None), default=0)
    ids, log_probs = np.full((len(rows), longest), pad), np.zeros((len(rows), longest), np.float32)
    for row, hypothesis in enumerate(rows):
        if hypothesis is not None:
            ids[row, : len(hypothesis.ids)] = hypothesis.ids
            log_probs[row, : len(hypothesis.ids)] = hypothesis.log_probs
    known = torch.tensor([row is not None for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(log_probs), known


def searches_plainly(config: GenerationConfig) -> bool:
    """Whether `generate` would search by probability alone, as [`find_hypotheses`] does."""
    return set(config.to_diff_dict()) <= _WITHOUT_EFFECT


__all__ = ["BranchState", "find_hypotheses", "searches_plainly", "stacked"]
