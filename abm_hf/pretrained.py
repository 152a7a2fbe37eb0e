"""Finds the checkpoint that ships with the package."""

from pathlib import Path

from .file_names import expand

PACKAGED = Path(__file__).parent / "pretrained"
DEFAULT = "small"


class CheckpointError(FileNotFoundError):
    """There is no checkpoint to load; the message says where one was looked for."""


def checkpoint_path(model: str | Path | None = None) -> str:
    """What to give to `from_pretrained` for `model`.

    Args:
        model: a directory, a Hub id, or the name of a packaged checkpoint; `None` is the packaged default.

    Raises:
        CheckpointError: if a directory or the packaged checkpoint does not exist.
    """
    name = str(model) if model is not None else DEFAULT
    packaged = PACKAGED / name
    if packaged.is_dir():
        return str(packaged)
    if model is None:
        raise CheckpointError(
            f"no checkpoint ships with this installation ({packaged} does not exist): name one with --model"
        )
    path = expand(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{name} holds no model: there is no config.json in it")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        available = sorted(folder.name for folder in PACKAGED.glob("*") if folder.is_dir())
        raise CheckpointError(f"there is no model directory {name} (packaged checkpoints: {available or 'none'})")
    return name
