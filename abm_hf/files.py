"""Files that are written as a whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that it is either the old or the new one, never a part."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, data: bytes) -> None:
    """Writes a file so that it is either the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.incoming")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is either the old or the new one, never a part."""
    replace_text(path, json.dumps(value, indent=1, sort_keys=True))


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power failure, where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows does not open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
