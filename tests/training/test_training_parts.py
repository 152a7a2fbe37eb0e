"""What training is made of: options and recipes, data, schedule, optimizer, and `transformers.Trainer`."""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
from training_runs import TINY, arguments, write_pictures

from abm_hf import ABMConfig, ABMForConditionalGeneration, ABMTokenizer
from abm_hf.arguments import ArgumentError
from abm_hf.data.collator import ABMCollator
from abm_hf.data.items import concatenate, load_split
from abm_hf.evaluation.expression_rate import expression_rate
from abm_hf.pretrained import checkpoint_path
from abm_hf.training.arguments import Arguments, ModelArguments, parse_arguments
from abm_hf.training.data import VARIATIONS
from abm_hf.training.evaluation import evaluation_batches, token_string
from abm_hf.training.items import hold_out, load_items
from abm_hf.training.optimization import AveragedWeights, parameter_groups
from abm_hf.training.run import build_model
from abm_hf.training.schedule import Leg, Plateau, curriculum, extended, learning_rate
from abm_hf.training.state import RunDirectory, RunDirectoryError
from abm_hf.training.stopping import StopRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("offline"))


def test_a_second_interrupt_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.wanted()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wanted() and stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_new_option_does_not_keep_an_old_run_from_going_on(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.record({"hyper_parameters": {"seed": 1}})
    directory.check_same_run({"seed": 1, "new": "off"}, {"seed": 0, "new": "off"})
    with pytest.raises(RunDirectoryError, match="new: 'off' there, 'on' now"):
        directory.check_same_run({"seed": 1, "new": "on"}, {"seed": 0, "new": "off"})


@pytest.mark.parametrize(
    "line, message",
    [
        (["--config", "smal"], "no recipe 'smal'"),
        (["--learning-rat", "1"], "did you mean 'learning_rate'"),
        (["--curriculum", "0.1"], r"FRACTION:MAX_TOKENS"),
        (["--scale-range", "1.4", "0.7"], "ascending"),
        (["--model-overrides", "{"], "not JSON"),
        (["--optimizer", "sgd"], "adamw or adadelta"),
        (["--keep-checkpoints", "1"], "at least 2"),
        (["stray"], "cannot understand stray"),
    ],
)
def test_options_that_cannot_be_used_are_explained(line: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_arguments(line)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("lerning_rate: 1", r"did you mean 'learning_rate'"),
        ("max_steps: many steps", "max_steps"),
        ("directions: l2r", "directions"),
        ("- a", "map names to values"),
        ("a: [", "not YAML"),
    ],
)
def test_recipes_that_cannot_be_used_are_explained(recipe: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(recipe)
    with pytest.raises(ArgumentError, match=message):
        parse_arguments(["--config", str(tmp_path / "my.yaml")])


def test_the_command_line_overrides_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("learning_rate: 1e-3\ncurriculum: [[0, 6], [0.5, 0, 8]]\nema_decay: 0.5\n")
    parsed = parse_arguments(["--config", str(tmp_path / "my.yaml"), "--ema-decay", "0.25"]).optimization
    assert (parsed.learning_rate, parsed.ema_decay) == (1e-3, 0.25)
    assert parsed.stages() == [(0.0, 6, 0), (0.5, 0, 8)]


@pytest.mark.parametrize("name", ["paper", "base", "small", "smoke"])
def test_the_recipes_describe_a_model(name: str) -> None:
    parsed = parse_arguments(["--config", name])
    ABMConfig.preset(parsed.model.preset, **parsed.model.config_fields())


@pytest.mark.parametrize(
    "line, message",
    [
        (["--train_split", "valid"], "no split 'valid'.*it has train"),
        (["--validation_split", "test2013"], "no split 'test2013'"),
        (["--data", "/nowhere/at/all"], "no data set that can be read"),
    ],
)
def test_data_that_is_not_there_is_explained(line: list[str], message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_items(arguments(data, tmp_path, *line).data, ABMTokenizer())


def test_an_empty_split_and_an_unknown_token_are_explained(tmp_path: Path) -> None:
    (tmp_path / "train" / "img").mkdir(parents=True)
    (tmp_path / "train" / "caption.txt").write_text("")
    with pytest.raises(ArgumentError, match=r"'train' .*is empty"):
        load_split(str(tmp_path), "train")
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "train" / "img" / f"{name}.bmp"), np.zeros((9, 9), np.uint8))
    (tmp_path / "train" / "caption.txt").write_text("a\tx\nb\tx \\heart\n")
    with pytest.raises(ArgumentError, match=r"item 'b': .*'\\\\heart'"), pytest.warns(UserWarning):
        load_items(arguments(tmp_path, tmp_path / "run", "--validation_fraction", "0.4").data, ABMTokenizer())


def test_what_is_held_out_is_in_no_part(data: Path, tmp_path: Path) -> None:
    line = ["--data", f"{data},{data}", "--validation_split", "holdout"]
    twice, validation = load_items(arguments(data, tmp_path, *line).data, ABMTokenizer())
    once, same = load_items(arguments(data, tmp_path, *line[2:]).data, ABMTokenizer())
    assert validation.ids == same.ids and twice.ids == 2 * once.ids
    assert not set(twice.groups) & set(validation.groups)


def test_a_prepared_data_set_is_read(tmp_path: Path, data: Path) -> None:
    datasets = pytest.importorskip("datasets")
    offline = load_split(str(data), "train")
    rows = {
        "id": offline.ids,
        "image": [{"bytes": cv2.imencode(".png", image)[1].tobytes(), "path": None} for image in offline.images],
        "latex": offline.latex,
        "writer": [None] * len(offline),
        "ink": [[[[0.0, 0.0], [1.5, 2.0]]], *[None] * (len(offline) - 1)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "prepared"))
    items = load_split(str(tmp_path / "prepared"), "train")
    assert items.fingerprint() == offline.fingerprint() and items.groups == offline.groups
    assert all(np.array_equal(a, b) for a, b in zip(items.images, offline.images, strict=True))
    assert items.inks is not None and items.inks[1] is None
    first = items.inks[0]
    assert first is not None and np.array_equal(first.strokes[0], [[0.0, 0.0], [1.5, 2.0]])
    lazily = load_split(str(tmp_path / "prepared"), "train", redrawn=True)
    assert isinstance(items.images, list) and not isinstance(lazily.images, list)  # drawn anew: not kept in memory
    assert np.array_equal(lazily.images[7], items.images[7])
    with pytest.raises(ArgumentError, match="no split 'test2013'; it has train"):
        load_split(str(tmp_path / "prepared"), "test2013")


@pytest.mark.parametrize("name", ["none", "image", "ink"])
def test_variations_keep_the_planned_size_and_the_ink(name: str) -> None:
    items = load_split("synthetic", "train", synthetic_items=8)
    for index in range(8):
        for scale in ((1.0, 1.0), (0.7, 0.75), (1.4, 1.3)):
            images = [VARIATIONS[name](items, index, np.random.default_rng(seed), scale).image for seed in (1, 1, 2)]
            expected = tuple(round(size * factor) for size, factor in zip(items.sizes[index], scale, strict=True))
            assert images[0].shape == expected and images[0].dtype == np.uint8
            assert np.array_equal(images[0], images[1])
            assert np.array_equal(images[0], images[2]) == (name == "none")
            inked = (images[0] > 0).sum() / (items.images[index] > 0).sum()
            assert 0.3 < inked / (scale[0] * scale[1]) < 2.5


def test_items_of_several_sources_are_joined(data: Path) -> None:
    offline, synthetic = load_split(str(data), "train"), load_split("synthetic", "train", synthetic_items=3)
    joined = concatenate([offline, synthetic])
    assert len(joined) == 43 and joined.latex[41] == synthetic.latex[1]
    assert np.array_equal(joined.images[41], synthetic.images[1]) and np.array_equal(
        joined.images[3], offline.images[3]
    )
    assert joined.inks is not None and joined.inks[3] is None and joined.inks[41] is synthetic.inks[1]
    drawn = VARIATIONS["ink"](joined, 3, np.random.default_rng(0), (1.0, 1.0)).image  # without ink: as an image
    assert drawn.shape == offline.images[3].shape
    assert joined.inks[-2] is synthetic.inks[1]
    picked = joined.subset([41, 2])
    assert picked.inks is not None and picked.inks[0] is synthetic.inks[1]


def test_no_writer_is_on_both_sides_of_the_holdout(data: Path) -> None:
    items = load_split(str(data), "train")
    kept, held = hold_out(items, 0.3)
    assert sorted(kept + held) == list(range(40)) and 12 <= len(held) < 20
    assert not {items.groups[i] for i in kept} & {items.groups[i] for i in held}


def test_the_rate_warms_up_stays_and_decays() -> None:
    chosen = Arguments().optimization
    chosen.warmup_steps, chosen.decay_from, chosen.final_learning_rate, chosen.learning_rate = 10, 0.5, 0.1, 2.0
    rates = [learning_rate(step, [Leg(0, 100)], chosen) for step in range(100)]
    assert rates[0] < rates[9] < rates[10] == rates[49] == 2.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[51:]))
    assert rates[-1] == pytest.approx(0.2, abs=0.01)
    legs = extended([Leg(0, 100)], 100, 200, chosen)
    assert (
        learning_rate(100, legs, chosen) < learning_rate(109, legs, chosen) < learning_rate(120, legs, chosen) == 2.0
    )
    with pytest.raises(ValueError, match="larger max_steps"):
        extended([Leg(0, 100)], 100, 100, chosen)


def test_the_plateau_halves_after_its_patience() -> None:
    plateau = Plateau()
    for loss in (3.0, 2.0, 2.5, 2.5, 2.5, 2.5):
        plateau.update(loss, patience=2)
    assert plateau.factor == 0.5


def test_the_curriculum_is_laid_out_over_the_planned_steps() -> None:
    chosen = parse_arguments(["--curriculum", "0:6", "0.25:10:4", "0.5:0"]).optimization
    stages = curriculum(1000, 2, chosen)
    assert [(stage.start, stage.max_images) for stage in stages] == [(0, None), (500, 4), (1000, None)]
    assert stages[0].max_tokens == 6 and stages[2].max_tokens > 1000


def test_biases_norms_and_embeddings_do_not_decay() -> None:
    model = ABMForConditionalGeneration(ABMConfig.preset("small", **TINY))
    groups = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert decayed | free == set(names.values()) and not decayed & free
    assert all("norm" in name or "embedding.weight" in name or name.endswith("bias") for name in free)
    assert not any("norm" in name or name.endswith("bias") for name in decayed)


def test_an_encoder_can_be_taken_over_under_fresh_decoders() -> None:
    shipped = ABMForConditionalGeneration.from_pretrained(checkpoint_path("small"))
    arguments = ModelArguments(
        init_encoder_from="small", directions=["l2r"], model_overrides={"coverage_kernels": [11]}
    )
    torch.manual_seed(0)
    model = build_model(arguments)
    assert tuple(model.config.directions) == ("l2r",)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, shipped.encoder.state_dict()[name]), name
    own, other = model.branches["l2r"].state_dict(), shipped.branches["l2r"].state_dict()
    fresh = [name for name, value in own.items() if other[name].shape == value.shape and value.dim() > 1]
    assert fresh and not any(torch.equal(own[name], other[name]) for name in fresh)


def test_averaged_weights_follow_and_swap() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = AveragedWeights(model, decay=0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.add_(1.0)
        model[1].num_batches_tracked.add_(7)
    average.update()
    share = 1 - 2 / 11  # the decay of the first update
    assert torch.allclose(average.state["0.weight"], start + share)
    assert torch.allclose(average.state["1.running_mean"], torch.full((2,), share))
    assert average.state["1.num_batches_tracked"] == 7
    average.swap()
    assert torch.allclose(model[0].weight, start + share)
    average.swap()
    assert torch.equal(model[0].weight, start + 1.0)


def test_evaluation_covers_every_item_and_reads_predictions(data: Path) -> None:
    items = load_split(str(data), "train")
    batches = list(evaluation_batches(items, max_images=7, max_pixels=20_000))
    assert sorted(index for batch in batches for index in batch) == list(range(40))
    tokenizer = ABMTokenizer()
    x = tokenizer.convert_tokens_to_ids("x")
    assert token_string([0, x, 113, x, 1, x], tokenizer) == "x x"
    assert token_string([0, x], tokenizer) == "x"


class Pictures(torch.utils.data.Dataset):
    """A data set as `transformers.Trainer` takes it."""

    def __init__(self, data: Path) -> None:
        self.items = load_split(str(data), "train")
        self.items.encode(ABMTokenizer())

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.items.images[index], "labels": self.items.labels[index]}


def rates(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """`compute_metrics`: what the README shows."""
    tokenizer = ABMTokenizer()
    found = [token_string(row.tolist(), tokenizer) for row in prediction.predictions]
    wanted = [token_string([0, *(number for number in row if number >= 0)], tokenizer) for row in prediction.label_ids]
    result = expression_rate(predictions=found, references=wanted)
    return {name: float(result[name]) for name in ("exprate", "wer", "count")}


def test_the_model_trains_and_resumes_exactly_under_transformers_trainer(data: Path, tmp_path: Path) -> None:
    """Five steps, saved, and five more equal ten in a row bit by bit; evaluation generates and computes rates."""
    transformers.set_seed(0)
    settings = transformers.Seq2SeqTrainingArguments(
        str(tmp_path),
        max_steps=10,
        save_steps=5,
        logging_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        predict_with_generate=True,
        generation_max_length=6,
    )
    losses, weights = [], []
    for checkpoint in (None, str(tmp_path / "checkpoint-5")):
        model = ABMForConditionalGeneration(ABMConfig.preset("small", **TINY))
        trainer = transformers.Seq2SeqTrainer(
            model,
            settings,
            data_collator=ABMCollator((16, 32)),
            train_dataset=Pictures(data),
            eval_dataset=torch.utils.data.Subset(Pictures(data), range(9)),
            compute_metrics=rates,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        weights.append(model.state_dict())
        assert trainer.state.global_step == 10
    assert len(losses[0]) == 10 and losses[0] == losses[1]  # the second goes on with the log of the first five
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    evaluated = trainer.evaluate()
    assert np.isfinite(evaluated["eval_loss"]) and evaluated["eval_count"] == 9 and evaluated["eval_wer"] > 0


def test_trainers_label_smoothing_names_the_models_own(data: Path, tmp_path: Path) -> None:
    """Trainer smooths on its own and takes the labels away, without which two branches cannot be trained."""
    settings = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=1,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        label_smoothing_factor=0.1,
    )
    model = ABMForConditionalGeneration(ABMConfig.preset("small", **TINY))
    trainer = transformers.Trainer(model, settings, data_collator=ABMCollator((16, 32)), train_dataset=Pictures(data))
    with pytest.raises(ValueError, match=r"label_smoothing_factor.*config\.label_smoothing"):
        trainer.train()
