"""Optimizer, averaged weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .arguments import OptimizationArguments

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: biases, norms and embeddings go without."""
    exempt: set[int] = set()
    for module in model.modules():
        if isinstance(module, (*_NORMS, nn.Embedding)):
            exempt.update(id(parameter) for parameter in module.parameters(recurse=False))
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or id(parameter) in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module, arguments: OptimizationArguments, heads: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer that the arguments name, for a model and the heads that train it, whose groups come last."""
    parts = [model] if heads is None else [model, heads]
    if arguments.optimizer == "adadelta":
        # As released: weight decay on everything.
        return torch.optim.Adadelta(
            [parameter for part in parts for parameter in part.parameters()],
            lr=arguments.learning_rate,
            eps=1e-6,
            weight_decay=arguments.weight_decay,
        )
    groups = [group for part in parts for group in parameter_groups(part, arguments.weight_decay)]
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, arguments.adam_beta2), fused=True)


class AveragedWeights:
    """Exponential moving average of a model's state.

    The decay starts low, `(1 + n) / (10 + n)` after n updates, so that the random start is forgotten early. Batch-norm
    statistics are averaged like weights: they then belong to the averaged weights of about the same moments, and the
    noise of batches that hold one size or one length of expression is averaged out as well.

    Args:
        model: Whose state is averaged. Its tensors must stay the same objects (values are changed in place).
        decay: Of the average, for each update; 0 follows the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._followed = dict(model.state_dict())
        self.state = {name: value.detach().clone() for name, value in self._followed.items()}
        floating = [name for name, value in self.state.items() if value.is_floating_point()]
        self._means = [self.state[name] for name in floating]
        self._values = [self._followed[name] for name in floating]
        self._counters = [name for name in self.state if name not in set(floating)]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's present state."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        torch._foreach_lerp_(self._means, self._values, 1 - decay)
        for name in self._counters:
            self.state[name].copy_(self._followed[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the model's state: call it twice around an evaluation."""
        for name, value in self._followed.items():
            kept = value.clone()
            value.copy_(self.state[name])
            self.state[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": self.updates, "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.updates = int(state["updates"])
        for name, value in state["state"].items():
            self.state[name].copy_(value)
