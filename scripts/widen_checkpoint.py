"""Widen a checkpoint: `python scripts/widen_checkpoint.py small --attention-size 256 --output wide`."""

import argparse
import sys
from pathlib import Path

from abm_hf.hub.publish import save_pretrained
from abm_hf.pretrained import CheckpointError, checkpoint_path
from abm_hf.processing_abm import ABMProcessor
from abm_hf.training.widening import WIDENED, widen_checkpoint


def main() -> int:
    """Exit code: 0, or 2 for anything the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="directory, Hub id or name of a packaged checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0, help="of the new weights")
    for name in WIDENED:
        listed = name in ("block_layers", "growth_rates")
        option, count = "--" + name.replace("_", "-"), "+" if listed else None
        parser.add_argument(option, type=int, nargs=count, metavar="N", help="the checkpoint's by default")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in WIDENED if getattr(options, name) is not None}
    try:
        model = widen_checkpoint(options.checkpoint, sizes, options.seed)
        save_pretrained(model, options.output, ABMProcessor.from_pretrained(checkpoint_path(options.checkpoint)))
    except (OSError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
