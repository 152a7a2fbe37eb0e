"""A dense block of the encoder in training on a CPU, with its own forward and backward pass.

Layer by layer, autograd would copy all features so far for each layer that reads them, add up as many gradients on the
way back, and keep what lies between batch norm and rectifier. Here the block has one buffer for its features and one
for their gradients: a layer reads the first channels of the one and adds to those of the other, a product in both
cases, as a 1×1 convolution is one where channels come last.

Shapes: B pictures of h × w positions (M = B · h · w), C channels into a layer, W within it, G out of it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .activation_abm import dropped_of_256, kept_scale, passed, rectify_


class LayerWeights(NamedTuple):
    """The parameters of a layer."""

    conv1: Tensor  # (W, C, 1, 1)
    scale1: Tensor  # (W)
    shift1: Tensor  # (W)
    conv2: Tensor  # (G, W, 3, 3)
    scale2: Tensor  # (G)
    shift2: Tensor  # (G)


class LayerTrace(NamedTuple):
    """What a layer's forward pass leaves for its backward pass."""

    conv1: Tensor  # (W, C) as the block computes with it
    conv2: Tensor  # (G, W, 3, 3)
    squeezed: Tensor  # (B, W, h, w) before the first batch norm
    mean1: Tensor  # (W)
    inverse1: Tensor  # (W) of the standard deviation
    active: Tensor  # (B, W, h, w) what the 3×3 convolution reads
    grown: Tensor  # (B, G, h, w) before the second batch norm
    mean2: Tensor  # (G)
    inverse2: Tensor  # (G)
    given: Tensor  # (B, G, h, w) apart from the block's buffer: what lies together is read twice as fast


def can_train(layers: Iterable[Any], features: Tensor) -> bool:
    """Whether [`dense_block`] can stand for `layers`, one after the other.

    It can in a training step on a CPU, with layers as the encoder made them, none replaced or set to evaluation.
    """
    if features.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return all(
        type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.training and norm.momentum is not None
        for layer in layers
        for conv, norm in ((layer.conv1, layer.norm1), (layer.conv2, layer.norm2))
    )


def dense_block(features: Tensor, mask: Tensor | None, layers: Iterable[Any]) -> Tensor:
    """`features` (B, C, h, w) with the channels of all `layers` appended; running statistics are brought up to date.

    Args:
        mask (B, 1, h, w): 1 inside the picture and 0 elsewhere; `None` for no mask.
        layers: with `conv1`, `norm1`, `conv2`, `norm2` and `dropout`.
    """
    layers, device = list(layers), features.device.type
    parameters = [
        parameter
        for layer in layers
        for conv, norm in ((layer.conv1, layer.norm1), (layer.conv2, layer.norm2))
        for parameter in (conv.weight, norm.weight, norm.bias)
    ]
    if torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _DenseBlock.apply(features, mask, layers, *parameters)


class _DenseBlock(torch.autograd.Function):
    """See `dense_block`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, mask: Tensor | None, layers: list[Any], *parameters: Tensor) -> Tensor:
        pictures, channels, height, width = features.shape
        total = channels + sum(layer.conv2.out_channels for layer in layers)
        # The memory format is asked for, not left to strides: they do not tell where a side is 1.
        together = features.new_empty(pictures, height, width, total).permute(0, 3, 1, 2)
        together[:, :channels] = features
        traces: list[Tensor] = []
        # For both passes, as the model may be set to evaluation between them.
        ctx.dropped = [dropped_of_256(layer.dropout) for layer in layers]
        for layer, weights, dropped in zip(layers, _by_layer(parameters), ctx.dropped, strict=True):
            grown = layer.conv2.out_channels
            out = together[:, channels : channels + grown]
            trace = _layer(layer, weights, together[:, :channels], mask, dropped, out)
            channels += grown
            traces += trace
        ctx.save_for_backward(together, *traces, *parameters)
        ctx.layers, ctx.channels = layers, features.shape[1]
        return together

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        together, *saved = ctx.saved_tensors
        count, kinds = len(ctx.layers), len(LayerTrace._fields)
        slopes = gradient.clone(memory_format=torch.channels_last)
        gradients: list[Tensor] = []
        end = together.shape[1]
        weights = list(_by_layer(saved[count * kinds :]))
        for index in reversed(range(count)):
            trace = LayerTrace(*saved[index * kinds : (index + 1) * kinds])
            start = end - len(trace.conv2)
            gradients[:0] = _layer_backward(
                ctx.layers[index], weights[index], trace, together, slopes, start, ctx.dropped[index]
            )
            end = start
        return slopes[:, : ctx.channels], None, None, *gradients


def _by_layer(parameters: Any) -> Iterable[LayerWeights]:
    count = len(LayerWeights._fields)
    return (LayerWeights(*parameters[start : start + count]) for start in range(0, len(parameters), count))


def _layer(
    layer: Any, weights: LayerWeights, features: Tensor, mask: Tensor | None, dropped: int, out: Tensor
) -> LayerTrace:
    """A layer's new channels into `out` (B, G, h, w), from `features` (B, C, h, w), a part of a wider buffer."""
    pictures, _, height, width = features.shape
    conv1 = weights.conv1.flatten(1).to(features.dtype)
    conv2 = weights.conv2.to(features.dtype)
    squeezed = (_rows(features) @ conv1.T).view(pictures, height, width, -1).permute(0, 3, 1, 2)
    active, mean1, inverse1 = _normalized(layer.norm1, squeezed, weights.scale1, weights.shift1, dropped)
    rectify_(active, mask, dropped)
    grown = F.conv2d(active, conv2, padding=1)
    normalized, mean2, inverse2 = _normalized(layer.norm2, grown, weights.scale2, weights.shift2, dropped)
    out.copy_(rectify_(normalized, None, dropped))
    return LayerTrace(conv1, conv2, squeezed, mean1, inverse1, active, grown, mean2, inverse2, normalized)


def _layer_backward(
    layer: Any, weights: LayerWeights, trace: LayerTrace, together: Tensor, slopes: Tensor, start: int, dropped: int
) -> list[Tensor]:
    """Gradients by the layer's parameters, in their order; those by what it read go to `slopes` (B, C, h, w)."""
    end = start + len(trace.conv2)
    d_normalized = passed(slopes[:, start:end], trace.given)
    d_grown, d_scale2, d_shift2 = _norm_backward(
        layer.norm2, d_normalized, trace.grown, weights.scale2, trace.mean2, trace.inverse2, dropped
    )
    d_active, d_conv2, _ = torch.ops.aten.convolution_backward(
        d_grown, trace.active, trace.conv2, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    d_squeezed, d_scale1, d_shift1 = _norm_backward(
        layer.norm1,
        passed(d_active, trace.active),
        trace.squeezed,
        weights.scale1,
        trace.mean1,
        trace.inverse1,
        dropped,
    )
    d_rows = _rows(d_squeezed)
    d_conv1 = d_rows.T @ _rows(together[:, :start])
    _rows(slopes[:, :start]).addmm_(d_rows, trace.conv1)
    return [d_conv1.view_as(weights.conv1), d_scale1, d_shift1, d_conv2, d_scale2, d_shift2]


def _rows(features: Tensor) -> Tensor:
    """(B, C, h, w) as (M, C); where channels are last in memory, without a copy."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def _normalized(
    norm: nn.BatchNorm2d, values: Tensor, scale: Tensor, shift: Tensor, dropped: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch norm of `values`, scaled up as dropout wants it, which costs nothing here; mean and inverse deviation.

    As the rectifier only cuts, it does not matter whether what it leaves is scaled before or after.
    """
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    grow = kept_scale(dropped)
    assert norm.momentum is not None
    return torch.native_batch_norm(
        values, scale * grow, shift * grow, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
    )


def _norm_backward(
    norm: nn.BatchNorm2d, gradient: Tensor, values: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor, dropped: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the values, the scale and the shift that [`_normalized`] was given."""
    grow = kept_scale(dropped)
    d_values, d_scale, d_shift = torch.ops.aten.native_batch_norm_backward(
        gradient, values, scale * grow, None, None, mean, inverse, True, norm.eps, [True, True, True]
    )
    return d_values, d_scale * grow, d_shift * grow
