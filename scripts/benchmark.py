"""Measure speed: `python scripts/benchmark.py decode | train | cold [options]`; prints JSON."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import HfArgumentParser

from abm_hf.arguments import check_minimum
from abm_hf.configuration_abm import ABMConfig
from abm_hf.data.items import load_split
from abm_hf.extras import lacks
from abm_hf.inference.base import IMAGE_SUFFIXES, iter_inputs
from abm_hf.inference.loading import load_recognizer
from abm_hf.ink.rendering import render_ink
from abm_hf.modeling_abm import ABMForConditionalGeneration
from abm_hf.runtime import leave_group, tune_process
from abm_hf.synthetic.expressions import synthetic_ink

_BATCH, _HEIGHT, _WIDTH, _TOKENS = 8, 96, 320, 20  # of a training step


@dataclass
class DecodeArguments:
    """What is decoded, and how."""

    model: str | None = field(default=None, metadata={"help": "Checkpoint; default: the packaged one."})
    data: str | None = field(
        default=None, metadata={"help": "Folder of pictures, CROHME zip or prepared data set; default: synthetic ink."}
    )
    split: str = field(default="test2014", metadata={"help": "Split of a data set."})
    images: int = field(default=32, metadata={"help": "Pictures, drawn at random."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16], metadata={"help": "Pictures decoded together."})
    beams: list[int] = field(default_factory=lambda: [1, 10], metadata={"help": "Hypotheses; 1 is greedy."})
    rescore: bool = field(default=True, metadata={"help": "Whether the other branch rescores what beams have found."})
    rescoring_size: float | None = field(default=None, metadata={"help": "Of the pass on larger images; 1: none."})
    max_length: int = field(default=200, metadata={"help": "Most tokens of an answer."})
    engine: str = field(default="auto", metadata={"help": "auto, onnx or torch."})
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda; default: a GPU if there is one."})
    seed: int = field(default=0, metadata={"help": "Of the choice of pictures."})

    def __post_init__(self) -> None:
        check_minimum(self, 1, "images")


@dataclass
class TrainArguments:
    """What is trained, and how."""

    model: str = field(default="base", metadata={"help": "Sizes: `base` or `small`."})
    steps: int = field(default=5, metadata={"help": "Steps that are timed, after two that are not."})
    precisions: list[str] = field(default_factory=lambda: ["bf16", "no"], metadata={"help": "bf16, fp16 or no."})
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda; default: a GPU if there is one."})
    threads: int | None = field(default=None, metadata={"help": "Threads on a CPU; default: torch's choice."})

    def __post_init__(self) -> None:
        check_minimum(self, 1, "steps", "threads")


@dataclass
class ColdArguments:
    """What is started."""

    picture: str | None = field(default=None, metadata={"help": "A picture; default: synthetic ink."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint; default: the packaged one."})
    repeats: int = field(default=5, metadata={"help": "Processes started, one after the other; the median counts."})

    def __post_init__(self) -> None:
        check_minimum(self, 1, "repeats")


def measure_decoding(arguments: DecodeArguments) -> dict[str, Any]:
    """Seconds for each picture, normalising included, for all combinations of batch size and beams.

    Each combination runs once before it is timed: no size of picture is new to the process.
    """
    images = _images(arguments)
    recognizer = load_recognizer(arguments.model, arguments.device, arguments.engine)  # type: ignore[arg-type]
    results = []
    for batch_size in arguments.batch_sizes:
        for beams in arguments.beams:
            options: dict[str, Any] = {
                "batch_size": batch_size,
                "num_beams": beams,
                "max_length": arguments.max_length,
                "rescore": None if arguments.rescore else False,
                "rescoring_size": arguments.rescoring_size,
            }
            recognizer(images, **options)
            began = time.perf_counter()
            recognizer(images, **options)
            seconds = (time.perf_counter() - began) / len(images)
            row = {"batch_size": batch_size, "beams": beams, "seconds_per_image": _rounded(seconds)}
            results.append(row | {"images_per_second": _rounded(1 / seconds)})
    return {
        "task": "decode",
        "model": arguments.model or "packaged",
        "engine": type(recognizer).__name__,
        "data": Path(arguments.data).name if arguments.data else "synthetic",
        "images": len(images),
        **_machine(),
        "results": results,
    }


def measure_training(arguments: TrainArguments) -> dict[str, Any]:
    """Images per second of the training step: forward and backward pass of both branches, and AdamW's update.

    Started by `accelerate launch` or `torchrun`, each process takes a batch, gradients are averaged, and the images
    of all are counted.
    """
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    on_cpu = (arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cpu"
    from accelerate import PartialState

    processes = PartialState(cpu=on_cpu)
    return {
        "task": "train",
        "model": f"{arguments.model}, random weights, both branches",
        "data": f"{_BATCH} pictures of {_HEIGHT} x {_WIDTH}, {_TOKENS} tokens",
        "steps": arguments.steps,
        "processes": processes.num_processes,
        **_machine(),
        "results": [_train(arguments, precision, processes) for precision in arguments.precisions],
    }


def measure_cold_start(arguments: ColdArguments) -> dict[str, Any]:
    """Seconds and memory of `abm-hf recognize PICTURE`, from the start of the process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        picture = arguments.picture or str(Path(folder, "synthetic.png"))
        if arguments.picture is None:
            cv2.imwrite(picture, render_ink(synthetic_ink(0, min_tokens=12, max_tokens=20)))
        command = [sys.executable, "-m", "abm_hf.cli.main", "recognize", picture]
        command += ["--model", arguments.model] if arguments.model else []
        runs = [_run(command) for _ in range(arguments.repeats)]
    return {
        "task": "cold",
        "command": "abm-hf recognize PICTURE",
        "seconds": _rounded(statistics.median(seconds for seconds, _ in runs)),
        "all_seconds": [_rounded(seconds) for seconds, _ in runs],
        "peak_memory_mb": round(max(memory for _, memory in runs)),
        "machine": platform.machine(),
    }


def _images(arguments: DecodeArguments) -> list[Any]:
    rng = np.random.default_rng(arguments.seed)
    if arguments.data is None:
        return [render_ink(synthetic_ink(int(seed))) for seed in rng.integers(2**31, size=arguments.images)]
    source = Path(arguments.data)
    found: Sequence[Any]
    if source.is_dir() and any(file.suffix.lower() in IMAGE_SUFFIXES for file in source.iterdir()):
        found = [file for file in iter_inputs([source]) if file.suffix.lower() in IMAGE_SUFFIXES]
    else:
        found = load_split(arguments.data, arguments.split).images
    return [found[index] for index in rng.permutation(len(found))[: arguments.images].tolist()]


def _train(arguments: TrainArguments, precision: str, processes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    device = processes.device
    bare = ABMForConditionalGeneration(ABMConfig.preset(arguments.model)).to(device)
    bare = bare.to(memory_format=torch.channels_last).train()
    from abm_hf.training.arguments import OptimizationArguments
    from abm_hf.training.optimization import build_optimizer

    optimizer = build_optimizer(bare, OptimizationArguments())
    model = DistributedDataParallel(bare) if processes.num_processes > 1 else bare
    inputs = {
        "pixel_values": torch.rand(_BATCH, 1, _HEIGHT, _WIDTH, device=device),
        "pixel_mask": torch.ones(_BATCH, _HEIGHT, _WIDTH, dtype=torch.bool, device=device),
        "labels": torch.randint(2, bare.config.num_output_tokens, (_BATCH, _TOKENS), device=device),
    }
    inputs["labels"][:, -1] = bare.config.eos_token_id
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    began = 0.0
    for number in range(arguments.steps + 2):
        if number == 2:
            _wait(processes)
            began = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(processes)
    images = _BATCH * arguments.steps * processes.num_processes
    return {
        "mixed_precision": precision,
        "images": images,
        "images_per_second": _rounded(images / (time.perf_counter() - began)),
    }


def _wait(processes: Any) -> None:
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    processes.wait_for_everyone()


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and greatest resident memory (MB) of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}: see its message above")
    return time.perf_counter() - began, _megabytes(usage.ru_maxrss)


def _machine() -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_memory_mb": round(_megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)),
    }


def _megabytes(resident: int) -> float:
    """`ru_maxrss` in MB: it counts KB, on macOS bytes."""
    return resident / (1e6 if sys.platform == "darwin" else 1e3)


def _rounded(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")


TASKS: dict[str, tuple[Any, Any]] = {
    "decode": (DecodeArguments, measure_decoding),
    "train": (TrainArguments, measure_training),
    "cold": (ColdArguments, measure_cold_start),
}


def main() -> int:
    """Exit code: 0, or 2 for anything the user can put right."""
    if len(sys.argv) < 2 or sys.argv[1] not in TASKS:
        asked = sys.argv[1:] in (["--help"], ["-h"])
        usage = f"usage: {sys.argv[0]} {{{','.join(TASKS)}}} [options]; each takes --help"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    if problem := lacks("train", "scripts/benchmark.py", "accelerate", "datasets", "yaml"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    tune_process()
    kind, measure = TASKS[sys.argv[1]]
    try:
        (arguments,) = HfArgumentParser(kind).parse_args_into_dataclasses(sys.argv[2:])
        result = measure(arguments)
        leave_group()
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
