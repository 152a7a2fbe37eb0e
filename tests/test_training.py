"""Training: exact resume from any kill, checkpoints that survive damage, and refusals that come before any work."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState

import abm_hf.training.loop as loop
import abm_hf.training.state as state_module
from abm_hf import ABMConfig, ABMForConditionalGeneration, ABMTokenizer
from abm_hf.data.collator import ABMCollator
from abm_hf.training.arguments import ArgumentError, Arguments, parse_arguments
from abm_hf.training.data import VARIATIONS, PlannedDataset
from abm_hf.training.evaluation import evaluation_batches, token_string
from abm_hf.training.items import concatenate, hold_out, load_items, load_split
from abm_hf.training.loop import train
from abm_hf.training.optimization import AveragedWeights, parameter_groups
from abm_hf.training.schedule import Leg, Plateau, curriculum, extended, learning_rate
from abm_hf.training.state import CheckpointError, CheckpointStore, RunDirectory, RunDirectoryError
from abm_hf.training.step import NonFiniteLossError
from abm_hf.training.stopping import StopRequest

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


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


@pytest.fixture(autouse=True)
def _fresh_process_state() -> Iterator[None]:
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty little pictures of six writers, laid out as CROHME's offline images."""
    folder = tmp_path_factory.mktemp("offline")
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
        "model_overrides": json.dumps(TINY),
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
    line[line.index("--model_overrides") + 1 : line.index("--validation_fraction")] = [json.dumps(TINY)]
    return [*line, "--cpu", *more]


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


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    result = train(arguments(data, output))
    AcceleratorState._reset_state()
    PartialState._reset_state()
    assert result["finished"] and result["step"] == STEPS
    return output


def assert_equal_runs(output: Path, uninterrupted: Path) -> None:
    assert history(output) == history(uninterrupted)
    assert_same(final_state(output), final_state(uninterrupted))


@pytest.mark.parametrize("killed_at", [0, 1, 2, 5, 8])
def test_a_killed_run_goes_on_to_the_same_bits(
    killed_at: int, data: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loop.training_step

    def kill(run: Any, batches: Any) -> Any:
        if run.progress.step == killed_at:
            raise Killed
        return honest(run, batches)

    monkeypatch.setattr(loop, "training_step", kill)
    with pytest.raises(Killed):
        train(arguments(data, tmp_path / "run"))
    monkeypatch.setattr(loop, "training_step", honest)
    assert train(arguments(data, tmp_path / "run"))["finished"]
    assert_equal_runs(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("moment", ["half of state.pt", "before the rename", "during an evaluation"])
def test_a_run_killed_while_it_saves_or_evaluates_goes_on_to_the_same_bits(
    moment: str, data: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(state: Any, file: Any) -> None:
        if state["progress"]["step"] >= 4:
            file.write(b"half")
            raise Killed
        honest_save(state, file)

    def no_manifest(path: Path, value: Any) -> None:
        if path.name == "manifest.json" and "00000004" in str(path):
            raise Killed
        honest_json(path, value)

    def no_evaluation(run: Any, *rest: Any) -> None:
        raise Killed

    honest_save, honest_json = torch.save, state_module.write_json
    with monkeypatch.context() as patch:
        if moment == "half of state.pt":
            patch.setattr(torch, "save", half)
        elif moment == "before the rename":
            patch.setattr(state_module, "write_json", no_manifest)
        else:
            patch.setattr(loop, "evaluate", no_evaluation)
        with pytest.raises(Killed):
            train(arguments(data, tmp_path / "run"))
    assert train(arguments(data, tmp_path / "run"))["finished"]
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_a_process_killed_from_outside_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    command = [sys.executable, str(TRAIN), *options(data, tmp_path / "run")]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        store = CheckpointStore(tmp_path / "run" / "checkpoints")
        while not store.steps() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert train(arguments(data, tmp_path / "run"))["finished"]
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    data: Path, tmp_path: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    train(arguments(data, output))
    store = CheckpointStore(output / "checkpoints")
    assert store.steps() == [8, 9]
    latest = store.path(9) / "state.pt"
    latest.write_bytes(latest.read_bytes()[:-100])
    train(arguments(data, output))
    assert "step-00000009 is damaged" in caplog.text
    assert_equal_runs(output, uninterrupted)
    # A changed byte is noticed as well, and without any whole checkpoint nothing is overwritten.
    for step in store.steps():
        content = bytearray((store.path(step) / "state.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (store.path(step) / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"all checkpoints .* damaged"):
        train(arguments(data, output))


def test_sigterm_and_the_time_limit_save_and_the_run_goes_on(
    data: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loop.training_step

    def terminate(run: Any, batches: Any) -> Any:
        if run.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(run, batches)

    monkeypatch.setattr(loop, "training_step", terminate)
    stopped = train(arguments(data, tmp_path / "run"))
    assert (stopped["step"], stopped["finished"]) == (5, False)
    monkeypatch.setattr(loop, "training_step", honest)
    stopped = train(arguments(data, tmp_path / "run", "--time_limit_minutes", "0"))
    assert (stopped["step"], stopped["finished"]) == (6, False)
    assert train(arguments(data, tmp_path / "run"))["finished"]
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_workers_do_not_change_the_numbers(data: Path, tmp_path: Path, uninterrupted: Path) -> None:
    train(arguments(data, tmp_path / "run", "--num_workers", "2"))
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_a_second_interrupt_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.wanted()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wanted() and stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_extended_only_on_request(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(arguments(data, output, "--max_steps", "4"))
    with pytest.raises(RunDirectoryError, match=r"planned for max_steps 4 .*--extend"):
        train(arguments(data, output, "--max_steps", "8"))
    result = train(arguments(data, output, "--max_steps", "8", "--extend"))
    assert result["finished"] and result["step"] == 8
    rows = [row for row in history(output) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[5]["learning_rate"] > rows[3]["learning_rate"]  # warmed up again
    assert rows[4]["max_tokens"] > 3  # the curriculum does not start anew
    more = ["--max_steps", "9", "--extend", "--augmentation", "none", "--batch_images", "2"]
    assert train(arguments(data, output, *more))["step"] == 9
    with pytest.raises(RunDirectoryError, match=r"augmentation: 'none' there, 'image' now; batch_images: 2"):
        train(arguments(data, output, "--max_steps", "9"))
    with pytest.raises(RunDirectoryError, match=r"batch_images: 2 there, 3 now"):
        train(arguments(data, output, *more, "--batch_images", "3"))
    with pytest.raises(RunDirectoryError, match=r"optimizer: 'adamw' there"):
        train(arguments(data, output, *more, "--optimizer", "adadelta"))


def test_what_the_model_learnt_is_kept_for_from_pretrained(uninterrupted: Path) -> None:
    recorded = [row for row in history(uninterrupted) if row["kind"] == "evaluation"]
    best = json.loads((uninterrupted / "best" / "results.json").read_text())
    assert best["exprate"] == max(row["exprate"] for row in recorded)
    model = ABMForConditionalGeneration.from_pretrained(uninterrupted / "final")
    average = final_state(uninterrupted)["average"]["state"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, average[name]), name
    assert ABMTokenizer.from_pretrained(uninterrupted / "final")("x").input_ids == ABMTokenizer()("x").input_ids
    assert (uninterrupted / "training_curve.png").stat().st_size > 1000


class BrokenBatches(PlannedDataset):
    """Gives pictures without a number in them for some batches."""

    broken: tuple[int, ...] = ()
    served = 0

    def __getitems__(self, planned: Any) -> Any:
        batch = super().__getitems__(planned)
        if BrokenBatches.served in BrokenBatches.broken:
            batch.tensors["pixel_values"] *= float("nan")
        BrokenBatches.served += 1
        return batch


def test_a_batch_without_a_finite_loss_is_named_and_skipped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "PlannedDataset", BrokenBatches)
    monkeypatch.setattr(BrokenBatches, "broken", (2, 4))
    monkeypatch.setattr(BrokenBatches, "served", 0)
    assert train(arguments(data, tmp_path / "run"))["finished"]
    assert "step 2 skipped: loss nan" in caplog.text and "_writer" in caplog.text
    state = final_state(tmp_path / "run")
    for part in (state["model"], state["average"]["state"]):
        assert all(torch.isfinite(value).all() for value in part.values())


def test_two_such_batches_in_a_row_stop_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PlannedDataset", BrokenBatches)
    monkeypatch.setattr(BrokenBatches, "broken", (4, 5))
    monkeypatch.setattr(BrokenBatches, "served", 0)
    with pytest.raises(NonFiniteLossError, match=r"step 5: loss nan.*_writer.*checkpoint of step 4 is kept"):
        train(arguments(data, tmp_path / "run"))
    assert RunDirectory(tmp_path / "run").checkpoints.steps() == [2, 4]


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, {"value": torch.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 2: .*last good checkpoint is .*step-00000001"):
            store.save(2, {"value": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    loaded = store.load_latest()
    assert loaded is not None and torch.equal(loaded[1]["value"], torch.ones(3))


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    for step in range(1, 7):
        store.save(step, {"step": step})
    assert store.steps() == [4, 5, 6]


def test_a_directory_of_another_run_is_refused_before_any_work(
    data: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_items", None)
    with pytest.raises(
        RunDirectoryError, match=r"ema_decay: 0\.9 there, 0\.5 now; learning_rate: 0\.0012 there, 0\.1"
    ):
        train(arguments(data, uninterrupted, "--learning_rate", "0.1", "--ema_decay", "0.5"))
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirectoryError, match=r"holds thesis\.tex"):
        train(arguments(data, tmp_path))
    with pytest.raises(RunDirectoryError, match=r"cannot write to the output directory"):
        train(arguments(data, tmp_path / "thesis.tex" / "run"))


def test_other_data_under_the_same_name_is_refused(data: Path, tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(data, tmp_path / "copy")
    captions = tmp_path / "copy" / "train" / "caption.txt"
    train(arguments(tmp_path / "copy", uninterrupted))  # the data may move
    captions.write_text(captions.read_text().replace("x", "z"))
    with pytest.raises(RunDirectoryError, match="other data"):
        train(arguments(tmp_path / "copy", uninterrupted))


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
        load_split(str(tmp_path), "train", Arguments().data)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "train" / "img" / f"{name}.bmp"), np.zeros((9, 9), np.uint8))
    (tmp_path / "train" / "caption.txt").write_text("a\tx\nb\tx \\heart\n")
    with pytest.raises(ArgumentError, match=r"item 'b': .*'\\\\heart'"), pytest.warns(UserWarning):
        load_items(arguments(tmp_path, tmp_path / "run", "--validation_fraction", "0.4").data, ABMTokenizer())


def test_a_prepared_data_set_is_read(tmp_path: Path, data: Path) -> None:
    datasets = pytest.importorskip("datasets")
    offline = load_split(str(data), "train", Arguments().data)
    rows = {
        "id": offline.ids,
        "image": [{"bytes": cv2.imencode(".png", image)[1].tobytes(), "path": None} for image in offline.images],
        "latex": offline.latex,
        "writer": [None] * len(offline),
        "ink": [[[[0.0, 0.0], [1.5, 2.0]]], *[None] * (len(offline) - 1)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "prepared"))
    items = load_split(str(tmp_path / "prepared"), "train", Arguments().data)
    assert items.fingerprint() == offline.fingerprint() and items.groups == offline.groups
    assert all(np.array_equal(a, b) for a, b in zip(items.images, offline.images, strict=True))
    assert items.inks is not None and items.inks[1] is None
    first = items.inks[0]
    assert first is not None and np.array_equal(first.strokes[0], [[0.0, 0.0], [1.5, 2.0]])
    with pytest.raises(ArgumentError, match="no split 'test2013'; it has train"):
        load_split(str(tmp_path / "prepared"), "test2013", Arguments().data)


def test_trackers_get_what_is_logged(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(arguments(data, tmp_path / "run", "--max_steps", "2", "--trackers", "tensorboard"))
    assert list((tmp_path / "run" / "abm_hf").rglob("events.out.tfevents.*"))


def test_half_precision_needs_a_gpu(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="needs a GPU"):
        train(arguments(data, tmp_path / "run", "--mixed_precision", "fp16"))


@pytest.mark.parametrize("name", ["none", "image", "ink"])
def test_variations_keep_the_planned_size_and_the_ink(name: str) -> None:
    chosen = Arguments().data
    chosen.synthetic_items = 8
    items = load_split("synthetic", "train", chosen)
    for index in range(8):
        for scale in ((1.0, 1.0), (0.7, 0.75), (1.4, 1.3)):
            images = [VARIATIONS[name](items, index, np.random.default_rng(seed), scale) for seed in (1, 1, 2)]
            expected = tuple(round(size * factor) for size, factor in zip(items.sizes[index], scale, strict=True))
            assert images[0].shape == expected and images[0].dtype == np.uint8
            assert np.array_equal(images[0], images[1])
            assert np.array_equal(images[0], images[2]) == (name == "none")
            inked = (images[0] > 0).sum() / (items.images[index] > 0).sum()
            assert 0.3 < inked / (scale[0] * scale[1]) < 2.5


def test_items_of_several_sources_are_joined(data: Path) -> None:
    chosen = Arguments().data
    chosen.synthetic_items = 3
    offline, synthetic = load_split(str(data), "train", chosen), load_split("synthetic", "train", chosen)
    joined = concatenate([offline, synthetic])
    assert len(joined) == 43 and joined.latex[41] == synthetic.latex[1]
    assert np.array_equal(joined.images[41], synthetic.images[1]) and np.array_equal(
        joined.images[3], offline.images[3]
    )
    assert joined.inks is not None and joined.inks[3] is None and joined.inks[41] is synthetic.inks[1]
    drawn = VARIATIONS["ink"](joined, 3, np.random.default_rng(0), (1.0, 1.0))  # without ink: as an image
    assert drawn.shape == offline.images[3].shape
    picked = joined.subset([41, 2])
    assert picked.inks is not None and picked.inks[0] is synthetic.inks[1]


def test_no_writer_is_on_both_sides_of_the_holdout(data: Path) -> None:
    items = load_split(str(data), "train", Arguments().data)
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
    items = load_split(str(data), "train", Arguments().data)
    batches = list(evaluation_batches(items, max_images=7, max_pixels=20_000))
    assert sorted(index for batch in batches for index in batch) == list(range(40))
    tokenizer = ABMTokenizer()
    x = tokenizer.convert_tokens_to_ids("x")
    assert token_string([0, x, 113, x, 1, x], tokenizer) == "x x"
    assert token_string([0, x], tokenizer) == "x"


def test_two_processes_take_the_step_of_one(data: Path, tmp_path: Path) -> None:
    """One step of two processes equals one step of one process that accumulates two batches."""
    once = ["--max_steps", "1", "--max_grad_norm", "0"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [sys.executable, *launcher, str(TRAIN), *options(data, tmp_path / "two", *once)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    train(arguments(data, tmp_path / "one", *once, "--gradient_accumulation_steps", "2"))
    first, second = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    assert first["progress"]["images"] == second["progress"]["images"]
    assert first["progress"]["sampler"] == second["progress"]["sampler"]
    for number, state in first["optimizer"]["state"].items():
        # After one step AdamW's first moment is the gradient times 1 - beta1.
        gradients = state["exp_avg"] / 0.1, second["optimizer"]["state"][number]["exp_avg"] / 0.1
        assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


class Pictures(torch.utils.data.Dataset):
    """A data set as `transformers.Trainer` takes it."""

    def __init__(self, data: Path) -> None:
        self.items = load_split(str(data), "train", Arguments().data)
        self.items.encode(ABMTokenizer())

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.items.images[index], "labels": self.items.labels[index]}


def test_the_model_trains_under_transformers_trainer(data: Path, tmp_path: Path) -> None:
    transformers.set_seed(0)
    settings = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=5,
        save_steps=3,
        logging_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    losses = []
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):
        model = ABMForConditionalGeneration(ABMConfig.preset("small", **TINY))
        trainer = transformers.Trainer(
            model,
            settings,
            data_collator=ABMCollator((16, 32)),
            train_dataset=Pictures(data),
            eval_dataset=Pictures(data),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.state.global_step == 5 and np.isfinite(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]  # the second goes on with the log of the first three steps, and repeats the others
