"""Whether scores are what they say: of the answers with a score of 0.7, seven in ten should be right."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..inference.attention_pictures import heat_colours

BINS = 10


def expected_calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Mean distance between the probability of an answer and how often such answers are right.

    Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015; with bins of
    equally many answers, so that none is empty.

    Args:
        probabilities (`np.ndarray` of shape `(n,)`): 0 to 1.
        right (`np.ndarray` of shape `(n,)`): truth values.
        bins: at most; there are no more than answers.

    Returns:
        0 for perfect scores, at most 1.

    Raises:
        ValueError: without any answer, or if the shapes differ.
    """
    confidences, rates, counts = reliability_curve(probabilities, right, bins)
    return float(np.abs(confidences - rates) @ counts / counts.sum())


def reliability_curve(
    probabilities: np.ndarray, right: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of right answers and number of answers of each bin, in order of probability.

    Raises:
        ValueError: without any answer, or if the shapes differ.
    """
    probabilities, right = np.asarray(probabilities, float), np.asarray(right, float)
    if probabilities.shape != right.shape or not probabilities.size:
        raise ValueError(f"{probabilities.shape} probabilities and {right.shape} truth values: one for each answer")
    parts = np.array_split(probabilities.argsort(kind="stable"), min(bins, probabilities.size))
    means = np.array([(probabilities[part].mean(), right[part].mean(), len(part)) for part in parts])
    return means[:, 0], means[:, 1], means[:, 2]


def draw_reliability(path: Path, scores: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "") -> None:
    """Draws share of right answers over probability, on the diagonal where scores mean what they say.

    Args:
        path: a PNG, replaced in one step.
        scores: by name, probabilities and truth values; the last one is what counts and stands out.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel="score: probability of being right", ylabel="share that is right")
    axes.plot([0, 1], [0, 1], color="#c8c8d0", linewidth=1, zorder=0)
    heat = heat_colours(np.array([0.75]))[0] / 255
    for index, (name, (probabilities, right)) in enumerate(scores.items()):
        confidences, rates, counts = reliability_curve(probabilities, right)
        # The standard error of a share.
        errors = np.sqrt(np.maximum(rates * (1 - rates), 1e-9) / counts)
        last = index == len(scores) - 1
        axes.errorbar(
            confidences,
            rates,
            errors,
            color=heat if last else "#8888aa",
            marker="o" if last else ".",
            linewidth=1.5 if last else 1,
            elinewidth=0.8,
            label=f"{name}: ECE {expected_calibration_error(probabilities, right):.3f}",
        )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    incoming = path.with_name(f".{path.name}.incoming")
    figure.savefig(incoming, format="png", dpi=110)
    incoming.replace(path)
