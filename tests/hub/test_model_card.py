"""The card and the directory that is published: complete, and stating only what was measured."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from abm_hf import ABMForConditionalGeneration
from abm_hf.cli.main import main
from abm_hf.evaluation.failures import draw_failures, find_failures
from abm_hf.ink.strokes import Ink

_RESULT = {
    "exprate": 41.234,
    "exprate_1": 60.0,
    "exprate_2": 70.0,
    "wer": 20.5,
    "count": 986,
    "intervals": {"exprate": [38.1, 44.2]},
    "evaluator": "abm_hf.expression_rate",
    "convention": "abm",
    "split": "2014",
    "beams": 10,
    "grammar": True,
}


@pytest.fixture
def measured(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with evidence beside it."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "measured")
    (folder / "results").mkdir()
    (folder / "results" / "2014-beam.json").write_text(json.dumps(_RESULT))
    record = {"summary": "Trained on a test.", "commands": ["python scripts/train.py"], "facts": {"seed": 17}}
    (folder / "training.json").write_text(json.dumps(record | {"datasets": ["crohme"]}))
    speed = {"text": "On a slow machine.", "columns": ["search", "ms"], "rows": [["greedy", 123]]}
    (folder / "speed.json").write_text(json.dumps(speed))
    calibration = {"split": "2013", "count": 670, "beams": 10, "ece": {"rescored": {"before": 0.2, "after": 0.0312}}}
    (folder / "calibration.json").write_text(json.dumps(calibration))
    failures = find_failures(lambda inks: ["x" for _ in inks], count=3)
    draw_failures(failures).save(folder / "failures.png")
    return folder


def test_dry_run_writes_a_repository(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", _no_network)
    out = tmp_path / "out"
    assert main(["push", "someone/abm-x", "--model", str(measured), "--dry-run", "--output", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    card = ModelCard.load(out / "README.md")
    assert card.data.datasets == ["crohme"]
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "other",
        "transformers",
        "image-to-text",
    )
    rates = {evaluated.metric_type: evaluated for evaluated in card.data.eval_results or []}
    assert rates["exprate"].metric_value == 41.23 and rates["exprate"].dataset_split == "2014"
    assert "beam 10" in rates["exprate"].metric_name and "convention abm" in rates["exprate"].metric_name
    for stated in (
        "41.23 [38.1, 44.2]",
        "Trained on a test.",
        "seed: 17",
        "someone/abm-x",
        "non-commercial",
        "110 LaTeX",
        "| greedy | 123 |",
        "calibration error 0.031, without it 0.200",
        "](failures.png)",
        "MB.",
    ):
        assert stated in card.text, stated
    assert ABMForConditionalGeneration.from_pretrained(out).config.directions == ("l2r", "r2l")
    for needed in (
        "modeling_abm.py",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "training.json",
        "failures.png",
    ):
        assert (out / needed).is_file(), needed


def test_nothing_is_claimed_without_evidence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["push", "someone/abm-x", "--model", str(tiny_checkpoint), "--dry-run", "--output", str(out)]) == 0
    text = (out / "README.md").read_text()
    assert "Not measured." in text and "model-index" not in text and "Not recorded" in text
    assert "datasets" not in text and "failures.png" not in text and "calibrat" not in text


def test_failures_are_those_that_differ_from_the_label() -> None:
    labels: list[str] = []

    def read(inks: Sequence[Ink]) -> list[str | None]:
        labels.extend(str(ink.label) for ink in inks)
        return [label if number % 3 else "x" for number, label in enumerate(str(ink.label) for ink in inks)]

    failures = find_failures(read, count=4)
    assert [failure.label for failure in failures] == labels[:12:3] and {failure.answer for failure in failures} == {
        "x"
    }
    assert find_failures(lambda inks: [str(ink.label) for ink in inks], most=32) == []
    page = np.asarray(draw_failures(failures))
    assert page.shape[1] == 920 and (page[:, :460] < 128).any() and (page[:, 460:] < 128).any()


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "someone/x", "--dry-run"]) == 2
    assert main(["push", "someone/x", "--dry-run", "--output", str(tmp_path / "o"), "--model", "./absent"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not (tmp_path / "o").exists()


def _no_network(*_: object) -> None:
    raise AssertionError("a dry run must not touch the network")
