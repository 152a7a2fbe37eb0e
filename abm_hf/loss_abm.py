"""The training objective of ABM: one cross-entropy for each direction and a mutual distillation between the two.

All functions take logits over the output tokens, (B, T, K), of which `logits[:, j]` predicts `labels[:, j]`; labels
are `y1 … yn eos`, padded with -100. The right-to-left branch reads `eos yn … y1`: its logits come aligned to the same
labels (see `right_to_left_order`), so that position j speaks of token j for both branches; at the position of `eos` it
predicts `sos`, the start of the formula.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def right_to_left_order(labels: Tensor) -> Tensor:
    """Positions of the labels in the order in which the right-to-left branch meets them.

    A label sequence `y1 … yn eos` becomes `yn … y1 eos`: only the n tokens are reversed, the end and the padding stay
    where they are. The permutation is its own inverse, so it also brings what was computed in that order back.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): padded with -100.

    Returns:
        `torch.LongTensor` of shape `(batch_size, sequence_length)`: indices for `torch.gather`.
    """
    positions = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    last_token = (labels != IGNORED).sum(dim=1, keepdim=True) - 2
    return torch.where(positions <= last_token, last_token - positions, positions)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, the mean over the tokens of each sample and then over the samples, as in the released code.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_output_tokens)`).
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): -100 is ignored.
        label_smoothing (`float`): share of the probability that the target gives to all tokens evenly.

    Returns:
        A scalar in float32, whatever the precision of the logits.
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    ).view_as(labels)
    lengths = (labels != IGNORED).sum(dim=1).clamp(min=1)
    return (losses.sum(dim=1) / lengths).mean()


def aligned_distillation(l2r_logits: Tensor, r2l_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Symmetric mutual distillation: what one branch says of token j against what the other says of the same token.

    The mean over the tokens of T² · (KL(R2L ‖ L2R) + KL(L2R ‖ R2L)) / 2 at temperature T. Each divergence teaches its
    second argument only: the teaching side is detached, as in deep mutual learning (arXiv 1706.00384). The last
    position, where one branch ends and the other has reached the start, is left out.

    Args:
        l2r_logits, r2l_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_output_tokens)`):
            aligned to `labels`.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`).
        temperature (`float`): T.

    Returns:
        A scalar in float32; zero if no sample has a token besides the end.
    """
    # Valid positions minus the last one of each sample, the end token.
    following_is_valid = F.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)
    p = (l2r_logits[following_is_valid].float() / temperature).log_softmax(-1)
    q = (r2l_logits[following_is_valid].float() / temperature).log_softmax(-1)
    divergence = _kl(q.detach(), p) + _kl(p.detach(), q)
    return 0.5 * temperature**2 * divergence.sum() / max(len(divergence), 1)


def released_distillation(l2r_logits: Tensor, r2l_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The one-way term KL(L2R ‖ R2L) exactly as the released code computes it, misalignment included.

    There both sequences lose their first step and the right-to-left one is flipped over the padded length, so that y2
    is compared with `sos`, y3 with y1 and so on; then each side drops its padding on its own, in time-major order, so
    that tokens of different samples meet where lengths differ. For reproducing published runs; see
    `aligned_distillation` for what the paper describes.

    Args and result: as `aligned_distillation`; both sides receive gradients.
    """
    valid = labels != IGNORED
    order = right_to_left_order(labels)
    as_read = r2l_logits.gather(1, order[..., None].expand_as(r2l_logits))
    time_major_l2r = l2r_logits.transpose(0, 1)[1:]
    time_major_r2l = as_read.transpose(0, 1)[1:].flip(0)
    kept = valid.T[1:]
    p = (time_major_l2r[kept].float() / temperature).log_softmax(-1)
    q = (time_major_r2l[kept.flip(0)].float() / temperature).log_softmax(-1)
    return temperature**2 * _kl(p, q).sum() / max(len(p), 1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) over the last axis, from log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
