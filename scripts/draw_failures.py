"""Draw what a checkpoint reads wrong: `python scripts/draw_failures.py --model small --output failures.png`."""

import argparse
import sys
from pathlib import Path

from abm_hf.evaluation.failures import draw_failures, find_failures
from abm_hf.inference.recognizer import Recognizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--count", type=int, default=8, help="failures shown (8)")
    options = parser.parse_args()
    recognizer = Recognizer(options.model)
    failures = find_failures(lambda inks: [result.latex for result in recognizer(inks)], options.count)
    if not failures:
        sys.stderr.write("nothing was read wrong: there is no page to draw\n")
        return 1
    draw_failures(failures).save(options.output, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
