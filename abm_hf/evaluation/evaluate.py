"""Measures a checkpoint on a labelled split: `accelerate launch scripts/evaluate.py --model … --data … --split …`.

It writes `predictions.jsonl`, `results.json` and `report.html`. Processes share the batches, and the main one appends
what they have read to a file; so an evaluation that was stopped is resumed, with any number of processes.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..arguments import ArgumentError, check_minimum
from ..data.items import Items, load_split
from ..decoding_abm import DecodingOptions, Hypothesis
from ..file_names import escape_name
from ..inference.base import BaseRecognizer
from ..inference.loading import Engine
from ..pretrained import DEFAULT, checkpoint_path
from .expression_rate import bootstrap_intervals, expression_rate, score_expressions
from .predictions import load_for_evaluation, open_output_folder, read_items
from .reliability import draw_reliability, expected_calibration_error
from .report import build_report, holds_research_data

logger = logging.getLogger(__name__)


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    data: str = field(metadata={"help": "Prepared data set (directory or Hub id), CROHME's offline zip or folder."})
    split: str = field(metadata={"help": "Split of it, such as test2014."})
    output_dir: str = field(metadata={"help": "Folder for predictions.jsonl, results.json and report.html."})
    model: str | None = field(
        default=None, metadata={"help": "Directory or Hub id; default: the packaged checkpoint."}
    )
    engine: Engine = field(
        default="auto", metadata={"help": "onnx, torch, or auto: what recognition takes on this device."}
    )
    beams: int = field(default=10, metadata={"help": "Hypotheses followed at a time; 1 is greedy."})
    top_k: int = field(default=1, metadata={"help": "Hypotheses kept for each image."})
    max_length: int = field(default=200, metadata={"help": "Most tokens of an answer."})
    grammar: bool = field(default=True, metadata={"help": "Whether only well-formed LaTeX can be written."})
    direction: str = field(default="l2r", metadata={"help": "The branch that searches, l2r or r2l."})
    rescore: bool = field(
        default=True,
        metadata={"help": "Whether the other branch rescores what beam search from left to right has found."},
    )
    rescoring_weight: float | None = field(
        default=None, metadata={"help": "Of the right-to-left branch in that; default: as fitted for the checkpoint."}
    )
    rescoring_size: float | None = field(
        default=None,
        metadata={"help": "Factor of a second pass on larger images; 1: none; default: the checkpoint's."},
    )
    length_penalty: float | None = field(default=None, metadata={"help": "Exponent of the length in the ranking."})
    batch_images: int = field(default=16, metadata={"help": "Most pictures in a batch."})
    batch_pixels: int = field(default=2_000_000, metadata={"help": "Most padded pixels in a batch."})
    convention: str = field(default="abm", metadata={"help": "Name of the labels' convention, for the record."})
    max_items: int | None = field(default=None, metadata={"help": "Read this many items only."})
    gallery: int = field(default=24, metadata={"help": "Misses shown with their pictures in report.html; 0: none."})
    cpu: bool = field(default=False, metadata={"help": "Use no GPU."})

    def __post_init__(self) -> None:
        check_minimum(self, 0, "gallery")
        check_minimum(self, 1, "batch_images", "batch_pixels", "max_items")
        try:
            self.decoding_options()
        except ValueError as error:
            raise ArgumentError(str(error)) from error

    def decoding_options(self) -> DecodingOptions:
        """How formulas are searched."""
        return DecodingOptions(
            num_beams=self.beams,
            top_k=self.top_k,
            max_length=self.max_length,
            grammar=self.grammar,
            direction=self.direction,
            rescore=None if self.rescore else False,
            rescoring_weight=self.rescoring_weight,
            rescoring_size=self.rescoring_size,
            length_penalty=self.length_penalty,
        )


def evaluate_checkpoint(arguments: EvaluationArguments) -> dict[str, Any]:
    """Reads a split and compares with its labels.

    Returns:
        What `results.json` holds: the rates of [`expression_rate`] in percent, `intervals` (95 %, bootstrap over
        expressions), and how they were measured.

    Raises:
        ArgumentError: for data, an output folder or options that cannot be used.
        CheckpointError: if there is no such checkpoint, or it cannot be loaded.
    """
    accelerator = Accelerator(cpu=arguments.cpu or not torch.cuda.is_available())
    path = checkpoint_path(arguments.model)
    items = load_split(arguments.data, arguments.split)
    if arguments.max_items is not None:
        items = items.subset(range(min(arguments.max_items, len(items))))
    recognizer = load_for_evaluation(path, accelerator.device, arguments.engine)
    try:
        options = arguments.decoding_options().resolve(recognizer.engine.settings, recognizer.engine.directions)
    except ValueError as error:
        raise ArgumentError(f"{path}: {error}") from error
    described = {**asdict(arguments), **asdict(options), "model": path, "weights": recognizer.fingerprint()}
    described["items"] = items.fingerprint()
    folder = open_output_folder(arguments.output_dir, described, accelerator)
    read = partial(_read, recognizer, options)
    ordered = read_items(items, read, folder, accelerator, arguments.batch_images, arguments.batch_pixels)
    result = _result(arguments, options, ordered)
    if accelerator.is_main_process:
        _write(arguments, folder, ordered, items, result)
    accelerator.wait_for_everyone()
    return result


def _read(recognizer: BaseRecognizer, options: DecodingOptions, images: list[np.ndarray]) -> list[dict[str, Any]]:
    return [_row(hypotheses) for hypotheses in recognizer.decode(images, options)]


def _row(hypotheses: list[Hypothesis]) -> dict[str, Any]:
    if not hypotheses:
        return {"prediction": "", "score": 0.0, "log_probability": -1e9, "n_best": []}
    return {
        "prediction": " ".join(hypotheses[0].tokens),
        "score": hypotheses[0].score,
        "log_probability": hypotheses[0].log_probability,
        "n_best": [{"tokens": " ".join(found.tokens), "score": found.score} for found in hypotheses],
    }


def _result(arguments: EvaluationArguments, options: DecodingOptions, rows: list[dict[str, Any]]) -> dict[str, Any]:
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    rates = expression_rate(predictions=predictions, references=references, convention=arguments.convention)
    intervals = bootstrap_intervals(score_expressions(predictions=predictions, references=references))
    return {
        **rates,
        "intervals": {name: list(interval) for name, interval in intervals.items()},
        "model": escape_name(arguments.model or DEFAULT),
        "data": escape_name(Path(arguments.data).name),
        "split": arguments.split,
        "beams": options.num_beams,
        "grammar": options.grammar,
        "direction": options.direction,
        "rescored": options.rescore,
        "rescoring_weight": options.rescoring_weight,
        "rescoring_size": options.rescoring_size,
        "calibration": {
            "ece_of_model": expected_calibration_error(np.exp([row["log_probability"] for row in rows]), _right(rows)),
            "ece_of_score": expected_calibration_error(_scores(rows), _right(rows)),
        },
    }


def _scores(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["score"] for row in rows])


def _right(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["prediction"] == row["reference"] for row in rows])


def _write(
    arguments: EvaluationArguments, folder: Path, rows: list[dict[str, Any]], items: Items, result: dict[str, Any]
) -> None:
    _write_lines(folder / "predictions.jsonl", rows)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw_reliability(folder / "reliability.png", {"score": (_scores(rows), _right(rows))}, title=arguments.split)
    report = folder / "report.html"
    report.write_text(build_report(rows, items.images, result, arguments.gallery), encoding="utf-8")
    if holds_research_data(result, arguments.gallery):
        (folder / ".gitignore").write_text(f"# It shows pictures of the data set.\n{report.name}\n", encoding="utf-8")
        logger.info("%s shows pictures of %s: do not publish it where that is research data", report, result["data"])


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
