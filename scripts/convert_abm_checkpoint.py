"""Turns a checkpoint of the released ABM code into a directory for `from_pretrained`.

    python scripts/convert_abm_checkpoint.py ABM_params162_lr0.03125_56.75126903553299.pkl converted

INPUT is a state dict: .pkl, .pt or .pth (opened without running code of it) or .safetensors. Nothing is written unless
every tensor fits.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from abm_hf.hub.conversion import ConversionError, convert_state_dict, read_state_dict
from abm_hf.hub.publish import save_pretrained
from abm_hf.modeling_abm import ABMForConditionalGeneration


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="state dict of the released code")
    parser.add_argument("output_dir", type=Path, help="directory to make; must not exist, or be empty")
    options = parser.parse_args(arguments)
    if options.output_dir.exists() and (not options.output_dir.is_dir() or any(options.output_dir.iterdir())):
        return _fail(f"{options.output_dir} exists already: choose another output directory")
    try:
        config, weights = convert_state_dict(read_state_dict(options.input))
        model = ABMForConditionalGeneration(config)
        model.load_state_dict(weights)
        options.output_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.output_dir.parent) as temporary:
            save_pretrained(model, Path(temporary) / "model")
            if options.output_dir.exists():
                options.output_dir.rmdir()
            shutil.move(Path(temporary) / "model", options.output_dir)
    except ConversionError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot convert {options.input}: {error.strerror or error}")
    branches = " and ".join(config.directions)
    print(f"{options.output_dir}: {branches}, {sum(value.numel() for value in model.parameters()):,} parameters")
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
