"""A run and its parts: made from the arguments, put where its newest checkpoint left off, saved."""

import logging
import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError

from ..arguments import ArgumentError
from ..configuration_abm import ABMConfig
from ..data.bucketing import BatchLimits, BucketBatchSampler
from ..data.items import Items
from ..modeling_abm import ABMForConditionalGeneration
from ..pretrained import checkpoint_path
from .arguments import Arguments, ModelArguments
from .auxiliary import SupervisedModel
from .optimization import AveragedWeights, build_optimizer
from .schedule import Leg, Plateau, curriculum, extended, legs_from_state, legs_to_state
from .state import RunDirectory, RunDirectoryError

logger = logging.getLogger(__name__)


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

    def forget_best(self) -> None:
        """What was best on other validation data is no measure any more."""
        self.best, self.best_step, self.plateau.best = -1.0, 0, math.inf

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
    heads: Any = None  # that ink trains, see [`SupervisedModel`]


def make_accelerator(arguments: Arguments) -> Accelerator:
    """Device, processes and precision."""
    run = arguments.run
    trackers = run.trackers or None
    if run.compile and (run.cpu or not torch.cuda.is_available()):
        _require_compiler()
    if run.mixed_precision == "fp16" and (run.cpu or not torch.cuda.is_available()):
        raise ArgumentError("mixed_precision fp16 needs a GPU: use bf16 or no")
    try:
        accelerator = Accelerator(
            mixed_precision=run.mixed_precision,
            cpu=run.cpu or not torch.cuda.is_available(),
            log_with=trackers,
            project_dir=run.output_dir if trackers else None,
        )
    except ValueError as error:
        raise ArgumentError(f"these options do not go together: {error}") from error
    if len(accelerator.log_with) < len(run.trackers):
        raise ArgumentError(f"not all trackers of {', '.join(run.trackers)} are installed: install or leave them out")
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(run.cpu_threads or max(1, available_cores() // local))
    else:
        torch.set_float32_matmul_precision("high")
    return accelerator


def _require_compiler() -> None:
    """Raises [`ArgumentError`] where torch.compile would find no compiler, which it says in the first step only."""
    name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(name) is None:
        raise ArgumentError(
            f"compile needs a C++ compiler on a CPU, and there is no {name}: install it, name another in the "
            "environment variable CXX, or leave compile out"
        )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_same_data(directory: RunDirectory, items: Items, validation: Items, extend: bool = False) -> None:
    """Raises [`RunDirectoryError`] when the run in the directory was started on other items.

    A run that is extended may go on with others, with a warning: what was held out before may now be trained on, and
    evaluations cannot be compared with those before.
    """
    recorded = directory.recorded() or {}
    for kind, key, now in (("training", "data", items), ("validation", "validation", validation)):
        if recorded.get(key, now.fingerprint()) == now.fingerprint():  # runs before there was the second have none
            continue
        before = recorded["items" if key == "data" else "validation_items"]
        if not extend:
            raise RunDirectoryError(
                f"{directory.path} holds a run on other {kind} data ({before} items there, {len(now)} now): "
                "resume with the same data, or choose another output_dir"
            )
        logger.warning("the %s data changes from %d items to %d others", kind, before, len(now))


def describe(run: Run) -> dict[str, Any]:
    """What `run.json` holds."""
    return {
        "hyper_parameters": run.arguments.hyper_parameters(),
        "length": _length(run.arguments),
        "arguments": run.arguments.as_dict(),
        "data": run.train_items.fingerprint(),
        "items": len(run.train_items),
        "validation": run.validation_items.fingerprint(),
        "validation_items": len(run.validation_items),
        "parameters": sum(parameter.numel() for parameter in run.bare_model.parameters()),
        "planned_steps": run.progress.planned_steps,
        "end": run.progress.end,
        "processes": run.accelerator.num_processes,
    }


def _length(arguments: Arguments) -> str:
    steps = arguments.optimization.max_steps
    return f"max_steps {steps}" if steps else f"num_epochs {arguments.optimization.num_epochs:g}"


def build_model(arguments: ModelArguments) -> ABMForConditionalGeneration:
    """The model that the arguments describe, with fresh weights or those of `init_from` or `init_encoder_from`.

    Raises:
        ArgumentError: When there is no such model or checkpoint, or one does not fit the other.
    """
    fields = arguments.config_fields()
    origin = arguments.init_from or arguments.init_encoder_from
    try:
        if arguments.init_from is not None:
            return ABMForConditionalGeneration.from_pretrained(checkpoint_path(arguments.init_from), **fields)
        model = ABMForConditionalGeneration(ABMConfig.preset(arguments.preset, **fields))
        if arguments.init_encoder_from is not None:
            source = ABMForConditionalGeneration.from_pretrained(checkpoint_path(arguments.init_encoder_from))
            model.encoder.load_state_dict(source.encoder.state_dict())
        return model
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = "the model" if origin is None else f"the model from {origin}"
        raise ArgumentError(f"cannot make {what}: {' '.join(lines[:2])}") from error


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
        bare = bare.to(memory_format=torch.channels_last)
    if options.gradient_checkpointing:
        # Renamed in the course of transformers 5; the old name warns where there is the new one.
        enable: Any = getattr(bare, "activation_checkpointing_enable", bare.gradient_checkpointing_enable)
        enable()
    bare.to(accelerator.device)
    trained: Any = torch.compile(bare) if options.compile else bare
    heads = None
    if arguments.optimization.supervised:
        trained = SupervisedModel(trained, arguments.optimization, _unwritten(tokenizer)).to(accelerator.device)
        heads = trained.heads
    optimizer = build_optimizer(bare, arguments.optimization, heads)
    model, optimizer = accelerator.prepare(trained, optimizer)
    # After that: with several processes on CPUs, it moves the parameters to other memory, which an average made before
    # would not follow.
    average = AveragedWeights(bare, arguments.optimization.ema_decay)
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
        heads,
    )


def _unwritten(tokenizer: Any) -> list[int]:
    """Ids of tokens that leave no ink."""
    tokens = [token for token in ("{", "}", "^", "_", "\\limits") if token in tokenizer.get_vocab()]
    return [*tokenizer.convert_tokens_to_ids(tokens), *tokenizer.all_special_ids]


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
    """Puts a run at the newest whole checkpoint of its directory, and extends it where that is asked for.

    Raises:
        RunDirectoryError: When another length is asked for than the run has, without `extend`.
        CheckpointError: When all checkpoints are damaged.
    """
    recorded, loaded = run.directory.recorded(), run.directory.checkpoints.load_latest()
    if loaded is not None:
        _load(run, loaded[1])
        logger.info("going on from step %d of %d", run.progress.step, run.progress.end)
    if recorded is not None and loaded is not None:
        _check_length(run, recorded)
        if recorded.get("validation", run.validation_items.fingerprint()) != run.validation_items.fingerprint():
            run.progress.forget_best()
        if recorded["processes"] != run.accelerator.num_processes:
            logger.warning(
                "the run had %d processes and has %d now: it goes on, but not with the same numbers",
                recorded["processes"],
                run.accelerator.num_processes,
            )
    accelerator, progress = run.accelerator, run.progress
    run.sampler = build_sampler(
        run.arguments, run.train_items, progress.planned_steps, accelerator.process_index, accelerator.num_processes
    )
    if progress.sampler:
        run.sampler.load_state_dict(progress.sampler)
    accelerator.wait_for_everyone()  # all have read what the first one writes now
    if accelerator.is_main_process:
        run.directory.record(describe(run))
        run.directory.rewind_metrics(progress.step)
    accelerator.wait_for_everyone()


def _load(run: Run, state: dict[str, Any]) -> None:
    run.progress = Progress.from_state(state["progress"])
    run.bare_model.load_state_dict(state["model"])
    optimizer, groups = state["optimizer"], run.optimizer.state_dict()["param_groups"]
    if run.heads is not None and state.get("heads"):
        run.heads.load_state_dict(state["heads"])
    # Heads that an extended run adds or leaves out: their groups are the last ones.
    optimizer["param_groups"] = [*optimizer["param_groups"], *groups[len(optimizer["param_groups"]) :]][: len(groups)]
    known = {number for group in optimizer["param_groups"] for number in group["params"]}
    optimizer["state"] = {number: value for number, value in optimizer["state"].items() if number in known}
    run.optimizer.load_state_dict(optimizer)
    run.average.load_state_dict(state["average"])
    if run.accelerator.scaler is not None and state["scaler"]:
        run.accelerator.scaler.load_state_dict(state["scaler"])


def _check_length(run: Run, recorded: dict[str, Any]) -> None:
    """Extends the run where that is asked for; refuses another length otherwise."""
    progress, optimization = run.progress, run.arguments.optimization
    # Runs recorded before there was a `length` had their steps in the arguments.
    before = recorded.get("length", f"max_steps {recorded['arguments']['max_steps']}")
    if _length(run.arguments) == before:
        # Not extended after all (the same command again, say): then nothing else may change either.
        run.directory.check_same_run(run.arguments.hyper_parameters(), Arguments().hyper_parameters())
        return
    per_step = run.accelerator.num_processes * optimization.gradient_accumulation_steps
    wanted = _planned_steps(run.arguments, run.train_items, per_step)
    if not optimization.extend:
        raise RunDirectoryError(
            f"{run.directory.path} holds a run planned for {before} ({progress.end} steps), not for "
            f"{_length(run.arguments)}: give the same length, or another one together with `--extend`"
        )
    if wanted <= progress.step:
        raise RunDirectoryError(f"the run is at step {progress.step} already: `--extend` needs more than {wanted}")
    # Fewer steps than planned are a plan, too: what is left then gets its own decay.
    if wanted != progress.end:
        progress.legs = extended(progress.legs, progress.step, wanted, optimization)


def save_checkpoint(run: Run) -> None:
    """Writes a checkpoint of the moment (main process)."""
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        run.directory.checkpoints.save(
            run.progress.step,
            {
                "progress": run.progress.state_dict(),
                "model": run.bare_model.state_dict(),
                "heads": run.heads.state_dict() if run.heads is not None else {},
                "optimizer": run.optimizer.state_dict(),
                "average": run.average.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            },
        )
    run.accelerator.wait_for_everyone()
