"""Measure pictures: `python scripts/measure_pictures.py crohme/test2014 [--photographs hme100k]`; prints a table."""

import argparse
import contextlib
import hashlib
import sys
import zlib
from pathlib import Path

import numpy as np

from abm_hf import load_recognizer, read_inkml, render_ink
from abm_hf.evaluation.expression_rate import score_expressions
from abm_hf.latex.normalization import normalize_latex
from abm_hf.synthetic.picture_kinds import BLANKS, KINDS, draw_blank, draw_kind


def main() -> int:
    """Exit code: 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inkml", type=Path, help="folder of labelled InkML: ink to draw the kinds from")
    parser.add_argument("--count", type=int, default=40, help="expressions that are read right when clean")
    parser.add_argument("--photographs", type=Path, help="folder with images/ and labels.tsv (name, tab, label)")
    options = parser.parse_args()
    recognizer = load_recognizer(engine="onnx")
    chosen = []
    files = sorted(options.inkml.glob("*.inkml"))
    np.random.default_rng(5).shuffle(files)
    for file in files:
        try:
            ink = read_inkml(file)
            label = tuple(normalize_latex(ink.label or ""))
        except ValueError:
            continue
        clean = [render_ink(ink), draw_kind("plain", ink, np.random.default_rng(0))]
        if len(label) > 2 and all(answer.tokens == label for answer in recognizer(clean, num_beams=1)):
            chosen.append((ink, label))
        if len(chosen) == options.count:
            break
    for kind in KINDS:
        seeds = [np.random.default_rng([zlib.crc32(kind.encode()), index]) for index in range(len(chosen))]
        pictures = [draw_kind(kind, ink, rng) for (ink, _), rng in zip(chosen, seeds, strict=True)]
        answers = recognizer(pictures, num_beams=1, errors="return")
        print(f"{kind}: {np.mean([a.tokens == label for a, (_, label) in zip(answers, chosen, strict=True)]):.3f}")
    for kind in BLANKS:
        seeds = [np.random.default_rng([zlib.crc32(kind.encode()), index]) for index in range(5)]
        answers = recognizer([draw_blank(kind, rng) for rng in seeds], num_beams=1, errors="return")
        print(f"blank, {kind}: answered {sum(a.score >= 0.1 for a in answers)} of 5")
    if options.photographs:
        halves: dict[int, list[tuple[Path, str]]] = {0: [], 1: []}
        for line in (options.photographs / "labels.tsv").read_text(encoding="utf-8").splitlines():
            name, label_text = line.split("\t")
            with contextlib.suppress(ValueError):  # a label that needs other tokens
                item = options.photographs / "images" / name, " ".join(normalize_latex(label_text))
                halves[hashlib.md5(name.encode()).digest()[0] % 2].append(item)
        for half, items in halves.items():
            answers = recognizer([str(path) for path, _ in items], num_beams=1, errors="return")
            predictions = [None if a.error else " ".join(a.tokens) for a in answers]
            rates = score_expressions(predictions=predictions, references=[label for _, label in items]).rates()
            shown = ", ".join(f"{name} {rates[name][0]:.1f}" for name in ("exprate", "exprate_1", "exprate_2", "wer"))
            print(f"photographs, half {half}: {len(items)}, refused {sum(p is None for p in predictions)}, {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
