"""`scripts/train.py` as a newcomer meets it: what cannot work is one line on stderr and exit code 2, at once."""

import importlib.util
import re
import resource
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from training_runs import TRAIN, options, write_pictures

from abm_hf.training.state import RunDirectory

Script = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _fresh_process_state() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("offline"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs the script in this process; gives its exit code and the error line."""
    spec = importlib.util.spec_from_file_location("train_script", TRAIN)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in module._ENVIRONMENT.items():  # otherwise it starts itself anew with these
        monkeypatch.setenv(name, value)

    def run(*line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *line])
        code = module.main()
        errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
        assert len(errors) == (code != 0)
        return code, "".join(errors)

    return run


@pytest.mark.parametrize(
    "more, message",
    [
        ("--validation_split test2013", "no split 'test2013'"),
        ("--data ,", "names no source"),
        ("--data /nowhere", "no data set that can be read"),
        ("--init_from /nowhere", "no model directory /nowhere"),
        ("--init_encoder_from /nowhere", "no model directory /nowhere"),
        ("--init_encoder_from small --preset base", "cannot make the model from small: .*in loading state_dict"),
        ("--init_from small --init_encoder_from small", "exclude each other"),
        ("--preset huge", "preset must be base or small"),
        ('--model_overrides {"hiden_size":3}', "did you mean 'hidden_size'"),
        ('--model_overrides {"embedding_size":3}', "embedding_size must be even"),
        ("--distillation both", "cannot make the model: .*distillation"),
        ("--trackers nonsense", "nonsense"),
        ("--max_validation_items 0", "max_validation_items must be at least 1"),
        ("--eval_max_length 0", "eval_max_length must be at least 2"),
        ("--num_workers 1 --prefetch 0", "prefetch must be at least 1"),
        ("--max_label_tokens 1 --curriculum 0:0 --train_split nothing", "no split 'nothing'"),
        ("--mixed_precision fp16", "fp16 needs a GPU"),
        ("--seed -1", "seed must be from 0"),
        ("--adam_beta2 1.5", "adam_beta2 must be at least 0 and less than 1"),
        ("--decay_from 60", "decay_from must be from 0 to 1"),
    ],
)
def test_what_cannot_work_is_one_line(more: str, message: str, data: Path, tmp_path: Path, script: Script) -> None:
    code, error = script(*options(data, tmp_path / "run", *more.split()))
    assert code == 2
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "run.json").exists()  # nothing stands in the way of the next try


@pytest.mark.parametrize("kind", ["empty folder", "empty split", "other files", "damaged", "unknown token", "recipe"])
def test_data_and_recipes_that_cannot_work_are_one_line(kind: str, tmp_path: Path, script: Script) -> None:
    folder, more = tmp_path / "data", list[str]()
    (folder / "train" / "img").mkdir(parents=True)
    captions = folder / "train" / "caption.txt"
    if kind == "empty folder":
        folder, expected = tmp_path / "data" / "train" / "img", "no data set that can be read"
    elif kind == "empty split":
        captions.write_text("")
        expected = "'train' .*is empty"
    elif kind == "other files":
        captions.with_name("notes.txt").write_text("nothing")
        expected = r"lacks the columns \['image', 'latex'\]: write it with `abm-hf prepare`"
    elif kind == "damaged":
        (folder / "train-00000-of-00001.parquet").write_bytes(b"PAR1, and then nothing of the kind, PAR1")
        expected = "no data set that can be read"
    else:
        write_pictures(tmp_path / "pictures")
        folder = tmp_path / "pictures"
        captions = folder / "train" / "caption.txt"
        expected = r"item '3_writerd': .*no token '\\\\heart'"
        if kind == "recipe":
            (tmp_path / "my.yaml").write_text("lerning_rate: 1")
            more, expected = ["--config", str(tmp_path / "my.yaml")], "did you mean 'learning_rate'"
        else:
            lines = captions.read_text().splitlines()
            lines[3] += " \\heart"
            captions.write_text("\n".join(lines) + "\n")
    code, error = script(*options(folder, tmp_path / "run", *more))
    assert code == 2 and re.search(expected, error), error


def test_an_output_directory_that_cannot_be_used_is_one_line(data: Path, tmp_path: Path, script: Script) -> None:
    (tmp_path / "file").write_text("in the way")
    # Where even root cannot write: below a file, and in a file system without files of one's own.
    for output in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        code, error = script(*options(data, output))
        assert code == 2 and f"cannot write to the output directory {output}" in error
    code, error = script(*options(data, tmp_path))
    assert code == 2 and "is no run, it holds file" in error
    assert script(*options(data, tmp_path / "run", "--max_steps", "1"))[0] == 0
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*"))
    code, error = script(*options(data, tmp_path / "run", "--max_steps", "1", "--learning_rate", "0.5"))
    assert code == 2 and "learning_rate: 0.0012 there, 0.5 now" in error
    assert before == sorted(path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*"))


@pytest.mark.parametrize("more, message", [("--save_steps 1", "checkpoint of step 1"), ("--eval_steps 1", "/best")])
def test_a_full_disk_is_one_line(more: str, message: str, data: Path, tmp_path: Path, script: Script) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # of any one file, in place of a disk
    try:
        code, error = script(*options(data, tmp_path / "run", "--eval_steps", "0", "--save_steps", "0", *more.split()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and message in error
    assert script(*options(data, tmp_path / "run", "--eval_steps", "0", "--save_steps", "0", *more.split()))[0] == 0


def test_a_log_that_cannot_be_written_is_one_line(
    data: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = RunDirectory.append_metrics

    def full(self: RunDirectory, row: dict[str, Any]) -> None:
        self.metrics = Path("/dev/full") if row["step"] == 3 else self.metrics
        honest(self, row)

    monkeypatch.setattr(RunDirectory, "append_metrics", full)
    code, error = script(*options(data, tmp_path / "run"))
    assert code == 2 and "the disk is full; the last good checkpoint is" in error and "step-00000002" in error


@pytest.mark.parametrize(
    ("name", "line", "named"),
    [
        ("train", ["--config", "smoke"], "accelerate, yaml"),
        ("evaluate", ["--help"], "accelerate, yaml"),
        ("calibrate", ["--help"], "accelerate, yaml"),
        ("benchmark", ["cold"], "accelerate, yaml"),
        ("prepare_dataset", ["imagefolder", "--input", ".", "--output", "out"], "pyarrow"),
    ],
)
def test_a_script_without_its_extra_names_it(
    name: str, line: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("accelerate", "yaml", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.setattr(sys, "platform", "elsewhere")  # where training does not start itself anew
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *line])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TRAIN.parent / f"{name}.py"), run_name="__main__")
    assert stopped.value.code == (1 if name == "prepare_dataset" else 2)
    what = "abm-hf prepare" if name == "prepare_dataset" else f"scripts/{name}.py"
    assert capsys.readouterr().err == f"error: {what} needs {named}: pip install 'abm-hf[train]'\n"
