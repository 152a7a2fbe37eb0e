"""Batch norms folded into the convolutions before them, for inference: the same numbers with a third of the passes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Names of a convolution and of the batch norm that takes its output, in one module.
_PAIRS = (("conv", "norm"), ("conv1", "norm1"), ("conv2", "norm2"))


class Folded(NamedTuple):
    """What `fold_batch_norms` replaced: `original` was the submodule `name` of `parent`."""

    parent: nn.Module
    name: str
    original: nn.Module


class RectifiedConv(nn.Conv2d):
    """A convolution and the rectifier behind it.

    On a CPU both are one call of oneDNN, with weights that were brought into its own layout once; a plain convolution
    does that at each call, and the rectifier goes over the output again. These are the operations that `torch.compile`
    uses; where they are missing, the plain ones do the same.
    """

    _packed: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        if not _packs(features):
            return super().forward(features).relu_()
        sizes = self.padding, self.stride, self.dilation, self.groups
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *sizes, features.shape)
        return torch.ops.mkldnn._convolution_pointwise(features, self._packed, self.bias, *sizes, "relu", [], "")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._packed = None  # the weights go elsewhere, or change their precision
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def fold_batch_norms(module: nn.Module, dtype: torch.dtype | None = None) -> list[Folded]:
    """Replaces each convolution that batch norm and rectifier follow by one that does all, the batch norm by nothing.

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


def restore(replaced: list[Folded], like: Tensor) -> None:
    """Puts back what was replaced, on the device and in the precision of `like`, a weight that was not."""
    for (parent, conv_name, conv), (_, norm_name, norm) in zip(replaced[::2], replaced[1::2], strict=True):
        setattr(parent, conv_name, conv.to(like.device, like.dtype))
        setattr(parent, norm_name, norm.to(like.device, like.dtype))


@torch.no_grad()
def folded_weights(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (O, I, k, k) and bias (O) of a convolution that does what `conv` and then `norm` do in evaluation.

    In double precision: rounded, they then differ from the exact ones by that rounding alone.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    return conv.weight.double() * scale[:, None, None, None], shift


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> RectifiedConv:
    weight, bias = folded_weights(conv, norm)
    folded = nn.utils.skip_init(
        RectifiedConv,
        conv.in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    folded.weight.copy_(weight)
    folded.bias.copy_(bias)
    return folded.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def _packs(features: Tensor) -> bool:
    """Whether oneDNN's own operations can take these features; they have no gradients and cannot be exported."""
    if features.device.type != "cpu" or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        return False
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or not hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    ):
        return False
    if features.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return features.dtype == torch.float32


__all__ = ["Folded", "RectifiedConv", "fold_batch_norms", "folded_weights", "restore"]
