"""`abm-hf export`: a checkpoint in another form."""

import argparse
from pathlib import Path

from .messages import fail, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("form", choices=["onnx"], help="onnx: an encoder and one step of each branch")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write; default: the checkpoint's own")
    parser.add_argument("--float32", action="store_true", help="the encoder in floats, not in 8-bit integers")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")


def run(options: argparse.Namespace) -> int:
    """Writes the files and prints the folder; returns the exit code."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        from ..hub.onnx_export import export_onnx

        print(export_onnx(options.model, options.output, "float32" if options.float32 else "int8"))
    except ImportError as error:  # the exporter imports some of its parts late
        return fail(f"exporting to ONNX needs {error.name}: pip install 'abm-hf[onnx]'")
    except (OSError, ValueError) as error:
        return fail(f"cannot export {options.model or '(packaged)'} to ONNX: {one_line(error)}")
    return 0
