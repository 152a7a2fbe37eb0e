"""Tunes what decoding leaves open, on validation data: `scripts/calibrate.py --data … --split … --output-dir …`.

One pass collects the n-best lists of both branches, each hypothesis scored by both; the rest is arithmetic on these:
the weight of the right-to-left branch in two-way search, and for search from left to right, from right to left and in
both ways the temperature that makes `score` the probability that an answer is right. The generation config keeps them
as `two_way_weight`, `score_temperature`, `r2l_score_temperature` and `two_way_score_temperature`, and they travel with
the checkpoint.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..generation_abm import n_best, score_sequences
from ..modeling_abm import ABMEncoderOutput, ABMForConditionalGeneration
from ..pretrained import checkpoint_path
from ..readings_abm import check_scales
from ..resizing_abm import resized
from ..tokenization_abm import ABMTokenizer
from ..training.arguments import ArgumentError, DataArguments, check_minimum
from ..training.items import load_split
from ..training.state import write_json
from .expression_rate import expression_rate
from .predictions import claim_folder, load_checkpoint, read_items, weights_fingerprint
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
    beams: int = field(default=10, metadata={"help": "Hypotheses followed at a time."})
    max_length: int = field(default=200, metadata={"help": "Most tokens of an answer."})
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Sizes at which pictures are read from now on, as factors: to search at, and to judge at."},
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
            check_scales(self.scales)
        except ValueError as error:
            raise ArgumentError(str(error)) from error


def calibrate_checkpoint(arguments: CalibrationArguments) -> dict[str, Any]:
    """Reads a split with both branches, and tunes weight and temperatures on it.

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
    items = load_split(arguments.data, arguments.split, DataArguments(data=arguments.data))
    if arguments.max_items is not None:
        items = items.subset(range(min(arguments.max_items, len(items))))
    model, processor = load_checkpoint(path, accelerator.device)
    if missing := {"l2r", "r2l"} - set(model.config.directions):
        raise ArgumentError(f"{path} has no branch {' and '.join(missing)}: only models with both are calibrated")
    described = {**asdict(arguments), "model": path, "weights": weights_fingerprint(model)}
    described["items"] = items.fingerprint()
    folder = claim_folder(arguments.output_dir, described, accelerator)
    read = partial(_candidates, model.fuse(), processor.tokenizer, arguments)
    rows = read_items(items, read, folder, accelerator, arguments.batch_images, arguments.batch_pixels)
    result, curves = calibrate_rows(rows)
    result |= {"split": arguments.split, "beams": arguments.beams}
    result["generation_config"]["reading_scales"] = list(arguments.scales)
    if accelerator.is_main_process:
        _write(result, curves, folder, Path(path) if arguments.store else None)
    accelerator.wait_for_everyone()
    return result


@torch.inference_mode()
def _candidates(
    model: ABMForConditionalGeneration,
    tokenizer: ABMTokenizer,
    arguments: CalibrationArguments,
    pixel_values: Tensor,
    pixel_mask: Tensor,
) -> list[dict[str, Any]]:
    """For each picture the hypotheses of each branch, in its order: tokens and log-probabilities of both branches."""
    inputs = pixel_values.to(model.device), pixel_mask.to(model.device)
    views = [model.encoder(*resized(*inputs, scale)) for scale in arguments.scales]
    kept: list[dict[str, Any]] = [{} for _ in range(len(pixel_values))]
    for direction in ("l2r", "r2l"):
        formulas, totals = n_best(model, views[0], direction, tokenizer, arguments.beams, 1.0, arguments.max_length)
        judged = [_judged(model, view, formulas) for view in views[1:]]
        totals = torch.stack([totals, *judged]).mean(dim=0)
        for row, ids, both in zip(kept, formulas.tolist(), totals.tolist(), strict=True):
            row[direction] = [
                [" ".join(tokenizer.convert_ids_to_tokens(written[: written.index(tokenizer.eos_token_id)])), *scores]
                for written, scores in zip(ids, both, strict=True)
                if min(scores) > float("-inf")
            ]
    return kept


def _judged(model: ABMForConditionalGeneration, view: ABMEncoderOutput, formulas: Tensor) -> Tensor:
    """What both branches give formulas (B, K, T), as log-probabilities (B, K, 2)."""
    return torch.stack(
        [
            score_sequences(model, view, formulas.flatten(0, 1), direction=direction).sum(dim=1)
            for direction in ("l2r", "r2l")
        ],
        dim=-1,
    ).unflatten(0, formulas.shape[:2])


def calibrate_rows(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Weight and temperatures from n-best lists.

    Args:
        rows: with `reference`, a token string, and under `l2r` and `r2l` lists of token string, left-to-right and
            right-to-left log-probability.

    Returns:
        The result, see `calibrate_checkpoint`, and by `"one_way"`, `"one_way_r2l"` and `"two_way"` log-probabilities
        and truth values.
    """
    by_weight = [_exprate(rows, _best(rows, float(weight))) for weight in _WEIGHTS]
    # The middle of a plateau rather than a lucky peak: each weight counts with its neighbours.
    smooth = np.convolve(np.pad(by_weight, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    plateau = np.flatnonzero(smooth > smooth.max() - 1e-9)
    weight = float(_WEIGHTS[plateau[len(plateau) // 2]])
    chosen = {
        "one_way": _best(rows, 0.0, ("l2r",)),
        "one_way_r2l": _best(rows, 1.0, ("r2l",)),
        "two_way": _best(rows, weight),
    }
    curves = {name: (np.array([scored for _, scored in best]), _right(rows, best)) for name, best in chosen.items()}
    temperatures = {name: fit_temperature(*curve) for name, curve in curves.items()}
    result = {
        "generation_config": {
            "two_way_weight": round(weight, 2),
            "score_temperature": round(temperatures["one_way"], 3),
            "r2l_score_temperature": round(temperatures["one_way_r2l"], 3),
            "two_way_score_temperature": round(temperatures["two_way"], 3),
        },
        "expression_rates": {
            name: expression_rate(
                predictions=[text for text, _ in best], references=[row["reference"] for row in rows]
            )
            for name, best in chosen.items()
        },
        "ece": {
            name: {
                "before": expected_calibration_error(np.exp(curve[0]), curve[1]),
                "after": expected_calibration_error(_cross_validated(*curve), curve[1]),
            }
            for name, curve in curves.items()
        },
        "exprate_by_weight": {f"{weight:.2f}": rate for weight, rate in zip(_WEIGHTS, by_weight, strict=True)},
        "count": len(rows),
    }
    return result, curves


def fit_temperature(log_probabilities: np.ndarray, right: np.ndarray) -> float:
    """The temperature under which `exp(log_probability / temperature)` makes what was right most likely.

    Args:
        log_probabilities (`np.ndarray` of shape `(n,)`): of the best readings, at most 0.
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


def _best(
    rows: list[dict[str, Any]], weight: float, sources: tuple[str, ...] = ("l2r", "r2l")
) -> list[tuple[str, float]]:
    """Of each picture the hypothesis with the best mean over its tokens, and its whole log-probability."""
    best = []
    for row in rows:
        ranked = [
            (joint / (len(text.split()) + 1), text, joint)
            for source in sources
            for text, l2r, r2l in row[source]
            for joint in [(1 - weight) * l2r + weight * r2l]
        ]
        _, text, joint = max(ranked, default=(0.0, "", -1e9))
        best.append((text, joint))
    return best


def _right(rows: list[dict[str, Any]], best: list[tuple[str, float]]) -> np.ndarray:
    return np.array([text == row["reference"] for row, (text, _) in zip(rows, best, strict=True)])


def _exprate(rows: list[dict[str, Any]], best: list[tuple[str, float]]) -> float:
    return 100 * float(_right(rows, best).mean())


def _write(
    result: dict[str, Any], curves: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path, checkpoint: Path | None
) -> None:
    targets = [folder] if checkpoint is None else [folder, checkpoint]
    log_probabilities, right = curves["one_way"]
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
