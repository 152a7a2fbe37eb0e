"""How fast this machine decodes and trains: `scripts/benchmark.py decode | train | cold`, numbers as JSON."""

import copy
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LogitsProcessor

from .configuration_abm import PRESETS, ABMConfig
from .data.collator import ABMCollator
from .generation_abm import LatexGrammarLogitsProcessor
from .inference.base import IMAGE_SUFFIXES, iter_inputs
from .ink.rendering import render_ink
from .modeling_abm import ABMDecoderBranch, ABMForConditionalGeneration
from .pretrained import checkpoint_path
from .reading_abm import read_formulas
from .runtime import Precision, encoder_dtype
from .synthetic.expressions import synthetic_ink
from .tokenization_abm import ABMTokenizer
from .torch_search_abm import find_hypotheses
from .training.arguments import DataArguments, OptimizationArguments, parse_arguments
from .training.data import VARIATIONS, PlannedDataset, make_loader
from .training.items import load_items, load_split
from .training.optimization import build_optimizer
from .training.run import build_run, make_accelerator
from .training.state import RunDirectory
from .training.step import training_step

# Steps that beam search takes for each token of an answer, greedy search taking one: measured with the packaged
# checkpoint and ten beams on CROHME 2014, where hypotheses are followed until none can become the best.
_BEAM_STEPS = 1.2
_MEAN_LENGTH = 16  # tokens of a formula of CROHME 2014, where there is no label that says


@dataclass
class DecodeArguments:
    """What is decoded, and how."""

    model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint, or `base`: that size with random weights; default: the packaged checkpoint."},
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder of pictures, CROHME zip or prepared data set; default: synthetic ink."}
    )
    split: str = field(default="test2014", metadata={"help": "Split of a data set."})
    images: int = field(default=32, metadata={"help": "Pictures, drawn at random."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16], metadata={"help": "Pictures decoded together."})
    beams: list[int] = field(default_factory=lambda: [1, 10], metadata={"help": "Hypotheses; 1 is greedy."})
    max_length: int = field(default=200, metadata={"help": "Most tokens of an answer."})
    precision: Precision = field(default="auto", metadata={"help": "Of the encoder."})
    compare: bool = field(
        default=False, metadata={"help": "Run the plain implementation in turn with it and give the ratios."}
    )
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda; default: a GPU if there is one."})
    threads: int | None = field(default=None, metadata={"help": "Threads on a CPU; default: torch's choice."})
    seed: int = field(default=0, metadata={"help": "Of the choice of pictures and of random weights."})


@dataclass
class TrainArguments:
    """What is trained, and how."""

    model: str = field(default="base", metadata={"help": "Sizes: `base` or `small`."})
    data: str | None = field(
        default=None,
        metadata={"help": "Measure the whole pipeline over this source, as the recipe named like the model has it."},
    )
    steps: int = field(default=5, metadata={"help": "Steps that are timed, after two that are not."})
    precisions: list[str] = field(default_factory=lambda: ["bf16", "no"], metadata={"help": "bf16, fp16 or no."})
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda; default: a GPU if there is one."})
    threads: int | None = field(default=None, metadata={"help": "Threads on a CPU; default: torch's choice."})


@dataclass
class ColdArguments:
    """What is started."""

    picture: str | None = field(default=None, metadata={"help": "A picture; default: synthetic ink."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint; default: the packaged one."})
    repeats: int = field(default=3, metadata={"help": "Processes started, one after the other; the best counts."})


class StopAt(LogitsProcessor):
    """Ends the n-th picture's formulas after `lengths[n]` tokens, no sooner and no later.

    Random weights would go on to the greatest length: with this they write as much as trained ones.
    """

    def __init__(self, lengths: Sequence[int], stop: int):
        self.lengths = torch.tensor(lengths)
        self.stop = stop

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        lengths = self.lengths.repeat_interleave(len(input_ids) // len(self.lengths)).to(scores.device)
        due = lengths <= input_ids.shape[1] - 1
        is_stop = torch.arange(scores.shape[1], device=scores.device) == self.stop
        return scores.clamp(min=-1e4).masked_fill(due[:, None] ^ is_stop, float("-inf"))


@dataclass(frozen=True)
class Sample:
    """A picture, `uint8` (H, W) with bright ink, and the tokens of its label, if any."""

    image: np.ndarray
    length: int


def measure_decoding(arguments: DecodeArguments) -> dict[str, Any]:
    """Seconds for each picture, warm, for all combinations of batch size and beams.

    Each batch was encoded once before the clock starts, so that convolutions are compiled. With `compare`, the plain
    implementation takes turns with the fast one over the same pictures: batch norms as they are, float32, batches in
    the order of the data, training's steps, finished pictures read on.

    Raises:
        ArgumentError, FileNotFoundError: for data that cannot be read.
        CheckpointError: if there is no such checkpoint.
        ValueError: for an unknown precision.
    """
    device = _device(arguments.device, arguments.threads)
    samples = _samples(arguments)
    model, name = _model(arguments.model, arguments.seed, device)
    decoders = {"fast": copy.deepcopy(model).fuse(encoder_dtype(arguments.precision, device))}
    if arguments.compare:
        decoders["plain"] = _plain(model)
    results = []
    for batch_size in arguments.batch_sizes:
        for beams in arguments.beams:
            seconds = _decode_in_turn(decoders, samples, batch_size, beams, arguments)
            row: dict[str, Any] = {"batch_size": batch_size, "beams": beams}
            row |= {"seconds_per_image": _rounded(seconds["fast"] / len(samples))}
            row |= {"images_per_second": _rounded(len(samples) / seconds["fast"])}
            if "plain" in seconds:
                row |= {"plain_seconds_per_image": _rounded(seconds["plain"] / len(samples))}
                row |= {"ratio": _rounded(seconds["plain"] / seconds["fast"])}
            results.append(row)
    return {
        "task": "decode",
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "lengths": "as labelled, forced on random weights" if arguments.model in PRESETS else "as the model writes",
        "data": Path(arguments.data).name if arguments.data else "synthetic",
        "images": len(samples),
        "encoder": str(encoder_dtype(arguments.precision, device) or torch.float32).removeprefix("torch."),
        "grammar": True,
        **_machine(device),
        "results": results,
    }


def measure_training(arguments: TrainArguments) -> dict[str, Any]:
    """Images per second of the training step on 8 pictures of 96 × 320 pixels with 20 tokens, both branches.

    The step is forward and backward pass and AdamW's update. With `data`, the whole pipeline instead: as
    `scripts/train.py` trains, augmentation, batches of all sizes and loading included. Started by `accelerate launch`
    or `torchrun`, each process takes a batch, gradients are averaged, and the images of all are counted.

    Raises:
        ArgumentError: for data that cannot be used.
    """
    on_cpu = _device(arguments.device, None).type == "cpu"
    processes = PartialState(cpu=on_cpu)
    device = _device(str(processes.device), arguments.threads)
    results = [
        {"mixed_precision": precision, **_train(arguments, precision, processes)} for precision in arguments.precisions
    ]
    return {
        "task": "train",
        "model": f"{arguments.model}, random weights, both branches",
        "data": Path(arguments.data).name if arguments.data else "8 pictures of 96 x 320, 20 tokens",
        "steps": arguments.steps,
        "processes": processes.num_processes,
        **_machine(device),
        "results": results,
    }


def measure_cold_start(arguments: ColdArguments) -> dict[str, Any]:
    """Seconds and memory of `abm-hf recognize PICTURE`, from the start of the process to its end.

    Raises:
        RuntimeError: if the command fails.
    """
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
        "seconds": _rounded(min(seconds for seconds, _ in runs)),
        "all_seconds": [_rounded(seconds) for seconds, _ in runs],
        "peak_memory_mb": round(max(memory for _, memory in runs)),
        **{key: value for key, value in _machine(torch.device("cpu")).items() if key != "peak_memory_mb"},
    }


def _samples(arguments: DecodeArguments) -> list[Sample]:
    rng = np.random.default_rng(arguments.seed)
    if arguments.data is None:
        inks = [synthetic_ink(int(seed)) for seed in rng.integers(2**31, size=arguments.images)]
        return [Sample(render_ink(ink), len((ink.label or "").split())) for ink in inks]
    source = Path(arguments.data)
    if source.is_dir() and any(file.suffix.lower() in IMAGE_SUFFIXES for file in source.iterdir()):
        files = [file for file in iter_inputs([source]) if file.suffix.lower() in IMAGE_SUFFIXES]
        chosen = rng.permutation(len(files))[: arguments.images]
        return [Sample(_normalized(files[index]), _MEAN_LENGTH) for index in chosen]
    items = load_split(arguments.data, arguments.split, DataArguments(data=arguments.data))
    chosen = rng.permutation(len(items))[: arguments.images]
    return [Sample(items.images[index], len(items.latex[index].split())) for index in chosen.tolist()]


def _normalized(file: Path) -> np.ndarray:
    from .image_processing_abm import ABMImageProcessor

    processed = ABMImageProcessor()(str(file), do_pad=False, do_rescale=False, return_tensors="np")
    return processed["pixel_values"][0][0].astype(np.uint8)


def _model(name: str | None, seed: int, device: torch.device) -> tuple[ABMForConditionalGeneration, str]:
    if name in PRESETS:
        torch.manual_seed(seed)
        model = ABMForConditionalGeneration(ABMConfig.preset(str(name)))
        return model.to(device).eval(), f"{name}, random weights"
    path = checkpoint_path(name)
    model = ABMForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    return model.to(device).eval(), Path(path).name


def _plain(model: ABMForConditionalGeneration) -> ABMForConditionalGeneration:
    """The model with batches encoded whole and the steps of training, in which no picture can be left out."""
    model.encoder.by_size = False
    for branch in model.branches.values():
        assert isinstance(branch, ABMDecoderBranch)
        branch.arranged = False
    return model


def _decode_in_turn(
    decoders: dict[str, ABMForConditionalGeneration],
    samples: Sequence[Sample],
    batch_size: int,
    beams: int,
    arguments: DecodeArguments,
) -> dict[str, float]:
    """Seconds that each decoder takes, alternating from batch to batch."""
    ordered = {
        "fast": sorted(samples, key=lambda sample: sample.image.shape[::-1]),
        "plain": list(samples),
    }
    seconds = dict.fromkeys(decoders, 0.0)
    for start in range(0, len(samples), batch_size):
        for name, model in decoders.items():
            seconds[name] += _decode(name, model, ordered[name][start : start + batch_size], beams, arguments)
    return seconds


def _decode(
    name: str,
    model: ABMForConditionalGeneration,
    batch: Sequence[Sample],
    beams: int,
    arguments: DecodeArguments,
) -> float:
    """Seconds to read a batch, its size of picture not new to the process."""
    inputs = ABMCollator((32, 64))([{"image": sample.image} for sample in batch])
    tokenizer = ABMTokenizer()
    values, mask = (inputs[part].to(model.device) for part in ("pixel_values", "pixel_mask"))
    options: dict[str, Any] = {"num_beams": beams, "max_length": arguments.max_length}
    lengths = None
    if arguments.model in PRESETS:
        factor = _BEAM_STEPS if beams > 1 else 1.0
        lengths = [math.ceil(factor * sample.length) for sample in batch]
    with torch.inference_mode():
        model.encoder(values, mask)
        _wait(model.device)
        began = time.perf_counter()
        if name == "plain":  # a processor makes it go through `generate`
            grammar = LatexGrammarLogitsProcessor.from_tokenizer(tokenizer, max_length=arguments.max_length)
            stop = [StopAt(lengths, tokenizer.eos_token_id)] if lengths is not None else []
            read_formulas(model, tokenizer, values, mask, grammar=False, logits_processor=[grammar, *stop], **options)
        elif lengths is None:
            read_formulas(model, tokenizer, values, mask, **options)
        else:
            # The grammar at its usual cost, but without the last word.
            encoded = model.encoder(values, mask)
            find_hypotheses(model, encoded, "l2r", tokenizer=tokenizer, lengths=lengths, **options)
    _wait(model.device)
    return time.perf_counter() - began


class Stopwatch:
    """What the parts of training steps take: data, encoder and decoders, both ways each, and optimizer.

    Args:
        device: waited for whenever a part begins, four times a step.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.start()

    def start(self) -> None:
        """Counts from now."""
        _wait(self.device)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.part = "data"
        self.since = time.perf_counter()

    def begin(self, part: str) -> None:
        """What follows belongs to `part`."""
        _wait(self.device)
        now = time.perf_counter()
        self.seconds[self.part] += now - self.since
        self.part = part
        self.since = now

    def follow(self, model: ABMForConditionalGeneration, optimizer: torch.optim.Optimizer) -> None:
        """Lets `model` and `optimizer` tell when their parts begin. The decoders' part has the loss in it."""
        model.encoder.register_forward_pre_hook(lambda *_: self.begin("encoder"))
        model.encoder.register_forward_hook(self._encoded)
        optimizer.register_step_pre_hook(lambda *_: self.begin("optimizer"))

    def _encoded(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self.begin("decoders")
        output.last_hidden_state.register_hook(lambda gradient: self.begin("encoder"))

    def shares(self) -> dict[str, float]:
        """Of the time since `start`, by part."""
        whole = sum(self.seconds.values())
        return {part: round(seconds / whole, 3) for part, seconds in sorted(self.seconds.items())}


def _train(arguments: TrainArguments, precision: str, processes: PartialState) -> dict[str, Any]:
    images, device = 0, processes.device
    watch = Stopwatch(device)
    with tempfile.TemporaryDirectory() as folder:
        step = (
            _pipeline_step(arguments, precision, watch, folder)
            if arguments.data
            else _fixed_step(arguments, precision, watch, processes)
        )
        for number in range(arguments.steps + 2):
            if number == 2:
                processes.wait_for_everyone()
                watch.start()
                images = 0
            images += step()
        processes.wait_for_everyone()
        watch.begin("data")
    images = sum(gather_object([images]))
    return {
        "images_per_second": _rounded(images / sum(watch.seconds.values())),
        "images": images,
        "peak_memory_mb": _peak_memory(device),
        "shares_of_time": watch.shares(),
    }


def _fixed_step(
    arguments: TrainArguments, precision: str, watch: Stopwatch, processes: PartialState
) -> Callable[[], int]:
    torch.manual_seed(0)
    device = processes.device
    bare = ABMForConditionalGeneration(ABMConfig.preset(arguments.model)).to(device)
    bare = bare.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(bare, OptimizationArguments())
    watch.follow(bare, optimizer)
    model = DistributedDataParallel(bare) if processes.num_processes > 1 else bare
    inputs = {
        "pixel_values": torch.rand(8, 1, 96, 320, device=device),
        "pixel_mask": torch.ones(8, 96, 320, dtype=torch.bool, device=device),
        "labels": torch.randint(2, bare.config.num_output_tokens, (8, 20), device=device),
    }
    inputs["labels"][:, -1] = bare.config.eos_token_id
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return _FixedStep(model, optimizer, inputs, device.type, dtype)


@dataclass
class _FixedStep:
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    inputs: dict[str, Tensor]
    device_type: str
    dtype: torch.dtype | None

    def __call__(self) -> int:
        """Takes a step and returns its number of images."""
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
            loss = self.model(**self.inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return len(self.inputs["labels"])


def _pipeline_step(arguments: TrainArguments, precision: str, watch: Stopwatch, folder: str) -> Callable[[], int]:
    options = ["--config", arguments.model, "--data", str(arguments.data), "--output_dir", folder]
    options += ["--mixed_precision", precision, "--curriculum", "0:0"]
    parsed = parse_arguments(options)
    AcceleratorState._reset_state()  # it keeps the first precision for good
    tokenizer = ABMTokenizer()
    items, validation = load_items(parsed.data, tokenizer)
    run = build_run(parsed, make_accelerator(parsed), RunDirectory(folder, 1), tokenizer, items, validation)
    dataset = PlannedDataset(items, ABMCollator(run.sampler.limits.multiple), VARIATIONS[parsed.data.augmentation])
    loader = make_loader(dataset, run.sampler, parsed.data, pin=run.accelerator.device.type == "cuda")
    watch.follow(run.bare_model, run.optimizer.optimizer)
    return _PipelineStep(run, iter(loader), watch)


@dataclass
class _PipelineStep:
    run: Any
    batches: Iterator[Any]
    watch: Stopwatch

    def __call__(self) -> int:
        """Takes a step and returns its number of images."""
        self.watch.begin("data")
        return training_step(self.run, [next(self.batches)]).images


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and greatest resident memory (MB) of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {process.returncode}: see its message above")
    return time.perf_counter() - began, _megabytes(usage.ru_maxrss)


def _device(name: str | None, threads: int | None) -> torch.device:
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_memory_mb": _peak_memory(device),
    }


def _peak_memory(device: torch.device) -> int:
    """MB that the process (on a GPU: its tensors) has held at most so far."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    import resource  # not on Windows

    return round(_megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def _megabytes(resident: int) -> float:
    """`ru_maxrss` in MB: it counts KB, on macOS bytes."""
    return resident / (1e6 if sys.platform == "darwin" else 1e3)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rounded(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")
