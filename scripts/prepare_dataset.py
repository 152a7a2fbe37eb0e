"""Prepare a data set: `python scripts/prepare_dataset.py crohme-inkml --input crohme --output prepared/crohme`."""

import argparse
import sys

from abm_hf.cli.prepare import add_arguments, run


def main() -> int:
    """Exit code: 0 for success, 1 for anything the user can put right, 2 for options that cannot be read."""
    parser = argparse.ArgumentParser(description="Turn CROHME, HME100K, MathWriting or images into a data set.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
