"""The items of a training run: what is trained on, and what is set aside for validation."""

import hashlib
import logging
from typing import Any

import numpy as np

from ..arguments import ArgumentError
from ..data.items import Items, concatenate, load_split
from .arguments import DataArguments

logger = logging.getLogger(__name__)


def hold_out(items: Items, fraction: float) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, no writer (or form, or session) on both sides.

    Whole groups go to validation, in the order of a hash of their names, until the share is reached: the same items
    whatever the order of the data set.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(items.groups):
        members.setdefault(group, []).append(number)
    held: list[int] = []
    for group in sorted(members, key=_stable_hash):
        if len(held) >= fraction * len(items):
            break
        if len(held) + len(members[group]) < len(items):
            held += members[group]
    chosen = set(held)
    if not chosen:
        raise ArgumentError("a single writer cannot be divided: name a validation_split")
    return [number for number in range(len(items)) if number not in chosen], sorted(held)


def _stable_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_items(arguments: DataArguments, tokenizer: Any) -> tuple[Items, Items]:
    """Training and validation items, encoded.

    Raises:
        ArgumentError: For sources or splits that are missing or empty, or labels with unknown tokens.
    """
    sources = [source.strip() for source in arguments.data.split(",") if source.strip()]
    if not sources:
        raise ArgumentError("data names no source: give a directory, a Hub id or synthetic")
    options: dict[str, Any] = {
        "synthetic_items": arguments.synthetic_items,
        "max_label_tokens": arguments.max_label_tokens,
        "redrawn": arguments.augmentation == "ink",
    }
    loaded = {source: load_split(source, arguments.train_split, **options) for source in dict.fromkeys(sources)}
    parts = [loaded[source] for source in sources]
    if arguments.validation_split != "holdout":
        validation = load_split(arguments.validation_data or sources[0], arguments.validation_split, **options)
    else:
        _, held = hold_out(parts[0], arguments.validation_fraction)
        validation = parts[0].subset(held)
        groups = set(validation.groups)
        # From all parts: a source may be named twice, and others may have expressions by the same writers.
        parts = [part.subset([n for n, group in enumerate(part.groups) if group not in groups]) for part in parts]
    train = concatenate(parts)
    short = np.flatnonzero(train.lengths <= arguments.max_label_tokens)
    if len(short) < len(train):
        logger.warning("left out %d items with longer labels than max_label_tokens", len(train) - len(short))
    train = train.subset(short.tolist()[: arguments.max_train_items])
    validation = validation.subset(range(len(validation))[: arguments.max_validation_items])
    for items in (train, validation):
        items.encode(tokenizer)
    return train, validation
