"""The training loop: one optimizer step is one plain function, everything else prepares, watches and saves.

A run is a function of its arguments and data alone. Batches come from (seed, epoch, position), dropout from
(seed, step, process); so a run that is killed and started again continues with the very numbers that it would have had.
"""

import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from ..configuration_abm import ABMConfig
from ..data.bucketing import BatchLimits, BucketBatchSampler
from ..data.collator import ABMCollator
from ..modeling_abm import ABMForConditionalGeneration
from ..tokenization_abm import ABMTokenizer
from .arguments import ArgumentError, Arguments, ModelArguments
from .curve import draw_curve
from .data import Items, LoadedBatch, PlannedDataset, augmentation_of, load_items, make_loader
from .evaluation import evaluate_items
from .optimization import AveragedWeights, build_optimizer
from .schedule import Leg, Plateau, curriculum, extended, learning_rate, legs_from_state, legs_to_state
from .state import RunDirectory, RunDirectoryError, replace_folder, write_json

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss was not finite in two steps in a row."""


@dataclass
class Progress:
    """Where a run is; all of it goes into checkpoints."""

    legs: list[Leg]
    planned_steps: int
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    non_finite: int = 0
    best: float = -1.0
    best_step: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    sampler: dict[str, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Step at which the run is finished."""
        return self.legs[-1].end

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**vars(self), "legs": legs_to_state(self.legs), "plateau": dict(vars(self.plateau))}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Progress":
        """From a checkpoint."""
        return cls(**{**state, "legs": legs_from_state(state["legs"]), "plateau": Plateau(**state["plateau"])})


@dataclass
class Run:
    """All parts of a run."""

    arguments: Arguments
    accelerator: Accelerator
    directory: RunDirectory
    tokenizer: Any
    train_items: Items
    validation_items: Items
    bare_model: Any
    model: Any
    optimizer: Any
    average: AveragedWeights
    sampler: BucketBatchSampler
    progress: Progress


@dataclass
class StepResult:
    """What one optimizer step did, averaged over its images (on this process)."""

    losses: dict[str, float]
    gradient_norm: float
    images: int
    finite: bool


class StopRequest:
    """Notes SIGTERM, SIGINT and the end of the time limit; the loop asks after each step.

    A second SIGINT interrupts at once, as without this class.
    """

    def __init__(self, time_limit_minutes: float | None, started: float) -> None:
        self.deadline = math.inf if time_limit_minutes is None else started + 60 * time_limit_minutes
        self.reason: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: signals are somebody else's matter
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def wanted(self) -> bool:
        """Whether to stop after this step."""
        if self.reason is None and time.monotonic() >= self.deadline:
            self.reason = "the time limit"
        return self.reason is not None


def train(arguments: Arguments) -> dict[str, Any]:
    """Trains, or goes on with the run in `output_dir`.

    Returns:
        `step`, `finished` (False when the run was stopped early, to be continued), `best` (ExpRate) and the result of
        the last evaluation.

    Raises:
        ArgumentError: For data, labels or options that cannot be used.
        RunDirectoryError: When the output directory is not writable, holds something else or another run.
        CheckpointError: When a checkpoint cannot be written (a full disk) or none can be read.
        NonFiniteLossError: When the loss was not finite in two steps in a row.
    """
    started = time.monotonic()
    directory = RunDirectory(arguments.run.output_dir, arguments.run.keep_checkpoints)
    directory.check_same_run(arguments.hyper_parameters())
    accelerator = _accelerator(arguments)
    tokenizer = ABMTokenizer()
    train_items, validation_items = load_items(arguments.data, tokenizer)
    _check_same_data(directory, train_items)
    run = build_run(arguments, accelerator, directory, tokenizer, train_items, validation_items)
    if accelerator.is_main_process and directory.recorded() is None:
        directory.record(_description(run))
    accelerator.wait_for_everyone()
    resume(run)
    with StopRequest(arguments.run.time_limit_minutes, started) as stop:
        result = _loop(run, stop)
    accelerator.end_training()
    return result


def _accelerator(arguments: Arguments) -> Accelerator:
    run = arguments.run
    trackers = run.trackers or None
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision,
        cpu=run.cpu or not torch.cuda.is_available(),
        log_with=trackers,
        project_dir=run.output_dir if trackers else None,
    )
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(run.cpu_threads or max(1, len(os.sched_getaffinity(0)) // local))
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if trackers:
        flat = {name: str(value) for name, value in arguments.as_dict().items()}
        accelerator.init_trackers("tensorboard", config=flat)
    return accelerator


def _check_same_data(directory: RunDirectory, items: Items) -> None:
    recorded = directory.recorded()
    if recorded is not None and recorded["data"] != items.fingerprint():
        raise RunDirectoryError(
            f"{directory.path} holds a run on other data ({recorded['items']} training items there, {len(items)} now): "
            "resume with the same data, or choose another output_dir"
        )


def _description(run: Run) -> dict[str, Any]:
    return {
        "hyper_parameters": run.arguments.hyper_parameters(),
        "arguments": run.arguments.as_dict(),
        "data": run.train_items.fingerprint(),
        "items": len(run.train_items),
        "validation_items": len(run.validation_items),
        "parameters": sum(parameter.numel() for parameter in run.bare_model.parameters()),
        "planned_steps": run.progress.planned_steps,
        "processes": run.accelerator.num_processes,
    }


def build_model(arguments: ModelArguments) -> ABMForConditionalGeneration:
    """The model that the arguments describe, with fresh weights or those of `init_from`."""
    if arguments.init_from is not None:
        return ABMForConditionalGeneration.from_pretrained(arguments.init_from, **arguments.config_fields())
    return ABMForConditionalGeneration(ABMConfig.preset(arguments.preset, **arguments.config_fields()))


def build_run(
    arguments: Arguments,
    accelerator: Accelerator,
    directory: RunDirectory,
    tokenizer: Any,
    train_items: Items,
    validation_items: Items,
) -> Run:
    """Model, optimizer and sampler at step 0."""
    options = arguments.run
    set_seed(options.seed)
    bare = build_model(arguments.model)
    if options.channels_last:
        bare = bare.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.gradient_checkpointing:
        bare.gradient_checkpointing_enable()
    bare.to(accelerator.device)
    average = AveragedWeights(bare, arguments.optimization.ema_decay)
    optimizer = build_optimizer(bare, arguments.optimization)
    model, optimizer = accelerator.prepare(torch.compile(bare) if options.compile else bare, optimizer)
    per_step = accelerator.num_processes * arguments.optimization.gradient_accumulation_steps
    planned = _planned_steps(arguments, train_items, per_step)
    return Run(
        arguments,
        accelerator,
        directory,
        tokenizer,
        train_items,
        validation_items,
        bare,
        model,
        optimizer,
        average,
        build_sampler(arguments, train_items, planned, accelerator.process_index, accelerator.num_processes),
        Progress([Leg(0, planned)], planned),
    )


def _planned_steps(arguments: Arguments, items: Items, batches_per_step: int) -> int:
    if arguments.optimization.max_steps:
        return arguments.optimization.max_steps
    batches = build_sampler(arguments, items, 1, 0, 1).batches_per_epoch()
    return max(1, math.ceil(arguments.optimization.num_epochs * batches / batches_per_step))


def build_sampler(arguments: Arguments, items: Items, planned: int, rank: int, world_size: int) -> BucketBatchSampler:
    """The stream of training batches of one process."""
    data, optimization = arguments.data, arguments.optimization
    per_step = world_size * optimization.gradient_accumulation_steps
    low, high = data.scale_range
    rows, columns = data.pad_multiple
    try:
        return BucketBatchSampler(
            items.sizes[:, 0],
            items.sizes[:, 1],
            items.lengths,
            BatchLimits(data.batch_images, data.batch_pixels, data.batch_tokens, (rows, columns)),
            seed=arguments.run.seed,
            stages=curriculum(planned, per_step, optimization),
            scale_range=(low, high),
            order=data.batch_order,
            rank=rank,
            world_size=world_size,
            accumulation=optimization.gradient_accumulation_steps,
        )
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def resume(run: Run) -> None:
    """Puts a run at the newest whole checkpoint of its directory, and extends it where that is asked for."""
    loaded = run.directory.checkpoints.load_latest()
    wanted = run.arguments.optimization.max_steps
    if loaded is not None:
        step, state = loaded
        run.progress = Progress.from_state(state["progress"])
        run.bare_model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.average.load_state_dict(state["average"])
        if run.accelerator.scaler is not None and state["scaler"]:
            run.accelerator.scaler.load_state_dict(state["scaler"])
        logger.info("going on from step %d of %d", step, run.progress.end)
    progress = run.progress
    if run.arguments.optimization.extend and wanted > progress.end:
        progress.legs = extended(progress.legs, progress.step, wanted, run.arguments.optimization)
    elif loaded is not None and wanted and wanted != progress.end:
        raise RunDirectoryError(
            f"{run.directory.path} holds a run of {progress.end} steps, not {wanted}: give the same max_steps, or a "
            "larger one together with `--extend`"
        )
    accelerator = run.accelerator
    run.sampler = build_sampler(
        run.arguments, run.train_items, progress.planned_steps, accelerator.process_index, accelerator.num_processes
    )
    if progress.sampler:
        run.sampler.load_state_dict(progress.sampler)
    if accelerator.is_main_process:
        run.directory.rewind_metrics(progress.step)
    accelerator.wait_for_everyone()


def save_checkpoint(run: Run) -> None:
    """Writes a checkpoint of the moment (main process)."""
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        run.directory.checkpoints.save(
            run.progress.step,
            {
                "progress": run.progress.state_dict(),
                "model": run.bare_model.state_dict(),
                "optimizer": run.optimizer.state_dict(),
                "average": run.average.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            },
        )
    run.accelerator.wait_for_everyone()


def seed_step(seed: int, step: int, part: int) -> None:
    """Seeds dropout for one batch. The odd factors only spread the numbers; any injective mix would do."""
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + part)


def training_step(run: Run, batches: list[LoadedBatch]) -> StepResult:
    """One optimizer step over the batches accumulated on this process.

    The batches' weights make the gradient the mean over all images of all processes. When a loss or the gradient is
    not finite anywhere, nothing is changed on any process.
    """
    accelerator, model, progress = run.accelerator, run.model, run.progress
    model.train()
    buffers = [buffer for buffer in run.bare_model.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in buffers]
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches):
        seed_step(
            run.arguments.run.seed, progress.step, number * accelerator.num_processes + accelerator.process_index
        )
        tensors = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.tensors.items()}
        last = number == len(batches) - 1
        with accelerator.no_sync(model) if not last else nullcontext():
            output = model(**tensors)
            accelerator.backward(output.loss * (batch.planned.weight / len(batches)))
        share = batch.planned.weight / len(batches)
        for name, value in {"loss": output.loss.detach(), **output.loss_components}.items():
            sums[name] = sums.get(name, 0.0) + share * value.float()
    norm = _clip(run)
    finite = _all_finite(run, sums["loss"], norm)
    if finite:
        run.optimizer.step()
        run.average.update(run.bare_model)
    else:
        _skip(run, buffers, before)
    run.optimizer.zero_grad(set_to_none=True)
    images = sum(len(batch.ids) for batch in batches)
    return StepResult({name: float(value) for name, value in sums.items()}, float(norm), images, finite)


def _clip(run: Run) -> torch.Tensor:
    limit = run.arguments.optimization.max_grad_norm or math.inf
    return run.accelerator.clip_grad_norm_(run.bare_model.parameters(), limit)


def _all_finite(run: Run, loss: torch.Tensor, norm: torch.Tensor) -> bool:
    finite = torch.isfinite(loss)
    if run.accelerator.scaler is None:  # the scaler of fp16 meets infinite gradients by design, and skips them
        finite = finite & torch.isfinite(norm)
    if run.accelerator.num_processes > 1:
        finite = run.accelerator.reduce(finite.float(), reduction="sum") == run.accelerator.num_processes
    return bool(finite)


def _skip(run: Run, buffers: list[torch.Tensor], before: list[torch.Tensor]) -> None:
    """Undoes what a batch without a finite loss did to the batch-norm statistics, and to the scaler of fp16."""
    with torch.no_grad():
        torch._foreach_copy_(buffers, before)
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()


def _check_finite(run: Run, result: StepResult, batches: list[LoadedBatch]) -> None:
    """Names a batch that was skipped; stops at the second in a row."""
    if result.finite:
        run.progress.non_finite = 0
        return
    names = ", ".join(name for batch in batches for name in batch.ids)
    loss = result.losses["loss"]
    logger.warning(
        "step %d skipped: loss %s, gradient %s; items: %s", run.progress.step, loss, result.gradient_norm, names
    )
    run.progress.non_finite += 1
    if run.progress.non_finite >= 2:
        kept = run.directory.checkpoints.steps()
        last = f"the checkpoint of step {kept[-1]} is kept" if kept else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"the loss was not finite in two steps in a row (step {run.progress.step}: {loss}; items: {names}); {last}. "
            "Lower learning_rate or max_grad_norm, or use mixed_precision no"
        )


@dataclass
class Meter:
    """Sums between two lines of the log."""

    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def add(self, result: StepResult, waited: float) -> None:
        """Takes a step and the seconds that it waited for data."""
        if result.finite:
            for name, value in result.losses.items():
                self.losses[name] = self.losses.get(name, 0.0) + value
            self.steps += 1
        self.images += result.images
        self.waited += waited

    def summary(self) -> dict[str, float]:
        """Means since the last line, images per second (of this process), share of time spent waiting for data."""
        seconds = max(1e-9, time.monotonic() - self.since)
        means = {name: value / max(1, self.steps) for name, value in self.losses.items()}
        return {**means, "images_per_second": self.images / seconds, "data_wait": self.waited / seconds}


def _loop(run: Run, stop: StopRequest) -> dict[str, Any]:
    progress, options = run.progress, run.arguments.run
    loader = make_loader(
        PlannedDataset(run.train_items, ABMCollator(run.sampler.limits.multiple), augmentation_of(run.arguments.data)),
        run.sampler,
        run.arguments.data,
        pin=run.accelerator.device.type == "cuda",
    )
    bar = tqdm(
        total=progress.end,
        initial=progress.step,
        disable=not (options.progress and run.accelerator.is_main_process),
        unit="step",
        smoothing=0.02,
    )
    result: dict[str, Any] = {}
    meter, saved, batches, stopping = Meter(), progress.step, iter(loader), False
    while progress.step < progress.end and not stopping:
        waited = _advance(run, batches, meter)
        bar.update()
        stopping = _agreed(run, stop.wanted())
        done = progress.step >= progress.end
        if done or _due(progress.step, options.logging_steps):
            _log(run, meter, bar)
            meter = Meter()
        if done or _due(progress.step, options.eval_steps):
            result = evaluate(run)
            meter.since = time.monotonic()
        if done or stopping or _due(progress.step, options.save_steps):
            save_checkpoint(run)
            saved = progress.step
    bar.close()
    if stopping and progress.step < progress.end:
        logger.info(
            "stopped by %s at step %d of %d; the same command goes on", stop.reason, progress.step, progress.end
        )
    finished = progress.step >= progress.end
    if finished:
        result = {**result, **_finish(run)}
    return {"step": progress.step, "finished": finished, "best": progress.best, **result}


def _advance(run: Run, batches: Iterator[LoadedBatch], meter: Meter) -> None:
    """Takes the batches of one optimizer step from the loader and makes the step."""
    progress = run.progress
    began = time.monotonic()
    group = [next(batches) for _ in range(run.arguments.optimization.gradient_accumulation_steps)]
    waited = time.monotonic() - began
    rate = learning_rate(progress.step, progress.legs, run.arguments.optimization) * progress.plateau.factor
    for entry in run.optimizer.param_groups:
        entry["lr"] = rate
    result = training_step(run, group)
    _check_finite(run, result, group)
    meter.add(result, waited)
    progress.step += 1
    progress.images += result.images
    progress.seconds += time.monotonic() - began
    progress.sampler = dict(group[-1].planned.after or {})


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _agreed(run: Run, wanted: bool) -> bool:
    """Whether any process wants to stop: all must leave the loop after the same step."""
    if run.accelerator.num_processes == 1:
        return wanted
    flag = torch.tensor(float(wanted), device=run.accelerator.device)
    return bool(run.accelerator.reduce(flag, reduction="sum") > 0)


def _log(run: Run, meter: Meter, bar: Any) -> None:
    progress = run.progress
    summary = meter.summary()
    rate = run.optimizer.param_groups[0]["lr"]
    row = {"kind": "train", "step": progress.step, "epoch": progress.sampler.get("epoch", 0), **summary}
    row.update(learning_rate=rate, images=progress.images, seconds=round(progress.seconds, 1))
    bar.set_postfix(loss=f"{summary.get('loss', math.nan):.3f}", images_s=f"{summary['images_per_second']:.1f}")
    if run.accelerator.is_main_process:
        run.directory.append_metrics(row)
    if run.arguments.run.trackers:
        run.accelerator.log({f"train/{k}": v for k, v in summary.items()} | {"train/rate": rate}, step=progress.step)


def evaluate(run: Run, num_beams: int = 1) -> dict[str, Any]:
    """Evaluates the averaged weights, keeps them when they are the best so far, redraws the curve."""
    progress, options = run.progress, run.arguments.run
    began = time.monotonic()
    run.average.swap(run.bare_model)
    try:
        result, rows = evaluate_items(
            run.bare_model,
            run.validation_items,
            run.tokenizer,
            run.accelerator,
            max_images=options.eval_batch_images,
            max_length=options.eval_max_length,
            num_beams=num_beams,
            multiple=run.sampler.limits.multiple,
        )
        if num_beams == 1 and run.accelerator.is_main_process and result["exprate"] > progress.best:
            replace_folder(run.directory.path / "best", _Exporter(run, result, rows))
    finally:
        run.average.swap(run.bare_model)
    if num_beams == 1:
        progress.plateau.update(result["loss"], run.arguments.optimization.plateau_patience)
        if result["exprate"] > progress.best:
            progress.best, progress.best_step = result["exprate"], progress.step
    seconds = round(time.monotonic() - began, 1)
    kind = "evaluation" if num_beams == 1 else f"evaluation_beam{num_beams}"
    if run.accelerator.is_main_process:
        run.directory.append_metrics({"kind": kind, "step": progress.step, **result, "evaluation_seconds": seconds})
        draw_curve(run.directory.read_metrics(), run.directory.path / "training_curve.png")
        logger.info(
            "step %d: ExpRate %.2f (best %.2f), loss %.3f",
            progress.step,
            result["exprate"],
            progress.best,
            result["loss"],
        )
    if run.arguments.run.trackers:
        numbers = {f"{kind}/{k}": v for k, v in result.items() if isinstance(v, float)}
        run.accelerator.log(numbers, step=progress.step)
    return result


@dataclass(frozen=True)
class _Exporter:
    """Writes the model as it is now, for `from_pretrained`, with its result and predictions beside it."""

    run: Run
    result: dict[str, Any]
    rows: list[dict[str, str]]

    def __call__(self, folder: Path) -> None:
        self.run.bare_model.save_pretrained(folder)
        self.run.tokenizer.save_pretrained(folder)
        write_json(folder / "results.json", {"step": self.run.progress.step, **self.result})
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")


def _finish(run: Run) -> dict[str, Any]:
    """Keeps the final averaged weights and, where asked for, evaluates them with beams."""
    if run.accelerator.is_main_process:
        run.average.swap(run.bare_model)
        replace_folder(run.directory.path / "final", _Exporter(run, {}, []))
        run.average.swap(run.bare_model)
    run.accelerator.wait_for_everyone()
    beams = run.arguments.run.eval_beams
    return {"beam": evaluate(run, num_beams=beams)} if beams > 1 else {}
