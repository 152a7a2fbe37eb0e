"""Any images with their LaTeX in `metadata.csv` or `metadata.jsonl`, as a source."""

import csv
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pictures import inside, read_crohme_style
from .source import Entry, PrepareError, Reader, Record, Source, order_splits, split_name, unique_ids

_METADATA = ("metadata.csv", "metadata.jsonl")
_SPLITS = frozenset(("train", "test", "val", "valid", "validation", "dev"))


@dataclass(frozen=True)
class ImageFolder(Source):
    """A folder with `metadata.csv` or `metadata.jsonl`, or one such folder for each split.

    Each line has `file_name` (relative to the metadata's folder) and `latex`, and may have `id`, `writer` and
    `source`. At the top, files whose first folder is named like a split belong to it, all others to `train`.
    """

    name = "imagefolder"
    title = "Handwritten mathematics"
    licence = "Not known to the program that wrote this card: say here what the images' licence is."
    origin = "A folder of images."
    drawing = """\
Brought to the field's form by the image processor of `abm_hf`, where they were not in it already: the ink is \
separated from the paper, scaled and redrawn with a pen of 3 px, 255 on 0."""
    default_vocabulary = "any"

    def entries(self) -> list[Entry]:
        """All lines of the metadata, by split, in their order."""
        entries = [entry for file in self._metadata() for entry in self._read_metadata(file)]
        if not entries:
            raise PrepareError(
                f"{self.path} has no metadata.csv or metadata.jsonl with lines of file_name and latex, "
                "neither at the top nor in a folder for each split"
            )
        order = {split: rank for rank, split in enumerate(order_splits(entry.split for entry in entries))}
        return unique_ids(sorted(entries, key=lambda entry: order[entry.split]))

    def _metadata(self) -> Iterator[Path]:
        if not self.path.is_dir():
            raise PrepareError(f"{self.path} is no folder")
        for folder in (self.path, *sorted(path for path in self.path.iterdir() if path.is_dir())):
            found = [folder / name for name in _METADATA if (folder / name).is_file()]
            if len(found) > 1:
                raise PrepareError(f"{folder} has both {' and '.join(_METADATA)}: leave one")
            yield from found

    def _read_metadata(self, metadata: Path) -> Iterator[Entry]:
        lines = list(_lines(metadata))
        columns = dict.fromkeys(column for _, line in lines for column in line)
        if lines and (lacking := [column for column in ("file_name", "latex") if column not in columns]):
            raise PrepareError(
                f"{metadata} has no column {' and no '.join(lacking)}; it has {', '.join(columns) or 'none'}: "
                "rename the one that holds it"
            )
        for number, line in lines:
            name, latex = line.get("file_name"), line.get("latex")
            if not isinstance(name, str) or not name or not (latex is None or isinstance(latex, str)):
                raise PrepareError(f"{metadata}, line {number}: file_name and latex must be text")
            path = inside(metadata.parent, name)
            file = path.relative_to(self.path.resolve()).as_posix()
            first = Path(file).parts[0]
            below = metadata.parent != self.path or (first in _SPLITS and len(Path(file).parts) > 1)
            split = split_name(first) if below else "train"
            status = path.stat() if path.is_file() else None
            stamp = (status.st_size, status.st_mtime_ns) if status else ()
            known = tuple(str(line[key]) if line.get(key) else None for key in ("source", "writer"))
            yield Entry(split, str(line.get("id") or Path(file).stem), file, (latex, *known), stamp)

    def open(self) -> AbstractContextManager[Reader]:
        """See [`Source.open`]."""
        return nullcontext(self._read)

    def _read(self, entry: Entry) -> Record:
        latex, source, writer = entry.key
        tokens = self.labels.tokens(latex)
        return Record(read_crohme_style(self.path / entry.file), tokens, source or self.name, writer)


def _lines(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a metadata file, with their numbers."""
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            if metadata.suffix == ".csv":
                rows = csv.DictReader(file, strict=True, skipinitialspace=True)
                for row in rows:
                    yield rows.line_num, {str(key).strip(): value for key, value in row.items()}
                return
            for number, text in enumerate(file, start=1):
                if text.strip():
                    line = json.loads(text)
                    if not isinstance(line, dict):
                        raise PrepareError(f"{metadata}, line {number}: expected an object, found {text[:60]!r}")
                    yield number, line
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise PrepareError(f"{metadata} cannot be read: {error}") from error
