"""When what happens: learning rate and curriculum as functions of the optimizer step.

A run is a list of legs. The first one has warm-up, a constant rate and a cosine decay over its planned steps, and the
curriculum is laid out over it. Extending a run adds a leg from the step it had reached: a new warm-up from the rate of
that moment to the peak, constant again, and a new decay; the curriculum stays where the first leg put it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..data.bucketing import Stage
from .arguments import OptimizationArguments

UNLIMITED = 1_000_000


@dataclass(frozen=True)
class Leg:
    """Steps `start` (inclusive) to `end` (exclusive) of a run, with the rate that the leg starts from."""

    start: int
    end: int
    initial_rate: float = 0.0


@dataclass
class Plateau:
    """Halves the rate after `patience` evaluations without a lower validation loss."""

    best: float = math.inf
    waited: int = 0
    reductions: int = 0

    def update(self, loss: float, patience: int) -> None:
        """Takes the loss of an evaluation."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > patience:
            self.waited, self.reductions = 0, self.reductions + 1

    @property
    def factor(self) -> float:
        """What the rate is multiplied by."""
        return 0.5**self.reductions


def learning_rate(step: int, legs: Sequence[Leg], arguments: OptimizationArguments) -> float:
    """Rate of optimizer step `step` (from 0), without the plateau's factor."""
    leg = next((leg for leg in legs if leg.start <= step < leg.end), legs[-1])
    done, peak = step - leg.start, arguments.learning_rate
    warmup = min(arguments.warmup_steps, (leg.end - leg.start) // 4)
    if done < warmup:
        return leg.initial_rate + (peak - leg.initial_rate) * (done + 1) / (warmup + 1)
    if arguments.schedule == "plateau":
        return peak
    decay_start = arguments.decay_from * (leg.end - leg.start)
    if done < decay_start:
        return peak
    progress = min(1.0, (done - decay_start) / max(1.0, leg.end - leg.start - decay_start))
    floor = arguments.final_learning_rate
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def extended(legs: Sequence[Leg], step: int, max_steps: int, arguments: OptimizationArguments) -> list[Leg]:
    """The legs of a run that has reached `step` and shall go on to `max_steps`."""
    if max_steps <= step:
        raise ValueError(f"the run is at step {step} already: extending it needs a larger max_steps than {max_steps}")
    kept = [Leg(leg.start, min(leg.end, step), leg.initial_rate) for leg in legs if leg.start < step]
    rate = learning_rate(step - 1, legs, arguments) if step else 0.0
    return [*kept, Leg(step, max_steps, rate)]


def curriculum(planned_steps: int, batches_per_step: int, arguments: OptimizationArguments) -> list[Stage]:
    """The curriculum in global batch numbers, the sampler's unit."""
    stages = [
        Stage(
            start=math.ceil(fraction * planned_steps) * batches_per_step,
            max_tokens=min(tokens or UNLIMITED, UNLIMITED),
            max_images=images or None,
        )
        for fraction, tokens, images in arguments.stages()
    ]
    return stages or [Stage(max_tokens=UNLIMITED)]


def legs_to_state(legs: Sequence[Leg]) -> list[dict[str, float]]:
    """For a checkpoint."""
    return [asdict(leg) for leg in legs]


def legs_from_state(state: Sequence[Mapping[str, float]]) -> list[Leg]:
    """From a checkpoint."""
    return [Leg(int(leg["start"]), int(leg["end"]), float(leg["initial_rate"])) for leg in state]
