"""The recipe `smoke` as a newcomer runs it, whole: in minutes the loss falls and the model reads its own ink."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from training_runs import TRAIN, history

from abm_hf import Recognizer
from abm_hf.synthetic.expressions import synthetic_ink


@dataclass
class Trained:
    """A run that has ended: where it is, and what it printed."""

    output: Path
    printed: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("smoke") / "run"
    root = TRAIN.parent.parent
    command = [sys.executable, "scripts/train.py", "--config", "smoke", "--output-dir", str(output), "--cpu"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(output, done.stdout)


@pytest.mark.timeout(1200)  # on a busy machine
def test_the_loss_falls(trained: Trained) -> None:
    rows = history(trained.output)
    losses = [row["loss"] for row in rows if row["kind"] == "evaluation"]
    assert len(losses) > 2 and losses[-1] < losses[0] / 2
    # The labels grow longer on the way; with those of one token alone it falls, and with all again.
    for longest in {row["max_tokens"] for row in rows if row["kind"] == "train"}:
        stage = [row["loss"] for row in rows if row["kind"] == "train" and row["max_tokens"] == longest]
        assert stage[-1] < 0.7 * stage[0]


def test_validation_decodes(trained: Trained) -> None:
    result = json.loads(trained.printed)
    assert result["finished"] and result["best"] >= result["exprate"] > 25
    assert (result["count"], result["missing"]) == (600, 0)
    predictions = (trained.output / "best" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 600


def test_the_model_reads_its_own_ink(trained: Trained) -> None:
    """Ink by the same hand that it has not seen."""
    inks = [synthetic_ink(seed, max_tokens=3) for seed in range(2_000_000_000, 2_000_000_060)]
    answers = Recognizer(trained.output / "final", "cpu")(inks, num_beams=1)
    right = sum(" ".join(answer.tokens) == ink.label for answer, ink in zip(answers, inks, strict=True))
    assert right >= 0.25 * len(inks)
