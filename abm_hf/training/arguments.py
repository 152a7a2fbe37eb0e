"""What a training run can be told, from a YAML recipe and the command line.

    accelerate launch scripts/train.py --config small --data crohme-offline.zip --output-dir runs/small

A recipe is a flat mapping from the names below to values; the command line overrides it. A name that does not exist is
an error that suggests the nearest one. Resuming needs no option: the same command continues the run in `output_dir`.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..arguments import ArgumentError, check_minimum
from ..configuration_abm import PRESETS, ABMConfig

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class DataArguments:
    """Where the expressions come from and how they are batched."""

    data: str = field(
        default="",
        metadata={
            "help": "Prepared data set (directory or Hub id), CROHME's offline zip or folder, or `synthetic`; "
            "several joined by commas are concatenated for training, the first one gives the validation split."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(
        default="holdout",
        metadata={"help": "Split to validate on; `holdout` sets aside part of the writers of the training split."},
    )
    validation_data: str | None = field(
        default=None, metadata={"help": "Source of the validation split, where it is not the first of `data`."}
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "Share of the items that `holdout` sets aside."}
    )
    max_train_items: int | None = field(default=None, metadata={"help": "Train on this many items only."})
    max_validation_items: int | None = field(default=None, metadata={"help": "Validate on this many items only."})
    synthetic_items: int = field(default=2000, metadata={"help": "Size of the `synthetic` training split."})
    max_label_tokens: int = field(
        default=200, metadata={"help": "Items with longer labels are left out of training (and not synthesised)."}
    )
    batch_images: int = field(default=16, metadata={"help": "Most images in a batch, for each process."})
    batch_pixels: int = field(default=1_600_000, metadata={"help": "Most padded pixels in a batch."})
    batch_tokens: int = field(default=2048, metadata={"help": "Most padded label tokens in a batch."})
    batch_order: str = field(
        default="bucket", metadata={"help": "`bucket`: by width, then height; `area`: as the original ABM did."}
    )
    pad_multiple: list[int] = field(
        default_factory=lambda: [32, 64], metadata={"help": "Padded height and width are multiples of these (pixels)."}
    )
    scale_range: list[float] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata={"help": "Augmentation: smallest and largest scale, drawn once for each batch; 1 1 turns it off."},
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "`none`; `image`: slant, rotation, stretch, stroke width; `ink`: every stroke, where there is ink."
        },
    )
    num_workers: int = field(default=1, metadata={"help": "Processes that prepare batches ahead; 0: none."})
    prefetch: int = field(default=4, metadata={"help": "Batches that each worker prepares ahead."})

    def __post_init__(self) -> None:
        _check(len(self.pad_multiple) == 2, "pad_multiple", "two numbers of pixels", self.pad_multiple)
        _check(len(self.scale_range) == 2, "scale_range", "two ascending numbers", self.scale_range)
        _check(
            0 < self.scale_range[0] <= self.scale_range[1], "scale_range", "two ascending numbers", self.scale_range
        )
        _check(0 < self.validation_fraction < 1, "validation_fraction", "between 0 and 1", self.validation_fraction)
        _check(self.batch_order in ("bucket", "area"), "batch_order", "bucket or area", self.batch_order)
        _check(self.augmentation in ("none", "image", "ink"), "augmentation", "none, image or ink", self.augmentation)
        check_minimum(self, 1, "max_train_items", "max_validation_items", "batch_images", "batch_pixels")
        check_minimum(self, 1, "batch_tokens", "prefetch", "synthetic_items", "max_label_tokens")
        check_minimum(self, 0, "num_workers")


@dataclass
class ModelArguments:
    """Which model is trained."""

    preset: str = field(default="small", metadata={"help": "Sizes: `base` (the paper's) or `small`."})
    init_from: str | None = field(
        default=None, metadata={"help": "Start from the weights of this checkpoint (directory or Hub id)."}
    )
    init_encoder_from: str | None = field(
        default=None,
        metadata={"help": "Start from the encoder of this checkpoint, with fresh decoders: to compare these."},
    )
    directions: list[str] = field(
        default_factory=lambda: ["l2r", "r2l"], metadata={"help": "Decoder branches: `l2r`, or `l2r r2l`."}
    )
    distillation: str = field(
        default="aligned", metadata={"help": "Mutual distillation: `aligned`, `released` or `none`."}
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Label smoothing of the cross-entropies."})
    model_overrides: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further fields of ABMConfig, as a mapping (JSON on the command line)."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.model_overrides, str):
            try:
                self.model_overrides = json.loads(self.model_overrides)
            except json.JSONDecodeError as error:
                raise ArgumentError(f"model_overrides is not JSON: {error}") from error
        self.model_overrides = self.model_overrides or {}
        _check(isinstance(self.model_overrides, dict), "model_overrides", "a mapping", self.model_overrides)
        if self.init_from is not None and self.init_encoder_from is not None:
            raise ArgumentError("init_from and init_encoder_from exclude each other: the first has an encoder too")
        _check(self.preset in PRESETS, "preset", " or ".join(sorted(PRESETS)), self.preset)
        known = [entry.name for entry in dataclasses.fields(ABMConfig)]
        refuse_unknown(list(self.model_overrides), "model_overrides", known)

    def config_fields(self) -> dict[str, Any]:
        """Fields of ABMConfig that these arguments set on top of the preset."""
        assert isinstance(self.model_overrides, dict)
        directions = tuple(self.directions)
        return {
            "directions": directions,
            "distillation": self.distillation if len(directions) == 2 else "none",
            "label_smoothing": self.label_smoothing,
            **self.model_overrides,
        }


@dataclass
class OptimizationArguments:
    """How long and how to optimize."""

    max_steps: int = field(
        default=0, metadata={"help": "Planned optimizer steps; 0: from num_epochs. See `extend` to go on later."}
    )
    num_epochs: float = field(
        default=30.0, metadata={"help": "Planned passes over the training split, where max_steps is 0."}
    )
    optimizer: str = field(default="adamw", metadata={"help": "`adamw` or `adadelta`."})
    learning_rate: float = field(default=1.2e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(
        default=0.01, metadata={"help": "On weight matrices only: not on biases, norms, embeddings."}
    )
    adam_beta2: float = field(default=0.99, metadata={"help": "Second-moment decay of AdamW."})
    schedule: str = field(
        default="cosine", metadata={"help": "`cosine`: warm-up, constant, cosine; `plateau`: halved without progress."}
    )
    warmup_steps: int = field(default=200, metadata={"help": "Steps of linear warm-up."})
    decay_from: float = field(default=0.6, metadata={"help": "Share of the steps after which the rate decays."})
    final_learning_rate: float = field(default=0.01, metadata={"help": "Rate at the end, as a share of the peak."})
    plateau_patience: int = field(
        default=15, metadata={"help": "Evaluations without a better loss before `plateau` halves the rate."}
    )
    plateau_reductions: int = field(default=10, metadata={"help": "Times that `plateau` halves before it stops."})
    curriculum: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Stages FRACTION:MAX_TOKENS[:MAX_IMAGES]: from that share of the planned steps on, labels of at "
            "most so many tokens; 0 tokens: all. For example 0:6 0.1:10 0.25:16 0.4:24 0.6:0."
        },
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches for one optimizer step."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm; 0: not."})
    ema_decay: float = field(default=0.999, metadata={"help": "Averaging of the weights that are kept; 0: none."})
    symbol_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of naming the symbol at each position (needs segmented ink); 0: not."},
    )
    count_weight: float = field(default=0.0, metadata={"help": "Weight of counting each symbol; 0: not."})
    attention_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of attending to the ink of each token (needs segmented ink); 0: not."},
    )
    attention_fading_steps: int = field(
        default=20_000, metadata={"help": "Step by which attention_weight has faded to 0."}
    )
    extend: bool = field(
        default=False,
        metadata={
            "help": "Continue the run of output_dir up to another max_steps (more than planned, or fewer, but more "
            "than it has done), with a new warm-up and decay; data, batches, augmentation and rates may then differ "
            "from those before."
        },
    )

    def __post_init__(self) -> None:
        _check(self.optimizer in ("adamw", "adadelta"), "optimizer", "adamw or adadelta", self.optimizer)
        _check(self.schedule in ("cosine", "plateau"), "schedule", "cosine or plateau", self.schedule)
        _check(self.max_steps > 0 or self.num_epochs > 0, "max_steps", "positive, or num_epochs", self.max_steps)
        _check(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        for name in ("ema_decay", "adam_beta2"):
            _check(0 <= getattr(self, name) < 1, name, "at least 0 and less than 1", getattr(self, name))
        for name in ("decay_from", "final_learning_rate"):
            _check(0 <= getattr(self, name) <= 1, name, "from 0 to 1", getattr(self, name))
        check_minimum(self, 1, "gradient_accumulation_steps")
        check_minimum(self, 0, "max_steps", "warmup_steps", "max_grad_norm", "weight_decay")
        check_minimum(self, 0, "plateau_patience", "plateau_reductions")
        check_minimum(self, 0, "symbol_weight", "count_weight", "attention_weight")
        check_minimum(self, 1, "attention_fading_steps")
        self.curriculum = [":".join(str(part) for part in parse_stage(entry)) for entry in self.curriculum]

    @property
    def supervised(self) -> bool:
        """Whether ink teaches more than the label."""
        return bool(self.symbol_weight or self.count_weight or self.attention_weight)

    def stages(self) -> list[tuple[float, int, int]]:
        """The curriculum as (share of the steps, most tokens, most images); 0 means no limit."""
        return [parse_stage(entry) for entry in self.curriculum]


@dataclass
class RunArguments:
    """Where the run is kept, how it is watched and on what it runs; all but the seed and the precision may change."""

    output_dir: str = field(default="runs/abm", metadata={"help": "Checkpoints, metrics, curve and the best model."})
    seed: int = field(default=0, metadata={"help": "Of all random numbers."})
    mixed_precision: str = field(default="bf16", metadata={"help": "`no`, `bf16` or `fp16` (GPU only)."})
    channels_last: bool = field(default=True, metadata={"help": "Memory format of the convolutions."})
    compile: bool = field(
        default=False, metadata={"help": "Compile the model with torch.compile: for GPUs, a CPU gets slower."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    cpu: bool = field(default=False, metadata={"help": "Train on the CPU even where there is a GPU."})
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads on a CPU; all cores by default."})
    time_limit_minutes: float | None = field(
        default=None, metadata={"help": "Save and stop with success after so many minutes; the same command goes on."}
    )
    logging_steps: int = field(default=50, metadata={"help": "Steps between two lines of metrics.jsonl."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between two evaluations; 0: only at the end."})
    save_steps: int = field(default=500, metadata={"help": "Steps between two checkpoints; 0: only at the end."})
    keep_checkpoints: int = field(default=2, metadata={"help": "Checkpoints kept, besides the best model."})
    eval_batch_images: int = field(default=32, metadata={"help": "Most images in an evaluation batch."})
    eval_max_length: int = field(default=110, metadata={"help": "Tokens after which decoding gives up."})
    eval_beams: int = field(default=1, metadata={"help": "Beams of the final evaluation; 1 skips it."})
    trackers: list[str] = field(default_factory=list, metadata={"help": "Accelerate trackers, such as tensorboard."})
    progress: bool = field(default=True, metadata={"help": "Show a progress bar."})

    def __post_init__(self) -> None:
        _check(
            self.mixed_precision in ("no", "bf16", "fp16"), "mixed_precision", "no, bf16 or fp16", self.mixed_precision
        )
        _check(0 <= self.seed < 2**32, "seed", "from 0 to 4294967295", self.seed)
        check_minimum(self, 0, "logging_steps", "eval_steps", "save_steps", "time_limit_minutes")
        check_minimum(self, 1, "cpu_threads", "eval_batch_images", "eval_beams")
        check_minimum(self, 2, "eval_max_length", "keep_checkpoints")  # two checkpoints, to survive a damaged one


@dataclass
class Arguments:
    """All arguments of a run."""

    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    run: RunArguments = field(default_factory=RunArguments)

    def hyper_parameters(self) -> dict[str, Any]:
        """Everything that changes the result of a run: what a resumed run must have in common with its start.

        Without the data's place, which may move (its content is compared), and the length, which can be extended.
        """
        free = {"data", "validation_data", "num_workers", "prefetch", "max_steps", "num_epochs", "extend"}
        parts = {**vars(self.data), **vars(self.model), **vars(self.optimization)}
        kept = {name: value for name, value in parts.items() if name not in free}
        return json.loads(json.dumps({**kept, "seed": self.run.seed, "mixed_precision": self.run.mixed_precision}))

    def changeable(self) -> set[str]:
        """Hyper-parameters that may change from the run in the output directory: none, unless it is extended.

        A new leg of a run may have other data, batches, augmentation and rates; what the weights, the optimizer's
        state and the plan of the first leg depend on stays.
        """
        if not self.optimization.extend:
            return set()
        fixed = {"preset", "directions", "model_overrides", "init_from", "init_encoder_from"}
        fixed |= {"optimizer", "curriculum"}
        return set(self.hyper_parameters()) - fixed

    def as_dict(self) -> dict[str, Any]:
        """All values by name, flat, as a recipe has them."""
        return {**vars(self.data), **vars(self.model), **vars(self.optimization), **vars(self.run)}


_PARTS = (DataArguments, ModelArguments, OptimizationArguments, RunArguments)


def parse_stage(entry: str | Sequence[Any]) -> tuple[float, int, int]:
    """A stage of the curriculum from `"0.1:10"`, `"0.1:10:16"`, `[0.1, 10]` or `[0.1, 10, 16]`."""
    parts = entry.split(":") if isinstance(entry, str) else list(entry)
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        fraction, tokens, images = float(parts[0]), int(parts[1]), int(parts[2]) if len(parts) == 3 else 0
        if not (0 <= fraction < 1 and tokens >= 0 and images >= 0 and math.isfinite(fraction)):
            raise ValueError
    except ValueError as error:
        message = f"curriculum: {entry!r} is not FRACTION:MAX_TOKENS[:MAX_IMAGES], for example 0.1:10"
        raise ArgumentError(message) from error
    return fraction, tokens, images


def read_recipe(name: str) -> dict[str, Any]:
    """Reads a recipe: a file, or the name of one that comes with the package (`paper`, `base`, `small`, `smoke`).

    Raises:
        ArgumentError: When there is none, it is no flat mapping, or it has unknown names.
    """
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{path.stem}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise ArgumentError(f"there is no recipe {name!r}: give a YAML file or one of {known}")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ArgumentError(f"{path} is not YAML: {error}") from error
    if not isinstance(recipe, Mapping):
        raise ArgumentError(f"{path} must map names to values")
    refuse_unknown([str(key) for key in recipe], f"{path}")
    return dict(recipe)


def field_names() -> list[str]:
    """Names of all arguments."""
    return [entry.name for part in _PARTS for entry in dataclasses.fields(part)]


def refuse_unknown(names: Sequence[str], where: str, known: Sequence[str] | None = None) -> None:
    """Raises [`ArgumentError`] for names that are not `known` (the arguments), naming the nearest one."""
    known = field_names() if known is None else known
    problems = []
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            problems.append(f"{name!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    if problems:
        raise ArgumentError(f"{where}: unknown {', '.join(problems)}")


def parse_arguments(command_line: Sequence[str] | None = None) -> Arguments:
    """Arguments from `--config RECIPE` and further options, `sys.argv` by default.

    Raises:
        ArgumentError: For anything that cannot be understood.
    """
    parser = HfArgumentParser(_PARTS, description="Train ABM on handwritten mathematics.", allow_abbrev=False)
    parser.add_argument("--config", help="Recipe: a YAML file or one of paper, base, small, smoke.")
    known, _ = parser.parse_known_args(command_line)
    if known.config:
        parser.set_defaults(**{key: _recipe_value(key, value) for key, value in read_recipe(known.config).items()})
    *parts, _, rest = parser.parse_args_into_dataclasses(
        list(command_line) if command_line is not None else None,
        return_remaining_strings=True,
        look_for_args_file=False,
    )
    if rest:
        options = [option.lstrip("-").split("=")[0].replace("-", "_") for option in rest if option.startswith("--")]
        refuse_unknown(options, "command line")
        raise ArgumentError(f"command line: cannot understand {' '.join(rest)}")
    return Arguments(*parts)


def _recipe_value(name: str, value: Any) -> Any:
    """Checks the type of a recipe's value, which argparse would only do for strings."""
    for part in _PARTS:
        for entry in dataclasses.fields(part):
            if entry.name != name or value is None:
                continue
            kind = str(entry.type)
            listed = kind.startswith("list")
            wrong = isinstance(value, list) != listed
            wrong |= kind.startswith("<class 'bool'") and not isinstance(value, bool)
            wrong |= "int" in kind and not listed and not isinstance(value, int)
            wrong |= "float" in kind and not listed and not isinstance(value, int | float | str)
            if wrong:
                raise ArgumentError(f"{name}: {value!r} is not what this option takes ({entry.metadata['help']})")
    return value


def _check(condition: bool, name: str, expected: str, value: Any) -> None:
    if not condition:
        raise ArgumentError(f"{name} must be {expected}, not {value!r}")
