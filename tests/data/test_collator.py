"""Batches of tensors, and the reader of CROHME's offline images that feeds them."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from abm_hf.data.collator import ABMCollator, label_ids
from abm_hf.data.offline import OfflineError, read_offline, writer_group
from abm_hf.tokenization_abm import ABMTokenizer


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(1, 256, (height, width), dtype=np.uint8)


def test_images_and_labels_are_padded() -> None:
    first, second = picture(20, 70), picture(33, 10)
    batch = ABMCollator((32, 64))([{"image": first, "labels": [5, 6, 1]}, {"image": second, "labels": [1]}])
    assert batch["pixel_values"].shape == (2, 1, 64, 128) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].shape == (2, 64, 128) and batch["pixel_mask"].dtype == torch.bool
    assert torch.equal(batch["pixel_values"][0, 0, :20, :70], torch.from_numpy(first).float() / 255)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [1400, 330]
    assert (batch["pixel_values"][:, 0][~batch["pixel_mask"]] == 0).all()
    assert batch["labels"].tolist() == [[5, 6, 1], [1, -100, -100]]


def test_every_kind_of_example_gives_the_same_batch() -> None:
    image, tokenizer = picture(20, 30), ABMTokenizer()
    kinds = [
        {"image": image, "labels": tokenizer("x ^ { 2 }").input_ids},
        {"image": Image.fromarray(image), "latex": "x ^ { 2 }"},
        {"pixel_values": image.astype(np.float32) / 255, "latex": "x ^ { 2 }"},
        {"pixel_values": torch.from_numpy(image)[None] / 255, "labels": torch.tensor(tokenizer("x^{2}").input_ids)},
    ]
    batches = [ABMCollator((16, 32), tokenizer)([kind]) for kind in kinds]
    for batch in batches[1:]:
        for name, tensor in batches[0].items():
            assert torch.equal(batch[name], tensor), name


def test_labels_are_left_out_where_there_are_none() -> None:
    assert set(ABMCollator()([{"image": picture(4, 4)}])) == {"pixel_values", "pixel_mask"}


@pytest.mark.parametrize(
    "examples, message",
    [
        ([], "no examples"),
        ([{"labels": [1]}], "needs an image"),
        ([{"image": np.zeros((4, 4, 3), np.uint8)}], "convert it to grey"),
        ([{"image": picture(4, 4), "labels": [1]}, {"image": picture(4, 4)}], "others have none"),
    ],
)
def test_unusable_examples_are_refused(examples: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ABMCollator()(examples)


def test_unknown_tokens_are_named() -> None:
    with pytest.raises(ValueError, match=r"no token '\\\\hat', 'é'"), pytest.warns(UserWarning):
        label_ids(ABMTokenizer(), r"x \hat é")


def test_latex_in_any_spacing_and_spelling() -> None:
    collator, expected = ABMCollator(tokenizer=ABMTokenizer()), label_ids(ABMTokenizer(), r"x ^ { 2 } \leq 1")
    for latex in (r"x ^ { 2 } \leq 1", r"x^{2}\leq1", r"x^{2}\le\,1"):
        assert collator([{"image": picture(4, 4), "latex": latex}])["labels"].tolist() == [expected]


def bmp(image: np.ndarray) -> bytes:
    return cv2.imencode(".bmp", image)[1].tobytes()


def write_zip(path: Path, captions: str, images: dict[str, bytes], root: str = "data/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}train/caption.txt", captions)
        for name, content in images.items():
            archive.writestr(f"{root}train/img/{name}.bmp", content)
    return path


@pytest.mark.parametrize("root", ["", "data/"])
def test_offline_zip_and_folder_are_read_alike(tmp_path: Path, root: str) -> None:
    images = {"a": picture(12, 30), "b": picture(20, 10)}
    path = write_zip(tmp_path / "x.zip", "b\tx + 1\na\ty  =\t2\n", {k: bmp(v) for k, v in images.items()}, root)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    for source in (path, tmp_path / "folder"):
        items = read_offline(source, "train")
        assert [(item.id, item.latex) for item in items] == [("b", "x + 1"), ("a", "y = 2")]
        assert all(np.array_equal(item.image, images[item.id]) for item in items)


@pytest.mark.parametrize(
    "captions, images, message",
    [
        ("a x\n", {"a": b""}, "line 1: expected a name, a tab"),
        ("a\tx\nb\ty\n", {"a": bmp(picture(4, 4))}, r"there is no train/img/b\.bmp"),
        ("a\tx\n", {"a": b"BM nothing"}, "not an image"),
    ],
)
def test_a_broken_archive_is_explained(tmp_path: Path, captions: str, images: dict, message: str) -> None:
    with pytest.raises(OfflineError, match=message):
        read_offline(write_zip(tmp_path / "x.zip", captions, images))


def test_a_split_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", "a\tx\n", {"a": bmp(picture(4, 4))})
    with pytest.raises(OfflineError, match=r"no split 'test2014'.*it has train"):
        read_offline(path, "test2014")
    with pytest.raises(FileNotFoundError):
        read_offline(tmp_path / "y.zip")
    (tmp_path / "z.zip").write_bytes(b"no zip")
    with pytest.raises(OfflineError, match="zip file"):
        read_offline(tmp_path / "z.zip")


@pytest.mark.parametrize(
    "name, group",
    [
        ("200924-1331-237", "200924-1331"),
        ("formulaire004-equation047", "formulaire004"),
        ("101_Fabricio", "Fabricio"),
        ("36_miguel2", "miguel"),
        ("KME1G3_10_sub_12", "KME1G3_10"),
        ("TrainData2_9_sub_9", "TrainData2_9"),
        ("anything", "anything"),
    ],
)
def test_writers_are_told_from_names(name: str, group: str) -> None:
    assert writer_group(name) == group


def test_crohme_offline_is_read(crohme_offline: Path) -> None:
    items = read_offline(crohme_offline, "test2014")
    assert len(items) == 986
    assert all(set(np.unique(item.image)) <= {0, 255} for item in items[:50])
    groups = {writer_group(item.id) for item in read_offline(crohme_offline, "train")}
    assert 400 < len(groups) < 700
