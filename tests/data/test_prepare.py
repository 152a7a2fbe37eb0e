"""Preparing data sets: what comes out for each source, and that it resumes, repeats, refuses and reports.

The trees are written from synthetic ink; tests on CROHME itself skip where it is not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from fake_hub import FakeHub, running_hub

from abm_hf.cli.prepare import add_arguments, run
from abm_hf.data import prepare
from abm_hf.data.crohme import load_crohme, origin_of, writer_of
from abm_hf.data.items import load_split
from abm_hf.data.offline import OfflineError, read_captions, read_offline
from abm_hf.data.pictures import read_crohme_style
from abm_hf.data.plan import plan_shards
from abm_hf.data.prepare import prepare_dataset
from abm_hf.data.publish import push_prepared
from abm_hf.data.shards import ROW_GROUP, ShardStatistics, _read_or_skip, _to_table, ink_from_row, write_shard
from abm_hf.data.source import Entry, PrepareError, Record
from abm_hf.ink.inkml import read_inkml, write_inkml
from abm_hf.ink.rendering import render_ink
from abm_hf.ink.strokes import Ink, InkWarning
from abm_hf.latex.normalization import normalize_latex
from abm_hf.synthetic.expressions import synthetic_ink
from abm_hf.training.arguments import DataArguments

COLUMNS = ["id", "image", "ink", "symbols", "latex", "tokens", "source", "writer", "width", "height"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps `datasets` from filling the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def inks() -> list[Ink]:
    return [synthetic_ink(seed, max_tokens=12) for seed in range(8)]


@pytest.fixture
def tree(tmp_path: Path, inks: list[Ink]) -> Path:
    """CROHME's layout: ten expressions for training in two origins, three for a test."""
    root = tmp_path / "crohme"
    for number in range(13):
        ink = inks[number % len(inks)]
        folder = root / ("test2014" if number > 9 else "train/HAMEX" if number % 2 else "train/MfrDB")
        folder.mkdir(parents=True, exist_ok=True)
        writer = "Unknown" if number == 0 else f"w{number}"
        raw = f"$ {ink.label} $"
        write_inkml(Ink(ink.strokes, raw, annotations={"writer": writer}), folder / f"e{number:02d}.inkml")
    (root / "test2014" / "list.txt").write_text("e10.inkml")
    return root


def command(*arguments: object) -> int:
    """Exit code of `abm-hf prepare` with these arguments."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the notes on what is finished."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if not name.startswith(".prepare/")}


@contextmanager
def all_rows(folder: Path, split: str) -> Iterator[list[dict]]:
    yield [row for path in sorted(folder.glob(f"data/{split}-*")) for row in pq.read_table(path).to_pylist()]


# --- CROHME from ink ---


def test_crohme_inkml_gives_a_dataset(tree: Path, tmp_path: Path, inks: list[Ink]) -> None:
    report = prepare_dataset("crohme-inkml", tree, tmp_path / "out", shard_size=4)
    found = datasets.load_dataset(str(tmp_path / "out"))
    assert {name: len(split) for name, split in found.items()} == {"train": 10, "test2014": 3}
    assert found["train"].column_names == COLUMNS
    assert len(list((tmp_path / "out" / "data").iterdir())) == 4
    row = next(row for row in found["train"] if row["id"] == "e03")
    assert row["image"].mode == "L"
    assert np.array_equal(np.asarray(row["image"]), render_ink(inks[3]))
    assert (row["height"], row["width"]) == render_ink(inks[3]).shape
    assert row["tokens"] == normalize_latex(inks[3].label or "")
    assert row["latex"] == " ".join(row["tokens"])
    assert (row["source"], row["writer"]) == ("HAMEX", "w3")
    assert {row["source"] for row in found["test2014"]} == {"test2014"}
    assert report.splits["train"].kept == 10
    assert report.splits["train"].sources == {"HAMEX": 5, "MfrDB": 5}


def test_an_unknown_writer_is_none(tree: Path, tmp_path: Path) -> None:
    prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    with all_rows(tmp_path / "out", "train") as rows:
        assert [row["writer"] for row in rows if row["id"] == "e00"] == [None]


def test_ink_comes_back_and_draws_the_same_image(tree: Path, tmp_path: Path, inks: list[Ink]) -> None:
    prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    with all_rows(tmp_path / "out", "train") as rows:
        for row in rows:
            ink = ink_from_row(row)
            assert ink is not None
            original = inks[int(row["id"][1:]) % len(inks)]
            assert [len(stroke) for stroke in ink.strokes] == [len(stroke) for stroke in original.strokes]
            assert np.array_equal(ink.strokes[0][:, :2], original.strokes[0][:, :2])
            assert np.array_equal(render_ink(ink), render_ink(original))


def test_training_sees_the_ink_of_the_source(tmp_path: Path, inks: list[Ink]) -> None:
    """Whatever decimals a device writes, as far as float32 keeps them: the very numbers, the same picture."""
    (tmp_path / "crohme" / "train").mkdir(parents=True)
    for decimals, ink in enumerate(inks[:6]):
        points = np.concatenate(ink.strokes)[:, :2]
        scale = (9 if decimals == 5 else 99) / np.ptp(points, axis=0).max()
        strokes = tuple(_with_decimals(stroke, points[len(points) // 2], scale, decimals) for stroke in ink.strokes)
        assert any((stroke[:, :2] < 0).any() for stroke in strokes)
        write_inkml(Ink(strokes, f"$ {ink.label} $"), tmp_path / "crohme" / "train" / f"e{decimals}.inkml")
    prepare_dataset("crohme-inkml", tmp_path / "crohme", tmp_path / "out", shard_size=4)
    items = load_split(str(tmp_path / "out"), "train")
    assert items.inks is not None and len(items.inks) == 6
    for item, name in enumerate(items.ids):
        source, stored = read_inkml(tmp_path / "crohme" / "train" / f"{name}.inkml"), items.inks[item]
        assert stored is not None and len(stored.strokes) == len(source.strokes)
        for theirs, ours in zip(source.strokes, stored.strokes, strict=True):
            assert np.array_equal(ours[:, :2], theirs[:, :2])
            assert np.array_equal(np.diff(ours[:, 2]), np.diff(theirs[:, 2]))
        assert stored.label == items.latex[item]
        assert np.array_equal(render_ink(stored), render_ink(source))
        assert np.array_equal(render_ink(stored), items.images[item])


def _with_decimals(stroke: np.ndarray, origin: np.ndarray, scale: float, decimals: int) -> np.ndarray:
    """A stroke around `origin` in another unit, with so many decimals, and times in milliseconds since 1970."""
    places = np.round((stroke[:, :2] - origin) * scale, decimals)
    return np.column_stack([places, 1_700_000_000_000.0 + 10 * np.arange(len(stroke))])


def test_ink_with_decimals_and_clock_time_survives_float32() -> None:
    stroke = np.array([[11.7004, 15.49, 1_700_000_000_123.0], [12.1, 16.0, 1_700_000_000_133.0]])
    entry, record = Entry("train", "a", "a"), Record(np.zeros((3, 3), np.uint8), ["a"], "s", ink=Ink((stroke,)))
    ink = ink_from_row(_to_table([(entry, record)]).to_pylist()[0])
    assert ink is not None
    assert ink.strokes[0].tolist() == [[11.7004, 15.49, 0.0], [12.1, 16.0, 10.0]]


def test_the_strokes_of_each_written_token_are_kept(inks: list[Ink]) -> None:
    image = np.zeros((3, 3), np.uint8)
    cut = Ink(inks[0].strokes, inks[0].label)  # not segmented
    kept = [
        (Entry("t", str(n), ""), Record(image, ink.label.split(), "s", ink=ink)) for n, ink in enumerate([*inks, cut])
    ]
    rows = _to_table(kept).to_pylist()
    for ink, row in zip(inks, rows, strict=False):
        stored = ink_from_row(row)
        assert stored is not None and stored.symbols == ink.symbols
    assert rows[-1]["symbols"] is None
    stored = ink_from_row(rows[-1])
    assert stored is not None and stored.symbols == ()


def test_rows_with_and_without_ink_stand_side_by_side(inks: list[Ink]) -> None:
    image = np.zeros((3, 3), np.uint8)
    kept = [
        (Entry("t", str(n), ""), Record(image, ["a"], "s", ink=ink)) for n, ink in enumerate([None, inks[0], None])
    ]
    rows = _to_table(kept).to_pylist()
    assert [row["ink"] is None for row in rows] == [True, False, True]
    assert len(rows[1]["ink"]) == len(inks[0].strokes)


def test_streaming_reads_it(tree: Path, tmp_path: Path) -> None:
    prepare_dataset("crohme-inkml", tree, tmp_path / "out", shard_size=3)
    stream = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert len(list(stream)) == 10
    assert stream.num_shards == 4


def test_folders_of_one_name_do_not_share_a_cache(tree: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        prepare_dataset("crohme-inkml", tree, tmp_path / parent / "out")
        assert len(datasets.load_dataset(str(tmp_path / parent / "out"))["test2014"]) == (3 if parent == "a" else 2)
        (tree / "test2014" / "e11.inkml").unlink(missing_ok=True)


def test_training_reads_it(tree: Path, tmp_path: Path) -> None:
    from abm_hf.tokenization_abm import ABMTokenizer
    from abm_hf.training.items import load_items

    prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    arguments = DataArguments(data=str(tmp_path / "out"), validation_split="test2014")
    train, validation = load_items(arguments, ABMTokenizer())
    assert (len(train), len(validation)) == (10, 3)
    assert "w3" in train.groups


def test_later_years_and_bare_years(tree: Path, tmp_path: Path) -> None:
    (tree / "test2014").rename(tree / "2023")
    report = prepare_dataset("crohme-inkml", tree, tmp_path / "out", splits=["test2023"])
    assert {name: split.kept for name, split in report.splits.items()} == {"test2023": 3}


def test_the_folder_above_the_tree_will_do(tree: Path, tmp_path: Path) -> None:
    above = tmp_path / "unpacked"
    above.mkdir()
    tree.rename(above / "crohme")
    assert prepare_dataset("crohme-inkml", above, tmp_path / "out").total.kept == 13


def test_two_files_of_one_name_keep_apart(tree: Path, tmp_path: Path) -> None:
    (tree / "train" / "MfrDB" / "e01.inkml").write_bytes((tree / "train" / "HAMEX" / "e01.inkml").read_bytes())
    prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    with all_rows(tmp_path / "out", "train") as rows:
        ids = [row["id"] for row in rows]
    assert "train/HAMEX/e01" in ids and "train/MfrDB/e01" in ids
    assert len(ids) == len(set(ids)) == 11


@pytest.mark.parametrize(
    ("name", "origin", "writer"),
    [
        ("formulaire001-equation002", "HAMEX", "formulaire001"),
        ("KME1G3_0_sub_10", "KAIST", "KME1G3_0"),
        ("2009210-947-102", "MathBrush", "2009210-947"),
        ("MfrDB0104", "MfrDB", None),
        ("101_alfonso", "expressmatch", "alfonso"),
        ("10_em_81", "extension", "10"),
        ("form003-equation016", "extension", "form003"),
        ("RIT_2014_51", None, None),
    ],
)
def test_what_file_names_tell(name: str, origin: str | None, writer: str | None) -> None:
    assert (origin_of(name), writer_of(name)) == (origin, writer)


# --- determinism and resuming ---


def test_the_bytes_do_not_depend_on_the_number_of_processes(tree: Path, tmp_path: Path) -> None:
    prepare_dataset("crohme-inkml", tree, tmp_path / "one", shard_size=4)
    prepare_dataset("crohme-inkml", tree, tmp_path / "two", shard_size=4, num_proc=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_stopped_run_continues(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_dataset("crohme-inkml", tree, tmp_path / "whole", shard_size=4)
    calls = iter(range(100))

    def stop(ink: Ink) -> np.ndarray:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return render_ink(ink)

    with monkeypatch.context() as patch:
        patch.setattr("abm_hf.data.crohme.render_ink", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset("crohme-inkml", tree, tmp_path / "out", shard_size=4)
    finished = [path.name for path in (tmp_path / "out" / "data").iterdir()]
    assert finished == ["train-00000-of-00003.parquet"]  # and no part of the next
    assert not prepare.is_prepared(tmp_path / "out")
    before = (tmp_path / "out" / "data" / finished[0]).stat().st_mtime_ns
    (tmp_path / "out" / "data" / ".train-00001-of-00003.parquet.1.tmp").write_text("of a process that was killed")
    prepare_dataset("crohme-inkml", tree, tmp_path / "out", shard_size=4)
    assert (tmp_path / "out" / "data" / finished[0]).stat().st_mtime_ns == before
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_damaged_shard_is_written_again(tree: Path, tmp_path: Path) -> None:
    prepare_dataset("crohme-inkml", tree, tmp_path / "out", shard_size=4)
    before = contents(tmp_path / "out")
    shard = tmp_path / "out" / "data" / "train-00001-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    prepare_dataset("crohme-inkml", tree, tmp_path / "out", shard_size=4)
    assert contents(tmp_path / "out") == before


def test_another_input_is_not_mixed_in(tree: Path, tmp_path: Path) -> None:
    prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    changed = tree / "test2014" / "e10.inkml"
    os.utime(changed, ns=(1, 1))
    with pytest.raises(PrepareError, match="--overwrite"):
        prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    with pytest.raises(PrepareError, match="--overwrite"):
        prepare_dataset("crohme-inkml", tree, tmp_path / "out", convention="comer")
    changed.unlink()
    assert prepare_dataset("crohme-inkml", tree, tmp_path / "out", overwrite=True).total.kept == 12
    assert load_crohme(tmp_path / "out")["test2014"].num_rows == 2


def test_two_folders_for_one_split_are_an_error(offline: Path, tmp_path: Path) -> None:
    shutil.copytree(offline / "data" / "2014", offline / "data" / "test2014")
    with pytest.raises(PrepareError, match="two folders"):
        prepare_dataset("crohme-offline", offline, tmp_path / "out")


def test_stopping_says_how_to_go_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(_: Ink) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr("abm_hf.data.crohme.render_ink", stop)
    assert command("crohme-inkml", "--input", tree, "--output", tmp_path / "out", "--quiet") == 130
    assert "the same command continues" in capsys.readouterr().err


def test_foreign_files_are_never_replaced(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("precious")
    with pytest.raises(PrepareError, match="not empty"):
        prepare_dataset("crohme-inkml", tree, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "README.md").read_text() == "precious"


# --- what is left out ---


def break_one(tree: Path) -> None:
    (tree / "train" / "HAMEX" / "e01.inkml").write_bytes(b"<ink><trace id='0'>1 2,\n3 x</trace></ink>")


def test_bad_files_are_listed_and_fail_the_run(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    break_one(tree)
    label = tree / "train" / "HAMEX" / "e03.inkml"
    write_inkml(Ink(read_inkml(label).strokes, r"$ \aleph $"), label)
    nameless = tree / "train" / "HAMEX" / "e05.inkml"
    write_inkml(Ink(read_inkml(nameless).strokes), nameless)
    assert command("crohme-inkml", "--input", tree, "--output", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "skipped.jsonl" in told.err and "--allow-skips" in told.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["id"], line["kind"], line["detail"]) for line in lines] == [
        ("e01", "ink", None),
        ("e03", "label", r"\aleph"),
        ("e05", "label", "none"),
    ]
    assert lines[0]["file"] == "train/HAMEX/e01.inkml"
    assert lines[0]["reason"].startswith("line 2: point 1 of trace '0'")
    assert str(tmp_path) not in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_skips_can_be_accepted(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    break_one(tree)
    assert command("crohme-inkml", "--input", tree, "--output", tmp_path / "out", "--allow-skips") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["read"] == 10
    assert report["splits"]["train"]["kept"] == 9
    assert report["skipped_reasons"] == {"ink": 1}
    assert "ink" in capsys.readouterr().out
    assert len(load_crohme(tmp_path / "out")["train"]) == 9


def test_one_in_a_hundred_is_no_failure(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "train").mkdir(parents=True)
    ink = Ink((np.array([[0, 0], [10, 30]]),), "x")
    for number in range(100):
        write_inkml(ink, folder / "train" / f"{number}.inkml")
    (folder / "train" / "0.inkml").write_text("")
    assert command("crohme-inkml", "--input", folder, "--output", tmp_path / "out", "--quiet") == 0
    (folder / "train" / "1.inkml").write_text("")
    assert command("crohme-inkml", "--input", folder, "--output", tmp_path / "out", "--quiet", "--overwrite") == 1


def test_a_split_without_anything_left_still_loads(tree: Path, tmp_path: Path) -> None:
    for path in (tree / "test2014").glob("*.inkml"):
        path.write_text("")
    prepare_dataset("crohme-inkml", tree, tmp_path / "out", allow_skips=True)
    assert datasets.load_dataset(str(tmp_path / "out"), split="test2014", streaming=True).column_names == COLUMNS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["crohme-inkml", "--input", "nowhere"], "does not exist"),
        (["crohme-inkml", "--input", "."], "split folders"),
        (["crohme-offline", "--input", "."], "caption.txt"),
        (["wap", "--input", "."], "offline-train.pkl"),
        (["hme100k", "--input", "."], "train_labels.txt"),
        (["imagefolder", "--input", "."], "metadata.csv"),
        (["crohme-inkml", "--input", ".", "--vocabulary", "nowhere.txt"], "vocabulary"),
        (["crohme-inkml", "--input", ".", "--num-proc", "0"], "num_proc"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert command(*arguments, "--output", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told


def test_an_unknown_split_names_those_there_are(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=r"train, test2014, not test2016"):
        prepare_dataset("crohme-inkml", tree, tmp_path / "out", splits=["test2016"])


# --- report and card ---


def test_card_and_report(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("crohme-inkml", "--input", tree, "--output", tmp_path / "out", "--convention", "comer") == 0
    told = capsys.readouterr()
    assert "test2014" in told.out and "distinct tokens" in told.out
    assert "13/13" in told.err  # the bar
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, metadata, body = text.split("---\n", 2)
    described = yaml.safe_load(metadata)
    assert described["license"] == "other"
    assert [part["split"] for part in described["configs"][0]["data_files"]] == ["train", "test2014"]
    for needed in ("`comer`", "non-commercial", "28 px", "HAMEX 5", "| train | 10 | 0 |"):
        assert needed in body
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["tokens"].values()) == sorted(report["tokens"].values(), reverse=True)
    assert cv2.imread(str(tmp_path / "out" / "sizes.png")) is not None


def test_quiet_says_nothing(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("crohme-inkml", "--input", tree, "--output", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from abm_hf.cli.prepare import add_arguments; "
        "parser = argparse.ArgumentParser(); add_arguments(parser); parser.format_help(); "
        "print([name for name in ('torch', 'datasets', 'pyarrow', 'cv2', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- memory ---


def test_a_row_group_is_all_that_is_held(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Record] = weakref.WeakSet()
    most = 0

    class Watched(Record):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    def read(entry: Entry) -> Record:
        nonlocal most
        record = Watched(np.zeros((2, 2), np.uint8), ["x"], "s")
        alive.add(record)
        most = max(most, len(alive))
        return record

    entries = (Entry("train", str(number), "") for number in range(4 * ROW_GROUP))
    assert write_shard(tmp_path / "x.parquet", entries, read).kept == 4 * ROW_GROUP
    assert most <= ROW_GROUP + 1
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 4


# --- CROHME's bitmaps ---


@pytest.fixture
def offline(tmp_path: Path, inks: list[Ink]) -> Path:
    """A folder of the field's layout."""
    root = tmp_path / "offline"
    for split, numbers in (("train", range(5)), ("2014", range(5, 8))):
        (root / "data" / split / "img").mkdir(parents=True)
        lines = []
        for number in numbers:
            cv2.imwrite(str(root / "data" / split / "img" / f"101_w{number}.bmp"), render_ink(inks[number]))
            lines.append(f"101_w{number}\t{inks[number].label}\n")
        (root / "data" / split / "caption.txt").write_text("".join(lines))
    return root


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_crohme_offline_from_folder_and_zip(offline: Path, tmp_path: Path, inks: list[Ink]) -> None:
    prepare_dataset("crohme-offline", offline, tmp_path / "a")
    prepare_dataset("crohme-offline", zipped(offline), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    found = load_crohme(tmp_path / "a")
    assert {name: len(split) for name, split in found.items()} == {"train": 5, "test2014": 3}
    row = found["train"][2]
    assert (row["id"], row["latex"], row["ink"], row["source"]) == ("101_w2", inks[2].label, None, "expressmatch")
    assert np.array_equal(np.asarray(row["image"]), render_ink(inks[2]))


def test_published_labels_stay_as_they_are(offline: Path, tmp_path: Path) -> None:
    malformed = "x ^ { 2"
    captions = offline / "data" / "2014" / "caption.txt"
    captions.write_text(captions.read_text() + f"101_w5\t{malformed}\n")
    prepare_dataset("crohme-offline", offline, tmp_path / "out")
    with all_rows(tmp_path / "out", "test2014") as rows:
        assert [(row["id"], row["latex"]) for row in rows][-1] == ("101_w5#2", malformed)


def test_missing_and_damaged_bitmaps_are_reported(offline: Path, tmp_path: Path) -> None:
    (offline / "data" / "train" / "img" / "101_w0.bmp").unlink()
    (offline / "data" / "train" / "img" / "101_w1.bmp").write_bytes(b"BM nothing")
    captions = offline / "data" / "train" / "caption.txt"
    captions.write_text(captions.read_text() + "no label\n../../2014/img/101_w5\tx\n101_w2\t\\nonsense\n")
    report = prepare_dataset("crohme-offline", offline, tmp_path / "out", allow_skips=True)
    skipped = {skip["id"]: skip["kind"] for skip in report.splits["train"].skipped}
    assert str(tmp_path) not in (tmp_path / "out" / "skipped.jsonl").read_text()
    assert skipped == {
        "101_w0": "image",
        "101_w1": "image",
        "no label": "label",
        "../../2014/img/101_w5": "image",
        "101_w2#2": "label",
    }


def test_offline_reader_gives_the_same(offline: Path) -> None:
    assert [item.id for item in read_offline(zipped(offline), "test2014")] == ["101_w5", "101_w6", "101_w7"]
    with pytest.raises(OfflineError, match="2014, train"):
        read_offline(offline, "2016")
    assert [line.number for line in read_captions(offline / "data" / "train")] == [1, 2, 3, 4, 5]


def test_load_crohme_prepares_once(offline: Path, tmp_path: Path) -> None:
    first = load_crohme(offline)
    started = time.time_ns()
    assert load_crohme(offline)["train"][0]["latex"] == first["train"][0]["latex"]
    shards = list((tmp_path / "cache" / "abm_hf").rglob("data/*.parquet"))
    assert len(shards) == 2 and all(path.stat().st_mtime_ns < started for path in shards)
    with pytest.raises(FileNotFoundError):
        load_crohme(tmp_path / "nowhere")


# --- other sources ---


def test_mathwriting(tmp_path: Path, inks: list[Ink]) -> None:
    for folder in ("train", "valid", "synthetic"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        known = {"label": "{x\\over 2}", "normalizedLabel": r"\frac{x}{2}", "sampleId": "ab"}
        write_inkml(Ink(inks[0].strokes, annotations={}), tmp_path / "in" / folder / "ab.inkml")
        text = (tmp_path / "in" / folder / "ab.inkml").read_text()
        notes = "".join(f'<annotation type="{kind}">{value}</annotation>' for kind, value in known.items())
        (tmp_path / "in" / folder / "ab.inkml").write_text(text.replace("<trace ", f"{notes}<trace ", 1))
    prepare_dataset("mathwriting", tmp_path / "in", tmp_path / "out")
    found = load_crohme(tmp_path / "out")
    assert list(found) == ["train", "valid", "synthetic"]
    assert found["valid"][0]["latex"] == r"\frac { x } { 2 }"
    assert [found[split][0]["source"] for split in found] == ["mathwriting", "mathwriting", "mathwriting-synthetic"]
    assert found["train"][0]["ink"] is not None
    metadata = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert metadata["license"] == "cc-by-nc-sa-4.0"


def test_hme100k_photographs_take_the_fields_form(tmp_path: Path, inks: list[Ink]) -> None:
    (tmp_path / "in" / "train_images").mkdir(parents=True)
    drawn = render_ink(inks[0])
    photograph = cv2.resize(255 - drawn, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "in" / "train_images" / "train_0.jpg"), photograph // 2 + 90)
    cv2.imwrite(str(tmp_path / "in" / "train_images" / "train_1.jpg"), np.full((60, 90), 200, np.uint8))
    labels = "train_0.jpg\tx ^ 2 \\textcircled { 1 }\ntrain_1\ty\nmissing.jpg\tz\n"
    (tmp_path / "in" / "train_labels.txt").write_text(labels)
    report = prepare_dataset("hme100k", tmp_path / "in", tmp_path / "out", allow_skips=True)
    with all_rows(tmp_path / "out", "train") as rows:
        assert [(row["id"], row["latex"]) for row in rows] == [("train_0", r"x ^ { 2 } \textcircled { 1 }")]
        image = cv2.imdecode(np.frombuffer(rows[0]["image"]["bytes"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(image)) == {0, 255} and image[0].max() == 0
    assert image.shape[0] == pytest.approx(drawn.shape[0], rel=0.3)
    assert [(skip["id"], skip["kind"]) for skip in report.total.skipped] == [
        ("train_1", "image"),
        ("missing", "image"),
    ]


def test_pictures_become_what_the_image_processor_gives(tmp_path: Path, inks: list[Ink]) -> None:
    from abm_hf.image_processing_abm import ABMImageProcessor

    drawn = render_ink(inks[1])
    scan = cv2.GaussianBlur(cv2.resize(255 - drawn, None, fx=3, fy=3), (0, 0), 1.5) // 2 + 100
    processor = ABMImageProcessor()
    for name, picture in (("scan", scan), ("drawn", drawn), ("dark_on_light", 255 - drawn)):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), picture)
        expected = np.asarray(processor(str(path))["pixel_values"][0][0])
        image = read_crohme_style(path)
        assert np.array_equal(image / np.float32(255), expected[: image.shape[0], : image.shape[1]]), name
        assert np.array_equal(image, drawn) or name == "scan"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_imagefolder(tmp_path: Path, inks: list[Ink], kind: str) -> None:
    folder = tmp_path / "in"
    for name, ink in (("a.png", inks[0]), ("test/b.png", inks[1])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), render_ink(ink))
    rows = [{"file_name": "a.png", "latex": "a_1, b", "writer": "me"}, {"file_name": "test/b.png", "latex": "b"}]
    if kind == "csv":
        (folder / "metadata.csv").write_text('file_name,latex,writer\na.png,"a_1, b",me\ntest/b.png,b,\n')
    else:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_dataset("imagefolder", folder, tmp_path / "out")
    found = load_crohme(tmp_path / "out")
    assert list(found) == ["train", "test"]
    row = found["train"][0]
    assert (row["latex"], row["writer"], row["source"]) == ("a _ { 1 } , b", "me", "imagefolder")
    assert np.array_equal(np.asarray(row["image"]), render_ink(inks[0]))  # in the field's form already
    assert (found["test"][0]["id"], found["test"][0]["writer"]) == ("b", None)


def test_imagefolder_with_a_folder_for_each_split(tmp_path: Path, inks: list[Ink]) -> None:
    for split in ("train", "validation"):
        (tmp_path / "in" / split).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "in" / split / "a.png"), render_ink(inks[0]))
        (tmp_path / "in" / split / "metadata.jsonl").write_text('{"file_name": "a.png", "latex": "a"}\n')
    report = prepare_dataset("imagefolder", tmp_path / "in", tmp_path / "out")
    assert {name: split.kept for name, split in report.splits.items()} == {"train": 1, "validation": 1}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"file_name": "../secret.png", "latex": "x"}', "leads out"),
        ('{"file_name": "/etc/passwd", "latex": "x"}', "leads out"),
        ('{"file_name": "a.png", "latex": 3}', "line 1"),
        ('{"latex": "x"}', "has no column file_name; it has latex"),
        (
            '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png"}',
            "no column latex; it has file_name, text: rename",
        ),
        ('{"image": "a.png"}', "no column file_name and no latex; it has image"),
        ("[1]", "line 1"),
        ("{", "cannot be read"),
    ],
)
def test_imagefolder_metadata_is_checked(tmp_path: Path, metadata: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "metadata.jsonl").write_text(metadata)
    with pytest.raises(PrepareError, match=message):
        prepare_dataset("imagefolder", tmp_path / "in", tmp_path / "out")


def test_imagefolder_metadata_of_windows(tmp_path: Path, inks: list[Ink]) -> None:
    """Backslashes, spaces after the commas, a byte order mark and carriage returns."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "sub" / "a.png"), render_ink(inks[0]))
    (tmp_path / "in" / "metadata.csv").write_bytes(b'\xef\xbb\xbffile_name, latex\r\nsub\\a.png, "a, b"\r\n')
    prepare_dataset("imagefolder", tmp_path / "in", tmp_path / "out")
    with all_rows(tmp_path / "out", "train") as rows:
        assert [(row["id"], row["latex"]) for row in rows] == [("a", "a , b")]
    (tmp_path / "in" / "metadata.csv").write_text("file_name,latex\n..\\secret.png,a\n")
    with pytest.raises(PrepareError, match="leads out"):
        prepare_dataset("imagefolder", tmp_path / "in", tmp_path / "other")


def test_names_that_are_no_text_are_escaped(
    tree: Path, tmp_path: Path, inks: list[Ink], capsys: pytest.CaptureFixture
) -> None:
    """Bytes in the names of files and folders reach rows, report and the list of what was skipped as text."""
    folder = os.fsdecode(os.fsencode(tree) + b"/train/\xe9t\xe9")
    try:
        Path(folder).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    write_inkml(Ink(inks[0].strokes, f"$ {inks[0].label} $"), os.fsdecode(os.fsencode(folder) + b"/\xe9.inkml"))
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xe9.inkml")).write_text("<ink/>")
    assert command("crohme-inkml", "--input", tree, "--output", tmp_path / "out", "--allow-skips") == 0
    assert r"\xe9t\xe9 1" in capsys.readouterr().out
    with all_rows(tmp_path / "out", "train") as rows:
        assert [row["source"] for row in rows if row["id"] == r"\xe9"] == [r"\xe9t\xe9"]
    skipped = json.loads((tmp_path / "out" / "skipped.jsonl").read_text(encoding="utf-8"))
    assert (skipped["id"], skipped["file"]) == (r"bad\xe9", r"train/\xe9t\xe9/bad\xe9.inkml")
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["splits"]["train"]["read"] == 12


def test_a_label_that_is_no_text_is_skipped(tmp_path: Path, inks: list[Ink]) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), render_ink(inks[0]))
    lines = ['{"file_name": "a.png", "latex": "a"}', r'{"file_name": "a.png", "latex": "\udce9"}']
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(lines))
    report = prepare_dataset("imagefolder", tmp_path / "in", tmp_path / "out", allow_skips=True)
    assert (report.total.kept, report.reasons) == (1, {"label: no text": 1})


def test_a_wrong_segmentation_costs_no_row(tree: Path, tmp_path: Path) -> None:
    path = tree / "test2014" / "e10.inkml"
    group = "<traceGroup><annotation type='truth'>x</annotation><traceView traceDataRef='none'/></traceGroup></ink>"
    path.write_text(path.read_text().replace("</ink>", group))
    with pytest.warns(InkWarning, match="names trace 'none'"):
        report = prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    assert (report.total.kept, report.total.skipped) == (13, [])


def test_a_vocabulary_of_ones_own(tmp_path: Path, inks: list[Ink]) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), render_ink(inks[0]))
    (tmp_path / "in" / "metadata.csv").write_text("file_name,latex\na.png,a\na.png,\\aleph\na.png,b\n")
    (tmp_path / "tokens.txt").write_text("a\n\\aleph\n")
    report = prepare_dataset(
        "imagefolder", tmp_path / "in", tmp_path / "out", vocabulary=str(tmp_path / "tokens.txt"), allow_skips=True
    )
    assert (report.total.kept, report.reasons) == (2, {"label: b": 1})


# --- the Hub ---


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as server:
        yield server


def test_push_to_hub(hub: FakeHub, tree: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "prepare_dataset.py"
    options = ["crohme-inkml", "--input", str(tree), "--output", str(tmp_path / "out"), "--push-to-hub", "me/set"]
    # In processes of their own, as huggingface_hub and datasets read the address when they are imported.
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run([sys.executable, str(script), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["dataset", "me/set"]
    assert repository.made_with["visibility"] == "private"
    small = {"README.md", "report.json", "sizes.png", "skipped.jsonl"}  # and no notes
    shards = {f"data/{path.name}": path for path in (tmp_path / "out" / "data").iterdir()}
    assert set(repository.files) == small | set(shards)
    assert all(repository.files[name] == path.read_bytes() for name, path in shards.items())
    code = "import datasets; print({name: part['id'] for name, part in datasets.load_dataset('me/set').items()})"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "e10" in done.stdout and "'train'" in done.stdout and "'test2014'" in done.stdout


def test_a_refused_upload_is_an_error(hub: FakeHub, tree: Path, tmp_path: Path) -> None:
    hub.refuse = True
    prepare_dataset("crohme-inkml", tree, tmp_path / "out")
    for name, endpoint in (("me/set", hub.address), ("me/set/x", hub.address), ("me/set", "http://127.0.0.1:9")):
        with pytest.raises(PrepareError, match=f"the upload to {name} failed"):
            push_prepared(tmp_path / "out", name, endpoint=endpoint)


def test_only_a_finished_data_set_is_uploaded(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="no finished data set"):
        push_prepared(tmp_path, "me/set")


def test_nothing_is_uploaded_where_too_much_was_skipped(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("abm_hf.data.publish.push_prepared", lambda *args, **_: asked.append(args) or "address")
    options = ["crohme-inkml", "--input", tree, "--push-to-hub", "me/set", "--quiet"]
    assert command(*options, "--output", tmp_path / "whole") == 0
    break_one(tree)
    assert command(*options, "--output", tmp_path / "out") == 1
    assert [str(args[0]) for args in asked] == [str(tmp_path / "whole")]


# --- CROHME itself ---


def test_all_of_crohmes_ink_is_listed(crohme_inkml: Path) -> None:
    shards = plan_shards(prepare.make_source("crohme-inkml", crohme_inkml), 100_000)
    assert {shard.split: len(shard.entries) for shard in shards} == {"train": 8836, "test2013": 671, "test2014": 986}
    assert len({entry.id for entry in shards[0].entries}) == 8836


def test_crohmes_broken_files_are_reported(crohme_inkml: Path) -> None:
    source = prepare.make_source("crohme-inkml", crohme_inkml)
    broken = {"MfrDB0104": "ink", "MfrDB3088": "ink"}
    entries = [entry for entry in source.entries() if entry.id in broken or entry.id == "MfrDB0001"]
    statistics = ShardStatistics()
    with source.open() as read:
        kept = [_read_or_skip(entry, read, statistics) for entry in entries]
    assert sum(record is not None for record in kept) >= 1
    assert {skip["id"]: skip["kind"] for skip in statistics.skipped}.items() <= broken.items()
    assert "MfrDB3088" in {skip["id"] for skip in statistics.skipped}


def test_crohmes_ink_and_bitmaps_agree(crohme_inkml: Path, crohme_offline: Path) -> None:
    ink, bitmap = (
        prepare.make_source(name, path, convention=convention)
        for name, path, convention in (
            ("crohme-inkml", crohme_inkml, "abm"),
            ("crohme-offline", crohme_offline, "published"),
        )
    )
    chosen = {entry.id: entry for entry in ink.entries() if entry.split == "test2014"}
    with ink.open() as read_ink, bitmap.open() as read_bitmap:
        pairs = [
            (read_ink(chosen[entry.id]), read_bitmap(entry))
            for entry in bitmap.entries()
            if entry.split == "test2014" and entry.id in list(chosen)[::20]
        ]
    assert len(pairs) == 50
    assert all(np.array_equal(drawn.image, published.image) for drawn, published in pairs)
    assert sum(drawn.tokens == published.tokens for drawn, published in pairs) >= 49
