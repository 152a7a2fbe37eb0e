"""Batch norms folded into the convolutions before them, for inference: the same numbers with half the passes."""

from typing import NamedTuple

import torch
from torch import nn

# Names of a convolution and of the batch norm that takes its output, in one module.
_PAIRS = (("conv", "norm"), ("conv1", "norm1"), ("conv2", "norm2"))


class Folded(NamedTuple):
    """What `fold_batch_norms` replaced: `original` was the submodule `name` of `parent`."""

    parent: nn.Module
    name: str
    original: nn.Module


def fold_batch_norms(module: nn.Module, dtype: torch.dtype | None = None) -> list[Folded]:
    """Replaces each convolution that a batch norm follows by one that does both, and the batch norm by nothing.

    Args:
        module: in evaluation mode; changed in place.
        dtype: precision of the new convolutions; the old ones' by default.

    Returns:
        What is needed to undo it, see [`restore`].
    """
    replaced = []
    for parent in list(module.modules()):
        for conv_name, norm_name in _PAIRS:
            conv, norm = getattr(parent, conv_name, None), getattr(parent, norm_name, None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                replaced += [Folded(parent, conv_name, conv), Folded(parent, norm_name, norm)]
                setattr(parent, conv_name, _fold(conv, norm).to(dtype=dtype or conv.weight.dtype))
                setattr(parent, norm_name, nn.Identity())
    return replaced


def restore(replaced: list[Folded]) -> None:
    """Puts back what was replaced, on the device where the replacement has come to be."""
    for (parent, conv_name, conv), (_, norm_name, norm) in zip(replaced[::2], replaced[1::2], strict=True):
        device = getattr(parent, conv_name).weight.device
        setattr(parent, conv_name, conv.to(device))
        setattr(parent, norm_name, norm.to(device))


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None and norm.running_var is not None
    # In double precision: the folded weights then differ from the exact ones by their own rounding alone.
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    folded = nn.utils.skip_init(
        nn.Conv2d,
        conv.in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    folded.bias.copy_(shift)
    return folded.to(memory_format=torch.channels_last).requires_grad_(False).eval()


__all__ = ["Folded", "fold_batch_norms", "restore"]
