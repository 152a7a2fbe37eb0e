"""`abm-hf recognize --output`: what was stopped is resumed, and answers of other options are left alone."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from abm_hf import ABMForConditionalGeneration
from abm_hf.cli.main import main


def _line(name: str) -> str:
    return json.dumps({"file": name, "latex": name}) + "\n"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        image = Image.new("L", (120 + 30 * index, 70), 255)
        ImageDraw.Draw(image).line([(20, 20), (90, 50 - 5 * index), (30, 50)], fill=0, width=3)
        image.save(folder / f"{index}.png")
    (folder / "9.png").write_text("no picture")
    return folder


def _command(model: Path, pictures: Path, output: Path) -> list[str]:
    options = ["--model", str(model), "--beams", "2", "--max-length", "8", "--device", "cpu"]
    return ["recognize", str(pictures), "--output", str(output), *options]


def test_what_was_stopped_is_resumed(tiny_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = _command(tiny_checkpoint, pictures, output)
    assert main(command) == 1, "one input is no picture"
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:2]) + lines[2][:30])
    assert main(command) == 1
    found = output.read_text().splitlines(keepends=True)
    assert found[:2] == lines[:2], "what has an answer is not read again"
    assert [json.loads(line)["file"] for line in found] == [json.loads(line)["file"] for line in lines]
    assert [json.loads(line).get("latex") for line in found] == [json.loads(line).get("latex") for line in lines]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pictures"]


@pytest.mark.parametrize(
    ("more", "change"),
    [
        (["--beams", "3"], "num_beams 2 (now 3)"),
        (["--no-grammar"], "grammar true (now false)"),
        (["--format", "mathml"], "mathml false (now true)"),
        (["--engine", "torch", "--top-k", "2"], "top_k 1 (now 2)"),
    ],
)
def test_answers_of_other_options_are_not_added_to(
    tiny_checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    change: str,
) -> None:
    output = tmp_path / "out.jsonl"
    command = _command(tiny_checkpoint, pictures / "0.png", output)
    assert main(command) == 0
    before = output.read_text()
    assert main([*command, *more]) == 2
    error = capsys.readouterr().err
    assert change in error and str(output) in error and "choose another --output" in error
    assert output.read_text() == before
    assert main([*command, "--batch-size", "3"]) == 0, "this does not change an answer"


def test_answers_of_another_checkpoint_of_the_same_name_are_not_added_to(
    tiny_checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    command = _command(checkpoint, pictures / "0.png", tmp_path / "out.jsonl")
    assert main(command) == 0
    model = ABMForConditionalGeneration.from_pretrained(checkpoint)
    next(model.parameters()).data.add_(0.01)
    model.save_pretrained(checkpoint)
    assert main(command) == 2
    assert "weights" in capsys.readouterr().err


def test_an_input_that_failed_is_tried_again(tiny_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = _command(tiny_checkpoint, pictures, output)
    assert main(command) == 1
    before = output.read_text().splitlines()
    (pictures / "9.png").write_bytes((pictures / "0.png").read_bytes())
    assert main(command) == 0
    after = output.read_text().splitlines()
    assert after[:-1] == before[:-1] and json.loads(after[-1])["latex"] is not None
    assert main(command) == 0 and output.read_text().splitlines() == after


@pytest.mark.parametrize("content", ["Do not lose me.\n", "Do not lose me.", '{"text": "nor me"}\n', _line("a") + "x"])
def test_a_file_of_something_else_is_left_alone(
    tiny_checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    output = tmp_path / "notes.txt"
    output.write_text(content)
    assert main(_command(tiny_checkpoint, pictures, output)) == 2
    assert "holds something else" in capsys.readouterr().err and output.read_text() == content


def test_mistakes(tiny_checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, word in (
        ([str(pictures), "--format", "png"], "folder"),
        ([str(pictures), "--format", "png", "--output", str(tmp_path / "one.png")], "name a folder"),
        ([str(pictures), "--format", "latex", "--output", str(tmp_path / "out.txt")], "JSON lines"),
        ([str(pictures), "--rescoring-weight", "0.4", "--no-rescore"], "--no-rescore"),
    ):
        assert main(["recognize", *arguments, "--model", str(tiny_checkpoint)]) == 2
        assert word in capsys.readouterr().err
