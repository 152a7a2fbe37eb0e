"""`report.html`: an evaluation to look at, in one file without scripts or anything from elsewhere.

Rates with their intervals, ExpRate by the label's length and depth, the tokens that were confused, left out and
invented, and the worst misses with their pictures. Everything that comes from data is escaped.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import cv2
import numpy as np

from .errors import Pair, align_tokens, count_token_errors, structure_depth, wilson_interval

_LENGTHS = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 30), (31, 50), (51, None))
_DEEPEST = 4  # this deep and deeper are one group
_LISTED = 15  # token errors in each table
_WIDEST = 900  # pixels of a picture in the gallery
_RATES = {
    "exprate": "ExpRate",
    "exprate_1": "≤ 1 error",
    "exprate_2": "≤ 2 errors",
    "exprate_3": "≤ 3 errors",
    "wer": "token error rate",
    "structure_rate": "same structure",
    "tree_rate": "same tree",
}
_GAP = '<span class="gap">·</span>'
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #22222a; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; } .quiet { color: #6b6b78; } code, .tokens { font: .9rem/1.7 ui-monospace, monospace; }
.notice { background: #fdf3e7; border-left: 4px solid #b5440e; padding: .6rem 1rem; max-width: none; }
.charts, .tables { display: flex; flex-wrap: wrap; gap: 2rem; } .charts img { width: 29rem; max-width: 100%; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; font-weight: normal; }
th { color: #6b6b78; border-bottom: 1px solid #d9d9e3; } td.number { text-align: right; }
.bar { display: inline-block; height: .7rem; background: #33337f; border-radius: 1px; }
figure { margin: 0 0 1.5rem; padding: .8rem 1rem; border: 1px solid #e4e4ec; border-radius: 6px; }
figure img { max-width: 100%; display: block; margin-bottom: .5rem; } figcaption { font-size: .85rem; }
.tokens { overflow-wrap: anywhere; } .tokens b { display: inline-block; width: 5.5rem; color: #6b6b78;
  font: .8rem system-ui, sans-serif; } .wrong { background: #fbd5d0; border-radius: 3px; padding: 0 .2rem; }
.gap { color: #b5440e; }
"""


@dataclass(frozen=True)
class Compared:
    """An expression with what was read of it.

    Args:
        name: Its id.
        score: The probability that the answer is right.
        pairs: Tokens of label and prediction, aligned.
    """

    name: str
    score: float
    pairs: Sequence[Pair]

    @property
    def length(self) -> int:
        """Tokens of the label."""
        return sum(wanted is not None for wanted, _ in self.pairs)

    @property
    def errors(self) -> int:
        """Token errors."""
        return sum(wanted != got for wanted, got in self.pairs)

    @property
    def depth(self) -> int | None:
        """Levels of nesting of the label."""
        return structure_depth([wanted for wanted, _ in self.pairs if wanted is not None])


def build_report(
    rows: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray], result: Mapping[str, Any], gallery: int = 24
) -> str:
    """The page.

    Args:
        rows: With `id`, `reference`, `prediction` (token strings) and `score`, as in `predictions.jsonl`.
        images: uint8 (H, W), ink bright, in the order of the rows; only those that are shown are asked for.
        result: As in `results.json`.
        gallery: Misses shown in each of the two galleries; 0 for none, and then no picture leaves the data set.

    Returns:
        HTML of one file that needs nothing else.
    """
    readings = [
        Compared(row["id"], row["score"], align_tokens(row["reference"].split(), row["prediction"].split()))
        for row in rows
    ]
    wrong = [index for index, reading in enumerate(readings) if reading.errors]
    worst = sorted(wrong, key=lambda index: (-readings[index].errors, index))[:gallery]
    surest = sorted(wrong, key=lambda index: (-readings[index].score, index))[:gallery]
    body = [
        _head(result),
        _notice(result, len(set(worst + surest))),
        _rates(result),
        _charts(readings),
        _token_errors(readings),
        _gallery("Most errors", worst, readings, images),
        _gallery(
            "Wrong, but sure of it",
            surest,
            readings,
            images,
            "The most probable wrong answers: look-alikes, and labels that are wrong themselves.",
        ),
    ]
    title = f"{result['model']} on {result['split']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def holds_research_data(result: Mapping[str, Any], gallery: int) -> bool:
    """Whether the page shows pictures that its reader may not be free to pass on."""
    return gallery > 0 and result["data"] != "synthetic"


def _head(result: Mapping[str, Any]) -> str:
    search = "greedy" if result["beams"] == 1 else f"beam {result['beams']}"
    search += ", rescored by the right-to-left branch" if result["rescored"] else ""
    search += ", well-formed LaTeX only" if result["grammar"] else ""
    measured = f"{result['evaluator']}, label convention {result['convention']}"
    return (
        f"<h1>{escape(str(result['model']))} on {escape(str(result['split']))}</h1>"
        f'<p class="quiet">{escape(str(result["data"]))}, {result["count"]} expressions; {escape(search)}; '
        f"measured by {escape(measured)}</p>"
    )


def _notice(result: Mapping[str, Any], pictures: int) -> str:
    if not holds_research_data(result, pictures):
        return ""
    return (
        f'<p class="notice">This page holds {pictures} pictures of <b>{escape(str(result["data"]))}</b>. Research '
        "data such as CROHME may not be passed on: keep this file out of repositories and off public pages, unless "
        "the data's licence allows it. (<code>--gallery 0</code> writes it without pictures.)</p>"
    )


def _rates(result: Mapping[str, Any]) -> str:
    lines = []
    for name, title in _RATES.items():
        low, high = result["intervals"][name]
        lines.append(
            f'<tr><td>{title}</td><td class="number"><b>{result[name]:.2f} %</b></td>'
            f'<td class="quiet">{low:.2f} to {high:.2f}</td></tr>'
        )
    return "<h2>Rates</h2><table><tr><th></th><th></th><th>95 % interval</th></tr>" + "".join(lines) + "</table>"


def _charts(readings: Sequence[Compared]) -> str:
    lengths: dict[str, list[Compared]] = {}
    for low, high in _LENGTHS:
        name = f"{low}–{high}" if high else f"≥ {low}"
        lengths[name] = [reading for reading in readings if low <= reading.length <= (high or reading.length)]
    depths: dict[str, list[Compared]] = {}
    by_depth = [(reading.depth, reading) for reading in readings]
    for depth in range(_DEEPEST + 1):
        name = str(depth) if depth < _DEEPEST else f"≥ {depth}"
        depths[name] = [r for found, r in by_depth if found is not None and min(found, _DEEPEST) == depth]
    depths["malformed"] = [reading for found, reading in by_depth if found is None]
    charts = (("tokens of the label", lengths), ("levels of nesting of the label", depths))
    images = "".join(
        f'<img alt="ExpRate by {title}" src="data:image/svg+xml;base64,{_base64(draw_rates(title, groups))}">'
        for title, groups in charts
    )
    return (
        "<h2>By length and depth</h2><p>Dark: exactly right, with 95 % intervals; light: at most one token wrong. "
        "Below each bar the number of expressions. <code>x ^ { 2 }</code> has one level of nesting.</p>"
        f'<div class="charts">{images}</div>'
    )


def draw_rates(title: str, groups: Mapping[str, Sequence[Compared]]) -> bytes:
    """Bars of ExpRate with intervals, one for each group that is not empty, as SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    filled = {name: readings for name, readings in groups.items() if readings}
    exact = [sum(reading.errors == 0 for reading in readings) for readings in filled.values()]
    near = [sum(reading.errors <= 1 for reading in readings) for readings in filled.values()]
    counts = [len(readings) for readings in filled.values()]
    rates = 100 * np.divide(exact, counts)
    ends = 100 * np.array([wilson_interval(hits, count) for hits, count in zip(exact, counts, strict=True)])
    figure = Figure(figsize=(5.4, 3.1), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    places = range(len(filled))
    axes.bar(places, 100 * np.divide(near, counts), width=0.7, color="#c9c9e2")
    axes.bar(places, rates, width=0.7, color="#33337f")
    # Rounding may put the end of an interval a hair beyond the rate itself.
    axes.errorbar(
        places, rates, np.abs([rates - ends[:, 0], ends[:, 1] - rates]), fmt="none", ecolor="#b5440e", capsize=3
    )
    axes.set_xticks(places, [f"{name}\n{count}" for name, count in zip(filled, counts, strict=True)], fontsize=8)
    axes.set_xlabel(title, fontsize=9)
    axes.set_ylabel("ExpRate (%)", fontsize=9)
    axes.set_ylim(0, 100)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    with rc_context({"svg.hashsalt": "abm"}):  # the same bytes each time
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return data.getvalue()


def _token_errors(readings: Sequence[Compared]) -> str:
    errors = count_token_errors(reading.pairs for reading in readings)
    confused = Counter({f"{wanted}\t{got}": count for (wanted, got), count in errors.confused.items()})
    tables = (
        _ranking("Confused", ("written", "read as"), confused),
        _ranking("Left out", ("written",), errors.missing),
        _ranking("Invented", ("read",), errors.invented),
    )
    total = errors.confused.total() + errors.missing.total() + errors.invented.total()
    return (
        f"<h2>Token errors</h2><p>{total} in all: {errors.confused.total()} tokens taken for others, "
        f"{errors.missing.total()} left out, {errors.invented.total()} invented.</p>"
        f'<div class="tables">{"".join(tables)}</div>'
    )


def _ranking(title: str, columns: Sequence[str], counts: Counter[str]) -> str:
    """A table of the most frequent entries, whose cells are separated by tabs."""
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_LISTED]
    heads = "".join(f"<th>{column}</th>" for column in columns)
    lines = []
    for entry, count in ranked:
        cells = "".join(f"<td><code>{escape(token)}</code></td>" for token in entry.split("\t"))
        width = 6 * count / ranked[0][1]
        bar = f'<span class="bar" style="width:{width:.2f}rem"></span>'
        lines.append(f'<tr>{cells}<td class="number">{count}</td><td>{bar}</td></tr>')
    body = "".join(lines) or f'<tr><td colspan="{len(columns)}" class="quiet">none</td></tr>'
    return f"<div><h3>{title}</h3><table><tr>{heads}<th></th><th></th></tr>{body}</table></div>"


def _gallery(
    title: str, chosen: Sequence[int], readings: Sequence[Compared], images: Sequence[np.ndarray], text: str = ""
) -> str:
    if not chosen:
        return ""
    figures = "".join(_figure(readings[index], np.asarray(images[index])) for index in chosen)
    return f"<h2>{title}</h2>" + (f"<p>{text}</p>" if text else "") + figures


def _figure(reading: Compared, image: np.ndarray) -> str:
    plural = "" if reading.errors == 1 else "s"
    caption = (
        f"{reading.name}: {reading.errors} error{plural} in {reading.length} tokens, probability {reading.score:.1%}"
    )
    return (
        f'<figure><img alt="" src="data:image/png;base64,{_base64(_png(image))}">'
        f'<div class="tokens"><b>label</b>{_marked(reading.pairs, 0)}</div>'
        f'<div class="tokens"><b>prediction</b>{_marked(reading.pairs, 1)}</div>'
        f'<figcaption class="quiet">{escape(caption)}</figcaption></figure>'
    )


def _marked(pairs: Sequence[Pair], side: int) -> str:
    """One side of an alignment: wrong tokens marked, and one dot where the other side alone has tokens."""
    words: list[str] = []
    for pair in pairs:
        token = pair[side]
        if token is not None:
            text = escape(token)
            words.append(text if pair[0] == pair[1] else f'<span class="wrong">{text}</span>')
        elif not words or words[-1] != _GAP:
            words.append(_GAP)
    return " ".join(words)


def _png(image: np.ndarray) -> bytes:
    """Dark ink on white, scaled down where it is very wide."""
    if image.shape[1] > _WIDEST:
        height = max(1, round(image.shape[0] * _WIDEST / image.shape[1]))
        image = cv2.resize(image, (_WIDEST, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", 255 - image)[1].tobytes()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
