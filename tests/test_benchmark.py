"""The benchmark: its numbers are there."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"
TRAIN = ("train", "--model", "small", "--steps", "1", "--precisions", "bf16", "--threads", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def _process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr("abm_hf.runtime.tune_process", lambda: None)  # that concerns the whole process
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The script as a shell sees it: exit code, standard output and error."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, *capsys.readouterr()

    return start


def test_decoding_is_measured_for_all_combinations(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture = np.full((40, 90), 255, np.uint8)
        picture[10:30, 20:24] = 0
        Image.fromarray(picture).save(tmp_path / name)
    options = ("--data", tmp_path, "--batch_sizes", 1, 2, "--beams", 1, 2, "--max_length", 8, "--device", "cpu")
    code, output, _ = run("decode", "--model", tiny_checkpoint, *options)
    result = json.loads(output)
    assert code == 0 and result["images"] == 2 and result["engine"] == "Recognizer" and result["peak_memory_mb"] > 50
    assert [(row["batch_size"], row["beams"]) for row in result["results"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for row in result["results"]:
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"], rel=0.02)


def check_training(result: dict[str, Any], processes: int) -> None:
    (row,) = result["results"]
    assert (result["processes"], row["images"], row["mixed_precision"]) == (processes, 8 * processes, "bf16")
    assert row["images_per_second"] > 0


def test_training_is_measured(run: Any) -> None:
    code, output, _ = run(*TRAIN)
    assert code == 0
    check_training(json.loads(output), 1)


def test_processes_train_together() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    done = subprocess.run([*command, *TRAIN], capture_output=True, text=True, check=True)
    check_training(json.loads(done.stdout), 2)


def test_cold_start_is_measured(run: Any) -> None:
    code, output, _ = run("cold", "--repeats", 1)
    result = json.loads(output)
    assert code == 0 and result["seconds"] > 0 and result["peak_memory_mb"] > 50


@pytest.mark.parametrize("arguments", [["decoding"], ["train", "--steps", "0"], ["decode", "--model", "./no-such"]])
def test_wrong_usage_is_one_line(run: Any, arguments: list[str]) -> None:
    code, output, error = run(*arguments)
    assert (code, output, len(error.splitlines())) == (2, "", 1)
