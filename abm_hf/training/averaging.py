"""The mean of checkpoints of one training: often better than each, where it moved about a minimum between them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..modeling_abm import ABMForConditionalGeneration
from ..pretrained import checkpoint_path


def average_checkpoints(sources: Sequence[str | Path]) -> ABMForConditionalGeneration:
    """A model with the mean of the weights and batch norm statistics of several.

    They must come from one training: weights of different ones mean different things, and so their mean nothing.

    Args:
        sources: directories, Hub ids or packaged checkpoints, at least two.

    Returns:
        The model of the last one, in float32, with the mean in place of its weights.

    Raises:
        CheckpointError: if one does not exist.
        ValueError: if they are fewer than two, or not of one build.
    """
    if len(sources) < 2:
        raise ValueError("a mean needs at least two checkpoints")
    models = [
        ABMForConditionalGeneration.from_pretrained(checkpoint_path(source), dtype=torch.float32) for source in sources
    ]
    states = [model.state_dict() for model in models]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for source, other in zip(sources, shapes, strict=True):
        if other != shapes[-1]:
            raise ValueError(f"{source} is of another build than {sources[-1]}: their weights have no mean")
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if last.is_floating_point() else last
        for name, last in states[-1].items()
    }
    models[-1].load_state_dict(mean)
    return models[-1]
