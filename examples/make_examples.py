"""Makes the examples in this folder: `python examples/make_examples.py`.

Each is an expression that nobody wrote: synthetic ink of `abm_hf.synthetic.expressions`, drawn in the form of CROHME's
offline images (`NAME.png`, and the ink of some of them as `NAME.inkml`). `labels.tsv` says what stands in each, and
`docs/images/examples.png` shows all of them as a hand would have written them, dark on white.
"""

from pathlib import Path

import cv2
import numpy as np

from abm_hf.ink.inkml import write_inkml
from abm_hf.ink.rendering import render_ink
from abm_hf.ink.strokes import Ink
from abm_hf.synthetic.expressions import handwritten, synthetic_ink

#: Name, label and seed of expressions that everybody knows.
WRITTEN = (
    ("quadratic", r"x = \frac { - b \pm \sqrt { b ^ { 2 } - 4 a c } } { 2 a }", 1),
    ("pythagoras", r"a ^ { 2 } + b ^ { 2 } = c ^ { 2 }", 1),
    ("basel", r"\sum _ { n = 1 } ^ { \infty } \frac { 1 } { n ^ { 2 } } = \frac { \pi ^ { 2 } } { 6 }", 6),
    ("gauss", r"\int _ { - \infty } ^ { \infty } e ^ { - x ^ { 2 } } d x = \sqrt { \pi }", 2),
    ("euler", r"e ^ { i \pi } + 1 = 0", 8),
    ("identity", r"\sin ^ { 2 } \theta + \cos ^ { 2 } \theta = 1", 1),
    ("limit", r"\lim _ { x \rightarrow 0 } \frac { \sin x } { x } = 1", 2),
    ("sequence", r"( a _ { 1 } , a _ { 2 } , \ldots , a _ { n } )", 7),
    ("quantifier", r"\forall x \in R \exists y \in R , x < y", 2),
)
#: Names and seeds of expressions that the grammar thought of.
DRAWN = (("drawn_1", 36), ("drawn_2", 3), ("drawn_3", 18))
WITH_INK = ("quadratic", "basel", "gauss", "drawn_1")
PAGE_WIDTH, MARGIN = 1000, 12


def make_page(images: list[np.ndarray]) -> np.ndarray:
    """All images in rows, dark on white."""
    rows: list[list[np.ndarray]] = [[]]
    for image in images:
        if sum(other.shape[1] + MARGIN for other in rows[-1]) + image.shape[1] > PAGE_WIDTH:
            rows.append([])
        rows[-1].append(image)
    strips = []
    for row in rows:
        strip = np.zeros((max(image.shape[0] for image in row) + MARGIN, PAGE_WIDTH), np.uint8)
        x = 0
        for image in row:
            y = (strip.shape[0] - image.shape[0]) // 2
            strip[y : y + image.shape[0], x : x + image.shape[1]] = image
            x += image.shape[1] + MARGIN
        strips.append(strip)
    return 255 - np.concatenate(strips)


def main() -> None:
    folder = Path(__file__).parent
    inks: list[tuple[str, Ink]] = [(name, handwritten(label, seed)) for name, label, seed in WRITTEN]
    inks += [(name, synthetic_ink(seed, min_tokens=8, max_tokens=30)) for name, seed in DRAWN]
    images = [render_ink(ink) for _, ink in inks]
    for (name, ink), image in zip(inks, images, strict=True):
        cv2.imwrite(str(folder / f"{name}.png"), image)
        if name in WITH_INK:
            write_inkml(ink, folder / f"{name}.inkml")
    (folder / "labels.tsv").write_text("".join(f"{name}.png\t{ink.label}\n" for name, ink in inks), encoding="utf-8")
    cv2.imwrite(str(folder.parent / "docs" / "images" / "examples.png"), make_page(images))


if __name__ == "__main__":
    main()
