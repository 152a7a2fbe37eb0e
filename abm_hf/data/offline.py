"""CROHME as offline bitmaps, the way WAP, BTTR, ABM and CoMER trained on it.

A zip or folder with `<split>/caption.txt` (name, tab, token string) and `<split>/img/<name>.bmp`, perhaps below one
more folder `data/`. The splits are `train` and years such as `2014`.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..image_loading_abm import ImageInputError, read_picture
from ..ink_extraction_abm import to_grey
from .safe_archive import ArchiveError, open_zip

#: Larger bitmaps are refused before they are decoded. The largest published one has 0.38 megapixels.
MAX_MEGAPIXELS = 16.0

_WRITER_RULES = (
    (re.compile(r"^(\d+-\d+)-\d+$"), r"\1"),  # MathBrush: date-session-number
    (re.compile(r"^(form(?:ulaire)?\d+)-equation\d+$"), r"\1"),  # HAMEX: one form, one writer
    (re.compile(r"^\d+_([A-Za-z]+)\d*$"), r"\1"),  # expressmatch and extension: number_writer
    (re.compile(r"^(KME\w+?_\d+|TrainData\w+?_\d+)_sub_\d+$"), r"\1"),  # KAIST: sheet_sub_number
    (re.compile(r"^(MfrDB\d+)\d$"), r"\1"),  # MfrDB names no writer; its neighbours share one more often than not
)


@dataclass(frozen=True)
class OfflineItem:
    """One expression: name, image in the offline form (uint8 (H, W), ink 255 on 0) and token string."""

    id: str
    image: np.ndarray
    latex: str


class OfflineError(ValueError):
    """The archive or folder is not laid out as described, or one of its files cannot be read."""


def writer_group(name: str) -> str:
    """What is known of the writer from a file name of CROHME's training set: the form, session or writer's name.

    Items of one group belong on one side of a split; a name that follows no rule is its own group.
    """
    for pattern, group in _WRITER_RULES:
        if pattern.match(name):
            return pattern.sub(group, name)
    return name


def read_offline(path: str | Path, split: str = "train") -> list[OfflineItem]:
    """Reads all items of a split, in the order of `caption.txt`.

    Args:
        path: Zip file, or folder of the same layout.
        split: `train`, `2014` or another folder that is there (`test2014` is understood as `2014`).

    Raises:
        OfflineError: Naming the file and what is wrong with it.
        FileNotFoundError: When `path` does not exist.
    """
    with open_offline(path) as root:
        folder = _find_split(root, split)
        return [_read_item(folder, line) for line in read_captions(folder)]


Folder = Path | zipfile.Path


@dataclass(frozen=True)
class Caption:
    """One line of a caption file: its number, the image's name and the token string (`None`: there is none)."""

    number: int
    name: str
    latex: str | None


@contextmanager
def open_offline(path: str | Path) -> Iterator[Folder]:
    """The root of a folder or zip, to be read inside the `with` block.

    Raises:
        OfflineError: It is neither, or the zip is not safe to read.
        FileNotFoundError: When `path` does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        yield path
        return
    try:
        archive = open_zip(path)
    except ArchiveError as error:
        raise OfflineError(str(error)) from error
    with archive:
        yield zipfile.Path(archive)


def find_splits(root: Folder) -> dict[str, Folder]:
    """The folders with a `caption.txt`, at the top or below `data/`, by their names."""
    base = root / "data" if (root / "data").is_dir() else root
    folders: list[Folder] = [*base.iterdir()]
    return {folder.name: folder for folder in sorted(folders, key=_name) if (folder / "caption.txt").is_file()}


def _name(folder: Folder) -> str:
    return folder.name


def read_captions(folder: Folder) -> Iterator[Caption]:
    """The lines of a split's `caption.txt`, empty ones left out."""
    try:
        text = _read_bytes(folder / "caption.txt", f"{folder / 'caption.txt'}").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OfflineError(f"{folder / 'caption.txt'} is not UTF-8: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, latex = line.partition("\t")
        if line.strip():
            yield Caption(number, name.strip(), " ".join(latex.split()) or None)


def _read_item(folder: Folder, line: Caption) -> OfflineItem:
    if line.latex is None:
        raise OfflineError(
            f"{folder / 'caption.txt'}, line {line.number}: expected a name, a tab and tokens, found {line.name!r}"
        )
    try:
        return OfflineItem(line.name, read_image(folder, line.name), line.latex)
    except OfflineError as error:
        raise OfflineError(f"{folder.parent}: {error}") from error


def _find_split(root: Folder, split: str) -> Folder:
    known = find_splits(root)
    for name in (split, split.removeprefix("test")):
        if name in known:
            return known[name]
    raise OfflineError(
        f"{root} has no split {split!r} (a folder with caption.txt); it has {', '.join(known) or 'none'}"
    )


def read_image(folder: Folder, name: str) -> np.ndarray:
    """An expression's bitmap, uint8 (H, W).

    Raises:
        OfflineError: It is not there, or cannot be decoded; the message names it relative to the root.
    """
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise OfflineError(f"{folder.name}/caption.txt lists {name!r}, which is no file name")
    for suffix in (".bmp", ".png", "_0.bmp"):
        file = folder / "img" / f"{name}{suffix}"
        if file.is_file():
            where = f"{folder.name}/img/{file.name}"
            return _decode(_read_bytes(file, where), where)
    raise OfflineError(f"{folder.name}/caption.txt lists {name!r}, but there is no {folder.name}/img/{name}.bmp")


def _read_bytes(file: Folder, where: str) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # Of a damaged archive zipfile says all of these; NotImplementedError is a RuntimeError.
        raise OfflineError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(data: bytes, where: str) -> np.ndarray:
    try:
        picture = read_picture(data, MAX_MEGAPIXELS)
    except ImageInputError as error:
        raise OfflineError(f"{where}: {error.reason}") from error
    return picture if picture.ndim == 2 else to_grey(picture)
