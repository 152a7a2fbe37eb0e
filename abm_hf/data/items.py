"""From the name of a data source to items: labelled expressions, as training and evaluation take them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..arguments import ArgumentError
from ..ink.strokes import Ink
from .collator import label_ids
from .offline import OfflineError, read_offline, writer_group
from .shards import ink_from_row

PRELOAD_PIXELS = 2_000_000_000
"""Data sets up to this size (bytes of decoded pixels) are decoded once and kept in memory."""


@dataclass
class Items:
    """Labelled expressions of one split.

    Args:
        ids: Names.
        latex: Token strings.
        images: uint8 (H, W), ink bright; a list, or any sequence that decodes on access.
        sizes (`np.ndarray` of shape `(items, 2)`): Heights and widths in pixels.
        groups: Who wrote each item, as far as known; items of one writer stay on one side of a split.
        labels: Token ids with the end token; set by [`Items.encode`].
        inks: The strokes behind the images, `None` for items without; the whole is `None` where no item has any.
    """

    ids: list[str]
    latex: list[str]
    images: Sequence[np.ndarray]
    sizes: np.ndarray
    groups: list[str]
    labels: list[list[int]] = field(default_factory=list)
    inks: Sequence[Ink | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each label, without the end token."""
        return np.array([len(latex.split()) for latex in self.latex], dtype=np.int64)

    def encode(self, tokenizer: Any) -> None:
        """Turns the token strings into ids.

        Raises:
            ArgumentError: Naming the first item with an unknown token.
        """
        self.labels = []
        for name, latex in zip(self.ids, self.latex, strict=True):
            try:
                self.labels.append(label_ids(tokenizer, latex))
            except ValueError as error:
                raise ArgumentError(f"item {name!r}: {error}; normalise the labels or leave the item out") from error

    def subset(self, indices: Sequence[int]) -> "Items":
        """The items at `indices`."""
        return Items(
            [self.ids[i] for i in indices],
            [self.latex[i] for i in indices],
            Selected(self.images, indices),
            self.sizes[list(indices)],
            [self.groups[i] for i in indices],
            [self.labels[i] for i in indices] if self.labels else [],
            Selected(self.inks, indices) if self.inks is not None else None,
        )

    def fingerprint(self) -> str:
        """Hash of names, labels and sizes: tells whether a resumed run sees the same data."""
        digest = hashlib.sha256(np.ascontiguousarray(self.sizes, dtype=np.int64).tobytes())
        for name, latex in zip(self.ids, self.latex, strict=True):
            digest.update(f"{name}\t{latex}\n".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Selected(Sequence[Any]):
    """A view of some entries of a sequence, without decoding them."""

    source: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.source[self.indices[index]]


@dataclass(frozen=True)
class Chained(Sequence[Any]):
    """Several sequences one after the other."""

    parts: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise AssertionError("a part changed its length")


@dataclass(frozen=True)
class EncodedImages(Sequence[np.ndarray]):
    """Images of a `datasets` column, decoded on access."""

    column: Any

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        cell = self.column[int(index)]["image"]
        data = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise ArgumentError(f"the image of item {index} cannot be decoded: prepare the data set again")
        return image


@dataclass(frozen=True)
class StoredInks(Sequence[Ink | None]):
    """Ink of a table of `datasets`, read on access, in the decimals of the source; see [`ink_from_row`]."""

    table: Any

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        return ink_from_row(self.table[int(index)])


def load_split(
    source: str, split: str, *, synthetic_items: int = 2000, max_label_tokens: int = 200, redrawn: bool = False
) -> Items:
    """Reads a split of a data source.

    Args:
        source: `synthetic`, a prepared directory, CROHME's offline zip or folder, or a Hub id.
        split: Its name.
        synthetic_items: Size of the training split of `synthetic`; the others have a tenth of it, and 32 at least.
        max_label_tokens: Longest label of `synthetic`.
        redrawn: Whether ink is drawn anew for each batch, so that its images need not be kept decoded.

    Raises:
        ArgumentError: When the source or the split is not there or empty; the message lists the splits there are.
    """
    if source == "synthetic":
        items = _synthetic(split, synthetic_items, max_label_tokens)
    elif Path(source).is_file() or _is_offline(Path(source)):
        try:
            items = _from_offline(source, split)
        except OfflineError as error:
            raise ArgumentError(str(error)) from error
    else:
        items = _from_datasets(source, split, redrawn)
    if not len(items):
        raise ArgumentError(f"the split {split!r} of {source} is empty")
    return items


def _is_offline(folder: Path) -> bool:
    return any(folder.glob("*/caption.txt")) or any(folder.glob("data/*/caption.txt"))


def _from_offline(source: str, split: str) -> Items:
    items = read_offline(source, split)
    return Items(
        [item.id for item in items],
        [item.latex for item in items],
        [item.image for item in items],
        np.array([item.image.shape for item in items]).reshape(-1, 2),
        [writer_group(item.id) for item in items],
    )


def _from_datasets(source: str, split: str, redrawn: bool) -> Items:
    import datasets

    try:
        if Path(source).is_dir() and (Path(source) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(source)
        else:
            found = datasets.load_dataset(source)
    except Exception as error:  # a damaged file, no such id, no network: each library on the way has its own errors
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ArgumentError(f"{source} is no data set that can be read: {reason[0]}") from error
    if split not in found:
        hint = "" if split == "train" else "; `holdout` sets aside a part of the training split"
        raise ArgumentError(f"{source} has no split {split!r}; it has {', '.join(found)}{hint}")
    table = found[split]
    missing = {"image", "latex"} - set(table.column_names)
    if missing:
        raise ArgumentError(f"{source} lacks the columns {sorted(missing)}: write it with `abm-hf prepare`")
    return _from_table(table, redrawn)


def _from_table(table: Any, redrawn: bool) -> Items:
    import datasets

    names = table["id"] if "id" in table.column_names else range(len(table))
    writers = table["writer"] if "writer" in table.column_names else [None] * len(table)
    ids = [str(name) for name in names]
    images: Sequence[np.ndarray] = EncodedImages(
        table.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    )
    if {"height", "width"} <= set(table.column_names):
        sizes = np.array([table["height"], table["width"]], dtype=np.int64).T
    else:
        sizes = np.array([image.shape for image in images], dtype=np.int64)
    # Where ink is drawn anew for each batch, images are hardly looked at: decoded, they would only take memory.
    if sizes.prod(axis=1).sum() <= PRELOAD_PIXELS and not (redrawn and "ink" in table.column_names):
        images = list(images)
    groups = [str(writer or writer_group(name)) for writer, name in zip(writers, ids, strict=True)]
    with_ink = [name for name in ("ink", "symbols", "latex", "writer") if name in table.column_names]
    inks = StoredInks(table.select_columns(with_ink)) if "ink" in with_ink else None
    return Items(ids, list(table["latex"]), images, sizes.reshape(-1, 2), groups, inks=inks)


def _synthetic(split: str, size: int, max_tokens: int) -> Items:
    from ..ink.rendering import render_ink
    from ..synthetic.expressions import synthetic_ink

    # Splits draw from separate ranges of seeds, so that no expression of one is in the other by construction of ink.
    count = size if split == "train" else max(32, size // 10)
    first = 0 if split == "train" else 1_000_000_000
    longest = min(80, max_tokens)
    inks = [synthetic_ink(seed, max_tokens=longest) for seed in range(first, first + count)]
    images = [render_ink(ink) for ink in inks]
    return Items(
        [f"{split}-{number}" for number in range(count)],
        [ink.label or "" for ink in inks],
        images,
        np.array([image.shape for image in images]),
        [f"{split}-{number}" for number in range(count)],
        inks=inks,
    )


def concatenate(parts: Sequence[Items]) -> Items:
    """All items of `parts` in order."""
    if len(parts) == 1:
        return parts[0]
    return Items(
        [name for part in parts for name in part.ids],
        [latex for part in parts for latex in part.latex],
        Chained([part.images for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        [group for part in parts for group in part.groups],
        inks=Chained([part.inks if part.inks is not None else [None] * len(part) for part in parts]),
    )


def evaluation_batches(items: Items, max_images: int, max_pixels: int) -> Iterator[list[int]]:
    """Indices in batches of similar size, the largest images first, so that lack of memory shows at once."""
    heights, widths = items.sizes[:, 0], items.sizes[:, 1]
    batch: list[int] = []
    for index in np.lexsort((heights, widths // 64))[::-1].tolist():
        grown = [*batch, index]
        if batch and (
            len(grown) > max_images or len(grown) * int(heights[grown].max()) * int(widths[grown].max()) > max_pixels
        ):
            yield batch
            grown = [index]
        batch = grown
    if batch:
        yield batch
