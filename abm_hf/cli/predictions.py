"""The file of JSON lines that `abm-hf recognize --output` appends to, and resumes after it was stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# How each line begins, see `writing.py`: so a line cut short is told from something else.
_BEGINNING = '{"file": "'


def resume(path: Path, options: Mapping[str, Any]) -> set[str]:
    """Names of the inputs that have an answer in the file.

    Inputs that failed are taken out of the file, to be tried again, and so is a line that a crash cut short.

    Args:
        path: of the file, which need not exist.
        options: all that the answers depend on; each line has them too.

    Raises:
        OSError: if it cannot be read or written.
        ValueError: if it holds something else than predictions, or some made with other options.
    """
    if not path.is_file():
        return set()
    text = path.read_text(encoding="utf-8", errors="replace")
    *lines, torn = text.split("\n")
    records = [_parse(line) for line in lines]
    if None in records or not (torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)):
        raise ValueError(f"{path} holds something else than predictions: choose another --output")
    kept = {}
    for line, record in zip(lines, records, strict=True):
        assert record is not None
        if "error" in record:
            continue
        if changes := _changes(record.get("options"), options):
            raise ValueError(f"{path} has answers made with {changes}: choose another --output, or delete it")
        kept[record["file"]] = line + "\n"
    if (whole := "".join(kept.values())) != text:
        incoming = path.with_name(f".{path.name}.incoming")
        incoming.write_text(whole, encoding="utf-8")
        incoming.replace(path)
    return set(kept)


def _changes(before: Any, now: Mapping[str, Any]) -> str:
    """What differs, in words; empty if nothing does."""
    if not isinstance(before, dict):
        return "options that it does not tell"
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return ", ".join(f"{name} {json.dumps(before.get(name))} (now {json.dumps(now.get(name))})" for name in names)


def _parse(line: str) -> dict[str, Any] | None:
    """A line of predictions; `None` if it is something else."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("file"), str) else None
