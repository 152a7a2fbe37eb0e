"""Scores that mean something: what is fitted, that it travels with a checkpoint, and that lists add up."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers import pipeline

from abm_hf import ABMForConditionalGeneration, Recognizer
from abm_hf.arguments import ArgumentError
from abm_hf.decoding_abm import Hypothesis, distinct_hypotheses
from abm_hf.evaluation import calibration
from abm_hf.evaluation.calibration import (
    CalibrationArguments,
    calibrate_checkpoint,
    choose_weight,
    fit_temperature,
    fit_temperatures,
)
from abm_hf.evaluation.reliability import draw_reliability, expected_calibration_error
from abm_hf.hub.publish import export_checkpoint


def _drawing() -> Image.Image:
    image = Image.new("L", (150, 70), 255)
    ImageDraw.Draw(image).line([(20, 20), (90, 50), (30, 50), (120, 20)], fill=0, width=3)
    return image


def _hypothesis(latex: str, probability: float) -> Hypothesis:
    return Hypothesis(latex, 0.0, (), (), log_probability=math.log(probability))


@pytest.fixture
def calibrated(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "calibrated")
    path = copy / "generation_config.json"
    config = json.loads(path.read_text())
    config.pop("_from_model_config", None)
    values = {"score_temperature": 4.0, "r2l_score_temperature": 2.0}
    values |= {"rescored_score_temperature": 8.0, "rescoring_weight": 0.25}
    path.write_text(json.dumps(config | values))
    return copy


def test_the_temperature_is_found_again() -> None:
    """Answers that are right as often as the root of their probability says."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.02, 0.98, 20_000)
    right = rng.uniform(size=scores.size) < scores
    assert fit_temperature(3 * np.log(scores), right) == pytest.approx(3, rel=0.05)
    assert expected_calibration_error(scores, right) < 0.02
    assert expected_calibration_error(scores**3, right) > 0.15


def test_the_extremes_have_a_temperature() -> None:
    for right in (True, False):
        assert 0.1 <= fit_temperature(np.array([-1.0, 0.0, -1e9]), np.full(3, right)) <= 100


def test_calibration_error_by_hand() -> None:
    assert expected_calibration_error(np.array([0.2, 0.9]), np.array([False, True])) == pytest.approx(0.15)
    assert expected_calibration_error(np.array([1.0]), np.array([True])) == 0
    with pytest.raises(ValueError, match="truth values"):
        expected_calibration_error(np.array([]), np.array([]))


def test_scores_of_a_list() -> None:
    """The first is the root of its probability, the others share what is left, in the order of the search."""
    found = [_hypothesis("a", 0.25), _hypothesis("b", 0.36), _hypothesis("a", 0.25), _hypothesis("c", 0.01)]
    first, second, third = distinct_hypotheses(found, temperature=2)
    assert [first.latex, second.latex, third.latex] == ["a", "b", "c"]
    assert first.score == pytest.approx(0.5)
    assert second.score == pytest.approx(0.5 * 0.6) and third.score == pytest.approx(0.2 * 0.1)
    certain = distinct_hypotheses([_hypothesis(str(index), 0.9) for index in range(9)], temperature=5)
    scores = [hypothesis.score for hypothesis in certain]
    assert sum(scores) <= 1 and scores == sorted(scores, reverse=True)
    assert distinct_hypotheses([]) == []


def test_weight_and_temperatures_from_lists() -> None:
    """The right-to-left branch alone knows the answer: it gets all the weight."""
    rows = [{"reference": "x", "l2r": [["y", -0.1, -9.0], ["x", -3.0, -0.2]], "r2l": [["x", -0.2]]} for _ in range(9)]
    weight, by_weight = choose_weight(rows)
    assert weight > 0.5
    assert by_weight["0.00"] == 0 and by_weight["1.00"] == 100
    best = {"l2r": [("y", -0.1)] * 9, "r2l": [("x", -0.2)] * 9, "rescored": [("x", -0.5)] * 9}
    result, curves = fit_temperatures(best, ["x"] * 9)
    assert result["expression_rates"]["l2r"]["exprate"] == 0
    assert result["expression_rates"]["rescored"]["exprate"] == 100
    # What was never right needs the lowest temperature, what always was the highest.
    kept = result["generation_config"]
    assert kept["score_temperature"] == 0.1 and kept["r2l_score_temperature"] == 100
    assert not curves["l2r"][1].any() and curves["rescored"][1].all()


def test_calibration_changes_scores_only_and_travels(calibrated: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"num_beams": 3, "top_k": 3, "max_length": 10, "rescore": False}
    plain = Recognizer(tiny_checkpoint, "cpu")([_drawing()], **options)[0]
    scored = Recognizer(calibrated, "cpu")([_drawing()], **options)[0]
    assert [found.latex for found in scored.alternatives] == [found.latex for found in plain.alternatives]
    assert scored.score == pytest.approx(plain.score**0.25) and scored.token_scores == plain.token_scores
    exported = export_checkpoint(calibrated, tmp_path / "exported", "user/model")
    answer = pipeline("image-to-latex", model=str(exported), trust_remote_code=True)(
        _drawing(), num_beams=3, max_length=10, rescore=False
    )
    assert answer[0]["score"] == pytest.approx(scored.score, rel=1e-3)
    halved = ABMForConditionalGeneration.from_pretrained(exported).half()
    halved.save_pretrained(tmp_path / "again")
    config = ABMForConditionalGeneration.from_pretrained(tmp_path / "again").generation_config
    found = config.score_temperature, config.r2l_score_temperature, config.rescored_score_temperature
    assert found == (4.0, 2.0, 8.0)


def test_each_kind_of_search_has_its_temperature(calibrated: Path) -> None:
    recognizer = Recognizer(calibrated, "cpu")

    def temperature(**options: Any) -> float:
        best = recognizer(_drawing(), num_beams=3, max_length=10, **options)[0].alternatives[0]
        return best.log_probability / math.log(best.score)

    assert temperature(rescore=False) == pytest.approx(4)
    assert temperature(direction="r2l") == pytest.approx(2)
    assert temperature() == pytest.approx(8)
    del recognizer.model.generation_config.r2l_score_temperature  # calibrated before there was one
    assert temperature(direction="r2l") == pytest.approx(4)


def test_rescoring_weight(calibrated: Path) -> None:
    recognizer = Recognizer(calibrated, "cpu")
    options = {"num_beams": 3, "top_k": 3, "max_length": 10}
    tuned, same, other = (
        recognizer([_drawing()], **options, **weight)[0].alternatives
        for weight in ({}, {"rescoring_weight": 0.25}, {"rescoring_weight": 0.9})
    )
    assert [found.log_probability for found in tuned] == [found.log_probability for found in same]
    assert [found.log_probability for found in tuned] != [found.log_probability for found in other]
    with pytest.raises(ValueError, match="weight"):
        recognizer([_drawing()], **options, rescoring_weight=2)


def test_the_whole_command(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, stores, goes on where it was stopped, and says what cannot be."""
    from datasets import Dataset, DatasetDict

    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    columns = {"id": [], "image": [], "latex": [], "width": [], "height": []}
    for index in range(3):
        picture = Image.fromarray(255 - np.asarray(_drawing())).resize((100 + 20 * index, 60))
        for name, value in zip(columns, (str(index), picture, "x + 1", *picture.size), strict=True):
            columns[name].append(value)
    DatasetDict({"validation": Dataset.from_dict(columns)}).save_to_disk(str(tmp_path / "data"))
    arguments = CalibrationArguments(
        str(tmp_path / "data"), "validation", str(tmp_path / "out"), str(checkpoint), beams=2, max_length=6, cpu=True
    )
    result = calibrate_checkpoint(arguments)
    config = json.loads((checkpoint / "generation_config.json").read_text())
    assert config.items() >= result["generation_config"].items() and result["count"] == 3
    assert Recognizer(checkpoint, "cpu").model.generation_config.score_temperature == config["score_temperature"]
    for folder in (checkpoint, tmp_path / "out"):
        with Image.open(folder / "reliability.png") as picture:
            assert picture.width > 300
        assert json.loads((folder / "calibration.json").read_text())["ece"]["rescored"]["after"] >= 0
    monkeypatch.setattr(calibration, "search", None)
    assert calibrate_checkpoint(arguments) == result, "nothing is read twice"
    with pytest.raises(ArgumentError, match="another"):
        calibrate_checkpoint(CalibrationArguments(**{**vars(arguments), "beams": 3}))


def test_a_diagram_of_few_answers(tmp_path: Path) -> None:
    draw_reliability(tmp_path / "few.png", {"score": (np.array([0.3]), np.array([True]))})
    with Image.open(tmp_path / "few.png") as picture:
        assert picture.size[0] > 300
