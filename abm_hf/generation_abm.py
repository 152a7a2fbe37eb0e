"""Scoring and search over both reading directions.

A branch scores any sequence in one teacher-forced pass ([`score_sequences`]); the pictures are encoded once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .modeling_abm import ABMEncoderOutput, ABMForConditionalGeneration

# What a pass over many steps holds grows with steps × sequences × positions × channels of the attention. Reading a few
# steps at a time bounds it; the state carries over.
_ACTIVATION_BUDGET = 32_000_000


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


__all__ = ["score_sequences"]
