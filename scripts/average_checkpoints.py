"""Write the mean of checkpoints: `python scripts/average_checkpoints.py runs/a/final runs/b/final --output mean`."""

import argparse
import sys
from pathlib import Path

from abm_hf.hub.publish import save_pretrained
from abm_hf.pretrained import CheckpointError, checkpoint_path
from abm_hf.processing_abm import ABMProcessor
from abm_hf.training.averaging import average_checkpoints


def main() -> int:
    """Exit code: 0, or 2 for anything the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="directories or Hub ids, of one training")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    try:
        model = average_checkpoints(options.checkpoints)
        save_pretrained(model, options.output, ABMProcessor.from_pretrained(checkpoint_path(options.checkpoints[-1])))
    except (OSError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
