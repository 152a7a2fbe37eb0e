"""The recurrence of a decoder branch over T steps, with its own backward pass.

Each step is small except for the attention's activation, (N, L, D), so what costs is traffic and overhead. Autograd
would keep that activation several times over, add up gradients as large as the weights at every step, and visit some
eighty nodes for each. Here a step stores what its gradient needs once, in buffers over all steps; the gradients of
weights, keys and values then are one product each over all steps, accumulated in float32 by the product itself.

Shapes: N sequences of T steps over B images (N = B · beams), a grid of h × w = L positions, hidden size H, C feature
channels, attention size D, and k² taps of the coverage kernel.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Memory(NamedTuple):
    """What the attention reads of the images, the same at each step.

    Args:
        values (B, L, C): the features.
        keys (B, L, D): their projection, biases of the coverage path included; its precision is the attention's.
        mask (B, h, w): `True` at positions of the image.
    """

    values: Tensor
    keys: Tensor
    mask: Tensor


class Weights(NamedTuple):
    """The weights that a step uses; gates are stacked as reset, update, candidate.

    Args:
        token (3H, H): of the token GRU, recurrent side.
        query (D, H), kernel (k², D), energy (D): of the attention.
        context_input (3H, C), context_recurrent (3H, H), context_bias (3H): of the context GRU.
    """

    token: Tensor
    query: Tensor
    kernel: Tensor
    energy: Tensor
    context_input: Tensor
    context_recurrent: Tensor
    context_bias: Tensor


class Trace(NamedTuple):
    """Everything a forward pass leaves for the backward pass, one row for each step."""

    before: Tensor  # (T, N, H) the state before the token
    token_gates: Tensor  # (T, N, 4H) reset, update, candidate, recurrent part of the candidate
    between: Tensor  # (T, N, H) the state after the token, with which the attention is asked
    patches: Tensor  # (T, N·L, k²) the coverage around each position
    activation: Tensor  # (T, N, L, D) σ(keys + query + coverage ∗ kernel)
    attention: Tensor  # (T, N, L)
    context: Tensor  # (T, N, C)
    context_gates: Tensor  # (T, N, 4H)
    hidden: Tensor  # (T, N, H) the state after the step


class Recurrence(torch.autograd.Function):
    """See `run_recurrence`."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, hidden: Tensor, coverage: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        memory, weights = Memory(*tensors[:3]), Weights(*tensors[3:])
        trace = _empty_trace(projected, hidden, memory, weights)
        # The attention's precision is the keys', cast once for all steps; the recurrence stays in the state's.
        dtype = memory.keys.dtype
        cast = weights._replace(kernel=weights.kernel.to(dtype), energy=weights.energy.to(dtype))
        for t, step in enumerate(projected.unbind(1)):
            hidden, coverage = _step(t, step, hidden, coverage, memory, cast, trace)
        attention = trace.attention.view(*trace.attention.shape[:2], *coverage.shape[1:])
        ctx.save_for_backward(*trace, *memory, *weights)
        ctx.mark_non_differentiable(coverage)
        return trace.hidden, trace.context, attention, coverage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        trace, memory, weights = Trace(*saved[:9]), Memory(*saved[9:12]), Weights(*saved[12:])
        dtype, images = memory.keys.dtype, len(memory.keys)
        cast = weights._replace(kernel=weights.kernel.to(dtype), energy=weights.energy.to(dtype))
        slopes = _empty_slopes(trace)
        d_hidden = torch.zeros_like(trace.hidden[0])
        d_coverage = torch.zeros_like(trace.attention[0])
        d_attention = gradients[2].flatten(2)
        for t in reversed(range(len(trace.hidden))):
            d_hidden = d_hidden + gradients[0][t]
            # An attention map enters the coverage of all later steps, and the loss itself where it is supervised.
            d_hidden, d_coverage = _step_backward(
                t, d_hidden, gradients[1][t], d_coverage, d_attention[t], memory, cast, trace, slopes
            )
        return (
            slopes.token_input.transpose(0, 1),
            d_hidden,
            None,
            _by_image(trace.attention, images).to(dtype).transpose(1, 2) @ _by_image(slopes.context, images).to(dtype),
            slopes.activation.view(len(slopes.activation), images, -1, *memory.keys.shape[1:]).sum((0, 2)),
            None,
            _weight_gradient(slopes.token_recurrent, trace.before),
            _weight_gradient(slopes.query, trace.between),
            _weight_gradient(trace.patches, slopes.activation).to(weights.kernel.dtype),
            slopes.energy.sum(0),
            _weight_gradient(slopes.context_input, trace.context),
            _weight_gradient(slopes.context_recurrent, trace.between),
            slopes.context_recurrent.sum((0, 1)),
        )


class Slopes(NamedTuple):
    """Gradients of the loss by what a step computed, one row for each step; `Trace`'s counterpart."""

    token_input: Tensor  # (T, N, 3H)
    token_recurrent: Tensor  # (T, N, 3H)
    query: Tensor  # (T, N, D)
    activation: Tensor  # (T, N, L, D) before the σ, in the place of the trace's
    energy: Tensor  # (T, D)
    context: Tensor  # (T, N, C)
    context_input: Tensor  # (T, N, 3H)
    context_recurrent: Tensor  # (T, N, 3H)


# Left to itself by torch.compile: its gradient is written by hand, into buffers that a graph's tracer cannot follow.
@torch.compiler.disable
def run_recurrence(
    projected: Tensor, hidden: Tensor, coverage: Tensor, memory: Memory, weights: Weights
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reads T tokens.

    Args:
        projected (N, T, 3H): the embedded tokens through the token GRU's input side.
        hidden (N, H): the state; its precision is that of the recurrence.
        coverage (N, h, w): the sum of the attention maps so far. It gets no gradient.
        memory, weights: see [`Memory`] and [`Weights`].

    Returns:
        hidden states (T, N, H), contexts (T, N, C), attention maps (T, N, h, w), and the coverage after the last step.
        Gradients flow through the first three, once: they take the place of what they are computed from, so a second
        backward pass over the same graph raises a `RuntimeError`.
    """
    # With tanh(x) = 2σ(2x) - 1, vᵀ tanh(x) is 2vᵀ σ(2x) less a constant, which the softmax does not see. On a CPU σ
    # takes a third of tanh's time.
    memory = memory._replace(keys=2 * memory.keys)
    weights = weights._replace(query=2 * weights.query, kernel=2 * weights.kernel, energy=2 * weights.energy)
    return Recurrence.apply(projected, hidden, coverage, *memory, *weights)


def _empty_trace(projected: Tensor, hidden: Tensor, memory: Memory, weights: Weights) -> Trace:
    sequences, steps = projected.shape[:2]
    size, (positions, attention_size) = hidden.shape[1], memory.keys.shape[1:]
    taps, channels = len(weights.kernel), memory.values.shape[-1]
    return Trace(
        before=hidden.new_empty(steps, sequences, size),
        token_gates=hidden.new_empty(steps, sequences, 4 * size),
        between=hidden.new_empty(steps, sequences, size),
        patches=memory.keys.new_empty(steps, sequences * positions, taps),
        activation=memory.keys.new_empty(steps, sequences, positions, attention_size),
        attention=hidden.new_empty(steps, sequences, positions),
        context=hidden.new_empty(steps, sequences, channels),
        context_gates=hidden.new_empty(steps, sequences, 4 * size),
        hidden=hidden.new_empty(steps, sequences, size),
    )


def _empty_slopes(trace: Trace) -> Slopes:
    steps, sequences, size = trace.hidden.shape
    attention_size = trace.activation.shape[-1]
    return Slopes(
        token_input=trace.hidden.new_empty(steps, sequences, 3 * size),
        token_recurrent=trace.hidden.new_empty(steps, sequences, 3 * size),
        query=trace.hidden.new_empty(steps, sequences, attention_size),
        activation=trace.activation,
        energy=trace.hidden.new_empty(steps, attention_size),
        context=torch.empty_like(trace.context),
        context_input=trace.hidden.new_empty(steps, sequences, 3 * size),
        context_recurrent=trace.hidden.new_empty(steps, sequences, 3 * size),
    )


def _step(
    t: int, projected: Tensor, hidden: Tensor, coverage: Tensor, memory: Memory, weights: Weights, trace: Trace
) -> tuple[Tensor, Tensor]:
    """Step `t`: the state and the coverage after it; what the gradient needs goes to `trace`."""
    images = len(memory.keys)
    trace.before[t] = hidden
    between = trace.between[t]
    _gru(projected, hidden @ weights.token.T, hidden, out=between, gates=trace.token_gates[t])

    activation = trace.activation[t]
    margin = round(len(weights.kernel) ** 0.5) // 2
    patches = copy_patches(F.pad(coverage, (margin,) * 4), trace.patches[t], *coverage.shape[1:])
    torch.mm(patches, weights.kernel, out=activation.flatten(0, 1))
    activation.view(images, -1, *memory.keys.shape[1:]).add_(memory.keys[:, None])
    activation.add_((between @ weights.query.T).to(activation.dtype)[:, None]).sigmoid_()
    # Softmax in the state's precision, less the maximum: a bare exp overflows in half precision.
    energies = (activation @ weights.energy).to(hidden.dtype).view(images, -1, activation.shape[1])
    energies.masked_fill_(memory.mask.flatten(1)[:, None].logical_not(), float("-inf"))
    attention = energies.softmax(-1)  # (B, N / B, L)
    trace.attention[t] = attention.view_as(trace.attention[t])
    context = trace.context[t]
    context.copy_((attention.to(memory.values.dtype) @ memory.values).view_as(context))

    recurrent = torch.addmm(weights.context_bias, between, weights.context_recurrent.T)
    _gru(context @ weights.context_input.T, recurrent, between, out=trace.hidden[t], gates=trace.context_gates[t])
    return trace.hidden[t], coverage + attention.view_as(coverage)


def _step_backward(
    t: int,
    d_hidden: Tensor,
    d_context: Tensor,
    d_coverage: Tensor,
    d_attention: Tensor,
    memory: Memory,
    weights: Weights,
    trace: Trace,
    slopes: Slopes,
) -> tuple[Tensor, Tensor]:
    """Gradients by state (N, H) and coverage (N, L) before step `t`, from those after it; the others to `slopes`."""
    images, grid = len(memory.keys), memory.mask.shape[1:]
    activation, attention, inner = trace.activation[t], trace.attention[t], slopes.activation[t]
    d_between = _gru_backward(
        d_hidden, trace.between[t], trace.context_gates[t], slopes.context_input[t], slopes.context_recurrent[t]
    ).addmm_(slopes.context_recurrent[t], weights.context_recurrent)
    d_context = torch.addmm(d_context, slopes.context_input[t], weights.context_input, out=slopes.context[t])

    by_image = d_context.view(images, -1, d_context.shape[-1]).to(memory.values.dtype)
    d_attention = d_attention + d_coverage + (by_image @ memory.values.transpose(1, 2)).view_as(d_coverage)
    d_energies = attention * (d_attention - (attention * d_attention).sum(-1, keepdim=True))
    d_energies = d_energies.to(activation.dtype)
    slopes.energy[t] = d_energies.flatten() @ activation.flatten(0, 1)
    torch.ops.aten.sigmoid_backward.grad_input(d_energies[..., None] * weights.energy, activation, grad_input=inner)
    slopes.query[t] = inner.sum(1)
    d_between.addmm_(slopes.query[t], weights.query)
    if t:  # the first step has no coverage to teach
        size = round(len(weights.kernel) ** 0.5)
        d_patches = (inner.flatten(0, 1) @ weights.kernel.T).view(*inner.shape[:2], -1).transpose(1, 2)
        d_coverage = d_coverage + F.fold(d_patches, grid, size, padding=size // 2).flatten(1)

    d_before = _gru_backward(
        d_between, trace.before[t], trace.token_gates[t], slopes.token_input[t], slopes.token_recurrent[t]
    ).addmm_(slopes.token_recurrent[t], weights.token)
    return d_before, d_coverage


def _gru(projected: Tensor, recurrent: Tensor, hidden: Tensor, out: Tensor, gates: Tensor) -> None:
    """A GRU step into `out` (N, H), from both sides' products (N, 3H); `gates` (N, 4H) is for the gradient."""
    size = hidden.shape[-1]
    torch.add(projected[:, : 2 * size], recurrent[:, : 2 * size], out=gates[:, : 2 * size]).sigmoid_()
    reset, update, candidate, part = gates.chunk(4, dim=-1)
    part.copy_(recurrent[:, 2 * size :])
    torch.addcmul(projected[:, 2 * size :], reset, part, out=candidate).tanh_()
    torch.lerp(candidate, hidden, update, out=out)


def _gru_backward(d_out: Tensor, hidden: Tensor, gates: Tensor, d_input: Tensor, d_recurrent: Tensor) -> Tensor:
    """Fills the gradients by both sides' products, (N, 3H) each; returns the direct one by `hidden`."""
    size = hidden.shape[-1]
    reset, update, candidate, part = gates.chunk(4, dim=-1)
    d_candidate = torch.ops.aten.tanh_backward(d_out * (1 - update), candidate)
    d_input[:, 2 * size :] = d_candidate
    d_gates = torch.cat([d_candidate * part, d_out * (hidden - candidate)], dim=-1)
    torch.ops.aten.sigmoid_backward.grad_input(d_gates, gates[:, : 2 * size], grad_input=d_input[:, : 2 * size])
    d_recurrent.copy_(d_input)
    d_recurrent[:, 2 * size :].mul_(reset)
    return d_out * update


def copy_patches(padded: Tensor, out: Tensor, height: int, width: int) -> Tensor:
    """The k × k surroundings of the first `height` × `width` positions of maps, into `out` (N · height · width, k²).

    What `F.unfold` gives, by one strided copy: twice as fast, and laid out for the product that follows.

    Args:
        padded (N, h + k - 1, w + k - 1): the maps with a margin of (k - 1) / 2 zeros.
    """
    size = round(out.shape[-1] ** 0.5)
    image, row, column = padded.stride()
    shape = (len(padded), height, width, size, size)
    out.view(shape).copy_(padded.as_strided(shape, (image, row, column, row, column), padded.storage_offset()))
    return out


def _by_image(steps: Tensor, images: int) -> Tensor:
    """(T, N, X) to (B, T · N / B, X)."""
    return steps.view(len(steps), images, -1, steps.shape[-1]).transpose(0, 1).flatten(1, 2)


def _weight_gradient(left: Tensor, right: Tensor) -> Tensor:
    """Sum over all steps and sequences of the outer products of the last axes."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])
