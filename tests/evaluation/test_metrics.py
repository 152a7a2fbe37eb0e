"""Expression rates against a slow oracle, their intervals, and the `evaluate` wrapper."""

import random
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest

from abm_hf.evaluation import bootstrap_intervals, expression_rate, score_expressions

LETTERS = ["x", "y", "2", "+", r"\alpha", "^", "_", "{", "}", r"\frac"]


def _distance(first: list[str], second: list[str]) -> int:
    """Levenshtein distance by the textbook table."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _released_script(predictions: list[str], references: list[str]) -> dict[str, float]:
    """WER and ExpRates as the released evaluation defines them, for complete predictions."""
    distances = [_distance(p.split(), r.split()) for p, r in zip(predictions, references, strict=True)]
    rates = {"wer": 100 * sum(distances) / sum(len(r.split()) for r in references)}
    for name, errors in {"exprate": 0, "exprate_1": 1, "exprate_2": 2, "exprate_3": 3}.items():
        rates[name] = 100 * sum(d <= errors for d in distances) / len(distances)
    return rates


def _random_pairs(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    generator = random.Random(seed)
    references = [" ".join(generator.choices(LETTERS, k=generator.randint(1, 15))) for _ in range(count)]
    predictions = []
    for reference in references:
        tokens = reference.split()
        for _ in range(generator.randint(0, 4)):
            place = generator.randrange(len(tokens) + 1)
            tokens[place : place + generator.randint(0, 1)] = generator.choices(LETTERS, k=generator.randint(0, 1))
        predictions.append(" ".join(tokens))
    return predictions, references


def test_the_rates_equal_the_released_script() -> None:
    predictions, references = _random_pairs(500)
    result = expression_rate(predictions=predictions, references=references)
    expected = _released_script(predictions, references)
    assert (
        0 < expected["exprate"] < expected["exprate_1"] < expected["exprate_3"] < 100
    )  # a case that tells them apart
    for name, rate in expected.items():
        assert result[name] == pytest.approx(rate, abs=1e-12)
    assert result["count"] == 500
    assert result["missing"] == 0
    assert (result["evaluator"], result["convention"]) == ("abm_hf.expression_rate", "abm")


def test_token_lists_and_token_strings_are_the_same() -> None:
    predictions, references = _random_pairs(50)
    lists = expression_rate(
        predictions=[p.split() for p in predictions], references=[tuple(r.split()) for r in references]
    )
    assert lists == expression_rate(predictions=predictions, references=references)


def test_a_missing_prediction_is_wrong_however_short_the_label() -> None:
    result = expression_rate(predictions=[None, "", "a b"], references=["x", "x", "a b"], convention="comer")
    assert result["exprate_1"] == pytest.approx(200 / 3)  # "" is one error away from "x", None is not
    assert result["exprate"] == result["tree_rate"] == result["structure_rate"] == pytest.approx(100 / 3)
    assert result["wer"] == pytest.approx(50.0)  # a missing prediction costs its label's length
    assert result["missing"] == 1
    assert result["convention"] == "comer"


@pytest.mark.parametrize(
    ("prediction", "reference", "tree", "structure"),
    [
        ("x ^ { 2 } _ { 1 }", "x _ { 1 } ^ { 2 }", True, True),
        (r"\sum \limits _ { i }", r"\sum _ { i }", True, True),
        ("{ x } ^ { 2 }", "x ^ { 2 }", True, True),
        ("x ^ { 3 }", "x ^ { 2 }", False, True),
        ("x _ { 2 }", "x ^ { 2 }", False, False),
        ("x y", "x", False, False),
        ("x ^ {", "x ^ { 2 }", False, False),
        ("x ^ {", "x ^ {", True, True),  # no tree, but the same tokens
        ("x ^ {", "x _ {", False, False),
        ("x <eol>", "x", False, False),
    ],
)
def test_tree_rates(prediction: str, reference: str, tree: bool, structure: bool) -> None:
    result = expression_rate(predictions=[prediction], references=[reference])
    assert result["tree_rate"] == 100 * tree
    assert result["structure_rate"] == 100 * structure


def test_the_rates_are_ordered() -> None:
    predictions, references = _random_pairs(300, seed=1)
    result = expression_rate(predictions=predictions, references=references)
    assert result["exprate"] <= result["tree_rate"] <= result["structure_rate"]
    assert result["exprate"] <= result["exprate_1"] <= result["exprate_2"] <= result["exprate_3"]


def test_input_that_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        expression_rate(predictions=["x", "y"], references=["x"])
    with pytest.raises(ValueError, match="nothing to score"):
        expression_rate(predictions=[], references=[])
    with pytest.raises(ValueError, match=r"references\[1\] is None"):
        expression_rate(predictions=["x", "y"], references=["x", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"predictions\[0\] is not in token form: 'x\^2'"):
        expression_rate(predictions=["x^2"], references=["x ^ { 2 }"])
    with pytest.raises(ValueError, match="not one string"):
        expression_rate(predictions="x", references=["x"])
    expression_rate(predictions=["<unk> \\ <eol>"], references=[r"\alpha"])  # a model's odd output is no error


# ----------------------------------------------------------------------------------------------------------- intervals


def test_intervals_have_the_width_of_the_binomial() -> None:
    hits = [True] * 300 + [False] * 700
    scores = score_expressions(predictions=["x" if hit else "y" for hit in hits], references=["x"] * len(hits))
    low, high = bootstrap_intervals(scores, resamples=4000)["exprate"]
    half = 1.96 * 100 * np.sqrt(0.3 * 0.7 / len(hits))
    assert low == pytest.approx(30 - half, abs=0.4)
    assert high == pytest.approx(30 + half, abs=0.4)


def test_intervals_hold_every_rate_and_repeat() -> None:
    predictions, references = _random_pairs(200)
    scores = score_expressions(predictions=predictions, references=references)
    rates = expression_rate(predictions=predictions, references=references)
    intervals = bootstrap_intervals(scores, resamples=250, seed=3)
    assert set(intervals) == {name for name, rate in rates.items() if isinstance(rate, float)}
    for name, (low, high) in intervals.items():
        assert low < rates[name] < high
    assert intervals == bootstrap_intervals(scores, resamples=250, seed=3)
    narrow = bootstrap_intervals(scores, resamples=250, seed=3, confidence=0.5)
    assert all(narrow[n][0] > intervals[n][0] and narrow[n][1] < intervals[n][1] for n in ("wer", "exprate"))


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 95}])
def test_impossible_intervals_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        bootstrap_intervals(score_expressions(predictions=["x"], references=["x"]), **wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ evaluate


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_evaluate_metric_gives_the_same_offline(no_network: None) -> None:
    pytest.importorskip("evaluate")
    from abm_hf.evaluation import ABMMetric

    predictions, references = _random_pairs(40)
    predictions: list[str | None] = [None, *predictions[1:]]
    expected = expression_rate(predictions=predictions, references=references, convention="comer")
    metric = ABMMetric()
    assert metric.compute(predictions=predictions, references=references, convention="comer") == expected
    metric.add_batch(predictions=predictions[:10], references=[r.split() for r in references[:10]])
    for prediction, reference in zip(predictions[10:], references[10:], strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute(convention="comer") == expected
    with pytest.raises(ValueError, match="as many predictions as references"):
        metric.compute(predictions=["x"], references=[])
    with pytest.raises(ValueError, match="not in token form"):
        metric.add_batch(predictions=["x^2"], references=["x"])
    with pytest.raises(ValueError, match="reference is None"):
        metric.add(prediction="x")


def test_the_evaluate_metric_can_gather_in_a_file(tmp_path: Path, no_network: None) -> None:
    pytest.importorskip("evaluate")
    from abm_hf.evaluation import ABMMetric

    metric = ABMMetric(keep_in_memory=False, cache_dir=str(tmp_path), experiment_id="file")
    metric.add_batch(predictions=["x"], references=["x"])
    assert any(path.is_file() for path in tmp_path.rglob("*"))
    assert metric.compute()["exprate"] == 100.0


# ----------------------------------------------------------------------------------------------------------- real data


def test_conventions_do_not_change_the_tree_rate(crohme_offline: Path) -> None:
    from abm_hf.latex.normalization import normalize_latex

    with zipfile.ZipFile(crohme_offline) as file:
        lines = file.read("data/2014/caption.txt").decode().splitlines()
    references = [line.split("\t")[1] for line in lines]
    predictions = [normalize_latex(label, convention="comer") for label in references]
    result = expression_rate(predictions=predictions, references=references)
    assert result["tree_rate"] == 100.0
    assert result["exprate"] == pytest.approx(100 * (986 - 81) / 986)
