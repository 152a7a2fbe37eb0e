"""Checkpoints that survive anything: written aside, renamed when complete, verified when read.

output_dir/
  run.json                     hyper-parameters and data of the run: what a resumed run must agree with
  metrics.jsonl                one line for each logging and evaluation step
  training_curve.png
  checkpoints/step-00001000/   state.pt and manifest.json with its size and SHA-256
  best/                        the best model so far, for `from_pretrained`
  final/                       the last one
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..files import sync_folder, write_json

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what is left and what to do."""


class RunDirectoryError(ValueError):
    """The output directory cannot be used for this run."""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: Where they are.
        keep: How many; older ones are removed after a newer one is complete.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        if not self.folder.is_dir():
            return []
        found = [_STEP.fullmatch(entry.name) for entry in self.folder.iterdir()]
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and removes the oldest ones.

        Raises:
            CheckpointError: When it cannot be written (a full disk, for example). The earlier ones are untouched.
        """
        target = self.path(step)
        incoming = self.folder / f".incoming-{step:08d}"
        try:
            self._remove_incoming()
            incoming.mkdir(parents=True)
            with (incoming / "state.pt").open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            size = (incoming / "state.pt").stat().st_size
            write_json(incoming / "manifest.json", {"size": size, "sha256": _digest(incoming / "state.pt")})
            if target.exists():
                shutil.rmtree(target)
            incoming.rename(target)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(incoming, ignore_errors=True)
            raise CheckpointError(self.explain(f"write the checkpoint of step {step}", error)) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        return target

    def _remove_incoming(self) -> None:
        for left_over in self.folder.glob(".incoming-*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def explain(self, failed: str, error: Exception) -> str:
        """One line on what could not be done and why, what is left, and what to do."""
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # torch.save reports a failed write as a RuntimeError without an errno.
        full = full or shutil.disk_usage(self.folder.parent).free < 1 << 20
        reason = "the disk is full" if full else str(error)
        kept = self.steps()
        last = f"the last good checkpoint is {self.path(kept[-1])}" if kept else "there is no earlier checkpoint"
        remedy = "make room" if full else "put that right"
        return f"cannot {failed}: {reason}; {last}. To go on, {remedy} and give the same command"

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """Newest checkpoint that is whole, as (step, state); `None` when there is none at all.

        Damaged ones are skipped with a warning.

        Raises:
            CheckpointError: When there are checkpoints but all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self._load(step)
            except (OSError, ValueError, RuntimeError, KeyError, EOFError) as error:
                logger.warning("checkpoint %s is damaged (%s): falling back to the one before", self.path(step), error)
        if steps:
            raise CheckpointError(f"all checkpoints in {self.folder} are damaged: remove them to start anew")
        return None

    def _load(self, step: int) -> dict[str, Any]:
        folder = self.path(step)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        size = (folder / "state.pt").stat().st_size
        if size != manifest["size"]:
            raise ValueError(f"state.pt has {size} bytes instead of {manifest['size']}")
        if _digest(folder / "state.pt") != manifest["sha256"]:
            raise ValueError("state.pt does not match its checksum")
        return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder and puts it in the place of `target`.

    Raises:
        CheckpointError: When it cannot be written; `target` is then as before.
    """
    incoming, outgoing = target.with_name(f".incoming-{target.name}"), target.with_name(f".outgoing-{target.name}")
    try:
        for left_over in (incoming, outgoing):
            shutil.rmtree(left_over, ignore_errors=True)
        incoming.mkdir(parents=True)
        write(incoming)
        if target.exists():
            target.rename(outgoing)
        incoming.rename(target)
        sync_folder(target.parent)
        shutil.rmtree(outgoing, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # the latter is how a full disk shows in a file of weights
        shutil.rmtree(incoming, ignore_errors=True)
        raise CheckpointError(f"cannot write {target}: {error}; checkpoints are untouched") from error


class RunDirectory:
    """The output directory of a run: checked before anything is computed.

    Args:
        path: Of the directory; made when it does not exist.
        keep: Checkpoints to keep.

    Raises:
        RunDirectoryError: When it cannot be written or holds something else.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.checkpoints = CheckpointStore(self.path / "checkpoints", keep)
        self.metrics = self.path / "metrics.jsonl"
        self._check_writable()

    def _check_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write to the output directory {self.path} ({error.strerror}): choose another output_dir"
            ) from error
        foreign = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
        if foreign and not (self.path / "run.json").is_file():
            raise RunDirectoryError(
                f"{self.path} is no run, it holds {', '.join(sorted(foreign)[:3])}: choose an empty output_dir"
            )

    def recorded(self) -> dict[str, Any] | None:
        """What `run.json` says, `None` in a new directory."""
        file = self.path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def check_same_run(
        self, hyper_parameters: Mapping[str, Any], defaults: Mapping[str, Any], free: Collection[str] = ()
    ) -> None:
        """Compares the hyper-parameters with those of the run that is there, if there is one.

        Args:
            hyper_parameters: Those of now.
            defaults: Values of the same names where the run there did not record one.
            free: Names that may change.

        Raises:
            RunDirectoryError: Naming each changed one with its old and new value.
        """
        recorded = self.recorded()
        if recorded is None:
            return
        # A run from before an option existed behaved like its default.
        before = {**defaults, **recorded["hyper_parameters"]}
        changed = [
            f"{name}: {before[name]!r} there, {value!r} now"
            for name, value in sorted(hyper_parameters.items())
            if before[name] != value and name not in free
        ]
        if changed:
            raise RunDirectoryError(
                f"{self.path} holds a run with other settings ({'; '.join(changed)}): resume with the same settings, "
                "or choose another output_dir (init_from starts a new run from its weights)"
            )

    def record(self, value: Mapping[str, Any]) -> None:
        """Writes `run.json`."""
        write_json(self.path / "run.json", dict(value))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of `metrics.jsonl`."""
        rows = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:  # the last line of a killed run
                    continue
        return rows

    def rewind_metrics(self, step: int) -> None:
        """Drops the lines after `step`: a resumed run writes them again."""
        rows = self.read_metrics()
        kept = [row for row in rows if row["step"] <= step]
        temporary = self.metrics.with_name(".metrics.jsonl.incoming")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(self.metrics)
