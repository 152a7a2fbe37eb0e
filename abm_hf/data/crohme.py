"""CROHME: the raw InkML tree and the field's offline bitmaps, as sources for `prepare`; and `load_crohme`."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ink.inkml import read_inkml
from ..ink.rendering import render_ink
from ..ink.strokes import Ink
from .offline import OfflineError, find_splits, open_offline, read_captions, read_image, writer_group
from .source import (
    Entry,
    PrepareError,
    Reader,
    Record,
    SkipEntry,
    Source,
    number_repeated,
    order_splits,
    split_name,
    unique_ids,
)

_LICENCE = """\
CROHME's data is for research and non-commercial use, under the terms of its organisers and of the six collections \
it is made of (HAMEX, KAIST, MathBrush, MfrDB, ExpressMatch and an extension). Keep this data set private unless \
those terms allow you more, and say in the card of a model trained on it that they apply."""

_ORIGIN_RULES = (
    (re.compile(r"formulaire\d+-equation\d+"), "HAMEX"),
    (re.compile(r"(KME|TrainData)\w*_sub_\d+"), "KAIST"),
    (re.compile(r"\d+-\d+-\d+"), "MathBrush"),
    (re.compile(r"MfrDB\d+"), "MfrDB"),
    (re.compile(r"\d+_em_\d+|form\d+-equation\d+"), "extension"),
    (re.compile(r"\d+_[A-Za-z]+\d*"), "expressmatch"),
)


def origin_of(name: str) -> str | None:
    """The collection that a file of CROHME's training set is from, by its name's pattern."""
    for pattern, origin in _ORIGIN_RULES:
        if pattern.fullmatch(name):
            return origin
    return None


def writer_of(name: str) -> str | None:
    """The writer (or the session, form or sheet of one writer) that a CROHME file name tells, if it does."""
    ours = re.fullmatch(r"(\d+)_em_\d+", name)
    if ours:
        return ours.group(1)
    group = writer_group(name)
    # MfrDB's groups are guesses, made for splitting only.
    return group if group != name and not name.startswith("MfrDB") else None


@dataclass(frozen=True)
class InkFolderSource(Source):
    """InkML files in one folder for each split, drawn by `render_ink`."""

    drawing = """\
Drawn from the ink by the field's rule (`abm_hf.ink.rendering`): the mean height of the tall traces becomes 28 px, \
lines of one pixel are widened by a 3 × 3 square, 13 px of margin, ink 255 on 0."""

    def entries(self) -> list[Entry]:
        """All `.inkml` files, by split, then by path."""
        root = self.root()
        entries = []
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            split = split_name(folder.name)
            for path, stamp in _files(folder, ".inkml"):
                file = path.relative_to(root).as_posix()
                entries.append(Entry(split, path.stem, file, stamp=stamp))
        if not entries:
            raise PrepareError(
                f"{self.path} has no split folders with .inkml files (such as train/ or test2014/): "
                "--input names the folder that holds them"
            )
        order = {split: rank for rank, split in enumerate(order_splits(entry.split for entry in entries))}
        return unique_ids(sorted(entries, key=lambda entry: (order[entry.split], entry.file)))

    def root(self) -> Path:
        """The folder that holds the splits: the input, or the only folder in it."""
        if not self.path.is_dir():
            raise PrepareError(f"{self.path} is no folder: unpack the archive, and name the folder it gives")
        inside = [path for path in self.path.iterdir() if not path.name.startswith(".")]
        if len(inside) == 1 and inside[0].is_dir() and not any(inside[0].glob("*.inkml")):
            below = [path for path in inside[0].iterdir() if path.is_dir()]
            if any(next(path.rglob("*.inkml"), None) for path in below) and not _is_split(inside[0].name):
                return inside[0]
        return self.path

    def open(self) -> Any:
        """See [`Source.open`]."""
        return nullcontext(_InkReader(self, self.root()))

    def raw_label(self, ink: Ink) -> str | None:
        """The label to normalise."""
        return ink.label

    def source_of(self, entry: Entry) -> str:
        """What the column `source` says."""
        raise NotImplementedError

    def writer_of(self, entry: Entry, ink: Ink) -> str | None:
        """Who wrote it, where known."""
        writer = ink.annotations.get("writer", "").strip()
        return writer if writer and writer.lower() != "unknown" else None


def _is_split(name: str) -> bool:
    return re.fullmatch(r"(train|test|val|valid|validation|symbols|synthetic)?(\d{4})?", name) is not None


@dataclass(frozen=True)
class _InkReader:
    source: InkFolderSource
    root: Path

    def __call__(self, entry: Entry) -> Record:
        try:
            ink = read_inkml(self.root / entry.file)
        except OSError as error:
            raise SkipEntry("file", f"cannot be read: {error.strerror}") from error
        tokens = self.source.labels.tokens(self.source.raw_label(ink))
        writer = self.source.writer_of(entry, ink)
        return Record(render_ink(ink), tokens, self.source.source_of(entry), writer, ink)


def _files(folder: Path, suffix: str) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Files below a folder with that suffix and their stamps, in order. Links to folders are not followed."""
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda child: child.name)
    for child in children:
        if child.is_dir(follow_symlinks=False):
            yield from _files(Path(child.path), suffix)
        elif child.name.lower().endswith(suffix) and not child.name.startswith("."):
            status = child.stat()
            yield Path(child.path), (status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class CrohmeInkML(InkFolderSource):
    """The raw CROHME tree: `train/<origin>/*.inkml`, `test2013/*.inkml`, `test2014/*.inkml`, and later years."""

    name = "crohme-inkml"
    title = "CROHME (from ink)"
    licence = _LICENCE
    origin = "CROHME's InkML files: the competitions on recognition of online handwritten mathematical expressions."

    def source_of(self, entry: Entry) -> str:
        """The origin, which is the folder below the split, or the split where there is none."""
        parts = Path(entry.file).parts
        return parts[1] if len(parts) > 2 else entry.split

    def writer_of(self, entry: Entry, ink: Ink) -> str | None:
        """From the annotations, or else from the file's name."""
        return super().writer_of(entry, ink) or writer_of(Path(entry.file).stem)


@dataclass(frozen=True)
class CrohmeOffline(Source):
    """CROHME's published bitmaps, a zip or folder as BTTR and CoMER use it; see `offline.py`."""

    name = "crohme-offline"
    title = "CROHME (published bitmaps)"
    licence = _LICENCE
    origin = "The bitmaps and captions that WAP, BTTR, ABM and CoMER were trained and tested on."
    drawing = "As published: 3 px strokes, 255 on 0."
    default_convention = "published"

    def entries(self) -> list[Entry]:
        """All captions, by split, in the order of `caption.txt`."""
        status = self.path.stat() if self.path.is_file() else None
        stamp = (status.st_size, status.st_mtime_ns) if status else ()
        entries = []
        try:
            with open_offline(self.path) as root:
                folders = {split_name(name): folder for name, folder in find_splits(root).items()}
                if len(folders) < len(find_splits(root)):
                    raise PrepareError(f"{self.path} has two folders for one split, as 2014 and test2014: leave one")
                for split in order_splits(folders):
                    for line in read_captions(folders[split]):
                        file = f"{folders[split].name}/img/{line.name}"
                        entries.append(
                            Entry(split, line.name, file, (folders[split].name, line.name, line.latex), stamp)
                        )
        except OfflineError as error:
            raise PrepareError(str(error)) from error
        if not entries:
            raise PrepareError(f"{self.path} has no folder with a caption.txt, such as train/ or 2014/")
        return number_repeated(entries)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """See [`Source.open`]."""
        with open_offline(self.path) as root:
            folders = find_splits(root)

            def read(entry: Entry) -> Record:
                folder, name, latex = entry.key
                tokens = self.labels.tokens(latex)
                image = read_image(folders[folder], name)
                source = (origin_of(name) if entry.split == "train" else None) or entry.split
                return Record(image, tokens, source, writer_of(name))

            yield read


def load_crohme(path: str | os.PathLike[str], *, output: str | os.PathLike[str] | None = None, **options: Any) -> Any:
    """CROHME as a `datasets.DatasetDict`, from any form of it.

    Args:
        path (`str` or `os.PathLike`): A prepared data set, which is loaded; or CROHME's InkML tree or its offline zip
            or folder, which is prepared first.
        output (`str` or `os.PathLike`, *optional*): Where to keep what is prepared. By default below the cache
            directory of `datasets`, so that the next call finds it.
        options: For [`prepare_dataset`][abm_hf.data.prepare.prepare_dataset]: `convention`, `num_proc`, ...

    Returns:
        `datasets.DatasetDict` with the splits `train`, `test2013`, `test2014`, ... as far as they are there.

    Raises:
        PrepareError: `path` is nothing of the kind, or more than 1 % of it cannot be read.
        FileNotFoundError: `path` does not exist.
    """
    from .prepare import is_prepared, load_prepared, prepare_cached, prepare_dataset

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if is_prepared(path):
        if options or output is not None:
            raise PrepareError(f"{path} is prepared already: options are for CROHME's own files")
        return load_prepared(path)
    offline = path.is_file() or any(path.glob("*/caption.txt")) or any(path.glob("data/*/caption.txt"))
    name = CrohmeOffline.name if offline else CrohmeInkML.name
    if output is None:
        return load_prepared(prepare_cached(name, path, **options))
    prepare_dataset(name, path, output, **options)
    return load_prepared(Path(output))
