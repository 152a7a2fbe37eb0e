"""Images pickled in a dict beside a file of captions, as WAP, its successors, ABM and ICAL hand their data round."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .crohme import origin_of, writer_of
from .safe_pickle import PickleError, load_arrays
from .source import Entry, PrepareError, Reader, Record, SkipEntry, Source, number_repeated, order_splits, split_name

#: Larger images are left out: an array of this many pixels is no expression.
MAX_PIXELS = 16_000_000


@dataclass(frozen=True)
class Wap(Source):
    """A folder with `offline-<split>.pkl` and `<split>_caption.txt`, or `images.pkl` and `caption.txt` in `<split>/`.

    The pickles are read by `safe_pickle.py`, which calls nothing that they name.
    """

    name = "wap"
    title = "Pickled images of handwritten mathematics"
    licence = """\
As the data that was pickled. Where that is CROHME: for research and non-commercial use only."""
    origin = "Images as they were pickled for WAP, or one of the systems that took its form over."
    drawing = "As pickled, ink bright on dark."
    default_convention = "published"
    default_vocabulary = "any"

    def entries(self) -> list[Entry]:
        """All captions, by split, in the order of the file; then arrays without caption."""
        found = _find(self.path)
        entries = []
        for split in order_splits(found):
            pickle, captions = found[split]
            status = pickle.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            try:
                arrays = load_arrays(pickle)
            except PickleError as error:
                raise PrepareError(f"{pickle} cannot be used: {error}") from error
            file = pickle.relative_to(self.path).as_posix()
            entries += number_repeated(_entries(split, file, captions, arrays, stamp))
        return entries

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """See [`Source.open`]."""

        def read(entry: Entry) -> Record:
            latex, pickled = entry.key
            tokens = self.labels.tokens(latex)
            if pickled is None:
                raise SkipEntry("image", "the caption has no array of its name in the pickle")
            return Record(to_image(pickled.array), tokens, origin_of(entry.id) or entry.split, writer_of(entry.id))

        yield read


@dataclass(frozen=True)
class _Pickled:
    """An array in an entry's key; the plan of shards hashes the entry's text, where the file's stamp stands for it."""

    array: np.ndarray = field(repr=False)


def _entries(
    split: str, file: str, captions: Path, arrays: dict[str, np.ndarray], stamp: tuple[int, ...]
) -> Iterator[Entry]:
    pickled = {name: _Pickled(array) for name, array in arrays.items()}
    stems = {Path(name).stem: name for name in arrays}
    used = set()
    try:
        lines = captions.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PrepareError(f"{captions} is not UTF-8: {error}") from error
    for line in lines:
        name, _, latex = line.strip().partition("\t")
        if not name:
            continue
        key = name if name in arrays else stems.get(Path(name).stem, name)
        used.add(key)
        yield Entry(split, name, file, (latex or None, pickled.get(key)), stamp)
    for name in sorted(set(arrays) - used):
        yield Entry(split, name, file, (None, pickled[name]), stamp)


def _find(folder: Path) -> dict[str, tuple[Path, Path]]:
    """For each split its pickle and its captions."""
    if not folder.is_dir():
        raise PrepareError(f"{folder} is no folder: --input names the folder with offline-train.pkl and its captions")
    found: dict[str, tuple[Path, Path]] = {}
    for pickle in sorted([*folder.glob("*.pkl"), *folder.glob("*/*.pkl")]):
        stem = re.sub(r"^offline[-_]?|^images?[-_]?|[-_]?images?$", "", pickle.stem)
        if stem:
            names = [f"{stem}_caption.txt", f"caption_{stem}.txt", f"{stem}_captions.txt", f"{stem}.txt"]
        else:
            stem, names = pickle.parent.name, ["caption.txt", "captions.txt"]
        captions = next((pickle.with_name(name) for name in names if pickle.with_name(name).is_file()), None)
        if captions is None:
            raise PrepareError(f"{pickle} has no captions: expected {names[0]} beside it")
        split = split_name(stem)
        if split in found:
            raise PrepareError(f"{pickle} and {found[split][0]} are both the split {split}: rename one")
        found[split] = (pickle, captions)
    if not found:
        raise PrepareError(f"{folder} has no pickle, such as offline-train.pkl with train_caption.txt beside it")
    return found


def to_image(array: np.ndarray) -> np.ndarray:
    """A pickled image (1, H, W), (H, W, 1) or (H, W), of any numbers, as uint8 (H, W).

    Numbers that are all within 0..1 are brightness of that range, unless they are whole ones of a larger type.

    Raises:
        SkipEntry: It is no image.
    """
    shape = array.shape
    if array.ndim == 3 and 1 in (shape[0], shape[2]):
        array = array[0] if shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 or not array.size or array.size > MAX_PIXELS:
        raise SkipEntry("image", f"an array of shape {shape} is no grey image")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise SkipEntry("image", f"an array of {array.dtype} has values outside 0..255")
    unit = array.dtype == np.bool_ or (array.dtype.kind == "f" and array.max() <= 1)
    return np.rint(array.astype(np.float64) * (255 if unit else 1)).astype(np.uint8)
