"""CROHME as offline bitmaps, the way WAP, BTTR, ABM and CoMER trained on it.

A zip or folder with `<split>/caption.txt` (name, tab, token string) and `<split>/img/<name>.bmp`, perhaps below one
more folder `data/`. The splits are `train` and years such as `2014`.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

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
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        return list(_read_split(path, split))
    if not zipfile.is_zipfile(path):
        raise OfflineError(f"{path} is neither a folder nor a zip file")
    with zipfile.ZipFile(path) as archive:
        return list(_read_split(zipfile.Path(archive), split))


def _read_split(root: Path | zipfile.Path, split: str) -> Iterator[OfflineItem]:
    folder = _find_split(root, split)
    captions = folder / "caption.txt"
    for number, line in enumerate(captions.read_text(encoding="utf-8").splitlines(), start=1):
        name, tab, latex = line.partition("\t")
        if not tab or not latex.strip():
            raise OfflineError(f"{captions}, line {number}: expected a name, a tab and tokens, found {line!r}")
        yield OfflineItem(name, _read_image(folder, name), " ".join(latex.split()))


def _find_split(root: Path | zipfile.Path, split: str) -> Path | zipfile.Path:
    for name in (split, split.removeprefix("test")):
        for folder in (root / name, root / "data" / name):
            if (folder / "caption.txt").is_file():
                return folder
    base = root / "data" if (root / "data").is_dir() else root
    known = sorted(folder.name for folder in base.iterdir() if (folder / "caption.txt").is_file())
    raise OfflineError(
        f"{root} has no split {split!r} (a folder with caption.txt); it has {', '.join(known) or 'none'}"
    )


def _read_image(folder: Path | zipfile.Path, name: str) -> np.ndarray:
    for suffix in (".bmp", ".png", "_0.bmp"):
        file = folder / "img" / f"{name}{suffix}"
        if file.is_file():
            image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
            if image is None:
                raise OfflineError(f"{file} is not an image that can be read")
            return image
    raise OfflineError(f"{folder} lists {name!r} in caption.txt but has no img/{name}.bmp")
