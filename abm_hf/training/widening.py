"""A checkpoint copied into a larger configuration that computes the same: a start that has lost nothing.

Every old channel, hidden unit and attention dimension gets a place in the larger model. The rows of a weight that
compute old values are the old ones at the places of what these read, and zero elsewhere, so that nothing old depends
on anything new. The rows that compute new values stay as a fresh model has them. What the branches write thus stays
the same, and gradients reach what is new through the zeros, which are trained like any weight (after Net2Net, arXiv
1511.05641).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration_abm import ABMConfig
from ..modeling_abm import ABMForConditionalGeneration
from ..pretrained import checkpoint_path

WIDENED = ("stem_channels", "block_layers", "growth_rates", "hidden_size", "attention_size")
"""Fields of [`ABMConfig`] that may grow."""


def widen_checkpoint(source: str | Path, sizes: Mapping[str, Any], seed: int = 0) -> ABMForConditionalGeneration:
    """A larger model with the logits of a checkpoint.

    Args:
        source: directory, Hub id or packaged checkpoint.
        sizes: new values of fields among [`WIDENED`]; none may be smaller than the checkpoint's.
        seed: of the weights that are new.

    Returns:
        The model in float32, in evaluation mode.

    Raises:
        CheckpointError: if the checkpoint does not exist.
        ValueError: if a field cannot grow, or is smaller than before.
    """
    old = ABMForConditionalGeneration.from_pretrained(checkpoint_path(source), dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return widened(old, sizes)


@torch.no_grad()
def widened(old: ABMForConditionalGeneration, sizes: Mapping[str, Any]) -> ABMForConditionalGeneration:
    """A larger model with the logits of `old`; see [`widen_checkpoint`]."""
    _check(old.config, sizes)
    config = ABMConfig.from_dict({**old.config.to_dict(), **sizes})
    new = ABMForConditionalGeneration(config).eval()
    new.generation_config = old.generation_config
    channels = _encoder(old.encoder, new.encoder)
    for direction in old.config.directions:
        _branch(old.branches[direction], new.branches[direction], channels)
    return new


def _check(config: ABMConfig, sizes: Mapping[str, Any]) -> None:
    for name, size in sizes.items():
        if name not in WIDENED:
            raise ValueError(f"{name} cannot grow: choose from {', '.join(WIDENED)}")
        before, after = _numbers(getattr(config, name)), _numbers(size)
        if len(before) != len(after) or any(new < old for old, new in zip(before, after, strict=True)):
            raise ValueError(f"{name} must not become smaller, nor have another number of blocks: {before} to {after}")


def _numbers(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)


def _encoder(old: Any, new: Any) -> Tensor:
    """Copies the encoder; returns the places of the old features among the new ones."""
    channels = _first(old.stem.out_channels)
    _copy(old.stem, new.stem, channels, _first(old.stem.in_channels))
    end = new.stem.out_channels
    for index, (old_block, new_block) in enumerate(zip(old.blocks, new.blocks, strict=True)):
        if index:
            before, after = old.transitions[index - 1], new.transitions[index - 1]
            compressed = _first(before.conv.out_channels)
            _copy(before.conv, after.conv, compressed, channels)
            _copy(before.norm, after.norm, compressed)
            channels, end = compressed, after.conv.out_channels
        for position, after in enumerate(new_block):
            if position < len(old_block):
                before = old_block[position]
                inner, grown = _first(before.conv1.out_channels), _first(before.conv2.out_channels)
                _copy(before.conv1, after.conv1, inner, channels)
                _copy(before.norm1, after.norm1, inner)
                _copy(before.conv2, after.conv2, grown, inner)
                _copy(before.norm2, after.norm2, grown)
                channels = torch.cat([channels, end + grown])
            end += after.conv2.out_channels
    return channels


def _branch(old: Any, new: Any, channels: Tensor) -> None:
    """Copies a decoder branch that reads `channels`, the places of the old features."""
    hidden, wider = old.initial_state.out_features, new.initial_state.out_features
    state = _first(hidden)
    gates = torch.cat([state + gate * wider for gate in range(3)])
    looked = _first(old.attention.key.out_features)
    embedded = _first(old.embedding.embedding_dim)
    _copy(old.embedding, new.embedding, _first(old.embedding.num_embeddings), embedded)
    _copy(old.initial_state, new.initial_state, state, channels)
    _copy(old.token_gru.input, new.token_gru.input, gates, embedded)
    _copy(old.token_gru.recurrent, new.token_gru.recurrent, gates, state)
    _copy(old.attention.key, new.attention.key, looked, channels)
    _copy(old.attention.query, new.attention.query, looked, state)
    for before, after in zip(old.attention.coverage_convs, new.attention.coverage_convs, strict=True):
        _copy(before, after, looked, _first(1))
    for before, after in zip(old.attention.coverage_maps, new.attention.coverage_maps, strict=True):
        _copy(before, after, looked, looked)
    _copy(old.attention.energy, new.attention.energy, _first(1), looked)
    _copy(old.context_gru.input, new.context_gru.input, gates, channels)
    _copy(old.context_gru.recurrent, new.context_gru.recurrent, gates, state)
    _copy(old.output_context, new.output_context, embedded, channels)
    _copy(old.output_hidden, new.output_hidden, embedded, state)
    _copy(old.output_embedding, new.output_embedding, embedded, embedded)
    _copy(old.classifier, new.classifier, _first(old.classifier.out_features), _first(old.classifier.in_features))


def _first(count: int) -> Tensor:
    return torch.arange(count)


def _copy(old: nn.Module, new: nn.Module, rows: Tensor, columns: Tensor | None = None) -> None:
    """Puts a layer's parameters and statistics at `rows` (outputs) and `columns` (inputs), and zeros beside them."""
    target = new.state_dict()
    for name, value in old.state_dict().items():
        if value.ndim == 0:  # a count of batches
            target[name].copy_(value)
        elif value.ndim == 1:
            target[name][rows] = value
        else:
            target[name][rows] = 0.0
            target[name][rows[:, None], columns] = value
