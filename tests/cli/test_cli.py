"""The `abm-hf` command, as a shell sees it: streams, exit codes, resuming, and mistakes."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from abm_hf.cli.main import main


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        image = Image.new("L", (120 + 30 * index, 70), 255)
        ImageDraw.Draw(image).line([(20, 20), (90, 50 - 5 * index), (30, 50)], fill=0, width=3)
        image.save(folder / f"{index}.png")
    return folder


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    """Exit code, lines on stdout, lines on stderr."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def _recognize(
    capsys: pytest.CaptureFixture[str], model: Path, *arguments: object
) -> tuple[int, list[str], list[str]]:
    return _run(capsys, "recognize", *arguments, "--model", model, "--beams", 2, "--max-length", 10)


def test_one_line_for_each_input(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [pictures / "0.png", pictures / "1.png", pictures / "2.png"]
    code, answers, errors = _recognize(capsys, tiny_checkpoint, pictures, "--no-with-names")
    assert (code, len(answers), errors) == (0, 3, [])
    named = [f"{file}\t{answer}" for file, answer in zip(files, answers, strict=True)]
    assert _recognize(capsys, tiny_checkpoint, pictures) == (0, named, []), "several inputs are told apart"
    assert _recognize(capsys, tiny_checkpoint, *files) == (0, named, [])
    assert _recognize(capsys, tiny_checkpoint, files[1]) == (0, [answers[1]], [])
    assert _recognize(capsys, tiny_checkpoint, files[1], "--with-names") == (0, [named[1]], [])
    stdin = io.TextIOWrapper(io.BytesIO((pictures / "1.png").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert _recognize(capsys, tiny_checkpoint, "-") == (0, [answers[1]], [])


@pytest.fixture
def oddly_named(pictures: Path) -> Path:
    """A folder with pictures whose names are no UTF-8, hold a line break, or are Chinese, between plain ones."""
    try:
        (pictures / "1.png").rename(os.fsdecode(os.fsencode(pictures) + b"/1caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (pictures / "2.png").rename(pictures / "2\n公式.png")
    Image.new("L", (300, 100), 255).save(os.fsdecode(os.fsencode(pictures) + b"/3bl\xe5nk.png"))
    shutil.copy(pictures / "0.png", pictures / "4.png")
    return pictures


def test_no_name_ends_a_batch(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, oddly_named: Path, tmp_path: Path
) -> None:
    escaped = ["0.png", r"1caf\xe9.png", "2\n公式.png", r"3bl\xe5nk.png", "4.png"]
    code, lines, errors = _recognize(capsys, tiny_checkpoint, oddly_named)
    on_a_line = [name.replace("\n", r"\n") for name in escaped]
    assert code == 1 and [line.partition("\t")[0] for line in lines] == [f"{oddly_named}/{name}" for name in on_a_line]
    assert len(errors) == 1 and r"3bl\xe5nk.png: no ink" in errors[0]
    code, lines, _ = _recognize(capsys, tiny_checkpoint, oddly_named, "--json")
    assert code == 1 and [json.loads(line)["file"] for line in lines] == [f"{oddly_named}/{name}" for name in escaped]
    output = tmp_path / "out.jsonl"
    assert _recognize(capsys, tiny_checkpoint, oddly_named, "--output", output)[0] == 1
    written = output.read_text(encoding="utf-8")
    assert [json.loads(line)["file"] for line in written.splitlines()] == [f"{oddly_named}/{n}" for n in escaped]
    assert r"3bl\xe5nk" in json.loads(written.splitlines()[3])["error"]
    assert _recognize(capsys, tiny_checkpoint, oddly_named, "--output", output)[0] == 1
    again = output.read_text(encoding="utf-8").splitlines()
    assert sorted(again) == sorted(written.splitlines()), "only the failure is tried again, at the end"
    code, paths, _ = _recognize(
        capsys, tiny_checkpoint, oddly_named, "--format", "png", "--output", tmp_path / "drawn"
    )
    assert code == 1 and len(paths) == 4 and all(Path(path).is_file() for path in paths)


def test_names_that_the_terminal_lacks(tiny_checkpoint: Path, oddly_named: Path) -> None:
    """As on a Windows console: what its encoding lacks is escaped, in JSON as JSON does it."""
    command = [sys.executable, "-m", "abm_hf.cli.main", "recognize", str(oddly_named), "--model", str(tiny_checkpoint)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    for form in ("latex", "json"):
        done = subprocess.run(
            [*command, "--beams", "1", "--max-length", "5", "--format", form], env=environment, capture_output=True
        )
        lines = done.stdout.decode("cp1252").splitlines()
        assert done.returncode == 1 and len(lines) == 5, done.stderr
        if form == "json":
            assert json.loads(lines[2])["file"].endswith("2\n公式.png")
        else:
            assert r"2\n\u516c\u5f0f.png" in lines[2]


def test_a_missing_file_is_reported_before_loading(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import abm_hf.cli.recognize as command

    said_before: list[str] = []

    def load(*arguments: object) -> object:
        said_before.append(capsys.readouterr().err)
        return load_recognizer(*arguments)  # type: ignore[arg-type]

    load_recognizer = command.load_recognizer
    monkeypatch.setattr(command, "load_recognizer", load)
    missing = pictures / "none.png"
    code, lines, errors = _recognize(capsys, tiny_checkpoint, missing, "https://a.org/b.png")
    assert (code, lines) == (1, [f"{missing}\t", "https:/a.org/b.png\t"])
    assert said_before == [], "the model is not loaded for nothing"
    assert errors == [
        f"abm-hf: {missing}: No such file or directory",
        "abm-hf: https:/a.org/b.png: is an address: download the picture and pass its path",
    ]
    code, lines, errors = _recognize(capsys, tiny_checkpoint, pictures / "0.png", missing, "--json")
    assert code == 1 and [json.loads(line).get("error", "") for line in lines] == [
        "",
        f"{missing}: No such file or directory",
    ]
    assert said_before == [f"abm-hf: {missing}: No such file or directory\n"] and errors == []


@pytest.mark.parametrize(("form", "package"), [("mathml", "latex2mathml"), ("png", "matplotlib")])
def test_a_format_names_its_extra_before_loading(
    capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form, package
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, lines, errors = _run(
        capsys, "recognize", pictures, "--format", form, "--output", tmp_path / "o", "--model", "nowhere"
    )
    assert (code, lines) == (2, [])
    assert errors == [f"abm-hf: --format {form} needs {package}: pip install 'abm-hf[output]'"]


def test_a_wrong_segmentation_is_a_line(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ink = tmp_path / "wrong.inkml"
    ink.write_text(
        "<ink><trace id='a'>0 0, 40 40, 80 0</trace><traceGroup><annotation type='truth'>x</annotation>"
        "<traceView traceDataRef='b'/></traceGroup></ink>"
    )
    code, answers, errors = _recognize(capsys, tiny_checkpoint, ink)
    assert code == 0 and len(answers) == 1
    assert errors == [f"abm-hf: {ink}:1: the symbol 'x' names trace 'b', which is not there: it is left out"]


def test_json(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path) -> None:
    code, lines, _ = _recognize(capsys, tiny_checkpoint, pictures / "0.png", "--json", "--top-k", 2)
    record = json.loads(lines[0])
    assert code == 0 and record["file"].endswith("0.png") and 0 <= record["score"] <= 1
    assert record["latex"] == record["n_best"][0]["latex"] and len(record["n_best"]) == 2
    assert record["width"] > 0 and record["height"] > 0 and record["milliseconds"] > 0


def test_output_resumes(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "made" / "predictions.jsonl"
    assert _recognize(capsys, tiny_checkpoint, pictures, "--output", output) == (0, [], [])
    whole = output.read_text()
    assert [json.loads(line)["file"][-5:] for line in whole.splitlines()] == ["0.png", "1.png", "2.png"]
    assert _recognize(capsys, tiny_checkpoint, pictures, "--output", output)[0] == 0
    assert output.read_text() == whole, "nothing is read twice"
    output.write_text(whole[: len(whole) - 20])  # a crash in the middle of the last line
    assert _recognize(capsys, tiny_checkpoint, pictures, "--output", output)[0] == 0
    assert [json.loads(line)["latex"] for line in output.read_text().splitlines()] == [
        json.loads(line)["latex"] for line in whole.splitlines()
    ]


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_bad_files_give_a_line_each_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    bad = {
        "text.png": b"this is not a picture",
        "empty.png": b"",
        "huge.png": _png_header(20_000, 20_000),
        "cut.jpg": b"",
        "tiny.png": b"",
        "blank.png": b"",
        "broken.inkml": b"<ink><trace>1 2, 3",
        "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "book.pdf": b"%PDF-1.4 nothing",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    Image.new("L", (1, 1), 255).save(tmp_path / "tiny.png")
    Image.new("L", (300, 100), 255).save(tmp_path / "blank.png")
    noisy = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(noisy, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(noisy.getvalue()[:900])
    names = [*bad, "missing.png"]
    before = sorted(tmp_path.rglob("*"))
    code, answers, errors = _recognize(
        capsys, tiny_checkpoint, *(tmp_path / name for name in names), pictures / "0.png"
    )
    assert code == 1 and len(answers) == len(names) + 1, "a line each, so that they can be told apart"
    read = [answer.partition("\t")[2] for answer in answers]
    assert read[-1] and not any(read[:-1]), "the good one is answered"
    assert len(errors) == len(names), errors
    for name in names:
        assert sum(name in line for line in errors) == 1, (name, errors)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_copies_of_editors_are_no_inputs(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path
) -> None:
    """Hidden files and folders are left out; suffixes that other programs write, and HEIC, are not passed over."""
    (pictures / ".ipynb_checkpoints").mkdir()
    shutil.copy(pictures / "0.png", pictures / ".ipynb_checkpoints" / "0-checkpoint.png")
    (pictures / "._1.png").write_bytes(b"resource fork")
    Image.open(pictures / "2.png").save(pictures / "2.JFIF", "JPEG")
    (pictures / "3.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    code, lines, errors = _recognize(capsys, tiny_checkpoint, pictures)
    assert code == 1
    assert [Path(line.partition("\t")[0]).name for line in lines] == ["0.png", "1.png", "2.JFIF", "2.png", "3.heic"]
    assert len(errors) == 1 and errors[0].endswith(
        "3.heic: not an image of a kind that can be read: a HEIC picture, save it as PNG or JPEG"
    )


def test_names_that_a_system_refuses(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, lines, errors = _recognize(capsys, tiny_checkpoint, "a" * 5000, pictures / "0.png", "--json")
    assert code == 1 and len(lines) == 2 and len(errors) == 1 and "too long" in errors[0]
    code, lines, errors = _recognize(capsys, tiny_checkpoint, "")
    assert (code, lines) == (2, []) and errors == [
        "abm-hf: an empty name is no input: is a variable of the shell not set?"
    ]
    monkeypatch.setenv("HOME", str(pictures))
    code, lines, _ = _recognize(capsys, tiny_checkpoint, "~/0.png", "--output=~/answers.jsonl")
    assert code == 0 and json.loads((pictures / "answers.jsonl").read_text())["file"] == str(pictures / "0.png")


def test_mistakes_of_use(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    code, answers, errors = _recognize(capsys, tiny_checkpoint, tmp_path / "nothing")
    assert (code, answers, len(errors)) == (2, [], 1) and "without pictures" in errors[0]
    code, _, errors = _recognize(capsys, tmp_path / "no-such-model", pictures)
    assert (code, len(errors)) == (2, 1) and "no-such-model" in errors[0]
    assert _run(capsys, "recognize")[0] == 2
    assert _run(capsys, "recognize", pictures, "--beams", 0)[0] == 2
    assert _run(capsys, "paint")[0] == 2


def test_a_corrupted_checkpoint(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    import shutil

    for damage in ("truncated", "no config", "garbage"):
        copy = shutil.copytree(tiny_checkpoint, tmp_path / damage)
        weights = copy / "model.safetensors"
        if damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        elif damage == "garbage":
            weights.write_bytes(b"garbage")
        else:
            (copy / "config.json").unlink()
        code, answers, errors = _recognize(capsys, copy, pictures)
        assert (code, answers, len(errors)) == (2, [], 1), (damage, errors)


def test_info(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> None:
    code, lines, _ = _run(capsys, "info", "--model", tiny_checkpoint)
    text = "\n".join(lines)
    assert code == 0
    for expected in (
        "abm-hf",
        "torch",
        "transformers",
        "device",
        str(tiny_checkpoint),
        "l2r, r2l",
        "110 LaTeX tokens",
    ):
        assert expected in text


def test_explain(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("steps.gif", "steps.png"):
        code, answers, errors = _run(
            capsys, "explain", pictures / "0.png", "--output", tmp_path / name, "--model", tiny_checkpoint
        )
        assert (code, len(answers), errors) == (0, 1, [])
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 50
    code, _, errors = _run(
        capsys, "explain", pictures / "0.png", "--output", tmp_path / "steps.txt", "--model", tiny_checkpoint
    )
    assert (code, len(errors)) == (2, 1)


def test_formats(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    _, latex, _ = _recognize(capsys, tiny_checkpoint, pictures, "--no-with-names")
    code, mathml, _ = _recognize(capsys, tiny_checkpoint, pictures, "--format", "mathml", "--no-with-names")
    assert code == 0 and len(mathml) == 3 and all(line.startswith("<math") for line in mathml)
    code, lines, _ = _recognize(capsys, tiny_checkpoint, pictures, "--format", "json")
    record = json.loads(lines[0])
    assert record["latex"] == latex[0] and len(record["tokens"]) == len(record["token_scores"])
    code, paths, errors = _recognize(
        capsys, tiny_checkpoint, pictures, "--format", "png", "--output", tmp_path / "out"
    )
    assert (code, len(paths), errors) == (0, 3, [])
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 20
    single = tmp_path / "one" / "answer.png"
    assert _recognize(capsys, tiny_checkpoint, pictures / "0.png", "--format", "png", "--output", single)[0] == 0
    assert single.is_file()
    output = tmp_path / "out.jsonl"
    _recognize(capsys, tiny_checkpoint, pictures, "--format", "mathml", "--output", output)
    assert [json.loads(line)["mathml"] for line in output.read_text().splitlines()] == mathml


def test_not_sure(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path) -> None:
    """An answer that is too improbable is left out, with a line that says so; the others are given."""
    code, answers, errors = _recognize(capsys, tiny_checkpoint, pictures, "--min-score", 1)
    assert (code, answers) == (0, [f"{pictures / name}\t" for name in ("0.png", "1.png", "2.png")])
    assert len(errors) == 3 and all("not sure" in line for line in errors)
    _, lines, _ = _recognize(capsys, tiny_checkpoint, pictures / "0.png", "--json", "--min-score", 1)
    record = json.loads(lines[0])
    assert record["latex"] is None and record["n_best"][0]["latex"]
    assert _recognize(capsys, tiny_checkpoint, pictures, "--min-score", 2)[0] == 2


def test_no_room_for_an_answer(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, pictures: Path) -> None:
    code, answers, errors = _run(capsys, "recognize", pictures, "--model", tiny_checkpoint, "--max-length", 1)
    assert (code, answers, len(errors)) == (2, [], 1) and "at least 3" in errors[0]
