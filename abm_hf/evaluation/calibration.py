"""Fits what decoding leaves open, on validation data: `scripts/calibrate.py --data … --split … --output-dir …`.

A first pass collects the n-best lists of both branches, the left-to-right one scored by both, and gives the weight of
the right-to-left branch in rescoring; a second one recognizes with it. Then for search from left to right, from right
to left and rescored the temperature is fitted that makes `score` the probability that an answer is right. The
generation config keeps `rescoring_weight`, `rescoring_size`, `score_temperature`, `r2l_score_temperature` and
`rescored_score_temperature`, and they travel with the checkpoint.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..arguments import ArgumentError, check_minimum
from ..data.items import load_split
from ..decoding_abm import DecodingOptions, formula, score, search
from ..files import write_json
from ..inference.base import BaseRecognizer, pad_images
from ..inference.loading import Engine
from ..pretrained import checkpoint_path
from .expression_rate import expression_rate
from .predictions import load_for_evaluation, open_output_folder, read_items
from .reliability import draw_reliability, expected_calibration_error

_WEIGHTS = np.linspace(0, 1, 21)
_FOLDS = 5


@dataclass
class CalibrationArguments:
    """What is read, and where the results go."""

    data: str = field(metadata={"help": "Prepared data set (directory or Hub id), CROHME's offline zip or folder."})
    split: str = field(
        metadata={"help": "Split of it for validation, such as test2013; never the one of the results."}
    )
    output_dir: str = field(metadata={"help": "Folder for the n-best lists, calibration.json and reliability.png."})
    model: str | None = field(
        default=None, metadata={"help": "Directory or Hub id; default: the packaged checkpoint."}
    )
    engine: Engine = field(
        default="auto", metadata={"help": "onnx, torch, or auto: what recognition takes on this device."}
    )
    beams: int = field(default=10, metadata={"help": "Hypotheses followed at a time."})
    max_length: int = field(default=200, metadata={"help": "Most tokens of an answer."})
    rescoring_weight: float | None = field(
        default=None,
        metadata={"help": "Of the right-to-left branch; default: the best one without the pass on larger images."},
    )
    rescoring_size: float = field(
        default=1.25, metadata={"help": "Factor of the second pass on larger images; 1 leaves it out."}
    )
    batch_images: int = field(default=16, metadata={"help": "Most pictures in a batch."})
    batch_pixels: int = field(default=2_000_000, metadata={"help": "Most padded pixels in a batch."})
    max_items: int | None = field(default=None, metadata={"help": "Read this many items only."})
    store: bool = field(default=True, metadata={"help": "Whether the checkpoint's directory keeps the results."})
    cpu: bool = field(default=False, metadata={"help": "Use no GPU."})

    def __post_init__(self) -> None:
        check_minimum(self, 1, "beams", "batch_images", "batch_pixels", "max_items")
        check_minimum(self, 3, "max_length")
        try:
            DecodingOptions(rescoring_weight=self.rescoring_weight, rescoring_size=self.rescoring_size)
        except ValueError as error:
            raise ArgumentError(str(error)) from error


def calibrate_checkpoint(arguments: CalibrationArguments) -> dict[str, Any]:
    """Searches a split with both branches, and fits weight and temperatures on it.

    Returns:
        What `calibration.json` holds: `generation_config`, the values that the checkpoint keeps; `expression_rates`
        (percent) of each kind of search; `ece`, the calibration errors of the model's own probabilities and of
        the scores, the latter with temperatures of the other four fifths of the data (cross-validation); and
        `exprate_by_weight`.

    Raises:
        ArgumentError: for data, a model or a folder that cannot be used.
        CheckpointError: if there is no such checkpoint, or it cannot be loaded.
    """
    accelerator = Accelerator(cpu=arguments.cpu or not torch.cuda.is_available())
    path = checkpoint_path(arguments.model)
    if arguments.store and not Path(path).is_dir():
        raise ArgumentError(f"{path} is no directory to store in: download it first, or pass --no-store")
    items = load_split(arguments.data, arguments.split)
    if arguments.max_items is not None:
        items = items.subset(range(min(arguments.max_items, len(items))))
    recognizer = load_for_evaluation(path, accelerator.device, arguments.engine)
    if missing := {"l2r", "r2l"} - set(recognizer.engine.directions):
        raise ArgumentError(f"{path} has no branch {' and '.join(missing)}: only models with both are calibrated")
    described = {**asdict(arguments), "model": path, "weights": recognizer.fingerprint()}
    described["items"] = items.fingerprint()
    folder = open_output_folder(arguments.output_dir, described, accelerator)

    def read(folder: Path, decode: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return read_items(items, decode, folder, accelerator, arguments.batch_images, arguments.batch_pixels)

    rows = read(folder, partial(_candidates, recognizer, arguments))
    weight, by_weight = choose_weight(rows)
    weight = weight if arguments.rescoring_weight is None else arguments.rescoring_weight
    answers = read(_subfolder(folder, weight, accelerator), partial(_answers, recognizer, arguments, weight))
    best = {
        "l2r": _best(rows, 0.0),
        "r2l": _best(rows, 0.0, "r2l"),
        "rescored": [(row["prediction"], row["log_probability"]) for row in answers],
    }
    result, curves = fit_temperatures(best, _references(rows))
    result["generation_config"] |= {"rescoring_weight": weight, "rescoring_size": arguments.rescoring_size}
    result |= {"exprate_by_weight": by_weight, "split": arguments.split, "beams": arguments.beams}
    if accelerator.is_main_process:
        _write(result, curves, folder, Path(path) if arguments.store else None)
    accelerator.wait_for_everyone()
    return result


def _candidates(
    recognizer: BaseRecognizer, arguments: CalibrationArguments, images: list[np.ndarray]
) -> list[dict[str, Any]]:
    """For each image the candidates of each branch, in its order, with its own log-probability.

    Those from left to right have that of the other branch, too.
    """
    engine = recognizer.engine
    encoded = engine.encode(*pad_images(images, recognizer.pad_to_multiple_of))
    kept: list[dict[str, Any]] = [{} for _ in images]
    for direction in ("l2r", "r2l"):
        options = DecodingOptions(
            num_beams=arguments.beams, max_length=arguments.max_length, direction=direction, rescore=False
        ).resolve(engine.settings, engine.directions)
        found = search(engine, encoded, options)
        formulas = [[formula(engine.tokenizer, candidate, direction) for candidate in row] for row in found]
        others = score(engine, encoded, formulas, "r2l") if direction == "l2r" else None
        for index, (row, texts) in enumerate(zip(found, formulas, strict=True)):
            kept[index][direction] = [
                [
                    " ".join(engine.tokenizer.convert_ids_to_tokens(list(ids))),
                    sum(candidate.log_probs),
                    *([sum(others[index][place])] if others is not None else []),
                ]
                for place, (candidate, ids) in enumerate(zip(row, texts, strict=True))
            ]
    return kept


def _subfolder(folder: Path, weight: float, accelerator: Accelerator) -> Path:
    """Where the answers go that were rescored with this weight."""
    answers = folder / f"rescored-{weight:.2f}"
    if accelerator.is_main_process:
        answers.mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    return answers


def _answers(
    recognizer: BaseRecognizer, arguments: CalibrationArguments, weight: float, images: list[np.ndarray]
) -> list[dict[str, Any]]:
    """The rescored answer to each image and its log-probability."""
    options = DecodingOptions(
        num_beams=arguments.beams,
        max_length=arguments.max_length,
        rescore=True,
        rescoring_weight=weight,
        rescoring_size=arguments.rescoring_size,
    )
    found = recognizer.decode(images, options)
    best = [(" ".join(row[0].tokens), row[0].log_probability) if row else ("", -1e9) for row in found]
    return [{"prediction": text, "log_probability": log_probability} for text, log_probability in best]


def choose_weight(rows: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """The weight of the right-to-left branch under which most answers are right.

    Args:
        rows: with `reference`, a token string, and under `l2r` a list of token string, left-to-right and right-to-left
            log-probability.

    Returns:
        The weight, and the ExpRate (percent) under each that was tried.
    """
    by_weight = [100 * float(_right(_best(rows, float(weight)), _references(rows)).mean()) for weight in _WEIGHTS]
    # The middle of a plateau rather than a lucky peak: each weight counts with its neighbours.
    smooth = np.convolve(np.pad(by_weight, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    plateau = np.flatnonzero(smooth > smooth.max() - 1e-9)
    weight = round(float(_WEIGHTS[plateau[len(plateau) // 2]]), 2)
    return weight, {f"{weight:.2f}": rate for weight, rate in zip(_WEIGHTS, by_weight, strict=True)}


def fit_temperatures(
    best: Mapping[str, Sequence[tuple[str, float]]], references: Sequence[str]
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Temperatures of each kind of search.

    Args:
        best: for `"l2r"`, `"r2l"` and `"rescored"` each image's answer and its log-probability.
        references: the labels, as token strings.

    Returns:
        The result, see `calibrate_checkpoint`, and for each kind of search log-probabilities and truth values.
    """
    curves = {
        name: (np.array([scored for _, scored in answers]), _right(answers, references))
        for name, answers in best.items()
    }
    temperatures = {name: fit_temperature(*curve) for name, curve in curves.items()}
    result = {
        "generation_config": {
            "score_temperature": round(temperatures["l2r"], 3),
            "r2l_score_temperature": round(temperatures["r2l"], 3),
            "rescored_score_temperature": round(temperatures["rescored"], 3),
        },
        "expression_rates": {
            name: expression_rate(predictions=[text for text, _ in answers], references=list(references))
            for name, answers in best.items()
        },
        "ece": {
            name: {
                "before": expected_calibration_error(np.exp(curve[0]), curve[1]),
                "after": expected_calibration_error(_cross_validated(*curve), curve[1]),
            }
            for name, curve in curves.items()
        },
        "count": len(references),
    }
    return result, curves


def fit_temperature(log_probabilities: np.ndarray, right: np.ndarray) -> float:
    """The temperature under which `exp(log_probability / temperature)` makes what was right most likely.

    Args:
        log_probabilities (`np.ndarray` of shape `(n,)`): of the best hypotheses, at most 0.
        right (`np.ndarray` of shape `(n,)`): whether they are.

    Returns:
        From 0.1 to 100, to two parts in a thousand; 100 where everything is right.
    """
    temperatures = np.geomspace(0.1, 100, 4000)
    scaled = np.minimum(np.asarray(log_probabilities, float), -1e-6)[:, None] / temperatures  # (n, temperatures)
    truth = np.asarray(right, bool)[:, None]
    likelihood = np.where(truth, scaled, np.log(-np.expm1(scaled))).sum(axis=0)
    return float(temperatures[int(likelihood.argmax())])


def _cross_validated(log_probabilities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores, each with a temperature that was fitted without its fold."""
    folds = np.random.default_rng(0).permutation(len(right)) % _FOLDS
    scores = np.empty(len(right))
    for fold in range(_FOLDS):
        inside = folds == fold
        if inside.any():
            rest = ~inside if not inside.all() else inside
            scores[inside] = np.exp(log_probabilities[inside] / fit_temperature(log_probabilities[rest], right[rest]))
    return scores


def _best(rows: list[dict[str, Any]], weight: float, source: str = "l2r") -> list[tuple[str, float]]:
    """Of each image the candidate with the best mean over its tokens, and its whole log-probability."""
    best = []
    for row in rows:
        ranked = [
            (joint / (len(text.split()) + 1), text, joint)
            for text, own, *other in row[source]
            for joint in [(1 - weight) * own + weight * other[0] if weight else own]
        ]
        _, text, joint = max(ranked, key=lambda entry: entry[0], default=(0.0, "", -1e9))
        best.append((text, joint))
    return best


def _right(best: Sequence[tuple[str, float]], references: Sequence[str]) -> np.ndarray:
    return np.array([text == reference for (text, _), reference in zip(best, references, strict=True)])


def _references(rows: list[dict[str, Any]]) -> list[str]:
    return [row["reference"] for row in rows]


def _write(
    result: dict[str, Any], curves: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path, checkpoint: Path | None
) -> None:
    targets = [folder] if checkpoint is None else [folder, checkpoint]
    log_probabilities, right = curves["rescored"]
    scores = {
        "model's own probability": (np.exp(log_probabilities), right),
        "score": (_cross_validated(log_probabilities, right), right),
    }
    for target in targets:
        write_json(target / "calibration.json", result)
        draw_reliability(target / "reliability.png", scores, title=f"validation: {result['split']}")
    if checkpoint is not None:
        path = checkpoint / "generation_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        # A generation config that says that it was derived from the model's is read without what that does not know.
        config.pop("_from_model_config", None)
        write_json(path, config | result["generation_config"])
