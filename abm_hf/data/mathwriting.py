"""MathWriting: InkML with the folders `train`, `valid`, `test`, `symbols` and `synthetic`, as a source."""

from dataclasses import dataclass

from ..ink.strokes import Ink
from .crohme import InkFolderSource
from .source import Entry


@dataclass(frozen=True)
class MathWriting(InkFolderSource):
    """MathWriting as it is unpacked. `normalizedLabel` counts before `label`: it has the braces and no `\\over`."""

    name = "mathwriting"
    title = "MathWriting"
    licence = "cc-by-nc-sa-4.0"
    origin = "MathWriting (Gervais, Fadeeva, Maksai, 2024), Google Research."
    default_vocabulary = "any"

    def raw_label(self, ink: Ink) -> str | None:
        """The normalised label, or else the raw one."""
        return ink.annotations.get("normalizedLabel") or ink.label

    def source_of(self, entry: Entry) -> str:
        """`mathwriting`, and the folder for those that are no expressions that people wrote."""
        return f"mathwriting-{entry.split}" if entry.split in ("symbols", "synthetic") else "mathwriting"
