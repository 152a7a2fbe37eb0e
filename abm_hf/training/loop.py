"""The training loop: one optimizer step is one plain function, everything else prepares, watches and saves.

A run is a function of its arguments and data alone. Batches come from (seed, epoch, position), dropout from
(seed, step, process); so a run that is killed and started again goes on with the very numbers that it would have had.
"""

import json
import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..data.collator import ABMCollator
from ..files import write_json
from ..hub.publish import save_pretrained
from ..processing_abm import ABMProcessor
from ..tokenization_abm import ABMTokenizer
from .arguments import Arguments
from .curve import draw_curve
from .data import VARIATIONS, LoadedBatch, PlannedDataset, make_loader
from .evaluation import evaluate_items
from .items import load_items
from .run import Run, build_run, check_same_data, make_accelerator, resume, save_checkpoint
from .schedule import learning_rate
from .state import CheckpointError, RunDirectory, replace_folder
from .step import StepResult, check_finite, training_step
from .stopping import StopRequest

logger = logging.getLogger(__name__)


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
    directory.check_same_run(arguments.hyper_parameters(), Arguments().hyper_parameters(), free=arguments.changeable())
    tokenizer = ABMTokenizer()
    train_items, validation_items = load_items(arguments.data, tokenizer)
    check_same_data(directory, train_items, validation_items, extend=arguments.optimization.extend)
    run = build_run(arguments, make_accelerator(arguments), directory, tokenizer, train_items, validation_items)
    try:
        resume(run)
        if arguments.run.trackers:
            flat = {name: str(value) for name, value in arguments.as_dict().items()}
            run.accelerator.init_trackers("abm_hf", config=flat)
        with StopRequest(arguments.run.time_limit_minutes, started) as stop, closing(_batches(run)) as batches:
            result = _loop(run, batches, stop)
    except OSError as error:  # of the log, the curve or a tracker; checkpoints say more themselves
        raise CheckpointError(directory.checkpoints.explain(f"go on in {directory.path}", error)) from error
    run.accelerator.end_training()
    return result


@dataclass
class Meter:
    """Sums between two lines of the log."""

    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    skipped: int = 0
    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def add(self, result: StepResult, waited: float) -> None:
        """Takes a step and the seconds that it waited for data."""
        if result.finite:
            for name, value in result.losses.items():
                self.losses[name] = self.losses.get(name, 0.0) + value
            self.steps += 1
        else:
            self.skipped += 1
        self.images += result.images
        self.waited += waited

    def summary(self) -> dict[str, float]:
        """Since the last line: mean losses (none when all steps were skipped), images per second over all processes,
        share of the time spent waiting for data, steps skipped for want of a finite loss (only when there were any).
        """
        seconds = max(1e-9, time.monotonic() - self.since)
        means = {name: value / max(1, self.steps) for name, value in self.losses.items()}
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {**means, **skipped, "images_per_second": self.images / seconds, "data_wait": self.waited / seconds}


def _loop(run: Run, batches: Iterator[LoadedBatch], stop: StopRequest) -> dict[str, Any]:
    progress, options = run.progress, run.arguments.run
    bar = tqdm(
        total=progress.end,
        initial=progress.step,
        disable=not (options.progress and run.accelerator.is_main_process),
        unit="step",
        smoothing=0.02,
    )
    result: dict[str, Any] = {}
    meter, stopping, finished = Meter(), False, _finished(run)
    while not (finished or stopping):
        _advance(run, batches, meter)
        bar.update()
        stopping = _agreed(run, stop.wanted())
        if _due(progress.step, options.logging_steps) or progress.step >= progress.end:
            _log(run, meter, bar)
            meter = Meter()
        if _due(progress.step, options.eval_steps) or progress.step >= progress.end:
            result, meter.since = evaluate(run), time.monotonic()
        finished = _finished(run)
        if finished or stopping or _due(progress.step, options.save_steps):
            save_checkpoint(run)
    bar.close()
    if finished:
        result.update(_finish(run))
    else:
        logger.info("stopped by %s at step %d of %d", stop.reason, progress.step, progress.end)
    return {"step": progress.step, "finished": finished, "best": progress.best, **result}


def _batches(run: Run) -> Generator[LoadedBatch]:
    data = run.arguments.data
    collator, vary = ABMCollator(run.sampler.limits.multiple), VARIATIONS[data.augmentation]
    stride = run.bare_model.config.feature_stride if run.heads is not None else 0
    dataset = PlannedDataset(run.train_items, collator, vary, stride)
    try:
        yield from make_loader(dataset, run.sampler, data, pin=run.accelerator.device.type == "cuda")
    except Exception as error:
        # Frames of the traceback would keep the loader and its workers, for which the interpreter waits at its end.
        raise error.with_traceback(None) from None


def _finished(run: Run) -> bool:
    """Whether all steps are done, or the plateau schedule has no reduction left."""
    progress, optimization = run.progress, run.arguments.optimization
    exhausted = optimization.schedule == "plateau" and progress.plateau.reductions > optimization.plateau_reductions
    return progress.step >= progress.end or exhausted


def _advance(run: Run, batches: Iterator[LoadedBatch], meter: Meter) -> None:
    """Takes the batches of one optimizer step from the loader and makes the step."""
    progress, optimization = run.progress, run.arguments.optimization
    began = time.monotonic()
    group = [next(batches) for _ in range(optimization.gradient_accumulation_steps)]
    waited = time.monotonic() - began
    for entry in run.optimizer.param_groups:
        entry["lr"] = learning_rate(progress.step, progress.legs, optimization) * progress.plateau.factor
    result = training_step(run, group)
    check_finite(run, result, group)
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
    progress, summary = run.progress, meter.summary()
    rate = run.optimizer.param_groups[0]["lr"]
    stage = run.sampler.stages[progress.sampler.get("stage", 0)]
    row = {"kind": "train", "step": progress.step, "epoch": progress.sampler.get("epoch", 0), **summary}
    row.update(learning_rate=rate, max_tokens=stage.max_tokens, images=progress.images)
    row.update(seconds=round(progress.seconds, 1))
    bar.set_postfix(loss=f"{summary.get('loss', math.nan):.3f}", images_s=f"{summary['images_per_second']:.1f}")
    if run.accelerator.is_main_process:
        run.directory.append_metrics(row)
    if run.arguments.run.trackers:
        values = {f"train/{name}": value for name, value in {**summary, "learning_rate": rate}.items()}
        run.accelerator.log(values, step=progress.step)


def evaluate(run: Run, num_beams: int = 1) -> dict[str, Any]:
    """Evaluates the averaged weights, keeps them when they are the best so far, redraws the curve.

    The best is chosen among greedy evaluations, so that all are compared alike.
    """
    progress, options = run.progress, run.arguments.run
    began = time.monotonic()
    _share_statistics(run)
    run.average.swap()
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
        if num_beams == 1 and result["exprate"] > progress.best:
            progress.best, progress.best_step = result["exprate"], progress.step
            if run.accelerator.is_main_process:
                replace_folder(run.directory.path / "best", _Exporter(run, result, rows))
    finally:
        run.average.swap()
    if num_beams == 1:
        progress.plateau.update(result["loss"], run.arguments.optimization.plateau_patience)
    _report(run, num_beams, {**result, "evaluation_seconds": round(time.monotonic() - began, 1)})
    return result


def _share_statistics(run: Run) -> None:
    """Gives all processes the first one's averages: each has seen other batches, so batch norm's differ."""
    if run.accelerator.num_processes > 1:
        for value in run.average.state.values():
            torch.distributed.broadcast(value, src=0)


def _report(run: Run, num_beams: int, result: dict[str, Any]) -> None:
    progress = run.progress
    kind = "evaluation" if num_beams == 1 else f"evaluation_beam{num_beams}"
    if run.accelerator.is_main_process:
        run.directory.append_metrics({"kind": kind, "step": progress.step, **result})
        draw_curve(run.directory.read_metrics(), run.directory.path / "training_curve.png")
        logger.info(
            "step %d, %s: ExpRate %.2f (best %.2f), ≤1 %.2f, loss %.3f",
            *(progress.step, kind, result["exprate"], progress.best, result["exprate_1"], result["loss"]),
        )
    if run.arguments.run.trackers:
        numbers = {f"{kind}/{name}": value for name, value in result.items() if isinstance(value, float)}
        run.accelerator.log(numbers, step=progress.step)


@dataclass(frozen=True)
class _Exporter:
    """Writes the model as it is now, complete for `from_pretrained`, with its result and predictions beside it."""

    run: Run
    result: dict[str, Any]
    rows: list[dict[str, str]]

    def __call__(self, folder: Path) -> None:
        with _no_progress_bar():  # it would tear the loop's own
            save_pretrained(self.run.bare_model, folder, ABMProcessor(tokenizer=self.run.tokenizer))
        if self.result:
            write_json(folder / "results.json", {"step": self.run.progress.step, **self.result})
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
            (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


def _finish(run: Run) -> dict[str, Any]:
    """Keeps the final averaged weights and, where asked for, evaluates them with beams."""
    if run.accelerator.is_main_process:
        run.average.swap()
        replace_folder(run.directory.path / "final", _Exporter(run, {}, []))
        run.average.swap()
    run.accelerator.wait_for_everyone()
    beams = run.arguments.run.eval_beams
    return {"beam": evaluate(run, num_beams=beams)} if beams > 1 else {}
