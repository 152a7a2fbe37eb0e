"""What `prepare` is going to write, and what of it is there: shards, planned before any work starts."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import replace_text
from .source import Entry, PrepareError, Source

#: Folder for notes inside the output.
STATE = ".prepare"
#: Files beside the shards.
WRITTEN = ("README.md", "report.json", "sizes.png", "skipped.jsonl")
#: Part of every plan: raised when the same input is to give other bytes, so that no half-finished run is continued.
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """Some entries of a split that one file will hold."""

    split: str
    index: int
    count: int
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}"


def plan_shards(source: Source, shard_size: int, splits: Sequence[str] | None = None) -> list[Shard]:
    """Divides a source's entries into files.

    Raises:
        PrepareError: The input has no such split, or none at all.
    """
    by_split: dict[str, list[Entry]] = {}
    for entry in source.entries():
        by_split.setdefault(entry.split, []).append(entry)
    unknown = set(splits or ()) - set(by_split)
    if unknown or not by_split:
        raise PrepareError(f"{source.path} has the splits {', '.join(by_split) or 'none'}, not {', '.join(unknown)}")
    shards = []
    for split, entries in by_split.items():
        if splits is None or split in splits:
            count = -(-len(entries) // shard_size)
            parts = [tuple(entries[at : at + shard_size]) for at in range(0, len(entries), shard_size)]
            shards += [Shard(split, index, count, part) for index, part in enumerate(parts)]
    return shards


def fingerprint(source: Source, shards: Sequence[Shard]) -> str:
    """Hash of all that the bytes depend on: source, options, and the names, sizes and times of the files."""
    labels = source.labels
    vocabulary = sorted(labels.vocabulary) if labels.vocabulary is not None else None
    digest = hashlib.sha256(json.dumps([FORMAT, source.name, labels.convention, vocabulary]).encode())
    for shard in shards:
        digest.update(f"\n{shard.name}".encode())
        for entry in shard.entries:
            digest.update(f"\n{entry!r}".encode())
    return digest.hexdigest()


def claim(output: Path, print_of_plan: str, overwrite: bool) -> None:
    """Makes the folder ready for this plan.

    Raises:
        PrepareError: It holds something else.
    """
    plan = output / STATE / "plan"
    if output.exists() and not output.is_dir():
        raise PrepareError(f"{output} is a file: name a folder")
    if plan.is_file() and plan.read_text(encoding="utf-8").strip() == print_of_plan:
        for left in (output / "data").glob(".*.tmp"):  # from a process that was killed
            left.unlink()
        return
    if output.is_dir() and any(output.iterdir()):
        if not plan.is_file():
            raise PrepareError(f"{output} is not empty, and no data set of ours: name a new folder")
        if not overwrite:
            raise PrepareError(
                f"{output} holds a data set of another input, other options or another version: name a new folder, "
                "or pass overwrite (--overwrite) to replace it"
            )
        for name in (STATE, "data"):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in WRITTEN:
            (output / name).unlink(missing_ok=True)
    plan.parent.mkdir(parents=True, exist_ok=True)
    replace_text(plan, print_of_plan + "\n")


def paths(output: Path, shard: Shard) -> tuple[Path, Path]:
    """Where a shard goes, and the note that it is finished."""
    return output / "data" / f"{shard.name}.parquet", output / STATE / f"{shard.name}.json"


def finished(output: Path, shard: Shard) -> dict[str, Any] | None:
    """The note on a shard that is there already: its size in bytes, hash and statistics."""
    data, state = paths(output, shard)
    try:
        note: dict[str, Any] = json.loads(state.read_text(encoding="utf-8"))
        return note if data.stat().st_size == note["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None
