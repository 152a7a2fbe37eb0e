"""`abm-hf recognize`: pictures, InkML files or folders of them in; LaTeX, MathML, JSON or pictures out."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import lacks
from ..file_names import escape_name, expand
from .loading import load_recognizer
from .messages import about, fail, one_line
from .predictions import resume
from .writing import FORMATS, FileWriter, PictureWriter, StreamWriter, Writer

if TYPE_CHECKING:
    from ..decoding_abm import DecodingOptions
    from ..inference.base import BaseRecognizer, Recognition

_STDIN = "-"
# Inputs prepared at a time, in batches: enough to sort by size, few enough to keep memory flat.
_CHUNK_BATCHES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("inputs", nargs="+", metavar="FILE|FOLDER|-", help="pictures, .inkml, folders; - reads stdin")
    parser.add_argument("--model", help="directory or Hub id; default: the packaged checkpoint")
    parser.add_argument("--device", help="such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument(
        "--engine",
        choices=["auto", "onnx", "torch"],
        default="auto",
        help="what runs the network; auto: ONNX Runtime on a CPU, PyTorch on a GPU or where there is no ONNX export",
    )
    parser.add_argument("--beams", type=_positive, metavar="N", help="hypotheses followed (10); 1: greedy")
    parser.add_argument("--top-k", type=_positive, default=1, metavar="N", help="hypotheses for each input, in JSON")
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="pictures decoded together (16)")
    parser.add_argument(
        "--max-length",
        type=_positive,
        metavar="N",
        help="most tokens of an answer, start and end included (200)",
    )
    parser.add_argument(
        "--no-rescore", action="store_true", help="left to right alone: the other branch does not rescore the answers"
    )
    parser.add_argument(
        "--rescoring-weight",
        type=_probability,
        metavar="W",
        help="weight of the right-to-left branch, 0 to 1; default: what was fitted for the checkpoint",
    )
    parser.add_argument(
        "--rescoring-size",
        type=float,
        metavar="S",
        help="factor by which images are enlarged to tell close answers apart; 1: not at all; default: what was "
        "chosen for the checkpoint",
    )
    parser.add_argument("--no-grammar", action="store_true", help="allow LaTeX that is not well formed")
    parser.add_argument(
        "--min-score", type=_probability, default=0.0, metavar="P", help="answers less probable than this are left out"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--format", choices=FORMATS, help="of the answers (latex; json with --output FILE.jsonl)")
    form.add_argument("--json", action="store_const", const="json", dest="format", help="short for --format json")
    parser.add_argument(
        "--with-names",
        action=argparse.BooleanOptionalAction,
        help="put the input's name and a tab before LaTeX or MathML (default: where there may be several inputs)",
    )
    parser.add_argument(
        "--output",
        type=expand,
        metavar="FILE.jsonl|FOLDER",
        help="append JSON lines to a file; inputs that it has answers for are not read again. With --format png: "
        "where the pictures go",
    )


def run(options: argparse.Namespace) -> int:
    """Reads the inputs; returns the exit code."""
    from ..inference.base import iter_inputs

    try:
        inputs: list[Any] = [
            found for name in options.inputs for found in ([_STDIN] if name == _STDIN else iter_inputs([name]))
        ]
    except (FileNotFoundError, ValueError) as error:
        return fail(str(error))
    if problem := _contradiction(options):
        return fail(problem)
    if options.format == "png" and len(inputs) > 1 and options.output.suffix.lower() == ".png":
        return fail(f"{len(inputs)} inputs do not go into one picture: name a folder as --output")
    try:
        return _run(options, inputs)
    except OSError as error:
        return fail(f"cannot write {error.filename or options.output}: {error.strerror or error}")
    except (ValueError, ImportError) as error:  # options that contradict the model or each other; a missing package
        return fail(one_line(error))


def _contradiction(options: argparse.Namespace) -> str | None:
    if options.format == "latex" and options.output is not None:
        return "--output takes JSON lines: leave --format latex out, or redirect standard output for LaTeX alone"
    if options.format == "png" and options.output is None:
        return "--format png needs --output, a folder (or a .png file for a single input)"
    if options.rescoring_weight is not None and options.no_rescore:
        return "--rescoring-weight has no effect with --no-rescore: leave one of them out"
    if options.format == "mathml":
        return lacks("output", "--format mathml", "latex2mathml")
    return lacks("output", "--format png", "matplotlib") if options.format == "png" else None


def _run(options: argparse.Namespace, inputs: list[Any]) -> int:
    """Recognizes the inputs that have no answer in the output yet."""
    missing = _report_missing(inputs)
    resumes = options.output is not None and options.format != "png"
    recognizer, settings = None, {}
    if len(missing) < len(inputs) or resumes:
        recognizer = load_recognizer(options.model, options.device, options.engine)
        if recognizer is None:
            return 2
    if resumes:
        assert recognizer is not None
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings = _settings(options, recognizer)
        done = resume(options.output, settings) - {_STDIN}
        inputs = [item for item in inputs if escape_name(str(item)) not in done]
    return 1 if _read(recognizer, inputs, options, settings, missing) else 0


def _decoding(options: argparse.Namespace) -> "DecodingOptions":
    from ..decoding_abm import DecodingOptions

    return DecodingOptions(
        num_beams=options.beams,
        top_k=options.top_k,
        max_length=options.max_length,
        grammar=not options.no_grammar,
        rescore=False if options.no_rescore else None,
        rescoring_weight=options.rescoring_weight,
        rescoring_size=options.rescoring_size,
    )


def _report_missing(inputs: Sequence[Any]) -> dict[Any, str]:
    """Says at once which files are not there, as loading the model takes seconds; what it says, by input."""
    missing = {item: said for item in inputs if (said := _missing(item)) is not None}
    for said in missing.values():
        fail(said)
    return missing


def _missing(item: Any) -> str | None:
    if item == _STDIN:
        return None
    if str(item).startswith(("http:/", "https:/")):
        return f"{item}: is an address: download the picture and pass its path"
    try:
        Path(item).stat()
    except FileNotFoundError as error:
        return f"{item}: {error.strerror}"
    except (OSError, ValueError):  # reading it will tell
        return None
    return None


def _settings(options: argparse.Namespace, recognizer: "BaseRecognizer") -> dict[str, Any]:
    """All that the answers depend on, for the record: the weights themselves, as a checkpoint's name may stay."""
    decoding = _decoding(options).resolve(recognizer.engine.settings, recognizer.engine.directions)
    return {
        "weights": recognizer.fingerprint(),
        "engine": type(recognizer).__name__,
        "mathml": options.format == "mathml",
        "min_score": options.min_score,
        **asdict(decoding),
    }


def _read(
    recognizer: Any,
    inputs: list[Any],
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    missing: Mapping[Any, str],
) -> int:
    """Reads and writes; returns how many inputs failed. The `missing` ones have been reported."""
    from ..inference.base import Recognition

    failed = 0
    results = _results(recognizer, [item for item in inputs if item not in missing], options)
    with _writer(options, settings, single=len(inputs) == 1) as writer:
        for item in inputs:
            if item in missing:
                name, result = str(item), Recognition(None, 0.0, error=missing[item])
            else:
                name, result = next(results)
            if result.error is not None:
                failed += 1
                if item not in missing:
                    fail(about(name, result.error))
            elif result.score < options.min_score:
                fail(f"{name}: not sure (the best answer has probability {result.score:.2f})")
            if problem := writer.write(name, result):
                failed += 1
                fail(about(name, problem))
    return failed


def _writer(options: argparse.Namespace, settings: Mapping[str, Any], single: bool) -> Writer:
    if options.format == "png":
        return PictureWriter(options.output, options.min_score, single)
    if options.output:
        return FileWriter(options.output, options.min_score, settings, mathml=options.format == "mathml")
    names = options.with_names
    if names is None:
        from ..inference.base import is_folder

        names = len(options.inputs) > 1 or is_folder(options.inputs[0])
    return StreamWriter(options.format or "latex", options.min_score, names)


def _results(
    recognizer: "BaseRecognizer", inputs: list[Any], options: argparse.Namespace
) -> Iterator[tuple[str, "Recognition"]]:
    """Name and result of each input, in order."""
    from tqdm import tqdm

    decoding = _decoding(options)
    chunk = _CHUNK_BATCHES * options.batch_size
    # A bar for work that takes a while, and only where somebody watches.
    hidden = len(inputs) <= options.batch_size or not sys.stderr.isatty()
    with tqdm(total=len(inputs), unit="image", file=sys.stderr, disable=hidden) as bar:
        for start in range(0, len(inputs), chunk):
            names = inputs[start : start + chunk]
            images = [sys.stdin.buffer.read() if name == _STDIN else name for name in names]
            results = recognizer(images, batch_size=options.batch_size, errors="return", options=decoding)
            for name, result in zip(names, results, strict=True):
                yield str(name), result
                bar.update()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text}")
    return value
