"""From items to batches: pictures varied and scaled as planned, and the loader."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.bucketing import BucketBatchSampler, PlannedBatch
from ..data.collator import ABMCollator
from ..data.items import Items
from ..ink.augmentation import AugmentConfig, augment_image, augment_ink
from ..ink.rendering import HEIGHT, MARGIN, render_ink
from ..ink.strokes import Ink
from .arguments import DataArguments
from .placement import pad_cells, token_cells


@dataclass
class LoadedBatch:
    """Tensors for the model, the plan they were made by and the names of the items."""

    tensors: dict[str, torch.Tensor]
    planned: PlannedBatch
    ids: list[str]

    def pin_memory(self) -> "LoadedBatch":
        """Called by the loader to speed up copies to a GPU."""
        self.tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return self


class Drawing(NamedTuple):
    """The image of an item, uint8 (H, W), and where its ink is on it.

    Args:
        ink: As it was drawn; `None` where only the image was at hand.
        box: Left, top, right and bottom of the ink's points, in pixels.
    """

    image: np.ndarray
    ink: Ink | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


Variation = Callable[[Items, int, np.random.Generator, tuple[float, float]], Drawing]
"""Draws an item in the size that a plan's scale gives it, varied by a generator."""

# The size is the plan's affair; the rest as far as ink of the same writer varies from day to day.
_INK = AugmentConfig(scale=(1.0, 1.0), stretch=(0.88, 1.14))
_BRUSHES, _BRUSH_SHARES = (2, 3, 4), (0.1, 0.8, 0.1)


def scale_only(items: Items, index: int, rng: np.random.Generator, scale: tuple[float, float]) -> Drawing:
    """The picture itself, scaled."""
    image, height, width = items.images[index], *_frame(items, index, scale)
    if scale != (1.0, 1.0):
        shrinks = scale[0] * scale[1] < 1
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    down, across = MARGIN * scale[0], MARGIN * scale[1]
    return Drawing(image, _ink(items, index), (across, down, width - across, height - down))


def vary_image(items: Items, index: int, rng: np.random.Generator, scale: tuple[float, float]) -> Drawing:
    """The picture slanted, rotated, stretched, bent, with thicker or thinner strokes, see [`augment_image`]."""
    return Drawing(augment_image(items.images[index], rng, scale=scale))


def vary_ink(items: Items, index: int, rng: np.random.Generator, scale: tuple[float, float]) -> Drawing:
    """The item's ink varied stroke by stroke and drawn anew, as sharp as the field's images are at every scale.

    The drawing is fitted into the frame that the plan expects. Items without ink are varied as images.
    """
    ink = _ink(items, index)
    if ink is None:
        return vary_image(items, index, rng, scale)
    height, width = _frame(items, index, scale)
    return draw_into(augment_ink(ink, rng, _INK), height, width, rng)


def draw_into(ink: Ink, height: int, width: int, rng: np.random.Generator) -> Drawing:
    """Draws ink as large as the frame allows, at a random place where there is room, with a random brush."""
    rows, columns = (size - 2 * MARGIN for size in render_ink(ink).shape)  # of the ink alone, at the usual size
    margin = min(MARGIN, height // 6, width // 6)
    room = (height - 2 * margin) / max(rows, 1), (width - 2 * margin) / max(columns, 1)
    brush = int(rng.choice(_BRUSHES, p=_BRUSH_SHARES))
    drawn = render_ink(ink, height=HEIGHT * min(room), thickness=brush, margin=margin)[:height, :width]
    frame = np.zeros((height, width), np.uint8)
    top = int(rng.integers(height - drawn.shape[0] + 1))
    left = int(rng.integers(width - drawn.shape[1] + 1))
    frame[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    box = (left + margin, top + margin, left + drawn.shape[1] - margin, top + drawn.shape[0] - margin)
    return Drawing(frame, ink, box)


def _ink(items: Items, index: int) -> Ink | None:
    return items.inks[index] if items.inks is not None else None


def _frame(items: Items, index: int, scale: tuple[float, float]) -> tuple[int, int]:
    height, width = (max(1, round(int(size) * factor)) for size, factor in zip(items.sizes[index], scale, strict=True))
    return height, width


VARIATIONS: dict[str, Variation] = {"none": scale_only, "image": vary_image, "ink": vary_ink}
"""By the value of the argument `augmentation`."""


class PlannedDataset(Dataset[LoadedBatch]):
    """Builds whole batches from [`PlannedBatch`] plans; all its randomness comes from the plan's seed.

    Args:
        items: Encoded items.
        collator: Makes the tensors.
        vary: Makes the picture of an item.
        stride: Pixels for each feature position, to add the tensor `token_cells`, see [`token_cells`]; 0: without.
    """

    def __init__(self, items: Items, collator: ABMCollator, vary: Variation = scale_only, stride: int = 0) -> None:
        self.items, self.collator, self.vary, self.stride = items, collator, vary, stride

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, planned: PlannedBatch) -> LoadedBatch:
        rng = np.random.default_rng(planned.seed)
        examples, cells = [], []
        for index in planned.indices:
            image, ink, box = self.vary(self.items, index, rng, planned.scale)
            examples.append({"image": image, "labels": self.items.labels[index]})
            if self.stride:
                cells.append(token_cells(ink, box, image.shape, self.stride))
        tensors = self.collator(examples)
        if self.stride:
            grid = [-(-side // self.stride) for side in tensors["pixel_values"].shape[-2:]]
            tensors["token_cells"] = pad_cells(cells, (tensors["labels"].shape[1], *grid))
        return LoadedBatch(tensors, planned, [self.items.ids[i] for i in planned.indices])


def make_loader(dataset: PlannedDataset, sampler: BucketBatchSampler, arguments: DataArguments, pin: bool) -> Any:
    """A loader over the sampler's endless stream."""
    plans: Any = sampler  # typed for lists of indices; a plan is what this data set takes
    keep: Any = _as_is
    return DataLoader(
        dataset,
        batch_sampler=plans,
        collate_fn=keep,
        num_workers=arguments.num_workers,
        prefetch_factor=arguments.prefetch if arguments.num_workers else None,
        worker_init_fn=_start_worker,
        pin_memory=pin,
    )


def _as_is(batch: LoadedBatch) -> LoadedBatch:
    return batch


def _start_worker(_: int) -> None:
    # One thread each: the workers' own parallelism is their number.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # What is sent to a whole group or job (Ctrl-C, a cluster's manager) makes the main process stop in order, for
    # which it still needs its workers. They end when it leaves the loader, or has ended itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
