"""CROHME's training ink taken apart and put together again, as a source for `prepare`: real hands, new expressions.

CROHME's writers copied the same few thousand expressions. A decoder learns these by heart and then reads what it
expects instead of what is written; expressions that exist only once leave it no choice but to look.
"""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..ink.alignment import Alignment, align_symbols
from ..ink.inkml import read_inkml
from ..ink.rendering import render_ink
from ..ink.strokes import InkError
from ..latex.normalization import LatexError
from .crohme import CrohmeInkML
from .recombination import SymbolBank, recombine, substitute
from .source import Entry, LabelRule, PrepareError, Record, SkipEntry

#: How many parts are exchanged for parts of other expressions, and how likely each number is.
_PARTS, _PART_SHARES = (0, 1, 2), (0.35, 0.4, 0.25)
#: Expressions whose parts are offered before giving up.
_DONORS = 8


@dataclass(frozen=True)
class CrohmeRecombined(CrohmeInkML):
    """New expressions from the ink of CROHME's `train` folder; the test folders are not touched.

    Args:
        variations: Expressions made, for each one that there is.
        seed: Of all random choices.
    """

    variations: int = 3
    seed: int = 0

    name = "crohme-recombined"
    title = "CROHME, recombined"
    origin = "Parts and symbols of the training set of CROHME, put together to new expressions (`data/recombine.py`)."

    def entries(self) -> list[Entry]:
        """`variations` numbered entries for each file of the training set."""
        if self.variations < 1:
            raise PrepareError(f"variations must be at least 1, not {self.variations}")
        files = [entry for entry in super().entries() if entry.split == "train"]
        if not files:
            raise PrepareError(f"{self.path} has no folder train/ to take ink from")
        listing = "".join(f"{entry.file} {entry.stamp}\n" for entry in files)
        digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
        count = self.variations * len(files)
        return [Entry("train", f"recombined-{number:06d}", "", (number, digest)) for number in range(count)]

    def open(self) -> Any:
        """See [`Source.open`]."""
        return nullcontext(_Recombiner(self, *_collect(self.root(), self.labels)))


@dataclass(frozen=True)
class _Recombiner:
    source: CrohmeRecombined
    alignments: Sequence[Alignment]
    bank: SymbolBank

    def __call__(self, entry: Entry) -> Record:
        rng = np.random.default_rng([self.source.seed, entry.key[0]])
        target = self.alignments[int(rng.integers(len(self.alignments)))]
        for _ in range(int(rng.choice(_PARTS, p=_PART_SHARES))):
            target = self._with_other_part(target, rng)
        target = substitute(target, self.bank, rng, share=rng.uniform(0.2, 0.9))
        return Record(render_ink(target.ink), list(target.tokens), self.source.name, None, target.ink)

    def _with_other_part(self, target: Alignment, rng: np.random.Generator) -> Alignment:
        for choice in rng.integers(len(self.alignments), size=_DONORS if target.slots else 0):
            ink = recombine(target, self.alignments[choice], rng)
            if ink is not None and ink.label is not None:
                return Alignment.of(ink)
        return target


@lru_cache(maxsize=1)
def _collect(root: Path, labels: LabelRule) -> tuple[Sequence[Alignment], SymbolBank]:
    """The training expressions whose symbols are known, and all their symbols; once for all shards of a process."""
    alignments = []
    for path in sorted((root / "train").rglob("*.inkml")):
        try:
            ink = read_inkml(path)
            alignment = align_symbols(ink, " ".join(labels.tokens(ink.label)))
        except (InkError, LatexError, SkipEntry, OSError):
            continue  # `crohme-inkml` reports these
        if alignment is not None:
            alignments.append(alignment)
    if not alignments:
        raise PrepareError(f"no ink below {root / 'train'} tells which strokes make which symbol")
    return tuple(alignments), SymbolBank(alignments)
