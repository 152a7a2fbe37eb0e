"""Recognizes a split, its batches shared by processes, into one file; an evaluation that was stopped is resumed."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..arguments import ArgumentError
from ..data.items import Items, evaluation_batches
from ..files import write_json
from ..inference.base import BaseRecognizer
from ..inference.loading import Engine, load_recognizer
from ..pretrained import CheckpointError

# What may differ between the runs that fill one folder.
_UNIMPORTANT = frozenset({"output_dir", "cpu", "batch_images", "batch_pixels", "gallery", "store"})


def load_for_evaluation(path: str, device: torch.device, engine: Engine) -> BaseRecognizer:
    """The recognizer of a checkpoint.

    Raises:
        ArgumentError: for an unknown engine.
        CheckpointError: if there is no such checkpoint, or it cannot be loaded.
    """
    if engine not in get_args(Engine):
        raise ArgumentError(f"engine must be one of {', '.join(get_args(Engine))}, not {engine!r}")
    try:
        return load_recognizer(path, device, engine)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot load {path}: {str(error).strip().splitlines()[0]}") from error


def open_output_folder(output_dir: str, options: Mapping[str, Any], accelerator: Accelerator) -> Path:
    """The output folder, made or taken up again.

    Args:
        output_dir: the folder.
        options: all that the evaluation depends on, and more: names of model and data do not tell what is in them.
        accelerator: which process this is.

    Raises:
        ArgumentError: if it holds another evaluation or something else, or cannot be written.
    """
    folder = Path(output_dir)
    described = {name: value for name, value in options.items() if name not in _UNIMPORTANT}
    record = folder / "evaluation.json"
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if changed := sorted(name for name in described if before.get(name) != described[name]):
            raise ArgumentError(
                f"{folder} holds another evaluation ({', '.join(changed)} changed): choose another output_dir, or "
                "delete it"
            )
    if not record.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ArgumentError(f"{folder} holds something else: choose an empty output_dir")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(record, described)
        except OSError as error:
            raise ArgumentError(f"cannot write to {folder}: {error.strerror}") from error
    accelerator.wait_for_everyone()
    return folder


def read_items(
    items: Items,
    read: Callable[[list[np.ndarray]], list[dict[str, Any]]],
    folder: Path,
    accelerator: Accelerator,
    max_images: int,
    max_pixels: int,
) -> list[dict[str, Any]]:
    """Reads what has not been read yet; processes share the batches, and the main one appends to the file.

    Args:
        items: pictures with labels.
        read: a batch of images, `uint8` (H, W) with ink bright, to what is kept of each.
        folder: whose `answers.jsonl` gets a line for each item.
        accelerator: which process this is.
        max_images, max_pixels: most pictures and padded pixels in a batch.

    Returns:
        For each item its `id`, its `reference` and what was kept of it, in order.

    Raises:
        ArgumentError: if two items have the same id, by which they are kept apart.
    """
    if len(set(items.ids)) < len(items):
        twice = next(name for name, count in Counter(items.ids).items() if count > 1)
        raise ArgumentError(f"several items have the id {twice!r}: give each its own")
    path = folder / "answers.jsonl"
    rows = _rows(path)
    accelerator.wait_for_everyone()  # nobody writes before all have seen the same
    missing = items.subset([index for index, name in enumerate(items.ids) if name not in rows])
    batches = list(evaluation_batches(missing, max_images, max_pixels)) if len(missing) else []
    for start in tqdm(
        range(0, len(batches), accelerator.num_processes), disable=not accelerator.is_local_main_process, unit="batch"
    ):
        fresh: list[dict[str, Any]] = []
        for batch in batches[start : start + accelerator.num_processes][accelerator.process_index :][:1]:
            for index, kept in zip(batch, read([missing.images[index] for index in batch]), strict=True):
                fresh.append({"id": missing.ids[index], "reference": missing.latex[index], **kept})
        fresh = gather_object(fresh)
        if accelerator.is_main_process:
            _append(path, fresh)
        rows |= {row["id"]: row for row in fresh}
    return [rows[name] for name in items.ids]


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if torn else "")  # a line cut short by a crash must not take the next one with it
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """By id, all that was written; a line cut short by a crash does not count."""
    rows = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.split("\n"):  # not at what else Unicode calls the end of one
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["id"]] = row
    return rows
