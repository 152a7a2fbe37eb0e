"""Measure a checkpoint: `accelerate launch scripts/evaluate.py --data crohme-offline.zip --split test2014 …`."""

import json
import logging
import os
import sys

from abm_hf.extras import lacks


def main() -> int:
    """Exit code: 0, or 2 for anything the user can put right."""
    if problem := lacks("train", "scripts/evaluate.py", "accelerate", "datasets", "matplotlib", "yaml"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from transformers import HfArgumentParser

    from abm_hf.arguments import ArgumentError
    from abm_hf.evaluation.evaluate import EvaluationArguments, evaluate_checkpoint
    from abm_hf.pretrained import CheckpointError
    from abm_hf.runtime import leave_group, tune_process

    tune_process()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        (arguments,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses()
        result = evaluate_checkpoint(arguments)
        leave_group()
    except (ArgumentError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
