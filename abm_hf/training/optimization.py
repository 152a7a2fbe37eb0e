"""Optimizer, averaged weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .arguments import OptimizationArguments

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: biases, norms and embeddings go without."""
    exempt = set()
    for module in model.modules():
        if isinstance(module, (*_NORMS, nn.Embedding)):
            exempt.update(id(parameter) for parameter in module.parameters(recurse=False))
    decayed, free = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or id(parameter) in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, arguments: OptimizationArguments) -> torch.optim.Optimizer:
    """The optimizer that the arguments name."""
    if arguments.optimizer == "adadelta":
        # As released: weight decay on everything.
        return torch.optim.Adadelta(
            model.parameters(), lr=arguments.learning_rate, eps=1e-6, weight_decay=arguments.weight_decay
        )
    groups = parameter_groups(model, arguments.weight_decay)
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, arguments.adam_beta2), fused=True)


class AveragedWeights:
    """Exponential moving average of a model's state, in float32.

    The decay starts low, `(1 + n) / (10 + n)` after n updates, so that the random start is forgotten early. Batch-norm
    statistics are averaged like weights: they then belong to the averaged weights of about the same moments, and the
    noise of batches that hold one size or one length of expression is averaged out as well.

    Args:
        model: Whose state is averaged, in place of a copy of the module.
        decay: Of the average, per update; 0 follows the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's state."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        mine, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                mine.append(self.state[name])
                theirs.append(value.detach())
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the average and the model's state: call twice around an evaluation."""
        for name, value in model.state_dict().items():
            mine = self.state[name]
            kept = value.detach().clone()
            value.copy_(mine)
            mine.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": self.updates, "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.updates = int(state["updates"])
        for name, value in state["state"].items():
            self.state[name].copy_(value)
