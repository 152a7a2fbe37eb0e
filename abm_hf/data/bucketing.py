"""Batches of variable-size images: equal work, little padding, few shapes, and a position that can be saved.

Batches made by image area alone waste more than half of their pixels, because a wide and a tall image of equal area
meet. Here items are grouped by width, height and label length together; sizes are padded to multiples of a small grid,
so that the same shapes come back and kernels compiled for them are reused. The augmentation scale is drawn once for
each batch, which keeps the batch in one shape.

Everything is a pure function of (seed, epoch, position): neither the number of workers nor a restart changes a batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class BatchLimits:
    """What one batch may hold at most. An image that breaks a limit by itself still forms a batch of its own.

    Args:
        max_images: Images in a batch.
        max_pixels: Padded pixels in a batch, after scaling (images × padded height × padded width).
        max_tokens: Padded label tokens in a batch (images × longest label), the end token included.
        multiple: Padded heights and widths are multiples of these numbers of pixels.
    """

    max_images: int = 16
    max_pixels: int = 1_600_000
    max_tokens: int = 2_048
    multiple: tuple[int, int] = (32, 64)

    def __post_init__(self) -> None:
        for name in ("max_images", "max_pixels", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.multiple) < 1:
            raise ValueError(f"multiple must be two positive numbers of pixels, not {self.multiple}")


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum: from global batch number `start` on, only labels of at most `max_tokens` tokens.

    The end token is not counted. `max_images` overrides the limit on images while the stage lasts.
    """

    start: int = 0
    max_tokens: int = 10_000
    max_images: int | None = None


@dataclass(frozen=True)
class PlannedBatch:
    """What a worker needs to build one batch.

    Args:
        indices: Items of the data set.
        scale: Factors of height and width, drawn once for the batch; (1.0, 1.0) without augmentation.
        seed: Seeds the random numbers of the batch's augmentation.
        weight: Factor of the batch's mean loss that makes the average over the processes and accumulated batches of
            an optimizer step equal to the mean over all its images; 1.0 when all have the same number of images.
        step_images: Images of the whole optimizer step, over all processes.
        after: State of the sampler once this batch's optimizer step is done.
    """

    indices: tuple[int, ...]
    scale: tuple[float, float] = (1.0, 1.0)
    seed: tuple[int, ...] = (0,)
    weight: float = 1.0
    step_images: int = 0
    after: Mapping[str, int] | None = None


def padded_size(height: float, width: float, multiple: tuple[int, int]) -> tuple[int, int]:
    """Height and width rounded up to the grid, in pixels.

    The small constant forgives rounding errors of a scaled size that was meant to land on the grid exactly.
    """
    rows, columns = (
        math.ceil(size / step - 1e-6) * step for size, step in zip((height, width), multiple, strict=True)
    )
    return max(rows, multiple[0]), max(columns, multiple[1])


@dataclass(frozen=True)
class Sizes:
    """Heights and widths (pixels) and label lengths (tokens, without the end token) of all items, one entry each."""

    heights: np.ndarray
    widths: np.ndarray
    lengths: np.ndarray

    def fit(self, indices: np.ndarray, limits: BatchLimits, scale: float) -> bool:
        """Whether items scaled by `scale` may form one batch."""
        count = len(indices)
        if count <= 1:
            return True
        tall, wide = float(self.heights[indices].max()), float(self.widths[indices].max())
        rows, columns = padded_size(tall * scale, wide * scale, limits.multiple)
        return (
            count <= limits.max_images
            and count * rows * columns <= limits.max_pixels
            and count * (int(self.lengths[indices].max()) + 1) <= limits.max_tokens
        )


def divide(
    indices: np.ndarray, sizes: Sizes, limits: BatchLimits, rng: np.random.Generator, scale: float = 1.0
) -> list[np.ndarray]:
    """Divides items into batches of similar height, width and label length.

    Halves the set again and again across whichever of the three spreads most (in the logarithm), until each part keeps
    the limits. Where a set is cut, and the order of near ties, are random: each epoch groups differently. Grouping by
    label length as well costs a little padding of images and saves half of the padding of labels, which is what the
    decoders' time goes into.
    """
    features = np.stack(
        [
            np.log(sizes.heights[indices]),
            np.log(sizes.widths[indices]),
            _LENGTH_WEIGHT * np.log(sizes.lengths[indices] + _LENGTH_OFFSET),
        ],
        axis=1,
    )
    features += rng.uniform(-_JITTER, _JITTER, features.shape)
    waiting, batches = [np.arange(len(indices))], []
    while waiting:
        part = waiting.pop()
        if sizes.fit(indices[part], limits, scale):
            batches.append(indices[part])
            continue
        spread = features[part].max(axis=0) - features[part].min(axis=0)
        place = _place_to_cut(len(part), limits.max_images, rng)
        order = np.argpartition(features[part, int(spread.argmax())], place - 1)
        waiting += [part[order[:place]], part[order[place:]]]
    return batches


# The time of a batch, measured, goes with its padded pixels times (0.6 + 0.0335 · padded label tokens).
_COST_OF_PIXEL = 0.6
_COST_OF_TOKEN = 0.0335
# Found by minimising that for an epoch on CROHME's sizes: 16 % less than grouping by width and height alone.
_LENGTH_WEIGHT = 0.4
_LENGTH_OFFSET = 6
_JITTER = 0.03


def _like_next_to_like(costs: np.ndarray, group: int, begun: int, rng: np.random.Generator) -> list[int]:
    """An order in which every `group` batches in a row cost about the same, and is random otherwise.

    The first batches complete a group of which `begun` are done; what is left over at the end is random as well.
    """
    shuffled = rng.permutation(len(costs))
    first = min(-begun % group, len(costs))
    last = (len(costs) - first) % group
    head, middle, tail = np.split(shuffled, [first, len(costs) - last])
    groups = middle[np.argsort(costs[middle], kind="stable")].reshape(-1, group)
    return [*head.tolist(), *groups[rng.permutation(len(groups))].ravel().tolist(), *tail.tolist()]


def _place_to_cut(count: int, full: int, rng: np.random.Generator) -> int:
    """Where to cut `count` items in two: about the middle, at a multiple of a full batch where there are several."""
    if count <= full:
        return count // 2
    place = round(count * rng.uniform(0.4, 0.6) / full) * full
    return min(max(place, full), (count - 1) // full * full)


def cut_by_area(indices: np.ndarray, sizes: Sizes, limits: BatchLimits) -> list[np.ndarray]:
    """Batches of consecutive items by ascending area, as the original ABM made them."""
    area = sizes.heights[indices].astype(np.int64) * sizes.widths[indices]
    order = indices[np.argsort(area, kind="stable")]
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or not sizes.fit(order[start : end + 1], limits, 1.0):
            batches.append(order[start:end])
            start = end
    return batches


def snap_scale(
    height: int, width: int, scale: float, multiple: tuple[int, int], tolerance: float
) -> tuple[float, float]:
    """Stretches the scale of height and of width by at most `tolerance` so that the largest sides land on the grid.

    An augmented size is arbitrary anyway: choosing it on the grid removes most of the padding that rounding up costs.
    """
    factors = []
    for size, step in zip((height, width), multiple, strict=True):
        target = max(1, round(size * scale / step)) * step
        snapped = target / size
        factors.append(snapped if abs(snapped / scale - 1) <= tolerance else scale)
    return factors[0], factors[1]


class BucketBatchSampler:
    """An endless, reproducible stream of batches over epochs, shared by processes without overlap or loss.

    The stream's batches are numbered globally. Batch number b belongs to process `b % world_size`; an optimizer step
    takes `world_size * accumulation` consecutive batches. As the stream goes on over the end of an epoch, no batch is
    dropped or repeated to make epochs divisible. Give it to `DataLoader(batch_sampler=…)`; the data set reads a
    [`PlannedBatch`] in `__getitems__`.

    Args:
        heights (`np.ndarray` of shape `(items,)`): Pixels.
        widths (`np.ndarray` of shape `(items,)`): Pixels.
        lengths (`np.ndarray` of shape `(items,)`): Tokens of the labels, without the end token.
        limits: What a batch may hold.
        seed: Of all random choices.
        stages: Curriculum, by ascending start; the first starts at 0.
        scale_range: Smallest and largest augmentation scale; (1.0, 1.0) turns scaling (and snapping) off.
        snap: Largest relative stretch used to land on the grid, see [`snap_scale`].
        order: `"bucket"` as described above, `"area"` for the original ABM scheme: batches made once by ascending
            area, whole batches shuffled.
        rank: Number of this process.
        world_size: Number of processes.
        accumulation: Batches that each process accumulates for one optimizer step.

    Raises:
        ValueError: Without items, with inconsistent arrays, or when a stage admits no item.
    """

    def __init__(
        self,
        heights: Sequence[int] | np.ndarray,
        widths: Sequence[int] | np.ndarray,
        lengths: Sequence[int] | np.ndarray,
        limits: BatchLimits | None = None,
        *,
        seed: int = 0,
        stages: Sequence[Stage] = (Stage(),),
        scale_range: tuple[float, float] = (1.0, 1.0),
        snap: float = 0.08,
        order: str = "bucket",
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        self.sizes = Sizes(np.asarray(heights), np.asarray(widths), np.asarray(lengths))
        self.limits = limits or BatchLimits()
        self.seed, self.stages, self.snap = seed, tuple(stages), snap
        self.scale_range, self.order = scale_range, order
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self._check()
        self._state = {"consumed": 0, "epoch": 0, "position": 0, "stage": 0}

    def _check(self) -> None:
        if not len(self.sizes.heights) == len(self.sizes.widths) == len(self.sizes.lengths):
            raise ValueError("heights, widths and lengths must have one entry for each item")
        if len(self.sizes.heights) == 0:
            raise ValueError("there are no items to make batches of: the training split is empty")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range must be two ascending positive numbers, not {self.scale_range}")
        if self.order not in ("bucket", "area"):
            raise ValueError(f'order must be "bucket" or "area", not {self.order!r}')
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} does not exist among {self.world_size} processes")
        starts = [stage.start for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(starts):
            raise ValueError(f"the stages' starts must ascend from 0, not {starts}")
        shortest = int(self.sizes.lengths.min())
        for stage in self.stages:
            if stage.max_tokens < shortest:
                raise ValueError(
                    f"no label has at most {stage.max_tokens} tokens (the shortest has {shortest}): raise the limit"
                )

    def stage_at(self, consumed: int) -> int:
        """Number of the stage that global batch `consumed` belongs to."""
        return max(number for number, stage in enumerate(self.stages) if stage.start <= consumed)

    def plan_epoch(self, epoch: int, stage: int, begun: int = 0) -> list[PlannedBatch]:
        """All batches of an epoch over the items that the stage admits, in training order.

        Batches of one optimizer step cost about the same, so that no process waits for another one.

        Args:
            epoch, stage: Numbers of the epoch and of the curriculum's stage.
            begun: Batches that the step which was under way at the start of the epoch already has.
        """
        rng = np.random.default_rng([self.seed, epoch])
        limit = self.stages[stage]
        limits = self.limits
        if limit.max_images is not None:
            limits = BatchLimits(limit.max_images, limits.max_pixels, limits.max_tokens, limits.multiple)
        indices = np.flatnonzero(self.sizes.lengths <= limit.max_tokens)
        if self.order == "area":
            batches = [(batch, (1.0, 1.0)) for batch in cut_by_area(indices, self.sizes, limits)]
        else:
            batches = self._scaled(divide(indices, self.sizes, limits, rng), limits, rng)
        costs = np.array([self._cost(batch, scale) for batch, scale in batches])
        order = _like_next_to_like(costs, self.world_size * self.accumulation, begun, rng)
        return [
            PlannedBatch(tuple(batches[number][0].tolist()), batches[number][1], (self.seed, epoch, place))
            for place, number in enumerate(order)
        ]

    def _cost(self, batch: np.ndarray, scale: tuple[float, float]) -> float:
        tall, wide = self.sizes.heights[batch].max() * scale[0], self.sizes.widths[batch].max() * scale[1]
        rows, columns = padded_size(float(tall), float(wide), self.limits.multiple)
        tokens = int(self.sizes.lengths[batch].max()) + 1
        return len(batch) * rows * columns * (_COST_OF_PIXEL + _COST_OF_TOKEN * tokens)

    def _scaled(
        self, batches: list[np.ndarray], limits: BatchLimits, rng: np.random.Generator
    ) -> list[tuple[np.ndarray, tuple[float, float]]]:
        """Draws a scale for each batch; one that grows over the limits is divided further."""
        low, high = self.scale_range
        if (low, high) == (1.0, 1.0):
            return [(batch, (1.0, 1.0)) for batch in batches]
        scaled = []
        for batch in batches:
            # Uniform in the logarithm: halving and doubling are equally likely.
            scale = math.exp(rng.uniform(math.log(low), math.log(high)))
            for part in divide(batch, self.sizes, limits, rng, scale):
                scaled.append((part, self._scale_of(part, scale)))
        return scaled

    def _scale_of(self, batch: np.ndarray, scale: float) -> tuple[float, float]:
        tall, wide = int(self.sizes.heights[batch].max()), int(self.sizes.widths[batch].max())
        if len(batch) == 1:  # nothing to divide: a picture is not enlarged beyond the limit
            scale = min(scale, max(1.0, math.sqrt(self.limits.max_pixels / (tall * wide)) - self.snap))
        snapped = snap_scale(tall, wide, scale, self.limits.multiple, self.snap)
        rows, columns = padded_size(tall * snapped[0], wide * snapped[1], self.limits.multiple)
        return snapped if len(batch) * rows * columns <= self.limits.max_pixels else (scale, scale)

    def batches_per_epoch(self) -> int:
        """Batches of an epoch over all items (an estimate where scales are drawn: they change how many fit)."""
        return len(self.plan_epoch(0, len(self.stages) - 1))

    def __iter__(self) -> Iterator[PlannedBatch]:
        state = dict(self._state)
        group_size = self.world_size * self.accumulation
        plan: list[PlannedBatch] = []
        planned: tuple[int, int] | None = None
        while True:
            group: list[PlannedBatch] = []
            while len(group) < group_size:
                if not group and self.stage_at(state["consumed"]) != state["stage"]:
                    state.update(epoch=state["epoch"] + 1, position=0, stage=self.stage_at(state["consumed"]))
                if planned != (state["epoch"], state["stage"]):
                    planned = (state["epoch"], state["stage"])
                    plan = self.plan_epoch(*planned, begun=(state["consumed"] - state["position"]) % group_size)
                if state["position"] >= len(plan):
                    state.update(epoch=state["epoch"] + 1, position=0)
                    continue
                group.append(plan[state["position"]])
                state["position"] += 1
                state["consumed"] += 1
            yield from self._mine(group, state)

    def _mine(self, group: list[PlannedBatch], state: dict[str, int]) -> Iterator[PlannedBatch]:
        images = sum(len(batch.indices) for batch in group)
        for batch in group[self.rank :: self.world_size]:
            # Each process divides by `accumulation` and the processes average: this undoes both.
            weight = len(batch.indices) * len(group) / images
            yield PlannedBatch(batch.indices, batch.scale, batch.seed, weight, images, dict(state))

    def state_dict(self) -> dict[str, int]:
        """Where iteration starts. After training on a batch, the state to keep is that batch's `after`."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration start at `state`."""
        missing = self._state.keys() - state.keys()
        if missing:
            raise ValueError(f"the sampler's state lacks {sorted(missing)}: it was written by another version")
        self._state = {name: int(state[name]) for name in self._state}
