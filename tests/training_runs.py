"""Tiny training runs for the tests: data, options, and what a run leaves behind."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from abm_hf.training.arguments import Arguments, parse_arguments
from abm_hf.training.state import RunDirectory

TRAIN = Path(__file__).parent.parent / "scripts" / "train.py"
TINY = {
    "stem_channels": 4,
    "block_layers": [1, 1],
    "growth_rates": [4, 4],
    "hidden_size": 8,
    "embedding_size": 8,
    "attention_size": 8,
    "coverage_kernels": [3],
    "encoder_dropout": 0.1,
}
STEPS = 9


def write_pictures(folder: Path) -> Path:
    """Forty little pictures of six writers, laid out as CROHME's offline images."""
    rng = np.random.default_rng(0)
    lines = []
    (folder / "train" / "img").mkdir(parents=True)
    for number in range(40):
        image = (rng.random((rng.integers(20, 40), rng.integers(20, 90))) > 0.8).astype(np.uint8) * 255
        name = f"{number}_writer{'abcdef'[number % 6]}"
        cv2.imwrite(str(folder / "train" / "img" / f"{name}.bmp"), image)
        lines.append(f"{name}\t{' '.join(rng.choice(['x', '+', '2', 'y'], rng.integers(1, 7)))}\n")
    (folder / "train" / "caption.txt").write_text("".join(lines))
    return folder


def options(data: Path, output: Path, *more: str) -> list[str]:
    values = {
        "data": data,
        "output_dir": output,
        "validation_fraction": 0.2,
        "batch_images": 4,
        "pad_multiple": "16 32",
        "scale_range": "0.8 1.25",
        "augmentation": "image",
        "curriculum": "0:3 0.3:0",
        "max_steps": STEPS,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "mixed_precision": "no",
        "cpu_threads": 1,
        "num_workers": 0,
        "logging_steps": 1,
        "eval_steps": 3,
        "save_steps": 2,
        "eval_max_length": 6,
        "progress": "false",
    }
    line = [part for name, value in values.items() for part in (f"--{name}", *str(value).split(" "))]
    return [*line, "--model_overrides", json.dumps(TINY), "--cpu", *more]


def arguments(data: Path, output: Path, *more: str) -> Arguments:
    return parse_arguments(options(data, output, *more))


def environment() -> dict[str, str]:
    """For processes of their own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parent.parent)}


def history(output: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without times."""
    timed = {"images_per_second", "data_wait", "seconds", "evaluation_seconds"}
    rows = RunDirectory(output).read_metrics()
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def final_state(output: Path) -> dict[str, Any]:
    loaded = RunDirectory(output).checkpoints.load_latest()
    assert loaded is not None
    return loaded[1]


def assert_same(first: Any, second: Any, path: str = "") -> None:
    """Bit-equal, whatever the nesting; times apart."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for name in first:
            if name != "seconds":
                assert_same(first[name], second[name], f"{path}.{name}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second, path
