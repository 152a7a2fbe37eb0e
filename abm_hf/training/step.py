"""One optimizer step as a plain function."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from .data import LoadedBatch
from .run import Run

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss was not finite in two steps in a row."""


@dataclass
class StepResult:
    """What one optimizer step did.

    Args:
        losses: The loss and its components, averaged over the images of this process.
        gradient_norm: Before clipping.
        images: Of all processes.
        finite: Whether the step was made; otherwise nothing was changed.
    """

    losses: dict[str, float]
    gradient_norm: float
    images: int
    finite: bool


def training_step(run: Run, batches: Sequence[LoadedBatch]) -> StepResult:
    """One optimizer step over the batches accumulated on this process.

    The batches' weights make the gradient the mean over all images of all processes. When the loss or the gradient is
    not finite on any process, no process changes anything.
    """
    run.model.train()
    statistics = [buffer for buffer in run.bare_model.buffers() if buffer.is_floating_point()]
    before = torch._foreach_add(statistics, 0.0)
    losses = _backward(run, batches)
    norm = _clip(run)
    names, values = list(losses), torch.stack([*losses.values(), norm.float()])
    finite = _finite_everywhere(run, values[names.index("loss")], norm)
    if finite:
        run.optimizer.step()
        run.average.update()
    else:
        _undo(run, statistics, before)
    run.optimizer.zero_grad(set_to_none=True)
    *numbers, norm_value = values.tolist()
    return StepResult(dict(zip(names, numbers, strict=True)), norm_value, batches[0].planned.step_images, finite)


def seed_step(seed: int, step: int, part: int) -> None:
    """Seeds dropout for one batch, so that nothing but the numbers given decides it.

    The factors keep seeds apart for any run of less than a million steps with less than 4,099 batches each.
    """
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + part)


def _backward(run: Run, batches: Sequence[LoadedBatch]) -> dict[str, torch.Tensor]:
    """Accumulates the gradient; returns the weighted mean of the loss and of its components."""
    accelerator = run.accelerator
    losses: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches):
        part = number * accelerator.num_processes + accelerator.process_index
        seed_step(run.arguments.run.seed, run.progress.step, part)
        tensors = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.tensors.items()}
        share = batch.planned.weight / len(batches)
        # Processes exchange gradients once, after the last batch.
        with nullcontext() if number == len(batches) - 1 else accelerator.no_sync(run.model):
            output = run.model(**tensors, **({"step": run.progress.step} if run.heads is not None else {}))
            accelerator.backward(output.loss * share)
        for name, value in {"loss": output.loss, **output.loss_components}.items():
            losses[name] = losses.get(name, 0.0) + share * value.detach().float()
    return losses


def _clip(run: Run) -> torch.Tensor:
    limit = run.arguments.optimization.max_grad_norm or math.inf
    heads = run.heads.parameters() if run.heads is not None else ()
    norm = run.accelerator.clip_grad_norm_([*run.bare_model.parameters(), *heads], limit)
    assert norm is not None
    return norm


def _finite_everywhere(run: Run, loss: torch.Tensor, norm: torch.Tensor) -> bool:
    finite = torch.isfinite(loss)
    if run.accelerator.scaler is None:  # the scaler of fp16 meets infinite gradients by design, and skips them
        finite = finite & torch.isfinite(norm)
    if run.accelerator.num_processes > 1:
        finite = run.accelerator.reduce(finite.float(), reduction="sum") == run.accelerator.num_processes
    return bool(finite)


def _undo(run: Run, statistics: list[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
    """Undoes what a batch without a finite loss did to the batch-norm statistics, and to the scaler of fp16."""
    with torch.no_grad():
        torch._foreach_copy_(statistics, list(before))
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()


def check_finite(run: Run, result: StepResult, batches: Sequence[LoadedBatch]) -> None:
    """Names a batch that was skipped.

    Raises:
        NonFiniteLossError: At the second one in a row.
    """
    progress = run.progress
    if result.finite:
        progress.non_finite = 0
        return
    progress.non_finite += 1
    names = ", ".join(name for batch in batches for name in batch.ids)
    loss, norm = result.losses["loss"], result.gradient_norm
    logger.warning("step %d skipped: loss %s, gradient norm %s; items: %s", progress.step, loss, norm, names)
    if progress.non_finite >= 2:
        kept = run.directory.checkpoints.steps()
        last = f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"the loss was not finite in two steps in a row (step {progress.step}: loss {loss}, gradient norm {norm}; "
            f"items: {names}); {last}. Lower learning_rate or max_grad_norm, or use mixed_precision no"
        )
