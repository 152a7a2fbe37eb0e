"""Prepared expressions as Parquet: the columns, one shard from its entries, and ink back from a row.

Written with Arrow alone: a worker process needs neither `datasets` nor torch, and starts with 100 MB less.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..file_names import escape_name
from ..image_loading_abm import ImageInputError
from ..ink.alignment import strokes_of_tokens, written_places
from ..ink.strokes import Ink, InkError, Symbol
from ..latex.normalization import LatexError
from .offline import OfflineError
from .source import Entry, PrepareError, Reader, Record, SkipEntry

#: Rows that are held in memory, and that a streaming reader fetches at once.
ROW_GROUP = 256

_POINT = pa.list_(pa.field("item", pa.float32()))
_STRING = {"dtype": "string", "_type": "Value"}
_SIZE = {"dtype": "int32", "_type": "Value"}
_FEATURES = {
    "id": _STRING,
    "image": {"_type": "Image"},
    "ink": {
        "feature": {"feature": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}, "_type": "List"},
        "_type": "List",
    },
    "symbols": {"feature": {"feature": _SIZE, "_type": "List"}, "_type": "List"},
    "latex": _STRING,
    "tokens": {"feature": _STRING, "_type": "List"},
    "source": _STRING,
    "writer": _STRING,
    "width": _SIZE,
    "height": _SIZE,
}

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("ink", pa.list_(pa.list_(_POINT))),
        ("symbols", pa.list_(pa.list_(pa.int32()))),
        ("latex", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("source", pa.string()),
        ("writer", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},  # how `datasets` tells an image
)
"""Columns of a prepared data set.

`image` is a PNG of mode L; `ink` has the strokes as lists of [x, y] or [x, y, t], or null where the source has no ink;
`symbols` has the numbers of the strokes of every token that is written (not of braces and scripts), in the label's
order, or null where they are not known; `width` and `height` are the image's, in pixels, for batching without
decoding.
"""


@dataclass
class ShardStatistics:
    """What one shard adds to the report; all counts, so that the shards' order does not matter.

    Args:
        read: Entries read.
        skipped: One mapping for each entry that was left out: `split`, `id`, `file`, `kind`, `reason`, `detail`.
        tokens, lengths, widths, heights, sources: How often each token, label length (tokens), width and height
            (pixels) and source occurs among those kept. Keys are strings, as JSON has no others.
        writers: Rows by writer.
        pixels: Sum of the images' areas.
        has_ink: Rows with ink.
    """

    read: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    widths: Counter[str] = field(default_factory=Counter)
    heights: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    writers: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    has_ink: int = 0

    @property
    def kept(self) -> int:
        """Rows written."""
        return self.read - len(self.skipped)

    def count(self, record: Record) -> None:
        """Adds an expression that was kept."""
        height, width = record.image.shape
        self.tokens.update(record.tokens)
        self.lengths[str(len(record.tokens))] += 1
        self.widths[str(width)] += 1
        self.heights[str(height)] += 1
        self.sources[record.source] += 1
        if record.writer is not None:
            self.writers[record.writer] += 1
        self.pixels += height * width
        self.has_ink += record.ink is not None

    def add(self, other: "ShardStatistics") -> None:
        """Adds another shard's counts."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardStatistics":
        """The reverse of `to_json`."""
        counters = {name for name, value in vars(cls()).items() if isinstance(value, Counter)}
        values: dict[str, Any] = {n: Counter(value) if n in counters else value for n, value in data.items()}
        return cls(**values)


def write_shard(
    path: Path, entries: Iterable[Entry], read: Reader, advance: Callable[[], object] = lambda: None
) -> ShardStatistics:
    """Reads entries and writes those that can be kept to a Parquet file, all of it or nothing.

    Args:
        path: Where the file goes; it appears there when it is complete.
        entries: In the order of the rows.
        read: From [`Source.open`].
        advance: Called after each entry.
    """
    statistics = ShardStatistics()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Dictionaries where values repeat; for the rest they would only be tried in vain.
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd", use_dictionary=["source", "writer"]) as writer:
            kept: list[tuple[Entry, Record]] = []
            for entry in entries:
                record = _read_or_skip(entry, read, statistics)
                if record is not None:
                    kept.append((entry, record))
                if len(kept) == ROW_GROUP:
                    writer.write_table(_to_table(kept), row_group_size=ROW_GROUP)
                    kept = []
                advance()
            if kept:
                writer.write_table(_to_table(kept), row_group_size=ROW_GROUP)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return statistics


def _read_or_skip(entry: Entry, read: Reader, statistics: ShardStatistics) -> Record | None:
    statistics.read += 1
    try:
        record = read(entry)
    except SkipEntry as error:
        kind, reason, detail = error.kind, error.reason, error.detail
    except InkError as error:
        # The file is told by the entry; the error's own has the machine's folders in front.
        reason = error.reason if error.line is None else f"line {error.line}: {error.reason}"
        kind, detail = "ink", None
    except LatexError as error:
        kind, reason, detail = "label", str(error), error.token
    except (ImageInputError, OfflineError) as error:
        kind, reason, detail = "image", getattr(error, "reason", None) or str(error), None
    else:
        # Folders and files may have given these.
        writer = record.writer and escape_name(record.writer)
        record = replace(record, source=escape_name(record.source), writer=writer)
        statistics.count(record)
        return record
    skip = {"split": entry.split, "id": entry.id, "file": entry.file, "kind": kind, "reason": reason, "detail": detail}
    statistics.skipped.append({name: text and escape_name(text) for name, text in skip.items()})
    return None


def _to_table(kept: Sequence[tuple[Entry, Record]]) -> pa.Table:
    records = [record for _, record in kept]
    columns = {
        "id": [escape_name(entry.id) for entry, _ in kept],
        "image": [{"bytes": _to_png(record.image), "path": None} for record in records],
        "ink": _ink_column([record.ink for record in records]),
        "symbols": [strokes_of_tokens(record.ink, record.tokens) if record.ink else None for record in records],
        "latex": [" ".join(record.tokens) for record in records],
        "tokens": [record.tokens for record in records],
        "source": [record.source for record in records],
        "writer": [record.writer for record in records],
        "width": [record.image.shape[1] for record in records],
        "height": [record.image.shape[0] for record in records],
    }
    return pa.table(columns, schema=SCHEMA)


def _to_png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", image)
    if not done:
        raise PrepareError(f"an image of shape {image.shape} cannot be written as PNG")
    return data.tobytes()


def _ink_column(inks: Sequence[Ink | None]) -> pa.Array:
    """Strokes as nested lists, built from arrays: as Python objects they would take thirty times the memory."""
    strokes = [stroke for ink in inks if ink is not None for stroke in _compact(ink)]
    values = np.concatenate([stroke.ravel() for stroke in strokes]) if strokes else np.zeros(0, np.float32)
    columns = np.repeat([stroke.shape[1] for stroke in strokes], [len(stroke) for stroke in strokes])
    points = pa.ListArray.from_arrays(_offsets(columns), pa.array(values, pa.float32()))
    lines = pa.ListArray.from_arrays(_offsets([len(stroke) for stroke in strokes]), points)
    counts = [0 if ink is None else len(ink.strokes) for ink in inks]
    missing = pa.array([ink is None for ink in inks])
    return pa.ListArray.from_arrays(_offsets(counts), lines, mask=missing)


def _offsets(lengths: Sequence[int] | np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())


def _compact(ink: Ink) -> list[np.ndarray]:
    """Strokes in float32. Time counts from the first point: float32 cannot hold milliseconds since 1970."""
    if ink.strokes[0].shape[1] == 2:
        return [stroke.astype(np.float32) for stroke in ink.strokes]
    start = np.array([0.0, 0.0, min(float(stroke[:, 2].min()) for stroke in ink.strokes)])
    return [(stroke - start).astype(np.float32) for stroke in ink.strokes]


def ink_from_row(row: Mapping[str, Any]) -> Ink | None:
    """The ink of a row of a prepared data set, or `None` where it has none.

    Coordinates are stored in float32 and come back as the shortest decimals that these stand for. Those are the
    decimals of the source, in whose last digit `render_ink` measures, wherever it has at most six digits; longer ones
    come back to seven or eight. Times count from the first point of the ink.

    Its `symbols` are those of the column of that name, one for each token that is written, in the order of the label.

    Args:
        row (`Mapping`): With the columns `ink`, `latex` and `writer`, and perhaps `symbols`.

    Raises:
        InkError: The column holds no ink.
    """
    if row["ink"] is None:
        return None
    strokes = [np.asarray(stroke, np.float32).astype("U32").astype(np.float64) for stroke in row["ink"]]
    annotations = {"writer": row["writer"]} if row.get("writer") else {}
    return Ink(tuple(strokes), label=row.get("latex"), symbols=_symbols(row), annotations=annotations)


def _symbols(row: Mapping[str, Any]) -> tuple[Symbol, ...]:
    if row.get("symbols") is None:
        return ()
    tokens = row["latex"].split()
    return tuple(Symbol(tokens[p], tuple(s)) for p, s in zip(written_places(tokens), row["symbols"], strict=True))
