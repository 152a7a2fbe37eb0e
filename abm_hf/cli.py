"""The `abm-hf` command.

Exit codes: 0 for success, 1 where some inputs failed, 2 for wrong usage or a missing checkpoint. Answers go to stdout,
everything else to stderr. torch is imported only by commands that need it.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from .recognition import Recognizer
    from .recognizing import Recognition

_STDIN = "-"
# Inputs prepared at a time, in batches: enough to sort by size, few enough to keep memory flat.
_CHUNK_BATCHES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # such as `abm-hf recognize … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="abm-hf", description="Handwritten mathematics to LaTeX.")
    parser.add_argument("--version", action="version", version=f"abm-hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_recognize(commands)
    _add_explain(commands)
    _add_prepare(commands)
    _add_demo(commands)
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
    parser.add_argument("inputs", nargs="+", metavar="FILE|FOLDER|-", help="pictures, .inkml, folders; - reads stdin")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--beams", type=_positive, default=10, metavar="N", help="hypotheses followed (10); 1: greedy")
    parser.add_argument("--top-k", type=_positive, default=1, metavar="N", help="readings for each input, with --json")
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="pictures decoded together (16)")
    parser.add_argument(
        "--max-length", type=_positive, default=200, metavar="N", help="most tokens of an answer (200)"
    )
    parser.add_argument("--two-way", action="store_true", help="let both branches propose and judge: slower")
    parser.add_argument("--no-grammar", action="store_true", help="allow LaTeX that is not well formed")
    parser.add_argument(
        "--min-score", type=float, default=0.0, metavar="P", help="less probable answers are left empty"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object for each input")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.jsonl",
        help="append JSON lines to a file; inputs in it are not read again",
    )
    parser.set_defaults(run=_recognize)


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser("explain", help="draw what the model looks at while it writes")
    parser.add_argument("input", type=Path, help="a picture or .inkml")
    parser.add_argument("--output", type=Path, required=True, help=".gif for an animation, .png for a page of steps")
    parser.add_argument("--direction", choices=["l2r", "r2l"], default="l2r", help="the branch that writes (l2r)")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    parser.set_defaults(run=_explain)


def _add_prepare(commands: Any) -> None:
    from .data.prepare import add_arguments, run

    parser = commands.add_parser("prepare", help="turn CROHME, HME100K, MathWriting or images into a data set")
    add_arguments(parser)
    parser.set_defaults(run=run)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="start the demo in a browser page on this machine")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_positive, default=7860, help="port to listen on (7860)")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.set_defaults(run=_demo)


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


def _recognize(options: argparse.Namespace) -> int:
    from .recognizing import iter_inputs

    try:
        inputs: list[Any] = [
            found for name in options.inputs for found in ([_STDIN] if name == _STDIN else iter_inputs([name]))
        ]
    except FileNotFoundError as error:
        return _fail(str(error))
    done = _read_names(options.output) if options.output else set()
    inputs = [item for item in inputs if str(item) not in done]
    recognizer = _load(options)
    if recognizer is None:
        return 2
    failed = 0
    try:
        with _Sink(options) as sink:
            for name, result in _results(recognizer, inputs, options):
                if result.error is not None:
                    failed += 1
                    _fail(_about(name, result.error))
                sink.write(name, result)
    except OSError as error:
        return _fail(f"cannot write {error.filename or options.output}: {error.strerror or error}")
    return 1 if failed else 0


def _load(options: argparse.Namespace) -> "Recognizer | None":
    """The recognizer, or `None` after one line about what is wrong with the checkpoint or device."""
    from transformers.utils import logging

    from .recognition import Recognizer
    from .runtime import tune_process

    tune_process()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return Recognizer(options.model, options.device)
    except Exception as error:  # loading goes through three libraries, each with errors of its own
        _fail(f"cannot load the model {options.model or '(packaged)'}: {_one_line(error)}")
        return None


def _results(
    recognizer: "Recognizer", inputs: list[Any], options: argparse.Namespace
) -> Iterator[tuple[str, "Recognition"]]:
    """Name and result of each input, in order."""
    from tqdm import tqdm

    chunk = _CHUNK_BATCHES * options.batch_size
    # A bar for work that takes a while, and only where somebody watches.
    hidden = len(inputs) <= options.batch_size or not sys.stderr.isatty()
    with tqdm(total=len(inputs), unit="image", file=sys.stderr, disable=hidden) as bar:
        for start in range(0, len(inputs), chunk):
            names = inputs[start : start + chunk]
            images = [sys.stdin.buffer.read() if name == _STDIN else name for name in names]
            results = recognizer(
                images,
                num_beams=options.beams,
                top_k=options.top_k,
                batch_size=options.batch_size,
                max_length=options.max_length,
                grammar=not options.no_grammar,
                two_way=options.two_way,
                errors="return",
            )
            for name, result in zip(names, results, strict=True):
                yield str(name), result
                bar.update()


class _Sink:
    """Writes results to stdout, as LaTeX or JSON, or appends them to a file of JSON lines."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.file: Any = None

    def __enter__(self) -> "_Sink":
        if self.options.output:
            self.options.output.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.options.output.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def write(self, name: str, result: "Recognition") -> None:
        """One line; nothing on stdout for an input that failed, whose line is on stderr."""
        unsure = result.error is None and result.score < self.options.min_score
        if self.file or self.options.json:
            line = json.dumps(_record(name, result, unsure), ensure_ascii=False)
            print(line, file=self.file or sys.stdout, flush=True)
        elif result.error is None:
            print("" if unsure else result.latex, flush=True)


def _record(name: str, result: "Recognition", unsure: bool) -> dict[str, Any]:
    if result.error is not None:
        return {"file": name, "error": result.error}
    assert result.image is not None
    height, width = result.image.shape
    return {
        "file": name,
        "latex": None if unsure else result.latex,
        "score": round(result.score, 6),
        "n_best": [{"latex": reading.latex, "score": round(reading.score, 6)} for reading in result.alternatives],
        "width": width,
        "height": height,
        "milliseconds": round(result.milliseconds, 1),
    }


def _read_names(path: Path) -> set[str]:
    """Inputs that an output file holds already; a last line cut short by a crash is taken off."""
    if not path.is_file():
        return set()
    names, kept = set(), []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            names.add(json.loads(line)["file"])
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")
    return names


def _info(options: argparse.Namespace) -> int:
    import torch

    from .configuration_abm import ABMConfig
    from .pretrained import CheckpointError, checkpoint_path

    print(f"abm-hf {__version__}, Python {sys.version.split()[0]}")
    for package in ("torch", "transformers", "tokenizers", "numpy", "opencv-python-headless"):
        print(f"{package} {metadata.version(package)}")
    print(f"device {torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'}")
    try:
        path = checkpoint_path(options.model)
        config = ABMConfig.from_pretrained(path)
    except (CheckpointError, OSError, ValueError) as error:
        return _fail(_one_line(error))
    print(f"checkpoint {path}: directions {', '.join(config.directions)}, {config.num_output_tokens} output tokens")
    return 0


def _explain(options: argparse.Namespace) -> int:
    if options.output.suffix.lower() not in (".gif", ".png"):
        return _fail(f"{options.output}: name a .gif or a .png file")
    recognizer = _load(options)
    if recognizer is None:
        return 2
    from .data.ink import InkError
    from .image_processing_abm import ImageInputError
    from .viz import attention_gif, attention_strip

    try:
        explanation = recognizer.explain(options.input, direction=options.direction)
        if options.output.suffix.lower() == ".gif":
            options.output.write_bytes(attention_gif(explanation))
        else:
            attention_strip(explanation).save(options.output)
    except (ImageInputError, InkError, ValueError) as error:
        return _fail(_about(str(options.input), _one_line(error)))
    except OSError as error:
        return _fail(f"cannot write {options.output}: {error.strerror or error}")
    tokens = explanation.tokens[:: 1 if options.direction == "l2r" else -1]
    print(recognizer.processor.tokenizer.to_compact(tokens))
    return 0


def _demo(options: argparse.Namespace) -> int:
    try:
        from .demo.app import DemoError, launch
    except ImportError as error:
        return _fail(f"the demo needs {error.name}: pip install 'abm-hf[demo]'")
    try:
        launch(options.host, options.port, model=options.model, device=options.device, inbrowser=options.open)
    except DemoError as error:
        return _fail(str(error))
    return 0


def _push(options: argparse.Namespace) -> int:
    if options.dry_run and options.output is None:
        return _fail("--dry-run needs --output DIR")
    from transformers.utils import logging

    from .hub import HubError, export_checkpoint, push_to_hub

    logging.disable_progress_bar()
    try:
        if options.dry_run:
            title = options.repository.rsplit("/", 1)[-1]
            print(export_checkpoint(options.model, options.output, options.repository, title))
        else:
            print(push_to_hub(options.repository, options.model, private=not options.public))
    except (HubError, OSError, ValueError) as error:
        return _fail(_about(options.repository, _one_line(error)))
    return 0


def _push_space(options: argparse.Namespace) -> int:
    if options.dry_run and options.output is None:
        return _fail("--dry-run needs --output DIR")
    from .hub import HubError, export_space, push_space

    try:
        if options.dry_run:
            print(export_space(options.output, options.model))
        else:
            print(push_space(options.repository, options.model, private=not options.public))
    except (HubError, OSError, ValueError) as error:
        return _fail(_about(options.repository, _one_line(error)))
    return 0


def _about(name: str, error: str) -> str:
    return error if name in error else f"{name}: {error}"


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _fail(message: str) -> int:
    print(f"abm-hf: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
