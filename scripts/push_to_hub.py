"""Publish a checkpoint: `python scripts/push_to_hub.py user/abm-small`; the same as `abm-hf push`."""

import sys

from abm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
