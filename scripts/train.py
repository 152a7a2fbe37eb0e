"""Train ABM: `accelerate launch scripts/train.py --config small --data crohme-offline.zip --output-dir runs/small`."""

import json
import logging
import os
import sys

from abm_hf.extras import lacks

# Read when a process starts. glibc gives large blocks back to the system after each use, and every step pays for
# their pages again: the first two make it keep them. oneDNN compiles its convolutions for each shape of a batch and
# remembers 1,024 of them, which is seven shapes of this model: a quarter of the time went into compiling the same
# ones again. Each takes some 60 KB, so that 40,000 take 2.5 GB at most.
_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "40000",
}


def main() -> int:
    """Exit code: 0 for finished or stopped in order, 2 for anything the user can put right."""
    if sys.platform == "linux" and not _ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**_ENVIRONMENT, **os.environ})
    if problem := lacks("train", "scripts/train.py", "accelerate", "datasets", "matplotlib", "yaml"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from abm_hf.arguments import ArgumentError
    from abm_hf.training.arguments import parse_arguments

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        arguments = parse_arguments()
    except ArgumentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from abm_hf.training.loop import train
    from abm_hf.training.state import CheckpointError, RunDirectoryError
    from abm_hf.training.step import NonFiniteLossError

    try:
        result = train(arguments)
    except (ArgumentError, CheckpointError, RunDirectoryError, NonFiniteLossError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
