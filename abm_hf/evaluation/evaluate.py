"""Measures a checkpoint on a labelled split: `accelerate launch scripts/evaluate.py --model … --data … --split …`.

It writes `predictions.jsonl`, `results.json` and `report.html`. Processes share the batches, each appends what it has
read to a file of its own, and the main one puts the files together; so an evaluation that was stopped goes on, with
any number of processes.
"""

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..configuration_abm import DIRECTIONS
from ..modeling_abm import ABMForConditionalGeneration
from ..pretrained import DEFAULT, checkpoint_path
from ..reading_abm import read_formulas
from ..readings_abm import Reading, check_scales
from ..runtime import Precision, encoder_dtype
from ..tokenization_abm import ABMTokenizer
from ..training.arguments import ArgumentError, DataArguments, check_minimum
from ..training.items import Items, load_split
from .expression_rate import bootstrap_intervals, expression_rate, score_expressions
from .predictions import claim_folder, load_checkpoint, read_items, weights_fingerprint
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
    beams: int = field(default=1, metadata={"help": "Hypotheses followed at a time; 1 is greedy."})
    top_k: int = field(default=1, metadata={"help": "Readings kept for each picture."})
    max_length: int = field(default=200, metadata={"help": "Most tokens of an answer."})
    grammar: bool = field(default=True, metadata={"help": "Whether only well-formed LaTeX can be written."})
    direction: str = field(default="l2r", metadata={"help": "The branch that reads, l2r or r2l."})
    two_way: bool = field(default=False, metadata={"help": "Whether both branches propose and judge."})
    two_way_weight: float | None = field(
        default=None,
        metadata={"help": "Say of the right-to-left branch in that; default: as tuned for the checkpoint."},
    )
    scales: list[float] | None = field(
        default=None,
        metadata={"help": "Sizes at which pictures are read, as factors; default: as chosen for the checkpoint."},
    )
    batch_images: int = field(default=16, metadata={"help": "Most pictures in a batch."})
    batch_pixels: int = field(default=2_000_000, metadata={"help": "Most padded pixels in a batch."})
    convention: str = field(default="abm", metadata={"help": "Name of the labels' convention, for the record."})
    max_items: int | None = field(default=None, metadata={"help": "Read this many items only."})
    precision: Precision = field(
        default="float32", metadata={"help": "Of the encoder; auto: the fastest that the processor computes in."}
    )
    gallery: int = field(default=24, metadata={"help": "Misses shown with their pictures in report.html; 0: none."})
    cpu: bool = field(default=False, metadata={"help": "Use no GPU."})

    def __post_init__(self) -> None:
        check_minimum(self, 0, "gallery")
        check_minimum(self, 1, "beams", "top_k", "batch_images", "batch_pixels", "max_items")
        check_minimum(self, 3, "max_length")
        try:
            check_scales([1.0] if self.scales is None else self.scales)
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        if self.direction not in DIRECTIONS:
            raise ArgumentError(f"direction must be one of {', '.join(DIRECTIONS)}, not {self.direction!r}")


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
    items = load_split(arguments.data, arguments.split, DataArguments(data=arguments.data))
    if arguments.max_items is not None:
        items = items.subset(range(min(arguments.max_items, len(items))))
    model, processor = load_checkpoint(path, accelerator.device)
    _check_directions(arguments, path, model)
    arguments = _with_the_checkpoints_own(arguments, model)
    described = {**asdict(arguments), "model": path, "weights": weights_fingerprint(model)}
    described["items"] = items.fingerprint()
    model.fuse(encoder_dtype(arguments.precision, accelerator.device))
    folder = claim_folder(arguments.output_dir, described, accelerator)
    read = partial(_read, model, processor.tokenizer, arguments)
    ordered = read_items(items, read, folder, accelerator, arguments.batch_images, arguments.batch_pixels)
    result = _result(arguments, ordered)
    if accelerator.is_main_process:
        _write(arguments, folder, ordered, items, result)
    accelerator.wait_for_everyone()
    return result


def _check_directions(arguments: EvaluationArguments, path: str, model: ABMForConditionalGeneration) -> None:
    if arguments.direction not in model.config.directions:
        raise ArgumentError(f"{path} reads {model.config.directions[0]} only, not {arguments.direction}")
    if arguments.two_way and len(model.branches) < 2:
        raise ArgumentError(f"{path} has one direction, {model.config.directions[0]}: two_way needs a model with two")


def _with_the_checkpoints_own(
    arguments: EvaluationArguments, model: ABMForConditionalGeneration
) -> EvaluationArguments:
    """The arguments with what the checkpoint decides written out, so that results say how they were measured."""
    settings = model.generation_config
    weight, scales = arguments.two_way_weight, arguments.scales
    return replace(
        arguments,
        two_way_weight=getattr(settings, "two_way_weight", 0.5) if weight is None and arguments.two_way else weight,
        scales=list(getattr(settings, "reading_scales", [1.0])) if scales is None else scales,
    )


def _read(
    model: ABMForConditionalGeneration,
    tokenizer: ABMTokenizer,
    arguments: EvaluationArguments,
    pixel_values: Tensor,
    pixel_mask: Tensor,
) -> list[dict[str, Any]]:
    readings = read_formulas(
        model,
        tokenizer,
        pixel_values,
        pixel_mask,
        num_beams=arguments.beams,
        top_k=arguments.top_k,
        max_length=arguments.max_length,
        grammar=arguments.grammar,
        direction=arguments.direction,
        two_way=arguments.two_way,
        two_way_weight=arguments.two_way_weight,
        scales=arguments.scales,
    )
    return [_row(candidates) for candidates in readings]


def _row(candidates: list[Reading]) -> dict[str, Any]:
    if not candidates:
        return {"prediction": "", "score": 0.0, "log_probability": -1e9, "n_best": []}
    return {
        "prediction": " ".join(candidates[0].tokens),
        "score": candidates[0].score,
        "log_probability": candidates[0].log_probability,
        "n_best": [{"tokens": " ".join(reading.tokens), "score": reading.score} for reading in candidates],
    }


def _result(arguments: EvaluationArguments, rows: list[dict[str, Any]]) -> dict[str, Any]:
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    rates = expression_rate(predictions=predictions, references=references, convention=arguments.convention)
    intervals = bootstrap_intervals(score_expressions(predictions=predictions, references=references))
    return {
        **rates,
        "intervals": {name: list(interval) for name, interval in intervals.items()},
        "model": arguments.model or DEFAULT,
        "data": Path(arguments.data).name,
        "split": arguments.split,
        "beams": arguments.beams,
        "grammar": arguments.grammar,
        "direction": arguments.direction,
        "two_way": arguments.two_way,
        "two_way_weight": arguments.two_way_weight,
        "scales": arguments.scales,
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
