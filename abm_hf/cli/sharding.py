"""One list of inputs, several processes, one file of JSON lines in order.

Process r of n takes every n-th input and appends what it read to a file of its own, `FILE.part-r`. Whoever finds all
inputs in these files writes them in order to the file itself. Nothing but the file system connects the processes: they
may be started by `torchrun`, by `accelerate launch`, by `--num-proc`, or by hand on machines that share a disk, and
any number of them may take up what others left.
"""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shard:
    """Which process this is.

    Args:
        index: from 0.
        count: processes in all.
        local_index: number among those on this machine; picks the GPU.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @classmethod
    def from_environment(cls) -> "Shard":
        """What `torchrun` and `accelerate launch` say in `RANK`, `WORLD_SIZE` and `LOCAL_RANK`; else all of it.

        Raises:
            ValueError: if these contradict each other.
        """
        index, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if not 0 <= index < count:
            raise ValueError(f"RANK={index} is not one of WORLD_SIZE={count} processes: set both, from 0, or neither")
        return cls(index, count, int(os.environ.get("LOCAL_RANK", index)))

    def share(self, items: Sequence[Any]) -> list[Any]:
        """Every n-th item: the same for a process whatever the others have done, and of all sizes."""
        return list(items[self.index :: self.count])


class PredictionFile:
    """JSON lines with a `"file"` each, written by one process or by several.

    Args:
        path: of the file; the parts lie beside it.
    """

    def __init__(self, path: Path):
        self.path = path

    def part(self, shard: Shard) -> Path:
        """Where a process appends: the file itself if there is no other process."""
        if shard.count == 1:
            return self.path
        return self.path.with_name(f"{self.path.name}.part-{shard.index:03d}")

    def parts(self) -> list[Path]:
        """The parts that are there, of this run and of earlier ones."""
        return sorted(self.path.parent.glob(f"{self.path.name}.part-*"))

    def names(self) -> set[str]:
        """Inputs that have been read, by whichever process; those that failed are to be tried again."""
        return {name for name, line in self._lines().items() if not _failed(line)}

    def mend(self, shard: Shard) -> None:
        """Takes off what a crash left unfinished in the part of this process.

        Raises:
            OSError: if it cannot be written.
            ValueError: if the file or the part holds something else than predictions.
        """
        for path in {self.path, self.part(shard)}:
            if not path.is_file():
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            *lines, torn = text.split("\n")
            begins_like_ours = torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)
            if not (begins_like_ours and all(map(_name, lines))):
                raise ValueError(f"{path} holds something else than predictions: choose another --output")
            if torn and path == self.part(shard):
                path.write_text(text[: len(text) - len(torn)], encoding="utf-8")

    def merge(self, names: Sequence[str]) -> bool:
        """Puts the parts together once they hold all `names`, in that order behind what the file held before.

        Returns:
            Whether the file is whole now.

        Raises:
            OSError: if it cannot be written.
        """
        parts = self.parts()
        lines = self._lines()
        if not lines.keys() >= set(names):
            return False
        if parts or len(lines) < _count_lines(self.path):
            wanted = set(names)
            earlier = [name for name in lines if name not in wanted]
            incoming = self.path.with_name(f".{self.path.name}.{platform.node()}-{os.getpid()}.incoming")
            incoming.write_text("".join(lines[name] for name in [*earlier, *dict.fromkeys(names)]), encoding="utf-8")
            incoming.replace(self.path)
            for part in parts:
                part.unlink(missing_ok=True)
        return True

    def _lines(self) -> dict[str, str]:
        """Lines by the name of their input. The last one counts, but an answer is worth more than a failure."""
        lines: dict[str, str] = {}
        for path in (self.path, *self.parts()):
            for name, line in _lines_of(path):
                if name not in lines or _failed(lines[name]) or not _failed(line):
                    lines[name] = line
        return lines


# How each line begins: see `commands.writing`.
_BEGINNING = '{"file": "'


def _lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Names of inputs and their whole lines; none if another process has just taken the file away."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.split("\n"):
        if name := _name(line):
            yield name, line + "\n"


def _count_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n") if path.is_file() else 0


def _name(line: str) -> str | None:
    """The input that a line is about; `None` if it is no line of predictions, or none that is whole."""
    try:
        return str(json.loads(line)["file"])
    except (ValueError, KeyError, TypeError):
        return None


def _failed(line: str) -> bool:
    return "error" in json.loads(line)
