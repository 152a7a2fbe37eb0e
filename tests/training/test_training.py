"""Training: exact resume from any kill, checkpoints that survive damage, and refusals that come before any work."""

import functools
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

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from training_runs import (
    STEPS,
    TINY,
    TRAIN,
    arguments,
    assert_same,
    environment,
    final_state,
    history,
    options,
    write_pictures,
)

import abm_hf.training.loop as loop
import abm_hf.training.state as state_module
from abm_hf import ABMForConditionalGeneration, ABMProcessor
from abm_hf.arguments import ArgumentError
from abm_hf.training.data import PlannedDataset
from abm_hf.training.loop import train
from abm_hf.training.state import CheckpointError, CheckpointStore, RunDirectory, RunDirectoryError
from abm_hf.training.step import NonFiniteLossError


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
    return write_pictures(tmp_path_factory.mktemp("offline"))


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


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


def test_a_signal_to_the_whole_group_saves_as_well(tmp_path: Path) -> None:
    """As sent by `timeout` or a cluster's manager: to the loader's workers, too, and to all threads of theirs."""
    line = options(Path("synthetic"), tmp_path / "run", "--num_workers", "2", "--max_steps", "5000")
    line += ["--eval_steps", "0", "--synthetic_items", "40", "--augmentation", "ink", "--curriculum", "0:0"]
    line += ["--cpu_threads", "2"]  # with several, libraries start some in the workers, before they can block anything
    with subprocess.Popen(
        [sys.executable, str(TRAIN), *line],
        env={**environment(), "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        store = CheckpointStore(tmp_path / "run" / "checkpoints")
        while not store.steps() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        printed, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    assert store.steps()[-1] == json.loads(printed)["step"] and not json.loads(printed)["finished"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("loop.training_step = None", "'NoneType' object is not callable"),
        (
            "loop.VARIATIONS.update(dict.fromkeys(loop.VARIATIONS, lambda *_: 1 / 0))",
            "division by zero",
        ),  # in a worker
    ],
)
def test_a_run_that_fails_takes_its_workers_along(data: Path, tmp_path: Path, fault: str, message: str) -> None:
    failing = f"""if True:
        import sys
        import abm_hf.training.loop as loop
        from training_runs import arguments
        {fault}
        loop.train(arguments(*sys.argv[1:], "--num_workers", "2"))
    """
    command = [sys.executable, "-c", failing, str(data), str(tmp_path / "run")]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and message in done.stderr


def test_workers_do_not_change_the_numbers(data: Path, tmp_path: Path, uninterrupted: Path) -> None:
    train(arguments(data, tmp_path / "run", "--num_workers", "2"))
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_gradient_checkpointing_leaves_the_losses_as_they_are(data: Path, tmp_path: Path, uninterrupted: Path) -> None:
    train(arguments(data, tmp_path / "run", "--gradient_checkpointing", "true", "--eval_steps", "0"))
    losses, expected = (
        [row["loss"] for row in history(run) if row["kind"] == "train"] for run in (tmp_path / "run", uninterrupted)
    )
    assert losses == pytest.approx(expected, rel=1e-3)  # rounding grows from step to step


def test_the_memory_format_leaves_the_loss_as_it_is(data: Path, tmp_path: Path) -> None:
    overrides = json.dumps({**TINY, "encoder_dropout": 0.0})  # dropout is drawn in the order of the memory
    once = ("--max_steps", "1", "--eval_steps", "0", "--model_overrides", overrides)
    for name, more in (("last", ()), ("first", ("--channels_last", "false"))):
        train(arguments(data, tmp_path / name, *once, *more))
    assert history(tmp_path / "first")[0]["loss"] == pytest.approx(history(tmp_path / "last")[0]["loss"], rel=1e-5)


def test_a_compiled_model_takes_the_same_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether the model can be captured as graphs is what this asks; machine code for them would take minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    overrides = json.dumps({**TINY, "encoder_dropout": 0.0})  # which compiled code draws in its own way
    once = ("--max_steps", "1", "--eval_steps", "0", "--directions", "l2r", "--model_overrides", overrides)
    for name, more in (("plain", ()), ("compiled", ("--compile", "true"))):
        train(arguments(data, tmp_path / name, *once, *more))
    assert history(tmp_path / "compiled")[0]["loss"] == pytest.approx(history(tmp_path / "plain")[0]["loss"], rel=1e-5)
    assert list(final_state(tmp_path / "compiled")["model"]) == list(final_state(tmp_path / "plain")["model"])


def test_compiling_without_a_compiler_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ArgumentError, match=r"needs a C\+\+ compiler .* leave compile out"):
        train(arguments(data, tmp_path / "run", "--compile", "true", "--cpu", "true"))


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
    for folder in (uninterrupted / "best", uninterrupted / "final"):  # complete: processor, generation config, code
        processor = ABMProcessor.from_pretrained(folder)
        assert processor(text="x")["labels"].tolist() == ABMProcessor()(text="x")["labels"].tolist()
        assert {"modeling_abm.py", "processing_abm.py", "generation_config.json"} <= {p.name for p in folder.iterdir()}
        assert "auto_map" in json.loads((folder / "config.json").read_text())
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
    (tmp_path / "checkpoints" / "step-00000005 copy").mkdir()  # somebody's own is left alone
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
    with pytest.raises(RunDirectoryError, match="other training data"):
        train(arguments(tmp_path / "copy", uninterrupted))


def test_other_validation_data_is_refused_and_what_was_best_on_it_forgotten(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    captions = other / "train" / "caption.txt"
    captions.write_text(captions.read_text().replace("x", "z"))
    output, on = tmp_path / "run", ["--validation_split", "train", "--validation_data"]
    before = train(arguments(data, output, "--max_steps", "2", *on, str(data)))
    with pytest.raises(RunDirectoryError, match="other validation data"):
        train(arguments(data, output, "--max_steps", "2", *on, str(other)))
    assert before["best"] >= 0
    after = train(arguments(data, output, "--max_steps", "3", "--extend", *on, str(other)))
    assert after["best"] == history(output)[-1]["exprate"]


def test_trackers_get_what_is_logged(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(arguments(data, tmp_path / "run", "--max_steps", "2", "--trackers", "tensorboard"))
    assert list((tmp_path / "run" / "abm_hf").rglob("events.out.tfevents.*"))


def test_half_precision_needs_a_gpu(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="needs a GPU"):
        train(arguments(data, tmp_path / "run", "--mixed_precision", "fp16"))


def test_two_processes_take_the_step_of_one(data: Path, tmp_path: Path) -> None:
    """One step of two processes equals one step of one process that accumulates two batches."""
    once = ["--max_steps", "1", "--max_grad_norm", "0", "--ema_decay", "0"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [sys.executable, *launcher, str(TRAIN), *options(data, tmp_path / "two", *once)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    train(arguments(data, tmp_path / "one", *once, "--gradient_accumulation_steps", "2"))
    first, second = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    assert first["progress"]["images"] == second["progress"]["images"]
    assert first["progress"]["sampler"] == second["progress"]["sampler"]
    for state in (first, second):
        assert_same(state["average"]["state"], dict(state["model"]))  # a decay of 0 follows the model
    for number, state in first["optimizer"]["state"].items():
        # After one step AdamW's first moment is the gradient times 1 - beta1.
        gradients = state["exp_avg"] / 0.1, second["optimizer"]["state"][number]["exp_avg"] / 0.1
        assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)
