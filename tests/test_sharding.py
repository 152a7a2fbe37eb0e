"""A folder read by several processes: every input once, one file in order, whoever was killed in between."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from abm_hf.cli.main import main
from abm_hf.cli.sharding import PredictionFile, Shard


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


def test_shares_are_disjoint_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(11))
    shares = [Shard(index, 3).share(items) for index in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.from_environment() == Shard(1, 4, 1)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ValueError, match="RANK=4"):
        Shard.from_environment()


def test_parts_become_one_file_in_order(tmp_path: Path) -> None:
    predictions = PredictionFile(tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").write_text(_line("earlier"))
    predictions.part(Shard(0, 2)).write_text(_line("c") + _line("a"))
    predictions.part(Shard(1, 2)).write_text(_line("b") + _line("d")[:9])
    assert predictions.names() == {"earlier", "a", "b", "c"}
    assert not predictions.merge(["a", "b", "c", "d"]), "one is missing"
    assert len(predictions.parts()) == 2
    predictions.mend(Shard(1, 2))
    with predictions.part(Shard(1, 2)).open("a") as file:
        file.write(_line("d"))
    assert predictions.merge(["a", "b", "c", "d"]) and not predictions.parts()
    written = [json.loads(line)["file"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == ["earlier", "a", "b", "c", "d"]


def _command(model: Path, pictures: Path, output: Path) -> list[str]:
    options = ["--model", str(model), "--beams", "2", "--max-length", "8", "--device", "cpu"]
    return ["recognize", str(pictures), "--output", str(output), *options]


def test_two_processes_write_what_one_writes(
    tiny_checkpoint: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main(_command(tiny_checkpoint, pictures, one)) == 1, "one input is no picture"
    # The first of two was killed while it wrote its second answer.
    lines = one.read_text().splitlines(keepends=True)
    (tmp_path / "two.jsonl.part-000").write_text(lines[0] + lines[2][:30])
    assert main([*_command(tiny_checkpoint, pictures, two), "--num-proc", "2"]) == 1
    assert "9.png" in capfd.readouterr().err
    expected = [json.loads(line) for line in lines]
    found = [json.loads(line) for line in two.read_text().splitlines()]
    assert [row["file"] for row in found] == [row["file"] for row in expected]
    assert [row.get("latex") for row in found] == [row.get("latex") for row in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "pictures", "two.jsonl"]
    assert main([*_command(tiny_checkpoint, pictures, two), "--num-proc", "2"]) == 1, "what failed is tried again"
    assert two.read_text() == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_input_that_failed_is_tried_again(
    tiny_checkpoint: Path, pictures: Path, tmp_path: Path, processes: str
) -> None:
    output = tmp_path / "out.jsonl"
    command = [*_command(tiny_checkpoint, pictures, output), "--num-proc", processes]
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


def test_processes_of_a_launcher(tiny_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    """As `torchrun` starts them; a bad input must not make it end the others."""
    output = tmp_path / "out.jsonl"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "abm_hf.cli.main", *_command(tiny_checkpoint, pictures, output)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    names = [Path(json.loads(line)["file"]).name for line in output.read_text().splitlines()]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "9.png"]


def test_mistakes(tiny_checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, word in (
        ([str(pictures), "--num-proc", "2"], "--output"),
        (["-", "--num-proc", "2", "--output", str(tmp_path / "out.jsonl")], "stdin"),
        ([str(pictures), "--format", "png"], "folder"),
        ([str(pictures), "--format", "png", "--output", str(tmp_path / "one.png")], "name a folder"),
        ([str(pictures), "--format", "latex", "--output", str(tmp_path / "out.txt")], "JSON lines"),
        ([str(pictures), "--two-way-weight", "0.4"], "--two-way"),
    ):
        assert main(["recognize", *arguments, "--model", str(tiny_checkpoint)]) == 2
        assert word in capsys.readouterr().err
