"""`training_curve.png`: loss and recognition rate over the steps, redrawn at every evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the rows of `metrics.jsonl`; replaces `path` in one step.

    Args:
        rows: Lines with `kind` "train" or "evaluation", see the training loop.
        path: A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training = [row for row in rows if row["kind"] == "train" and "loss" in row]  # not where all steps were skipped
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([row["step"] for row in training], [row["loss"] for row in training], color="#8888aa", label="loss")
    axes.plot(
        [row["step"] for row in evaluations],
        [row["loss"] for row in evaluations],
        color="#33337f",
        marker=".",
        label="validation loss",
    )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (sum of the branches)")
    axes.set_ylim(bottom=0)
    rates = axes.twinx()
    for name, label, color in (("exprate", "ExpRate", "#b5440e"), ("exprate_1", "≤ 1 error", "#e8a77f")):
        rates.plot(
            [row["step"] for row in evaluations],
            [row[name] for row in evaluations],
            color=color,
            marker=".",
            label=label,
        )
    rates.set_ylabel("validation, greedy (%)")
    rates.set_ylim(0, 100)
    handles = [*axes.get_lines(), *rates.get_lines()]
    axes.legend(handles, [str(line.get_label()) for line in handles], loc="upper center", ncols=4, frameon=False)
    incoming = path.with_name(f".{path.name}.incoming")
    figure.savefig(incoming, format="png", dpi=110)
    incoming.replace(path)
