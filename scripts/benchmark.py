"""Measure speed: `python scripts/benchmark.py decode | train | cold [options]`; prints JSON."""

import json
import os
import sys
from typing import Any

from abm_hf.extras import lacks

TASKS = ("decode", "train", "cold")


def main() -> int:
    """Exit code: 0, or 2 for anything the user can put right."""
    if len(sys.argv) < 2 or sys.argv[1] not in TASKS:
        asked = sys.argv[1:] in (["--help"], ["-h"])
        usage = f"usage: {sys.argv[0]} {{{','.join(TASKS)}}} [options]; each takes --help"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    if problem := lacks("train", "scripts/benchmark.py", "accelerate", "datasets", "yaml"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from transformers import HfArgumentParser

    from abm_hf import benchmark
    from abm_hf.runtime import leave_group, tune_process

    tune_process()

    tasks: dict[str, tuple[Any, Any]] = {
        "decode": (benchmark.DecodeArguments, benchmark.measure_decoding),
        "train": (benchmark.TrainArguments, benchmark.measure_training),
        "cold": (benchmark.ColdArguments, benchmark.measure_cold_start),
    }
    kind, measure = tasks[sys.argv[1]]
    (arguments,) = HfArgumentParser(kind).parse_args_into_dataclasses(sys.argv[2:])
    try:
        result = measure(arguments)
        leave_group()
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
