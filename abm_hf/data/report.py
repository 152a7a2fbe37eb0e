"""What a preparation did: counts of what was read, kept and skipped, tokens and sizes, as JSON, text and a picture."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import replace_bytes, replace_text
from .shards import ShardStatistics

#: Share of skipped expressions from which something is wrong with the input or the options.
MAX_SKIPPED = 0.01

_HEIGHT_BIN, _WIDTH_BIN = 8, 16  # pixels


@dataclass(frozen=True)
class Report:
    """The outcome of a preparation.

    Args:
        source: Name of the source.
        convention: Of the labels.
        vocabulary: `crohme`, `any`, or a fingerprint of the file that was given.
        contents: SHA-256 of all shards' names and hashes: equal where two data sets are.
        splits: Statistics by split, in the splits' order.
    """

    source: str
    convention: str
    vocabulary: str
    contents: str
    splits: Mapping[str, ShardStatistics]

    @property
    def total(self) -> ShardStatistics:
        """All splits together."""
        total = ShardStatistics()
        for statistics in self.splits.values():
            total.add(statistics)
        return total

    @property
    def too_many_skipped(self) -> bool:
        """Whether more than [`MAX_SKIPPED`] was left out."""
        total = self.total
        return len(total.skipped) > MAX_SKIPPED * total.read

    @property
    def reasons(self) -> Counter[str]:
        """How often each kind of fault, with its detail, occurs."""
        return Counter(
            f"{skip['kind']}: {skip['detail']}" if skip["detail"] else skip["kind"] for skip in self.total.skipped
        )

    def to_json(self) -> dict[str, Any]:
        """All counts as plain data; nothing in it depends on the machine or the time."""
        return {
            "format": "abm_hf",
            "source": self.source,
            "convention": self.convention,
            "vocabulary": self.vocabulary,
            "contents": self.contents,
            "splits": {name: _summary(statistics) for name, statistics in self.splits.items()},
            "skipped_reasons": dict(_ranked(self.reasons)),
            "tokens": dict(_ranked(self.total.tokens)),
        }

    def to_text(self) -> str:
        """For a terminal."""
        lines = [f"{'split':<12}{'read':>9}{'kept':>9}{'skipped':>9}  tokens a label   mean image (px)   sources"]
        for name, statistics in self.splits.items():
            summary = _summary(statistics)
            height, width = summary["mean_height"], summary["mean_width"]
            lines.append(
                f"{name:<12}{statistics.read:>9}{statistics.kept:>9}{len(statistics.skipped):>9}"
                f"  {summary['mean_tokens']:>14.1f}   {f'{height:.0f} x {width:.0f}':>15}   "
                + ", ".join(f"{source} {count}" for source, count in _ranked(statistics.sources)[:8])
            )
        total = self.total
        for reason, count in _ranked(self.reasons)[:20]:
            lines.append(f"skipped {count:>6}  {reason}")
        ranked = _ranked(total.tokens)
        lines.append(f"{len(ranked)} distinct tokens, {sum(total.tokens.values())} in all:")
        table = [f"{token} {count}" for token, count in ranked[:160]]
        width = max(map(len, table), default=0) + 2
        columns = max(1, 118 // width)
        lines += [
            "".join(f"{cell:<{width}}" for cell in table[at : at + columns]) for at in range(0, len(table), columns)
        ]
        if len(ranked) > len(table):
            lines.append(f"... and {len(ranked) - len(table)} more, see report.json")
        return "\n".join(line.rstrip() for line in lines if line.strip())

    def write(self, folder: Path) -> None:
        """Writes `report.json`, `skipped.jsonl` and `sizes.png`."""
        replace_text(folder / "report.json", json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")
        skipped = (json.dumps(skip, ensure_ascii=False) + "\n" for skip in self.total.skipped)
        replace_text(folder / "skipped.jsonl", "".join(skipped))
        replace_bytes(folder / "sizes.png", self.draw_sizes())

    def draw_sizes(self) -> bytes:
        """A histogram of the images' heights and widths and of the labels' lengths, as PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.2), layout="constrained")
        total = self.total
        for axes, (title, counts, step) in zip(
            figure.subplots(1, 3),
            (
                ("height (px)", total.heights, _HEIGHT_BIN),
                ("width (px)", total.widths, _WIDTH_BIN),
                ("label (tokens)", total.lengths, 1),
            ),
            strict=True,
        ):
            binned: Counter[int] = Counter()
            for value, count in counts.items():
                binned[int(value) // step * step] += count
            positions = sorted(binned)
            axes.bar(positions, [binned[at] for at in positions], width=step, align="edge", color="#3b6ea5")
            axes.set_xlabel(title)
            axes.set_xlim(left=0)
        figure.supylabel("expressions", fontsize="medium")
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=100, metadata={"Software": None})
        return data.getvalue()


def _summary(statistics: ShardStatistics) -> dict[str, Any]:
    kept = max(statistics.kept, 1)
    return {
        "read": statistics.read,
        "kept": statistics.kept,
        "skipped": len(statistics.skipped),
        "with_ink": statistics.has_ink,
        "writers": len(statistics.writers),
        "with_writer": sum(statistics.writers.values()),
        "sources": dict(_ranked(statistics.sources)),
        "mean_tokens": round(_sum(statistics.lengths) / kept, 2),
        "max_tokens": max(map(int, statistics.lengths), default=0),
        "mean_height": round(_sum(statistics.heights) / kept, 1),
        "mean_width": round(_sum(statistics.widths) / kept, 1),
        "max_height": max(map(int, statistics.heights), default=0),
        "max_width": max(map(int, statistics.widths), default=0),
        "mean_pixels": round(statistics.pixels / kept),
    }


def _sum(counts: Mapping[str, int]) -> int:
    return sum(int(value) * count for value, count in counts.items())


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Most frequent first, then by name: the order does not depend on that of the shards."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
