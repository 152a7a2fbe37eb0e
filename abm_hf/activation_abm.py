"""What follows a batch norm of the encoder, in as few passes as can be: rectifier, zeros beyond the picture, dropout.

On a CPU half precision is slow at anything but products: each element is widened and rounded again. But floating-point
numbers can be rectified, kept or dropped as the integers that have their bits: a negative one is negative, zero is
zero, and a product with 0 or 1 drops or keeps. That takes a fifth of the time, and an element costs one random byte.
A NaN may become 0 on the way; the batch norm before it has met it as well, so it still reaches the gradient.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def rectify(features: Tensor, mask: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """`dropout(relu(features · mask))`.

    Args:
        features (B, C, h, w): may be overwritten.
        mask (B, 1, h, w): 1 inside the picture and 0 elsewhere; `None` for no mask.
        dropout: its probability, and whether it is training. On a CPU the probability is rounded to a multiple of
            1/256 (0.2 to 0.1992), and kept elements are scaled up by what it is then.
    """
    if not dropout.training or features.device.type != "cpu" or torch.compiler.is_compiling():
        masked = features if mask is None else features * mask.to(features.dtype)
        return dropout(masked.relu_())
    return _Rectify.apply(features, mask, dropped_of_256(dropout))


def dropped_of_256(dropout: nn.Dropout) -> int:
    """How many of 256 elements are dropped: at least one, and not all, unless nothing is."""
    return min(255, max(1, round(256 * dropout.p))) if dropout.training and dropout.p > 0 else 0


def kept_scale(dropped: int) -> float:
    """By how much the elements that are kept must grow for the mean to stay."""
    return 256 / (256 - dropped)


def rectify_(values: Tensor, mask: Tensor | None, dropped: int) -> Tensor:
    """`relu(values · mask)` in place, with `dropped` of 256 elements set to zero and the others not scaled up.

    Args:
        values (B, C, h, w): without gaps in memory.
        mask (B, 1, h, w): see [`rectify`].
    """
    integers = _integers(values).clamp_(min=0)
    if mask is not None:
        integers.mul_(mask.to(integers.dtype))
    if dropped:
        _drop(integers, dropped)
    return values


def passed(gradient: Tensor, out: Tensor) -> Tensor:
    """The gradient where `out`, which has no negative elements, is not zero; zero elsewhere. Laid out like `out`."""
    return _integers(out).clamp(max=1).mul_(_integers(gradient)).view(gradient.dtype)


class _Rectify(torch.autograd.Function):
    """See `rectify`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, mask: Tensor | None, dropped: int) -> Tensor:
        ctx.scale = kept_scale(dropped)
        out = rectify_(features * ctx.scale if dropped else features.clone(), mask, dropped)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (out,) = ctx.saved_tensors
        inner = passed(gradient, out)
        return inner if ctx.scale == 1.0 else inner.mul_(ctx.scale), None, None


def _integers(values: Tensor) -> Tensor:
    return values.view(_INTEGERS[values.element_size()])


def _drop(integers: Tensor, dropped: int) -> None:
    """Sets `dropped` of 256 elements to zero at random: each by a byte of a generator that PyTorch's seeds.

    Two bytes are taken together as a 16-bit number: its high byte decides on one element, its low byte, moved up, on
    another. The generator is several times as fast as PyTorch's own.
    """
    count = integers.numel()
    half = (count + 1) // 2
    seed = int(torch.randint(2**63 - 1, ()))
    words = torch.from_numpy(np.random.SFC64(seed).random_raw((half + 3) // 4).view(np.int16))[:half]
    flat = integers.as_strided((count,), (1,))
    least = 256 * (dropped - 128)
    flat[half:].mul_((words[: count - half] * 256).ge_(least).to(flat.dtype))
    flat[:half].mul_(words.ge_(least).to(flat.dtype))
