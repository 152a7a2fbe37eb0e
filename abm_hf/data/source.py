"""What every data source gives to `prepare`: a list of entries, and a way to read each of them.

A source lists its entries without reading ink or images, so that shards can be planned before any work is done, and
reads them one at a time, so that memory does not grow with the data set. It must be picklable: worker processes get a
copy and open their own files.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..file_names import escape_name
from ..ink.strokes import Ink
from ..latex.normalization import CONVENTIONS, CROHME_TOKENS, normalize_latex

#: Splits that `datasets` accepts.
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
#: The label is kept as published, tokens checked against the vocabulary and nothing else.
AS_PUBLISHED = "published"


class PrepareError(ValueError):
    """The input, the output or an option cannot be used; the message says what to do instead."""


class SkipEntry(ValueError):
    """One expression cannot be kept.

    Args:
        kind (`str`): What is at fault: `ink`, `image`, `label` or `file`.
        reason (`str`): One sentence.
        detail (`str`, *optional*): What the report groups by, such as the token that is not in the vocabulary.
    """

    def __init__(self, kind: str, reason: str, detail: str | None = None) -> None:
        super().__init__(kind, reason, detail)
        self.kind, self.reason, self.detail = kind, reason, detail

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Entry:
    """One expression that a source lists.

    Args:
        split: The split it belongs to.
        id: Its name.
        file: Where it stands, relative to the input, for reports.
        key: What the source needs to read it; its `repr` is part of the plan's fingerprint.
        stamp: Size and time of change of its file, by which a resumed run knows that it is the same.
    """

    split: str
    id: str
    file: str
    key: Any = None
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True)
class Record:
    """One expression, read: its image in the field's form (uint8 (H, W), ink 255 on 0), tokens, and what is known."""

    image: np.ndarray
    tokens: list[str]
    source: str
    writer: str | None = None
    ink: Ink | None = None


@dataclass(frozen=True)
class LabelRule:
    """How raw labels become tokens.

    Args:
        convention: One of [`CONVENTIONS`] (see `latex.py`), or `published` to keep the tokens that are there.
        vocabulary: The tokens that may occur; `None` admits all that the grammar knows.
    """

    convention: str = "abm"
    vocabulary: frozenset[str] | None = CROHME_TOKENS

    def __post_init__(self) -> None:
        if self.convention not in (*CONVENTIONS, AS_PUBLISHED):
            choices = ", ".join((*CONVENTIONS, AS_PUBLISHED))
            raise PrepareError(f"unknown label convention {self.convention!r}: choose one of {choices}")

    def tokens(self, raw: str | None) -> list[str]:
        """Tokens of a raw label.

        Raises:
            SkipEntry: There is no label, or a token cannot be kept.
            LatexError: The label cannot be normalised.
        """
        if raw is None or not raw.strip():
            raise SkipEntry("label", "there is no label", "none")
        if escape_name(raw) != raw:
            raise SkipEntry("label", f"the label is no text: {raw!r}", "no text")
        if self.convention != AS_PUBLISHED:
            return normalize_latex(raw, convention=self.convention, vocabulary=self.vocabulary)
        tokens = raw.split()
        unknown = sorted(set(tokens) - self.vocabulary) if self.vocabulary is not None else []
        if unknown:
            raise SkipEntry("label", f"tokens outside the vocabulary: {' '.join(unknown)}", unknown[0])
        return tokens


Reader = Callable[[Entry], Record]


@dataclass(frozen=True)
class Source(ABC):
    """A data set in one of the forms that the field uses.

    Args:
        path: Folder or file that holds it.
        labels: How labels are normalised.
    """

    path: Path
    labels: LabelRule

    #: Name on the command line, and title, licence, description and images' origin for the card.
    name = ""
    title = ""
    licence = "other"
    origin = ""
    drawing = ""
    #: Used where the caller names none.
    default_convention = "abm"
    default_vocabulary = "crohme"

    @abstractmethod
    def entries(self) -> list[Entry]:
        """All expressions, in an order that depends on the input alone.

        Raises:
            PrepareError: The input is not laid out as this source needs it.
        """

    @abstractmethod
    def open(self) -> AbstractContextManager[Reader]:
        """A function that reads entries, valid inside the `with` block.

        The function raises `SkipEntry`, or the `ValueError` of the reader concerned, where an entry cannot be kept.
        """


def split_name(folder: str) -> str:
    """The split that a folder's name stands for: a bare year is a test set, all else is itself.

    Raises:
        PrepareError: `datasets` could not load a split of that name.
    """
    name = f"test{folder}" if re.fullmatch(r"\d{4}", folder) else folder.replace("-", "_")
    if not _SPLIT_NAME.fullmatch(name):
        raise PrepareError(f"{folder!r} cannot name a split: rename it with letters, digits and underscores")
    return name


def order_splits(names: Iterable[str]) -> list[str]:
    """Training splits first, then validation, then the rest by name."""
    ranks = {"train": 0, "val": 1, "valid": 1, "validation": 1}
    return sorted(set(names), key=lambda name: (ranks.get(name, 2), name))


def unique_ids(entries: Iterable[Entry]) -> list[Entry]:
    """Entries with ids that are unique within their split: one that occurs again gets its file's path instead."""
    entries = list(entries)
    seen = Counter((entry.split, entry.id) for entry in entries)
    return number_repeated(
        replace(entry, id=str(PurePosixPath(entry.file).with_suffix(""))) if seen[entry.split, entry.id] > 1 else entry
        for entry in entries
    )


def number_repeated(entries: Iterable[Entry]) -> list[Entry]:
    """Gives the second and later entries of one id a number: `name`, `name#2`, ..."""
    seen: Counter[tuple[str, str]] = Counter()
    result = []
    for entry in entries:
        seen[entry.split, entry.id] += 1
        count = seen[entry.split, entry.id]
        result.append(entry if count == 1 else replace(entry, id=f"{entry.id}#{count}"))
    return result
