"""Evaluation of a checkpoint on a split: its files, its report, and going on after a stop."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from training_runs import write_pictures

import abm_hf.evaluation.evaluate as evaluation
from abm_hf import ABMForConditionalGeneration
from abm_hf.arguments import ArgumentError
from abm_hf.data.items import load_split
from abm_hf.evaluation.errors import align_tokens, count_token_errors, structure_depth, wilson_interval
from abm_hf.evaluation.evaluate import EvaluationArguments, evaluate_checkpoint
from abm_hf.evaluation.predictions import read_items
from abm_hf.evaluation.report import build_report
from abm_hf.pretrained import CheckpointError

_RATES = ("exprate", "exprate_1", "exprate_2", "exprate_3", "wer", "structure_rate", "tree_rate")


@pytest.fixture(autouse=True)
def _fresh_process_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def arguments(tmp_path: Path, tiny_checkpoint: Path) -> EvaluationArguments:
    data = write_pictures(tmp_path / "data")
    return EvaluationArguments(
        str(data), "train", str(tmp_path / "eval"), str(tiny_checkpoint), beams=2, max_length=6, max_items=5, cpu=True
    )


def test_an_evaluation_writes_predictions_results_and_a_report(arguments: EvaluationArguments) -> None:
    result = evaluate_checkpoint(arguments)
    folder = Path(arguments.output_dir)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"{number}_writer{'abcdef'[number]}" for number in range(5)]
    assert json.loads((folder / "results.json").read_text()) == result and result["count"] == 5
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 10 and "This page holds 5 pictures of <b>data</b>" in report
    assert "report.html" in (folder / ".gitignore").read_text()


def test_other_weights_or_labels_of_the_same_name_are_another_evaluation(
    arguments: EvaluationArguments, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(str(arguments.model), tmp_path / "model")
    arguments = replace(arguments, model=str(checkpoint))
    evaluate_checkpoint(arguments)
    captions = tmp_path / "data" / "train" / "caption.txt"
    before = captions.read_text()
    captions.write_text(before.replace("x", "y"))
    with pytest.raises(ArgumentError, match=r"another evaluation \(items changed\)"):
        evaluate_checkpoint(arguments)
    captions.write_text(before)
    model = ABMForConditionalGeneration.from_pretrained(checkpoint)
    next(model.parameters()).data.add_(0.01)
    model.save_pretrained(checkpoint)
    with pytest.raises(ArgumentError, match=r"another evaluation \(weights changed\)"):
        evaluate_checkpoint(arguments)


@pytest.mark.parametrize("name", ["evaluate", "calibrate"])
def test_what_cannot_work_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("abm_hf.runtime.tune_process", lambda: None)  # that concerns the whole process
    monkeypatch.setattr(sys, "argv", [name, "--data", "d", "--split", "s", "--output_dir", "o", "--max_length", "1"])
    script = Path(__file__).parents[2] / "scripts" / f"{name}.py"
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(script), run_name="__main__")
    message = capsys.readouterr().err
    assert message.startswith("error: max_length must be ") and len(message.splitlines()) == 1


def predictions(folder: Path) -> list[tuple[str, str]]:
    """Without the scores, whose last digits depend on the batch."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [(row["id"], row["prediction"]) for row in rows]


def test_an_evaluation_goes_on_where_it_was_stopped(
    arguments: EvaluationArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_checkpoint(arguments)
    folder = Path(arguments.output_dir)
    whole = predictions(folder)
    answers = folder / "answers.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:3]) + '{"id": "cut sh')
    read: list[int] = []

    def watched(recognizer: Any, options: Any, images: Any) -> Any:
        read.append(len(images))
        return honest(recognizer, options, images)

    honest = evaluation._read
    monkeypatch.setattr(evaluation, "_read", watched)
    evaluate_checkpoint(replace(arguments, gallery=0))
    assert sum(read) == 2
    assert predictions(folder) == whole
    report = (folder / "report.html").read_text()
    assert "data:image/png" not in report and "This page holds" not in report


def test_what_cannot_be_evaluated_is_refused_before_any_work(arguments: EvaluationArguments, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no split 'test'"):
        evaluate_checkpoint(replace(arguments, split="test"))
    with pytest.raises(ArgumentError, match="holds something else"):
        evaluate_checkpoint(replace(arguments, output_dir=arguments.data))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot load .*model"):
        evaluate_checkpoint(replace(arguments, model=str(tmp_path / "model")))
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot write to"):
        evaluate_checkpoint(replace(arguments, output_dir=str(tmp_path / "file" / "eval")))
    evaluate_checkpoint(arguments)
    with pytest.raises(ArgumentError, match="holds another evaluation"):
        evaluate_checkpoint(replace(arguments, beams=3))
    for name in ("top_k", "max_items", "batch_images", "max_length"):
        with pytest.raises(ArgumentError, match=rf"{name} must be .*at least"):
            replace(arguments, **{name: 0})


def test_items_of_one_id_are_refused(tmp_path: Path) -> None:
    items = load_split("synthetic", "train", synthetic_items=3)
    items.ids[2] = items.ids[0]
    with pytest.raises(ArgumentError, match="several items have the id 'train-0'"):
        read_items(items, lambda images: [], tmp_path, Accelerator(cpu=True), 4, 10_000)


def a_result(**more: Any) -> dict[str, Any]:
    """As `results.json` holds it."""
    shared: dict[str, Any] = {"model": "small", "data": "synthetic", "split": "test", "beams": 1, "grammar": True}
    shared |= {"rescored": True, "evaluator": "e", "convention": "abm", "count": 3}
    shared |= {"intervals": {name: [10.0, 90.0] for name in _RATES}, **dict.fromkeys(_RATES, 50.0)}
    return {**shared, **more}


def test_the_report_tells_what_went_wrong_and_escapes_what_it_shows() -> None:
    pairs = [("x ^ { 2 }", "x ^ { 2 }"), ("x < y", "x y y"), ("a + b", "a b"), ("<script> & </table>", "1 1")]
    rows = [
        {"id": f"<img src=x>{number}", "reference": reference, "prediction": prediction, "score": 0.5}
        for number, (reference, prediction) in enumerate(pairs)
    ]
    images = [np.zeros((20, 30 + number), np.uint8) for number in range(4)]
    report = build_report(rows, images, a_result(split="<b>test</b>"))
    assert "rescored by the right-to-left branch" in report
    assert "5 in all: 3 tokens taken for others, 2 left out, 0 invented." in report
    assert re.search(r"<td><code>&lt;</code></td><td><code>y</code></td><td class=\"number\">1</td>", report)
    assert not re.search(r"<script|<img src=x|<b>test</b>|</table>\s*</code>", report)
    assert report.count("<figure>") == 6  # three misses, in both galleries
    assert "&lt;img src=x&gt;0" not in report  # what was read rightly is not shown
    assert "holds" not in report  # synthetic ink is nobody's
    assert build_report(rows[:1], images, a_result()).count("<figure>") == 0


def test_the_worst_miss_comes_first() -> None:
    rows = [
        {"id": "one", "reference": "x + y", "prediction": "x + z", "score": 0.9},
        {"id": "three", "reference": "x + y", "prediction": "1 2 3", "score": 0.1},
    ]
    report = build_report(rows, [np.zeros((9, 9), np.uint8)] * 2, a_result(), gallery=1)
    assert re.findall(r'quiet">(\w+): (\d) error', report) == [("three", "3"), ("one", "1")]


@given(*[st.lists(st.sampled_from(list("abcd")), max_size=12)] * 2)
def test_an_alignment_is_a_shortest_edit(reference: list[str], prediction: list[str]) -> None:
    pairs = align_tokens(reference, prediction)
    assert [wanted for wanted, _ in pairs if wanted is not None] == reference
    assert [got for _, got in pairs if got is not None] == prediction
    assert sum(wanted != got for wanted, got in pairs) == Levenshtein.distance(reference, prediction)
    errors = count_token_errors([pairs])
    counted = errors.confused.total() + errors.missing.total() + errors.invented.total()
    assert counted == Levenshtein.distance(reference, prediction)
    assert errors.missing.total() - errors.invented.total() == len(reference) - len(prediction)


def test_depth_and_interval() -> None:
    expressions = ["x + y", "x ^ { 2 }", "\\frac { x ^ { 2 } } { 3 }", "x ^ {"]
    assert [structure_depth(latex.split()) for latex in expressions] == [0, 1, 2, None]
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    low, high = wilson_interval(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    with pytest.raises(ValueError, match="count >= 1"):
        wilson_interval(0, 0)
