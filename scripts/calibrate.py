"""Make scores probabilities: `accelerate launch scripts/calibrate.py --data prepared/crohme --split test2013 …`."""

import json
import logging
import os
import sys

from abm_hf.extras import lacks


def main() -> int:
    """Exit code: 0, or 2 for anything the user can put right."""
    if problem := lacks("train", "scripts/calibrate.py", "accelerate", "datasets", "matplotlib", "yaml"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from transformers import HfArgumentParser

    from abm_hf.arguments import ArgumentError
    from abm_hf.evaluation.calibration import CalibrationArguments, calibrate_checkpoint
    from abm_hf.pretrained import CheckpointError
    from abm_hf.runtime import leave_group, tune_process

    tune_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        (arguments,) = HfArgumentParser(CalibrationArguments).parse_args_into_dataclasses()
        result = calibrate_checkpoint(arguments)
        leave_group()
    except (ArgumentError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({name: result[name] for name in ("generation_config", "ece")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
