"""What follows a batch norm of the encoder, in as few passes as can be: rectifier, zeros beyond the picture, dropout.

On a CPU the encoder's activations are limited by memory traffic and dropout by its random numbers. Here the backward
pass reads the output alone, which is positive exactly where a gradient passes; and an element costs one random byte.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def rectify(features: Tensor, mask: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """`dropout(relu(features · mask))`.

    Args:
        features (B, C, h, w): may be overwritten.
        mask (B, 1, h, w): 1 inside the picture and 0 elsewhere; `None` for no mask.
        dropout: its probability, and whether it is training. On a CPU the probability is rounded to a multiple of
            1/256 (0.2 to 0.1992), and kept elements are scaled up by what it is then.
    """
    if not dropout.training or features.device.type != "cpu":
        masked = features if mask is None else features * mask.to(features.dtype)
        return dropout(masked.relu_())
    return _Rectify.apply(features, mask, dropout.p)


class _Rectify(torch.autograd.Function):
    """See `rectify`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, mask: Tensor | None, probability: float) -> Tensor:
        out = features.relu()
        if mask is not None:
            out.mul_(mask.to(out.dtype))
        ctx.scale = 1.0
        if probability > 0:
            dropped = min(255, max(1, round(256 * probability)))
            ctx.scale = 256 / (256 - dropped)
            out.mul_((_random_bytes(out) >= dropped).to(out.dtype).mul_(ctx.scale))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (out,) = ctx.saved_tensors
        passed = torch.ops.aten.threshold_backward(gradient, out, 0)
        return passed if ctx.scale == 1.0 else passed.mul_(ctx.scale), None, None


def _random_bytes(like: Tensor) -> Tensor:
    """Uniform random bytes, `uint8` in the shape and memory format of `like`, from PyTorch's generator."""
    words = torch.empty((like.numel() + 7) // 8, dtype=torch.int64)
    words.random_(-(2**63), None)  # all 64 bits: without bounds the sign would always be positive
    return words.view(torch.uint8)[: like.numel()].as_strided(like.shape, like.stride())
