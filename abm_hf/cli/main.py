"""The `abm-hf` command.

Exit codes: 0 for success, 1 where some inputs failed, 2 for wrong usage or a missing checkpoint. Answers go to stdout,
everything else to stderr. torch is imported only by commands that need it.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from . import export, prepare, recognize
from .loading import load_recognizer
from .messages import about, fail, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end a batch
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _shown_by(warnings.showwarning)
            return options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # such as `abm-hf recognize … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _shown_by(others: Callable[..., None]) -> Callable[..., None]:
    """Shows our own warnings as a line each, without the place in the code, and leaves others to `others`."""

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if category.__module__.startswith(__package__.partition(".")[0]):
            fail(str(message))
        else:
            others(message, category, *place)

    return show


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="abm-hf", description="Handwritten mathematics to LaTeX.")
    parser.add_argument("--version", action="version", version=f"abm-hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_recognize(commands)
    _add_explain(commands)
    _add_prepare(commands)
    _add_demo(commands)
    _add_export(commands)
    _add_push(commands)
    _add_push_space(commands)
    _add_info(commands)
    return parser


def _add_recognize(commands: Any) -> None:
    parser = commands.add_parser(
        "recognize",
        help="read formulas in pictures, InkML files or folders of them",
        description="Prints the LaTeX of each formula, one line for each input.",
    )
    recognize.add_arguments(parser)
    parser.set_defaults(run=recognize.run)


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser("explain", help="draw what the model looks at while it writes")
    parser.add_argument("input", type=Path, help="a picture or .inkml")
    parser.add_argument("--output", type=Path, required=True, help=".gif for an animation, .png for a page of steps")
    parser.add_argument("--direction", choices=["l2r", "r2l"], default="l2r", help="the branch that writes (l2r)")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    parser.set_defaults(run=_explain)


def _add_prepare(commands: Any) -> None:
    parser = commands.add_parser("prepare", help="turn CROHME, HME100K, MathWriting or images into a data set")
    prepare.add_arguments(parser)
    parser.set_defaults(run=prepare.run)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="start the demo in a browser page on this machine")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_positive, default=7860, help="port to listen on (7860)")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.set_defaults(run=_demo)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write a checkpoint as ONNX files, to read without torch")
    export.add_arguments(parser)
    parser.set_defaults(run=export.run)


def _add_push(commands: Any) -> None:
    parser = commands.add_parser("push", help="publish a checkpoint with its code and model card on the Hub")
    parser.add_argument("repository", metavar="REPO", help="such as user/abm-small; made where it does not exist")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    _add_publishing(parser)
    parser.set_defaults(run=_push)


def _add_push_space(commands: Any) -> None:
    parser = commands.add_parser("push-space", help="publish the demo as a Space on the Hub")
    parser.add_argument("repository", metavar="REPO", help="such as user/handwriting; made where it does not exist")
    parser.add_argument("--model", help="Hub id of the weights (MODEL_ID); default: the packaged ones go along")
    _add_publishing(parser)
    parser.set_defaults(run=_push_space)


def _add_publishing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--public", action="store_true", help="make the repository public; it is private without")
    parser.add_argument("--dry-run", action="store_true", help="only write the directory to --output, no network")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where --dry-run writes")


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="print versions, device and checkpoint")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.set_defaults(run=_info)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _info(options: argparse.Namespace) -> int:
    import torch

    from ..configuration_abm import ABMConfig
    from ..pretrained import CheckpointError, checkpoint_path
    from ..tokenization_abm import ABMTokenizer

    print(f"abm-hf {__version__}, Python {sys.version.split()[0]}")
    for package in ("torch", "transformers", "tokenizers", "numpy", "opencv-python-headless"):
        print(f"{package} {metadata.version(package)}")
    print(f"device {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}")
    try:
        path = checkpoint_path(options.model)
        config = ABMConfig.from_pretrained(path)
        tokenizer = ABMTokenizer.from_pretrained(path)
    except (CheckpointError, OSError, ValueError) as error:
        return fail(one_line(error))
    count = len(set(range(config.num_output_tokens)) - set(tokenizer.all_special_ids))
    print(f"checkpoint {path}: directions {', '.join(config.directions)}, {count} LaTeX tokens")
    return 0


def _explain(options: argparse.Namespace) -> int:
    if options.output.suffix.lower() not in (".gif", ".png"):
        return fail(f"{options.output}: name a .gif or a .png file")
    recognizer = load_recognizer(options.model, options.device)
    if recognizer is None:
        return 2
    from ..image_loading_abm import ImageInputError
    from ..inference.attention_pictures import attention_gif, attention_strip
    from ..ink.strokes import InkError

    try:
        explanation = recognizer.explain(options.input, direction=options.direction)
        if options.output.suffix.lower() == ".gif":
            options.output.write_bytes(attention_gif(explanation))
        else:
            attention_strip(explanation).save(options.output)
    except (ImageInputError, InkError, ValueError) as error:
        return fail(about(str(options.input), one_line(error)))
    except OSError as error:
        return fail(f"cannot write {options.output}: {error.strerror or error}")
    tokens = explanation.tokens[:: 1 if options.direction == "l2r" else -1]
    print(recognizer.engine.tokenizer.to_compact(tokens))
    return 0


def _demo(options: argparse.Namespace) -> int:
    try:
        from ..demo.app import DemoError, launch
    except ImportError as error:
        return fail(f"the demo needs {error.name}: pip install 'abm-hf[demo]'")
    try:
        launch(options.host, options.port, model=options.model, device=options.device, inbrowser=options.open)
    except DemoError as error:
        return fail(str(error))
    return 0


def _push(options: argparse.Namespace) -> int:
    if options.dry_run and options.output is None:
        return fail("--dry-run needs --output DIR")
    from transformers.utils import logging

    from ..hub.publish import HubError, export_checkpoint, push_to_hub

    logging.disable_progress_bar()
    try:
        if options.dry_run:
            title = options.repository.rsplit("/", 1)[-1]
            print(export_checkpoint(options.model, options.output, options.repository, title))
        else:
            print(push_to_hub(options.repository, options.model, private=not options.public))
    except (HubError, OSError, ValueError) as error:
        return fail(about(options.repository, one_line(error)))
    return 0


def _push_space(options: argparse.Namespace) -> int:
    if options.dry_run and options.output is None:
        return fail("--dry-run needs --output DIR")
    from ..hub.publish import HubError, export_space, push_space

    try:
        if options.dry_run:
            print(export_space(options.output, options.model))
        else:
            print(push_space(options.repository, options.model, private=not options.public))
    except (HubError, OSError, ValueError) as error:
        return fail(about(options.repository, one_line(error)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
