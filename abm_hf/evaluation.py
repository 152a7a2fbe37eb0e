"""Measures a checkpoint on a labelled split: `accelerate launch scripts/evaluate.py --model … --data … --split …`.

It writes `predictions.jsonl`, `results.json` and `report.html`. Processes share the batches, each appends what it has
read to a file of its own, and the main one puts the files together; so an evaluation that was stopped goes on, with
any number of processes.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .data.collator import ABMCollator
from .evaluation_report import build_report, holds_research_data
from .metrics.expression_rate import bootstrap_intervals, expression_rate, score_expressions
from .modeling_abm import ABMForConditionalGeneration
from .pretrained import DEFAULT, CheckpointError, checkpoint_path
from .processing_abm import ABMProcessor
from .reading_abm import read_formulas
from .readings_abm import Reading
from .runtime import Precision, encoder_dtype
from .training.arguments import ArgumentError, DataArguments, check_minimum
from .training.evaluation import evaluation_batches
from .training.items import Items, load_split

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
    two_way: bool = field(default=False, metadata={"help": "Whether both branches propose and judge."})
    batch_images: int = field(default=16, metadata={"help": "Most pictures in a batch."})
    batch_pixels: int = field(default=2_000_000, metadata={"help": "Most padded pixels in a batch."})
    convention: str = field(default="abm", metadata={"help": "Name of the labels' convention, for the record."})
    max_items: int | None = field(default=None, metadata={"help": "Read this many items only."})
    precision: Precision = field(
        default="float32", metadata={"help": "Of the encoder; auto: bfloat16 where the processor computes in it."}
    )
    gallery: int = field(default=24, metadata={"help": "Misses shown with their pictures in report.html; 0: none."})
    cpu: bool = field(default=False, metadata={"help": "Use no GPU."})

    def __post_init__(self) -> None:
        check_minimum(self, 0, "gallery")
        check_minimum(self, 1, "beams", "top_k", "batch_images", "batch_pixels", "max_items")
        check_minimum(self, 2, "max_length")


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
    model, processor = _load(arguments, path, accelerator)
    folder = _claim(arguments, path, accelerator)
    _read(arguments, items, model, processor, folder, accelerator)
    accelerator.wait_for_everyone()
    rows = _rows(folder)
    ordered = [rows[name] for name in items.ids]
    result = _result(arguments, ordered)
    if accelerator.is_main_process:
        _write(arguments, folder, ordered, items, result)
    accelerator.wait_for_everyone()
    return result


def _load(
    arguments: EvaluationArguments, path: str, accelerator: Accelerator
) -> tuple[ABMForConditionalGeneration, ABMProcessor]:
    try:
        processor = ABMProcessor.from_pretrained(path)
        model = ABMForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot load {path}: {str(error).strip().splitlines()[0]}") from error
    if arguments.two_way and len(model.branches) < 2:
        raise ArgumentError(f"{path} has one direction, {model.config.directions[0]}: two_way needs a model with two")
    model.to(accelerator.device).eval()
    return model.fuse(encoder_dtype(arguments.precision, accelerator.device)), processor


def _claim(arguments: EvaluationArguments, path: str, accelerator: Accelerator) -> Path:
    """The output folder, made or taken up again; another evaluation's is refused."""
    folder = Path(arguments.output_dir)
    described = {**asdict(arguments), "model": path}
    for unimportant in ("output_dir", "cpu", "batch_images", "batch_pixels", "gallery"):
        described.pop(unimportant)
    record = folder / "evaluation.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != described:
        raise ArgumentError(f"{folder} holds another evaluation: choose another output_dir, or delete it")
    if not record.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ArgumentError(f"{folder} holds something else: choose an empty output_dir")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(described), encoding="utf-8")
        except OSError as error:
            raise ArgumentError(f"cannot write to {folder}: {error.strerror}") from error
    accelerator.wait_for_everyone()
    return folder


def _read(
    arguments: EvaluationArguments,
    items: Items,
    model: ABMForConditionalGeneration,
    processor: ABMProcessor,
    folder: Path,
    accelerator: Accelerator,
) -> None:
    """Reads what no process has read yet; this process its share of it."""
    done = _rows(folder)
    accelerator.wait_for_everyone()  # nobody writes before all have seen the same
    missing = items.subset([index for index, name in enumerate(items.ids) if name not in done])
    batches = list(evaluation_batches(missing, arguments.batch_images, arguments.batch_pixels)) if len(missing) else []
    collator = ABMCollator((32, 64))
    part = folder / f"part-{accelerator.process_index:03d}.jsonl"
    torn = part.is_file() and not part.read_bytes().endswith(b"\n")
    with part.open("a", encoding="utf-8") as file:
        file.write("\n" if torn else "")  # a line cut short by a crash must not take the next one with it
        for batch in tqdm(
            batches[accelerator.process_index :: accelerator.num_processes],
            disable=not accelerator.is_local_main_process,
            unit="batch",
        ):
            tensors = collator([{"image": missing.images[index], "labels": [1]} for index in batch])
            readings = read_formulas(
                model,
                processor.tokenizer,
                tensors["pixel_values"],
                tensors["pixel_mask"],
                num_beams=arguments.beams,
                top_k=arguments.top_k,
                max_length=arguments.max_length,
                grammar=arguments.grammar,
                two_way=arguments.two_way,
            )
            for index, candidates in zip(batch, readings, strict=True):
                row = _row(missing.ids[index], missing.latex[index], candidates)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


def _row(name: str, reference: str, candidates: list[Reading]) -> dict[str, Any]:
    return {
        "id": name,
        "reference": reference,
        "prediction": " ".join(candidates[0].tokens),
        "score": candidates[0].score,
        "n_best": [{"tokens": " ".join(reading.tokens), "score": reading.score} for reading in candidates],
    }


def _rows(folder: Path) -> dict[str, dict[str, Any]]:
    """By id, all that any process has written; a line cut short by a crash does not count."""
    rows = {}
    for part in sorted(folder.glob("part-*.jsonl")):
        for line in part.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows[row["id"]] = row
    return rows


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
        "two_way": arguments.two_way,
    }


def _write(
    arguments: EvaluationArguments, folder: Path, rows: list[dict[str, Any]], items: Items, result: dict[str, Any]
) -> None:
    _write_lines(folder / "predictions.jsonl", rows)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    report = folder / "report.html"
    report.write_text(build_report(rows, items.images, result, arguments.gallery), encoding="utf-8")
    if holds_research_data(result, arguments.gallery):
        (folder / ".gitignore").write_text(f"# It shows pictures of the data set.\n{report.name}\n", encoding="utf-8")
        logger.info("%s shows pictures of %s: do not publish it where that is research data", report, result["data"])


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
