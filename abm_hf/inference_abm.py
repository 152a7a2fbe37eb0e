"""A decoder branch's step without gradients: the recurrence of `recurrence_abm`, arranged for speed.

What depends on the weights alone (embeddings through their projections, the composed coverage kernel, products that
share an input side by side) is computed once for a search, what depends on a picture once for the picture, without its
padding. A step keeps nothing, and its largest intermediate stays in the processor's cache.

The attention's `v · tanh(x)` is computed as `2v · σ(2x)`: they differ by the sum of v, which a softmax does not see,
and σ takes a sixth of the time of tanh. The factors are folded into what x is made of.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .recurrence_abm import Memory, Weights, copy_patches

# Elements of the attention's activation computed at a time on a CPU: 4 MB, which second-level caches nearly hold.
_GROUP_ELEMENTS = 1_000_000


class Product:
    """`x ↦ x W + b`, for W (I, O) and b (O) or none.

    With few rows, reading W is what takes time. On a CPU oneDNN gets it in its own layout, into which it is brought
    once: the four products of a step of 10 sequences, base size, took 0.48 instead of 0.85 ms.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = weight, bias
        self._packed: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        if not _packs(rows):
            return rows @ self.weight if self.bias is None else torch.addmm(self.bias, rows, self.weight)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.T.contiguous())
        return torch.ops.mkldnn._linear_pointwise(rows.contiguous(), self._packed, self.bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # opaque to copies and to pickle


def _packs(rows: Tensor) -> bool:
    """Whether oneDNN's own product, which has no gradient, can take these rows."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


class StepWeights(NamedTuple):
    """What a step needs of a branch; V ids, D the attention's size, E that of the embedding.

    Args:
        token_input (V, 3H): each id through the embedding and the token GRU's input side.
        token_output (V, E): each id's share of the output, biases included.
        token (H to 3H): of the token GRU, recurrent side.
        between (H to D + 3H): twice the query, and the context GRU's recurrent side.
        kernel (k², D), energy (D): of the attention, both doubled.
        context (C to 3H + E): the context GRU's input side, and the context's share of the output.
        hidden (H to E): the state's share of the output.
    """

    token_input: Tensor
    token_output: Tensor
    token: Product
    between: Product
    kernel: Tensor
    energy: Tensor
    context: Product
    hidden: Product


class Group(NamedTuple):
    """Consecutive pictures of a batch that are attended to together, cut to the largest of them.

    Args:
        keys (G, h·w, D): doubled.
        values (G, h·w, C): the features.
        bias (G, 1, h·w): 0 at positions of the picture, minus infinity elsewhere.
        height, width: of the grid, h and w.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    height: int
    width: int


def step_weights(
    weights: Weights,
    tokens: tuple[Tensor, Tensor],
    outputs: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    product_dtype: torch.dtype | None = None,
) -> StepWeights:
    """Arranges a branch's weights.

    Args:
        weights: as training uses them.
        tokens: `token_input` and `token_output`.
        outputs: weights by which the context, (E, C), and the state, (E, H), enter the output.
        dtype: precision of the steps.
        product_dtype: precision of the coverage's convolution, most of a step's work; `dtype` by default.
    """
    bias = torch.cat([weights.context_bias.new_zeros(len(weights.query)), weights.context_bias])
    token_input, token_output = tokens
    return StepWeights(
        token_input.to(dtype),
        token_output.to(dtype),
        token=Product(weights.token.T.to(dtype)),
        between=Product(torch.cat([2 * weights.query, weights.context_recurrent]).T.to(dtype), bias.to(dtype)),
        kernel=2 * weights.kernel.to(dtype).to(product_dtype or dtype),
        energy=2 * weights.energy.to(dtype),
        context=Product(torch.cat([weights.context_input, outputs[0]]).T.to(dtype)),
        hidden=Product(outputs[1].T.to(dtype)),
    )


class Reader:
    """Takes a branch's steps over the pictures of a search.

    Args:
        weights: see [`StepWeights`]; their precision is that of the steps.
        memory: what the attention reads, a row for each picture.
        copies: sequences for each picture.
    """

    def __init__(self, weights: StepWeights, memory: Memory, copies: int):
        self.weights = weights
        self.grid = tuple(memory.mask.shape[1:])
        self.copies = copies
        self.groups = list(_groups(memory, copies, weights.energy.dtype))

    def keep(self, pictures: Tensor) -> None:
        """Leaves out the pictures for which `pictures` (B,) is `False`."""
        groups = []
        for group, kept in zip(self.groups, pictures.split([len(group.keys) for group in self.groups]), strict=True):
            if kept.all():
                groups.append(group)
            elif kept.any():
                groups.append(group._replace(keys=group.keys[kept], values=group.values[kept], bias=group.bias[kept]))
        self.groups = groups

    def step(
        self, tokens: Tensor, hidden: Tensor, coverage: Tensor, alike: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reads a token in each sequence.

        Args:
            tokens (N,), hidden (N, H), coverage (N, h, w): the state before them.
            alike (N,): equal numbers for sequences known to have equal coverage, as the beams that continue the same
                hypothesis have; what follows from the coverage alone is computed once for them.

        Returns:
            the state after them (N, H), the attention (N, h, w), and the output before its activation (N, E).
        """
        weights = self.weights
        size = hidden.shape[1]
        between = _gru(weights.token_input[tokens], weights.token(hidden), hidden)
        query, recurrent = weights.between(between).split([len(weights.energy), 3 * size], dim=1)
        context, attention = self._attend(query, coverage, alike)
        read = weights.context(context)
        hidden = _gru(read[:, : 3 * size], recurrent, between)
        output = weights.token_output[tokens].add_(weights.hidden(hidden)).add_(read[:, 3 * size :])
        return hidden, attention, output

    def _attend(self, query: Tensor, coverage: Tensor, alike: Tensor | None) -> tuple[Tensor, Tensor]:
        """Contexts (N, C) and attention maps (N, h, w)."""
        attention = torch.zeros_like(coverage)
        margin = round(len(self.weights.kernel) ** 0.5) // 2
        padded = F.pad(coverage, (margin,) * 4)
        contexts = []
        start = 0
        for group in self.groups:
            rows = slice(start, start + len(group.keys) * self.copies)
            start = rows.stop
            # One pass for both, and the product adds to it in place.
            activation = group.keys[:, None] + query[rows].view(len(group.keys), self.copies, 1, -1)
            self._add_coverage(activation.flatten(0, 2), padded[rows], group, None if alike is None else alike[rows])
            energies = (activation.sigmoid_().flatten(0, 2) @ self.weights.energy).view(activation.shape[:3])
            weighting = (energies + group.bias).softmax(-1)
            contexts.append((weighting @ group.values).flatten(0, 1))
            attention[rows, : group.height, : group.width] = weighting.view(-1, group.height, group.width)
        return torch.cat(contexts) if len(contexts) > 1 else contexts[0], attention

    def _add_coverage(self, activation: Tensor, padded: Tensor, group: Group, alike: Tensor | None) -> None:
        """Adds the convolution of the coverage, with its margin, to `activation` (n · h · w, D)."""
        kernel = self.weights.kernel
        shared = None
        if alike is not None and kernel.device.type == "cpu":  # elsewhere not worth the wait
            _, first, shared = np.unique(alike.numpy(), return_index=True, return_inverse=True)
            padded, shared = (padded[first], shared) if len(first) < len(padded) else (padded, None)
        patches = kernel.new_empty(len(padded) * group.height * group.width, len(kernel))
        copy_patches(padded, patches, group.height, group.width)
        if shared is None and kernel.dtype == activation.dtype:
            activation.addmm_(patches, kernel)
            return
        around = (patches @ kernel).view(len(padded), -1)
        rows = activation.view(-1, around.shape[1])
        if shared is None:
            rows.add_(around)
            return
        for row, source in zip(rows, shared.tolist(), strict=True):  # faster than to gather them and add them at once
            row.add_(around[source])


def _groups(memory: Memory, copies: int, dtype: torch.dtype) -> Iterable[Group]:
    """The pictures in order, in groups as large as the cache takes; all in one on a GPU, which likes large ones."""
    heights, widths = _extents(memory.mask)
    limit = _GROUP_ELEMENTS if memory.keys.device.type == "cpu" else float("inf")
    first = 0
    for last in range(1, len(heights) + 1):
        if last < len(heights):
            count, height, width = last + 1 - first, max(heights[first : last + 1]), max(widths[first : last + 1])
            if count * copies * height * width * memory.keys.shape[-1] <= limit:
                continue
        yield _group(memory, slice(first, last), max(heights[first:last]), max(widths[first:last]), dtype)
        first = last


def _group(memory: Memory, pictures: slice, height: int, width: int, dtype: torch.dtype) -> Group:
    grid = memory.mask.shape[1:]
    keys, values = (
        tensor[pictures].unflatten(1, grid)[:, :height, :width].flatten(1, 2).to(dtype)
        for tensor in (memory.keys, memory.values)
    )
    hidden = memory.mask[pictures, :height, :width].flatten(1).logical_not()
    bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
    return Group(2 * keys, values, bias[:, None], height, width)


def _extents(mask: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns up to the last valid one of each picture of `mask` (B, h, w); on a GPU, of all alike."""
    if mask.device.type != "cpu" or torch.compiler.is_exporting():  # not worth the wait; not known to a graph
        return [mask.shape[1]] * len(mask), [mask.shape[2]] * len(mask)
    rows, columns = (
        (mask.any(axis) * torch.arange(1, mask.shape[3 - axis] + 1)).amax(1).clamp(min=1) for axis in (2, 1)
    )
    return rows.tolist(), columns.tolist()


def _gru(projected: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    """A GRU step (N, H) from both sides' products (N, 3H)."""
    size = hidden.shape[-1]
    reset, update = (projected[:, : 2 * size] + recurrent[:, : 2 * size]).sigmoid_().chunk(2, dim=-1)
    candidate = torch.addcmul(projected[:, 2 * size :], reset, recurrent[:, 2 * size :]).tanh_()
    return torch.lerp(candidate, hidden, update)


__all__ = ["Group", "Product", "Reader", "StepWeights", "step_weights"]
