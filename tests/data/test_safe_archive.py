"""Archives that were made to do harm are refused, by name, before anything in them is read."""

import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from abm_hf.data import safe_archive
from abm_hf.data.offline import OfflineError, open_offline, read_captions, read_offline
from abm_hf.data.prepare import prepare_dataset
from abm_hf.data.safe_archive import ArchiveError, open_zip
from abm_hf.data.source import PrepareError


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return path


def test_an_honest_zip_opens(tmp_path: Path) -> None:
    with open_zip(zip_of(tmp_path / "a.zip", {"data/train/caption.txt": b"a\tb"})) as archive:
        assert archive.read("data/train/caption.txt") == b"a\tb"


@pytest.mark.parametrize("name", ["../evil", "data/../../evil", "/etc/evil", "C:/evil", "data\\..\\evil", ".."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "a.zip", {"data/train/caption.txt": b"", name: b"x"})
    with pytest.raises(ArchiveError, match=r"evil|\.\."):
        open_zip(path)
    with pytest.raises(PrepareError, match=r"points outside|another path"):
        prepare_dataset("crohme-offline", path, tmp_path / "out")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["a.zip"]


def test_a_large_file_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("data/train/caption.txt", "w") as file,
    ):
        for _ in range(300):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(ArchiveError, match="would unpack to 314572800 bytes"):
        open_zip(path)
    with pytest.raises(OfflineError, match="would unpack"):
        read_offline(path)


def test_many_small_files_of_nothing_are_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path / "a.zip", {f"data/{n}": bytes(2**20) for n in range(20)})
    open_zip(path).close()  # small enough to be left alone
    monkeypatch.setattr(safe_archive, "FREE_BYTES", 10 * 2**20)
    with pytest.raises(ArchiveError, match="zip bomb"):
        open_zip(path)
    monkeypatch.setattr(safe_archive, "MAX_FILES", 19)
    with pytest.raises(ArchiveError, match="20 files"):
        open_zip(path)


def test_a_file_that_lies_about_its_size_gives_no_more(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"data/train/caption.txt": bytes(2**20)})
    data = path.read_bytes().replace(struct.pack("<I", 2**20), struct.pack("<I", 10))
    path.write_bytes(data)
    with pytest.raises(OfflineError), open_offline(path) as root:
        list(read_captions(root / "data" / "train"))


def test_links_and_rare_compressions_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("data/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match="is a link"):
        open_zip(tmp_path / "a.zip")
    with pytest.raises(ArchiveError, match="pack the archive again"):
        open_zip(zip_of(tmp_path / "b.zip", {"a": b"x"}, zipfile.ZIP_LZMA))


def test_damaged_archives_are_errors(tmp_path: Path) -> None:
    good = zip_of(tmp_path / "a.zip", {"data/train/caption.txt": b"a\tb\n" * 50, "data/train/img/a.bmp": b"x" * 99})
    data = good.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(200):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 1 + trial % 4):
            damaged[position] = rng.integers(256)
        (tmp_path / "b.zip").write_bytes(damaged[: rng.integers(1, len(data) + 1)] if trial % 3 == 0 else damaged)
        with pytest.raises(OfflineError):  # even undamaged, "a" is no image
            read_offline(tmp_path / "b.zip")
