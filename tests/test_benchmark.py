"""The benchmark: its numbers are there, and its forced lengths are those asked for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from abm_hf.benchmark import (
    ColdArguments,
    DecodeArguments,
    StopAt,
    TrainArguments,
    measure_cold_start,
    measure_decoding,
    measure_training,
)
from abm_hf.configuration_abm import ABMConfig
from abm_hf.modeling_abm import ABMForConditionalGeneration
from abm_hf.runtime import encoder_dtype

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"


def test_decoding_is_measured_for_all_combinations(tiny_checkpoint: Path) -> None:
    result = measure_decoding(
        DecodeArguments(
            model=str(tiny_checkpoint), images=3, batch_sizes=[2], beams=[1, 2], max_length=12, compare=True
        )
    )
    assert [(row["batch_size"], row["beams"]) for row in result["results"]] == [(2, 1), (2, 2)]
    for row in result["results"]:
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"], rel=0.01)
        assert row["ratio"] == pytest.approx(row["plain_seconds_per_image"] / row["seconds_per_image"], rel=0.02)
    assert result["images"] == 3 and result["peak_memory_mb"] > 50 and result["data"] == "synthetic"
    json.dumps(result)


def test_pictures_of_a_folder_are_decoded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture = np.full((40, 90), 255, np.uint8)
        picture[10:30, 20:24] = 0
        Image.fromarray(picture).save(tmp_path / name)
    arguments = DecodeArguments(
        model=str(tiny_checkpoint), data=str(tmp_path), batch_sizes=[2], beams=[1], max_length=12
    )
    assert measure_decoding(arguments)["images"] == 2


def test_forced_lengths_are_kept(tiny_config: ABMConfig) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    for beams in (1, 3):
        ids = model.generate(
            pixel_values=torch.rand(2, 1, 32, 64), num_beams=beams, logits_processor=[StopAt([3, 7], stop=1)]
        )
        assert ((ids != 0) & (ids != 1) & (ids != 113)).sum(1).tolist() == [3, 7]


def test_training_is_measured() -> None:
    result = measure_training(TrainArguments(model="small", steps=1, precisions=["no"]))
    row = result["results"][0]
    assert row["images"] == 8 and row["images_per_second"] > 0
    assert set(row["shares_of_time"]) == {"data", "encoder", "decoders", "optimizer"}
    assert abs(sum(row["shares_of_time"].values()) - 1) < 0.01
    # The encoder has most of the products of a step; next to it, data that is there already takes nothing.
    assert row["shares_of_time"]["encoder"] > 0.2 > 0.05 > row["shares_of_time"]["data"]


def test_training_is_measured_with_loading_and_all_sizes() -> None:
    result = measure_training(TrainArguments(model="small", steps=1, precisions=["bf16", "no"], data="synthetic"))
    assert [row["mixed_precision"] for row in result["results"]] == ["bf16", "no"]
    assert all(row["images"] > 0 for row in result["results"]) and result["data"] == "synthetic"


def test_processes_train_together() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    command += [
        "train",
        "--model",
        "small",
        "--steps",
        "1",
        "--precisions",
        "bf16",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    result = json.loads(done.stdout)
    assert result["processes"] == 2 and result["results"][0]["images"] == 16


def test_cold_start_is_measured(tiny_checkpoint: Path) -> None:
    result = measure_cold_start(ColdArguments(model=str(tiny_checkpoint), repeats=1))
    assert 0.5 < result["seconds"] < 300 and result["peak_memory_mb"] > 50


def test_wrong_usage_is_told() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "decoding"], capture_output=True, text=True)
    assert done.returncode == 2 and "decode,train,cold" in done.stderr
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "decode,train,cold" in done.stdout


def test_precision() -> None:
    device = torch.device("cpu")
    assert encoder_dtype("float32", device) is None
    assert encoder_dtype("bfloat16", device) == torch.bfloat16
    assert encoder_dtype("int8", device) == torch.int8
    with pytest.raises(ValueError, match="one of 'auto', 'float32', 'bfloat16', 'int8'"):
        encoder_dtype("half", device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names, dtype",
    [((), None), (("avx2",), None), (("avx512_bf16",), torch.bfloat16), (("avx512_bf16", "avx512_vnni"), torch.int8)],
)
def test_auto_is_the_fastest_precision_there(
    names: tuple[str, ...], dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(names, True))
    assert encoder_dtype("auto", torch.device("cpu")) == dtype
