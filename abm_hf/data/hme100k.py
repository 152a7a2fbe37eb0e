"""HME100K: photographs of handwritten mathematics and tab-separated labels, as a source."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from .pictures import SUFFIXES, inside, read_crohme_style
from .source import Entry, PrepareError, Reader, Record, Source, number_repeated, order_splits, split_name


@dataclass(frozen=True)
class Hme100k(Source):
    """A folder with `<split>_labels.txt` (name, tab, label) and the images in `<split>_images/` or `<split>/`."""

    name = "hme100k"
    title = "HME100K"
    licence = (
        "HME100K is for research: see the terms of its publisher, TAL Education Group, and keep this copy private."
    )
    origin = "HME100K (Yuan et al., 2022): photographs of pupils' handwriting."
    drawing = """\
Photographs, brought to the field's form by the image processor of `abm_hf`: the ink is separated from the paper, \
scaled and redrawn with a pen of 3 px, 255 on 0."""
    default_vocabulary = "any"

    def entries(self) -> list[Entry]:
        """All lines of the label files, by split, in their order."""
        found = {split_name(file.name.removesuffix("_labels.txt")): file for file in self.path.glob("*_labels.txt")}
        if not found:
            raise PrepareError(f"{self.path} has no label file, such as train_labels.txt with train_images/ beside it")
        return [entry for split in order_splits(found) for entry in self._split(split, found[split])]

    def _split(self, split: str, labels: Path) -> list[Entry]:
        stem = labels.name.removesuffix("_labels.txt")
        folder = next((self.path / name for name in (f"{stem}_images", stem) if (self.path / name).is_dir()), None)
        if folder is None:
            raise PrepareError(f"{self.path} has no {stem}_images/ for {labels.name}")
        entries = []
        try:
            lines = labels.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise PrepareError(f"{labels} is not UTF-8: {error}") from error
        for line in filter(str.strip, lines):
            name, _, latex = line.strip().partition("\t")
            path = _image(folder, name)
            status = path.stat() if path.is_file() else None
            stamp = (status.st_size, status.st_mtime_ns) if status else ()
            entries.append(Entry(split, Path(name).stem, f"{folder.name}/{path.name}", latex or None, stamp))
        return number_repeated(entries)

    def open(self) -> AbstractContextManager[Reader]:
        """See [`Source.open`]."""
        return nullcontext(self._read)

    def _read(self, entry: Entry) -> Record:
        tokens = self.labels.tokens(entry.key)
        return Record(read_crohme_style(self.path / entry.file), tokens, self.name)


def _image(folder: Path, name: str) -> Path:
    """The image of that name, which may lack its suffix; where there is none, the name itself, to be reported."""
    path = inside(folder, name)
    candidates = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    return next((candidate for candidate in candidates if candidate.is_file()), path)
