"""Writes the model card of a checkpoint from what was measured.

A checkpoint directory may hold evidence, and the card states it and nothing that was not measured:

- `results/*.json`: what `scripts/evaluate.py` wrote.
- `training.json`: how it was trained: `summary`, `commands` (lines of a shell), `facts` (name to value), `datasets`.
- `training_curve.png`: drawn by the training.
- `calibration.json`, `reliability.png`: from `scripts/calibrate.py`.
- `speed.json`: a table: `text` (machine, command, what is measured), `columns`, `rows`.
- `failures.png`: from `scripts/draw_failures.py`.

The pictures may lie in another folder, as those of the packaged checkpoint do.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..tokenization_abm import ABM_VOCABULARY

#: The task under which the Hub lists the model, and which its snippet names.
PIPELINE_TAG = "image-to-text"

_CITATION = """@inproceedings{bian2022abm,
  title = {Handwritten Mathematical Expression Recognition via Attention Aggregation based Bi-directional Mutual
           Learning},
  author = {Bian, Xiaohang and Qin, Bo and Xin, Xiaozhe and Li, Jianwu and Su, Xuefeng and Wang, Yanfeng},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2022}
}"""

_TEMPLATE = """---
{metadata}
---

# {name}

Reads a picture, or the ink, of one handwritten formula and writes it in LaTeX: ABM, attention aggregation and
bi-directional mutual learning ([arXiv 2112.03603](https://arxiv.org/abs/2112.03603)), with {parameters} parameters, of
which {inference} are used by one direction.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{repository}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repository}", trust_remote_code=True)
inputs = processor(images="formula.png")
print(processor.batch_decode(model.generate(**inputs, num_beams=10), skip_special_tokens=True))
```

Or, with the answer rescored by the other branch and its probability:

```python
from transformers import pipeline

recognizer = pipeline("image-to-latex", model="{repository}", trust_remote_code=True)
print(recognizer("formula.png"))
```

With the package `abm-hf` installed:

```python
import abm_hf

result = abm_hf.recognize("formula.png", model="{repository}")
print(result.latex, result.score)
```

## Results

{results}

ExpRate is the share of expressions that equal the label token by token, ≤1 and ≤2 those with at most so many edits,
WER the edits in all divided by the tokens of all labels, in percent; in brackets 95 % bootstrap intervals. Evaluator:
`abm_hf.evaluation.expression_rate`. Label convention: `abm` (that of WAP, BTTR and ABM; CoMER's differs).
{calibration}
## Size and speed

{size}
{speed}
## What it reads

One formula on one picture, in {tokens} LaTeX tokens:

`{vocabulary}`

No matrices, no text, no printed mathematics, no several formulas on a page.
{failures}
## Training

{training}

## Licence

Research and non-commercial use: the weights were trained on CROHME, whose expressions are for research. The code is
under Apache-2.0. CROHME itself is not redistributed.

## Citation

```bibtex
{citation}
```
"""


def write_model_card(
    folder: str | Path, repository: str = "abm-hf/abm", name: str = "ABM", pictures: str | Path | None = None
) -> Path:
    """Writes `README.md` for the checkpoint in `folder`.

    Args:
        folder: with `config.json` and `model.safetensors`, and what was measured (see the module).
        repository: the id that the examples name.
        name: title of the card.
        pictures: where the pictures lie; in `folder` by default.

    Returns:
        The path of the card.

    Raises:
        OSError: if the checkpoint's files cannot be read.
    """
    folder = Path(folder)
    pictures = folder if pictures is None else Path(pictures)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "results").glob("*.json"))]
    total, inference = _parameters(folder)
    card = _TEMPLATE.format(
        metadata=_metadata(results, name, _record(folder).get("datasets")).to_yaml(),
        name=name,
        parameters=f"{total / 1e6:.2f} M",
        inference=f"{inference / 1e6:.2f} M",
        repository=repository,
        results=_table(results) if results else "Not measured.",
        calibration=_calibration(folder, pictures),
        size=_size(folder, total),
        speed=_speed(folder),
        failures=_failures(folder, pictures),
        tokens=len(_writable()),
        vocabulary=" ".join(_writable()),
        training=_training(folder, pictures),
        citation=_CITATION,
    )
    path = folder / "README.md"
    ModelCard(card).save(path)
    return path


def _metadata(results: Sequence[dict[str, Any]], name: str, datasets: list[str] | None) -> ModelCardData:
    return ModelCardData(
        license="other",
        license_name="research-non-commercial",
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["handwritten-mathematics", "latex", "ocr", "crohme", "inkml", "abm", "arxiv:2112.03603"],
        datasets=datasets,
        metrics=["exprate", "wer"],
        model_name=name,
        eval_results=[evaluated for result in results for evaluated in _evaluations(result)] or None,
    )


def _evaluations(result: dict[str, Any]) -> list[EvalResult]:
    decoding = _decoding(result)
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Handwritten mathematical expression recognition",
            dataset_type="crohme",
            dataset_name=f"CROHME {result['split']}",
            dataset_split=str(result["split"]),
            metric_type=metric,
            metric_name=f"{label} ({decoding}; {result['evaluator']}, convention {result['convention']})",
            metric_value=round(result[metric], 2),
        )
        for metric, label in (("exprate", "ExpRate"), ("wer", "WER"))
    ]


def _decoding(result: dict[str, Any]) -> str:
    search = "greedy" if result["beams"] == 1 else f"beam {result['beams']}"
    rescored = ", rescored by R2L" if result.get("rescored") else ""
    grammar = "" if result["grammar"] else ", no grammar"
    return f"{result.get('direction', 'l2r').upper()}, {search}{rescored}{grammar}"


def _table(results: Sequence[dict[str, Any]]) -> str:
    rows = ["| split | decoding | expressions | ExpRate | ≤1 | ≤2 | WER |", "|---|---|---|---|---|---|---|"]
    for result in results:
        low, high = result["intervals"]["exprate"]
        rows.append(
            f"| {result['split']} | {_decoding(result)} | {result['count']} | "
            f"{result['exprate']:.2f} [{low:.1f}, {high:.1f}] | {result['exprate_1']:.2f} | "
            f"{result['exprate_2']:.2f} | {result['wer']:.2f} |"
        )
    return "\n".join(rows)


def _parameters(folder: Path) -> tuple[int, int]:
    """Of the whole checkpoint, and of the encoder with one branch."""
    from safetensors import safe_open

    sizes = {}
    with safe_open(folder / "model.safetensors", "np") as file:
        for name in file.keys():  # noqa: SIM118 (a handle, no mapping)
            if not name.rsplit(".", 1)[-1].startswith(("running_", "num_batches")):
                shape = file.get_slice(name).get_shape()
                sizes[name] = 1
                for side in shape:
                    sizes[name] *= side
    one = [size for name, size in sizes.items() if not name.startswith("branches.r2l.")]
    return sum(sizes.values()), sum(one) if len(one) > 1 else sum(sizes.values())


def _writable() -> list[str]:
    return [token for token in ABM_VOCABULARY if not (token.startswith("<") and token.endswith(">"))]


def _size(folder: Path, parameters: int) -> str:
    size = (folder / "model.safetensors").stat().st_size
    return f"{parameters / 1e6:.2f} M parameters in a file of {size / 1e6:.1f} MB."


def _speed(folder: Path) -> str:
    if not (folder / "speed.json").is_file():
        return ""
    speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    rows = [speed["columns"], ["---"] * len(speed["columns"]), *speed["rows"]]
    lines = [speed["text"], "", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
    return "\n" + "\n".join(lines) + "\n"


def _calibration(folder: Path, pictures: Path) -> str:
    """How far the probabilities of the answers can be trusted."""
    if not (folder / "calibration.json").is_file():
        return ""
    calibration = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    errors = calibration["ece"]["rescored"]
    text = (
        f"The probability of an answer is calibrated on {calibration['split']} ({calibration['count']} expressions,\n"
        f"beam {calibration['beams']}): expected calibration error {errors['after']:.3f}, without it "
        f"{errors['before']:.3f}."
    )
    picture = _picture(folder, pictures / "reliability.png", "share of right answers by probability")
    return f"\n{text}\n" + (f"\n{picture}\n" if picture else "")


def _picture(folder: Path, path: Path, text: str) -> str:
    """A picture in the card of `folder`; empty if there is none."""
    return f"![{text}]({Path(os.path.relpath(path, folder)).as_posix()})" if path.is_file() else ""


def _failures(folder: Path, pictures: Path) -> str:
    picture = _picture(folder, pictures / "failures.png", "expressions with their labels and the wrong answers")
    if not picture:
        return ""
    return (
        "\nWhat it reads wrong, from synthetic ink (`scripts/draw_failures.py`; not how often, but what):\n\n"
        f"{picture}\n"
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / "training.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _training(folder: Path, pictures: Path) -> str:
    record = _record(folder)
    if not record:
        return "Not recorded with this checkpoint."
    lines = [record["summary"], "", "```bash", *record["commands"], "```", ""]
    lines += [f"- {name}: {value}" for name, value in record["facts"].items()]
    if picture := _picture(folder, pictures / "training_curve.png", "training curve"):
        lines += ["", picture]
    return "\n".join(lines)
