"""The card of a prepared data set: what `datasets` reads (splits), and what people need to know (everything else)."""

from .report import Report
from .source import AS_PUBLISHED, Source

_CONVENTIONS = {
    "abm": "that of the test labels of WAP, BTTR and ABM: no `\\limits`, the subscript before the superscript, "
    "`\\prime` for every prime",
    "comer": "that of CoMER, PosFormer and TAMER: `\\limits` after every `\\sum`, `\\int` and `\\lim` with scripts, "
    "the subscript before the superscript",
    "written": "order of scripts, `\\limits` and primes as the truth writes them, as in the published training labels",
    AS_PUBLISHED: "the tokens as they were published, unchanged",
}

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_card(source: Source, report: Report) -> str:
    """The text of the card.

    Args:
        source: Says what it is, where it is from and under which terms.
        report: The counts.
    """
    return _metadata(source, report) + _text(source, report)


def _metadata(source: Source, report: Report) -> str:
    kept = report.total.kept
    named = source.licence if " " not in source.licence else "other"
    lines = [
        "---",
        f"pretty_name: {source.title}",
        f"license: {named}",
        "task_categories:",
        "- image-to-text",
        "tags:",
        "- handwriting",
        "- mathematics",
        "- latex",
        *(["- ink"] if report.total.has_ink else []),
        "size_categories:",
        f"- {next((name for bound, name in _SIZES if kept < bound), '1M<n<10M')}",
        "configs:",
        "- config_name: default",
        # `load_dataset` caches a folder by its last name and this metadata, and looks at no file's time or size.
        # Without the contents here, another data set of the same folder name would be given out in this one's place.
        f"  description: abm-hf prepare {source.name}, contents {report.contents}",
        "  data_files:",
    ]
    for split in report.splits:
        lines += [f"  - split: {split}", f"    path: data/{split}-*"]
    return "\n".join([*lines, "---", "", ""])


def _text(source: Source, report: Report) -> str:
    total = report.total
    share = len(total.skipped) / max(total.read, 1)
    return f"""# {source.title}

Handwritten mathematical expressions and their LaTeX, written by `abm-hf prepare {source.name}`.

```python
from datasets import load_dataset

dataset = load_dataset("path/of/this/folder")
```

## Splits

{_split_table(report)}

{len(total.skipped)} of {total.read} expressions ({share:.2%}) were left out; `skipped.jsonl` lists each with its \
reason. `report.json` has all counts, `sizes.png` the sizes.

![Heights, widths and label lengths](sizes.png)

## Columns

| column | what |
|---|---|
| `id` | name, unique within its split |
| `image` | PNG, one channel, ink 255 on 0 |
| `ink` | strokes as lists of [x, y] or [x, y, t] in the writer's units, y down{_ink_note(report)} |
| `latex`, `tokens` | the label: tokens joined by one space, and as a list |
| `source` | the collection it is from |
| `writer` | who wrote it, where known |
| `width`, `height` | of the image, px |

## Images

{source.drawing}

## Labels

Convention `{report.convention}`: {_CONVENTIONS[report.convention]}. Vocabulary: {_vocabulary(report)}. \
Results measured on these labels should name the convention.

{len(total.tokens)} distinct tokens:

{_token_table(report)}

## Where it is from, and its licence

{source.origin}

{source.licence}
"""


def _split_table(report: Report) -> str:
    rows = ["| split | expressions | left out | from | writers known |", "|---|---|---|---|---|"]
    for name, statistics in report.splits.items():
        sources = ", ".join(f"{source} {count}" for source, count in sorted(statistics.sources.items()))
        rows.append(
            f"| {name} | {statistics.kept} | {len(statistics.skipped)} | {sources} | {len(statistics.writers)} |"
        )
    return "\n".join(rows)


def _ink_note(report: Report) -> str:
    return "" if report.total.has_ink else "; null throughout, as this source has none"


def _vocabulary(report: Report) -> str:
    names = {
        "crohme": "the 110 tokens of CROHME",
        "any": "any token that the grammar of `abm_hf.latex.normalization` knows",
    }
    return names.get(report.vocabulary, "a list of its own")


def _token_table(report: Report) -> str:
    """All tokens with their counts, most frequent first, in a fenced block: many are markup elsewhere."""
    ranked = report.to_json()["tokens"].items()
    cells = [f"{token} {count}" for token, count in ranked]
    lines = ["   ".join(cells[at : at + 8]) for at in range(0, len(cells), 8)]
    return "\n".join(["```text", *lines, "```"])
