"""Pickled arrays: read whoever wrote them, refused whatever else they hold, and never run.

`ABM_HF_FUZZ_EXAMPLES=10000` runs the fuzz tests in full.
"""

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abm_hf.data.prepare import prepare_dataset
from abm_hf.data.safe_pickle import MAX_ARRAY_BYTES, PickleError, load_arrays
from abm_hf.data.source import PrepareError, SkipEntry
from abm_hf.data.wap import to_image

fuzz = settings(
    max_examples=int(os.environ.get("ABM_HF_FUZZ_EXAMPLES", "300")),
    deadline=2000,  # milliseconds for one input: a hang fails
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

RNG = np.random.default_rng(0)
ARRAYS = {
    "18_em_0": RNG.integers(0, 256, (1, 40, 90), np.uint8),
    "small": np.array([[0, 255], [7, 10]], np.uint8),
    "fortran": np.asfortranarray(RNG.integers(0, 256, (30, 50), np.uint8)),
    "mask": RNG.integers(0, 2, (20, 30)).astype(bool),
    "floats": RNG.random((9, 31)).astype(np.float32),
    "big_endian": RNG.integers(0, 256, (17, 23)).astype(">i4"),
    "empty": np.zeros((0, 3), np.uint8),
    "every_byte": np.arange(256, dtype=np.uint8).reshape(16, 16),
}


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    found = load_arrays(written(tmp_path, pickle.dumps(ARRAYS, protocol)))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array), name


def python2_protocol0(arrays: dict[str, np.ndarray]) -> bytes:
    """What Python 2's `cPickle.dump(features, file)` writes, which made the field's files."""
    lines = [b"(dp1\n"]
    for number, (name, array) in enumerate(arrays.items()):
        shape = b"".join(b"I%d\n" % size for size in array.shape)
        content = b"".join(
            bytes([c]) if 32 <= c < 127 and c not in b"\\'" else b"\\x%02x" % c for c in array.tobytes()
        )
        memo = 2 + 9 * number
        lines.append(
            b"S'%s'\np%d\ncnumpy.core.multiarray\n_reconstruct\np%d\n(cnumpy\nndarray\np%d\n(I0\ntp%d\nS'b'\np%d\ntRp%d\n"
            % (name.encode(), *range(memo, memo + 6))
            + b"(I1\n(%stcnumpy\ndtype\np%d\n(S'u1'\np%d\nI0\nI1\ntRp%d\n" % (shape, *range(memo + 6, memo + 9))
            + b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'%s'\ntbs" % content
        )
    return b"".join([*lines, b"."])


def python2_protocol2(arrays: dict[str, np.ndarray]) -> bytes:
    """The same with `-1` as protocol: byte strings of length and content, no unicode anywhere."""
    parts = [b"\x80\x02}q\x01("]
    for name, array in arrays.items():
        shape = b"".join(b"K" + bytes([size]) for size in array.shape)
        code = {2: b"\x86", 3: b"\x87"}[array.ndim]
        data = array.tobytes()
        parts += [b"U", bytes([len(name)]), name.encode(), b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"]
        parts += [b"K\x00\x85U\x01b\x87R(K\x01", shape, code, b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"]
        parts += [b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T", struct.pack("<I", len(data)), data, b"tb"]
    return b"".join([*parts, b"u."])


@pytest.mark.parametrize("dump", [python2_protocol0, python2_protocol2])
def test_arrays_of_python_2(tmp_path: Path, dump: Any) -> None:
    arrays = {name: ARRAYS[name] for name in ("18_em_0", "small", "every_byte")}
    data = dump(arrays)
    for name, array in pickle.loads(data, encoding="latin-1").items():  # the pickle is one, by Python's own judgement
        assert np.array_equal(array, arrays[name])
    found = load_arrays(written(tmp_path, data))
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_one_array_under_several_names(tmp_path: Path) -> None:
    array = ARRAYS["18_em_0"]
    found = load_arrays(written(tmp_path, pickle.dumps({"a": array, "b": array})))
    assert np.array_equal(found["a"], array) and np.array_equal(found["b"], array)


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "make",
    [
        lambda mark: Runs(os.system, f"touch {mark}"),
        lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Runs(open, str(mark), "w"),
        lambda mark: Runs(np.save, str(mark), np.zeros(3)),
    ],
)
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int, make: Any) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps({"a": ARRAYS["small"], "b": make(mark)}, protocol)
    with pytest.raises(PickleError, match=r"names (posix|nt|builtins|__builtin__|io|_io|numpy)\."):
        load_arrays(written(tmp_path, data))
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pkl"]


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ([ARRAYS["small"]], "instruction"),
        ({"a": 3}, "type int"),
        ({3: ARRAYS["small"]}, "key of type int"),
        ({"a": np.array([object()])}, "instruction"),
        ({"a": np.array(["text"])}, "'U4'"),
        ({"a": np.zeros(2, [("x", "u1")])}, "'V1'"),
        (OrderedDict(a=ARRAYS["small"]), "collections.OrderedDict"),
        (ARRAYS["small"], "not a dict"),
    ],
)
def test_other_things_are_refused(tmp_path: Path, thing: Any, message: str) -> None:
    with pytest.raises(PickleError, match=message):
        load_arrays(written(tmp_path, pickle.dumps(thing)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"not a pickle",
        b"}.trailing is ignored"[:1],
        b"(" * 200_000,
        b"N" + b"r\xff\xff\xff\x7f" + b".",  # Python's unpickler would reserve 16 GB for this
        b"B\xff\xff\xff\xff",
        b"\x8e" + b"\xff" * 8,
        b"}(X\x01\x00\x00\x00aK\x01u.",
        b"cnumpy\nndarray\n)R.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I9999999999\nt.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"P1\n.",
        b"\x82\x01.",
        b"i os\nsystem\n.",
        b"Pid\n.",
        b"X\x02\x00\x00\x00idQ.",  # a persistent id
        b"]q\x00.",
        b"}K\x01\x85K\x02s.",  # a tuple as key: its hash may be of any depth
        b")" + b"2\x86" * 80 + b".",  # a tuple of 2 ** 80 things
        b"cnumpy\nndarray\n}b.",
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1tR(K\x03X\x01\x00\x00\x00|N(tNtb.",
        b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.",  # 2 GB of zeros
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01)R(K\x01)K\x01\x89K\x01tb.",
    ],
    ids=range(24),
)
def test_crafted_files_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PickleError):
        load_arrays(written(tmp_path, data))


def test_a_shape_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.zeros((1, 16, 16), np.uint8)}, 2)
    assert data.count(b"K\x10K\x10") == 1
    for shape in (b"K\x10K\x11", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f", b"J\xff\xff\xff\xffK\x10"):
        with pytest.raises(PickleError):
            load_arrays(written(tmp_path, data.replace(b"K\x10K\x10", shape)))


def test_an_array_of_nothing_with_an_enormous_side_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.zeros((0, 16, 16), np.uint8)}, 2)
    side = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"
    with pytest.raises(PickleError, match="shape"):
        load_arrays(written(tmp_path, data.replace(b"K\x10K\x10", side + side)))


def test_an_enormous_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    with path.open("wb") as file:
        file.write(b"\x80\x05}X\x01\x00\x00\x00a\x8e" + struct.pack("<Q", MAX_ARRAY_BYTES + 1))
        file.truncate(MAX_ARRAY_BYTES + 100)  # a hole: nothing is written
    with pytest.raises(PickleError, match="allowed"):
        load_arrays(path)


def test_data_that_is_copied_again_and_again_is_refused(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000
    copies = b"(c_codecs\nencode\nq\x01" + text + b"q\x02X\x06\x00\x00\x00latin1q\x03" + b"h\x01h\x02h\x03\x86R" * 50
    with pytest.raises(PickleError, match="repeats its data"):
        load_arrays(written(tmp_path, b"\x80\x02" + copies + b"t."))


def test_a_state_for_a_function_is_refused(tmp_path: Path) -> None:
    """It could change this package for the next file."""
    data = b"cnumpy.core.multiarray\n_reconstruct\nN}X\x01\x00\x00\x00aK\x01s\x86b."
    with pytest.raises(PickleError, match="BUILD"):
        load_arrays(written(tmp_path, data))


GOOD = [pickle.dumps(ARRAYS, protocol) for protocol in (0, 2, 4, 5)] + [python2_protocol0({"a": ARRAYS["small"]})]


def read_like_a_stranger(path: Path, data: bytes) -> None:
    """Reads; anything but arrays or a PickleError is a failure."""
    path.write_bytes(data)
    try:
        found = load_arrays(path)
    except PickleError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


@fuzz
@given(data=st.binary(max_size=300))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    read_like_a_stranger(tmp_path / "x", data)


@fuzz
@given(
    good=st.sampled_from(GOOD),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 10**6),
)
def test_damaged_pickles(tmp_path: Path, good: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(good)
    for position, value in changes:
        data[position % len(data)] = value
    read_like_a_stranger(tmp_path / "x", bytes(data[: cut % (2 * len(data)) or None]))


OPCODES = st.sampled_from(
    [bytes([code]) for code in b"(.0NIJKMLSTUVXBC)t\x85\x86\x87}dsupqrghjcRb\x88\x89\x8a\x93\x94\x95"]
)
PIECES = st.one_of(
    OPCODES,
    st.sampled_from([b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"U\x02u1"]),
    st.sampled_from([b"K\x01", b"X\x01\x00\x00\x00a", b"C\x01\x00", b"(K\x03U\x01|NNNK\x00K\x00K\x00t", b"1\n"]),
)


@fuzz
@given(pieces=st.lists(PIECES, max_size=40))
def test_any_program(tmp_path: Path, pieces: list[bytes]) -> None:
    read_like_a_stranger(tmp_path / "x", b"".join(pieces) + b".")


# --- as a source ---


@pytest.mark.parametrize("layout", ["wap", "folders"])
def test_wap_gives_a_dataset(tmp_path: Path, layout: str) -> None:
    images = {f"18_em_{n}": np.zeros((1, 30, 40 + n), np.uint8) for n in range(3)}
    root = tmp_path / "in"
    for split, text in (
        ("train", "18_em_0\tx\n18_em_1\t\\frac { 1 } { 2 }\n18_em_2\ty\n"),
        ("2016", "18_em_0\ta b\n"),
    ):
        folder = root if layout == "wap" else root / split
        folder.mkdir(parents=True, exist_ok=True)
        pickle_name, captions = (
            ("offline-{}.pkl", "{}_caption.txt") if layout == "wap" else ("images.pkl", "caption.txt")
        )
        named = {name: image for name, image in images.items() if name in text}
        (folder / pickle_name.format(split)).write_bytes(pickle.dumps(named, 2))
        (folder / captions.format(split)).write_text(text)
    report = prepare_dataset("wap", root, tmp_path / "out")
    assert {name: split.kept for name, split in report.splits.items()} == {"train": 3, "test2016": 1}
    rows = pq.read_table(tmp_path / "out" / "data" / "train-00000-of-00001.parquet").to_pylist()
    assert [(row["id"], row["latex"], row["width"], row["writer"]) for row in rows] == [
        ("18_em_0", "x", 40, "18"),
        ("18_em_1", r"\frac { 1 } { 2 }", 41, "18"),
        ("18_em_2", "y", 42, "18"),
    ]


def test_captions_and_arrays_without_each_other_are_reported(tmp_path: Path) -> None:
    (tmp_path / "offline-train.pkl").write_bytes(
        pickle.dumps(
            {"a": np.zeros((1, 4, 4), np.uint8), "b": np.zeros((1, 4, 4), np.uint8), "c": np.zeros((2, 3, 4))}
        )
    )
    (tmp_path / "train_caption.txt").write_text("a\tx\nmissing\ty\nc\tz\n")
    report = prepare_dataset("wap", tmp_path, tmp_path / "out", allow_skips=True)
    assert {skip["id"]: skip["kind"] for skip in report.total.skipped} == {
        "missing": "image",
        "c": "image",
        "b": "label",
    }


def test_a_malicious_pickle_stops_the_preparation(tmp_path: Path) -> None:
    (tmp_path / "offline-train.pkl").write_bytes(
        pickle.dumps({"a": Runs(os.system, "touch " + str(tmp_path / "mark"))})
    )
    (tmp_path / "train_caption.txt").write_text("a\tx\n")
    with pytest.raises(PrepareError, match=r"names posix\.system"):
        prepare_dataset("wap", tmp_path, tmp_path / "out")
    assert not (tmp_path / "mark").exists()


def test_a_pickle_without_captions_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "offline-train.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(PrepareError, match=r"train_caption\.txt"):
        prepare_dataset("wap", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[[0, 255]]], np.uint8), [[0, 255]]),
        (np.array([[[0], [9]], [[1], [2]]], np.int64), [[0, 9], [1, 2]]),
        (np.array([[0.0, 1.0, 0.5]], np.float32), [[0, 255, 128]]),
        (np.array([[0.0, 200.0]]), [[0, 200]]),
        (np.array([[True, False]]), [[255, 0]]),
    ],
)
def test_images_of_any_numbers(array: np.ndarray, expected: list) -> None:
    image = to_image(array)
    assert image.dtype == np.uint8 and image.tolist() == expected


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 4, 5)), np.zeros(4), np.zeros((0, 3)), np.array([[np.nan]]), np.array([[300]]), np.array([[-1]])],
)
def test_what_is_no_image(array: np.ndarray) -> None:
    with pytest.raises(SkipEntry):
        to_image(array)
