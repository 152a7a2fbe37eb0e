"""ABMProcessor: labels as the model takes them, nothing misspelt let through, saved and loaded with and without us."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from abm_hf.image_processing_abm import ABMImageProcessor, ImageInputError
from abm_hf.processing_abm import ABMProcessor
from abm_hf.tokenization_abm import ABMTokenizer

PROCESSOR = ABMProcessor()
PICTURE = np.zeros((60, 80), np.uint8)
PICTURE[20:40, 30:33] = PICTURE[20:23, 30:50] = 255


def test_pictures_and_labels() -> None:
    batch = PROCESSOR(images=[PICTURE, PICTURE], text=["x^{2}", "x"])
    assert list(batch) == ["pixel_values", "pixel_mask", "labels"] == PROCESSOR.model_input_names
    assert batch.pixel_values.shape[:2] == (2, 1) and batch.pixel_mask.shape == (2, *batch.pixel_values.shape[2:])
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [[30, 76, 58, 66, 111, 1], [30, 1, -100, -100, -100, -100]]


def test_either_alone() -> None:
    assert list(PROCESSOR(PICTURE)) == ["pixel_values", "pixel_mask"]
    assert PROCESSOR(text=r"\alpha").labels.tolist() == [[62, 1]]
    assert isinstance(PROCESSOR(PICTURE, text="x", return_tensors="np")["labels"], np.ndarray)


def test_options_reach_their_part() -> None:
    plain = PROCESSOR(PICTURE, do_normalize=False, pad_to_multiple_of=(1, 1), text="x", max_length=1, truncation=True)
    assert plain.pixel_values.shape == (1, 1, 60, 80)
    assert plain.labels.tolist() == [[1]]
    nested = PROCESSOR(
        PICTURE, text="x", images_kwargs={"do_normalize": False}, text_kwargs={"add_special_tokens": False}
    )
    assert nested.pixel_values.shape == (1, 1, 64, 128) and nested.labels.tolist() == [[30]]
    assert "intermediate" in PROCESSOR(PICTURE, return_intermediate=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": PICTURE}, TypeError, "'image': did you mean 'images'"),
        ({"images": PICTURE, "texts": "x"}, TypeError, "'texts': did you mean 'text'"),
        ({"images": PICTURE, "do_normalise": False}, TypeError, "did you mean 'do_normalize'"),
        ({"text": "x", "text_kwargs": {"maxlength": 3}}, TypeError, "did you mean 'max_length'"),
        ({"images": PICTURE, "images_kwargs": {"margn": 3}}, TypeError, "did you mean 'margin'"),
        ({"images": PICTURE, "zzz": 1}, TypeError, "Unknown option 'zzz'"),
        ({}, ValueError, "needs images, text, or both"),
        ({"text": []}, ValueError, "not empty"),
        ({"text": [3]}, ValueError, "list of strings"),
        ({"images": [PICTURE, PICTURE], "text": "x"}, ValueError, "2 images but 1 texts"),
        ({"images": np.zeros((60, 80), np.uint8)}, ImageInputError, "no ink"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PROCESSOR(**arguments)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        (r"x \to 3", r"x\rightarrow3"),
        (r"\left( x \right) \le 3", r"(x)\leq3"),
        (r"\left\{ x \right.", r"\{x"),
        (r"$\dfrac{1}{x}\,\quad a\ b$", r"\frac{1}{x}ab"),
        (r"\big|x\bigr\vert", "|x|"),
        (r"\lim\limits_{n\to\infty}", r"\lim\limits_{n\rightarrow\infty}"),
    ],
)
def test_labels_take_the_vocabularys_spelling(text: str, spelled: str, recwarn: pytest.WarningsRecorder) -> None:
    assert PROCESSOR.decode(PROCESSOR(text=text).labels[0], skip_special_tokens=True) == spelled
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "tokens"),
    [(r"x \to D", "D"), (r"\aleph + \mathrm{d} + D", r"\aleph \mathrm D"), ("a<pad>b", "<pad>"), ("<unk>", "<unk>")],
)
def test_labels_outside_the_vocabulary_are_refused_by_name(text: str, tokens: str) -> None:
    with pytest.raises(ValueError, match=f"the vocabulary lacks: {re.escape(tokens)}\\. .* abm_hf.normalize_latex"):
        PROCESSOR(images=PICTURE, text=["x", text])


def test_decoding_is_the_tokenizers() -> None:
    labels = PROCESSOR(text=["x^{2}", r"\alpha x"]).labels
    assert PROCESSOR.batch_decode(labels, skip_special_tokens=True) == ["x^{2}", r"\alpha x"]
    assert PROCESSOR.decode(labels[0], skip_special_tokens=True, compact=False) == "x ^ { 2 }"
    assert PROCESSOR.post_process_image_text_to_text(labels[1:, :3]) == [r"\alpha x"]


def test_save_and_load(tmp_path: Path) -> None:
    ABMProcessor(ABMImageProcessor(component_height=20), ABMTokenizer(compact=False)).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert stored["image_processor"]["component_height"] == 20
    loaded = ABMProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.component_height == 20
    assert loaded.decode([30, 76], skip_special_tokens=True) == "x ^"
    assert ABMImageProcessor.from_pretrained(tmp_path).component_height == 20


REMOTE = """
import sys
import numpy as np
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
picture = np.full((60, 80), 255, np.uint8)
picture[20:44, 30:36] = picture[20:26, 30:60] = 0
batch = processor(images=picture, text=r"\\alpha x")
assert batch.labels.tolist() == [[62, 30, 1]], batch.labels
assert batch.pixel_values.max() == 1
assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).decode([62, 30]) == r"\\alpha x"
assert AutoImageProcessor.from_pretrained(folder, trust_remote_code=True).margin == 12
assert "abm_hf" not in sys.modules
"""


def test_code_loads_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files import only each other and third parties, so the Hub's copies work where the package is not."""
    for part, auto_class in (
        (ABMProcessor, "AutoProcessor"),
        (ABMImageProcessor, "AutoImageProcessor"),
        (ABMTokenizer, "AutoTokenizer"),
    ):
        monkeypatch.setattr(part, "_auto_class", auto_class)  # as `register_for_auto_class`, for this test alone
    saved = tmp_path / "saved"
    ABMProcessor().save_pretrained(saved)
    assert (saved / "crohme_style_abm.py").is_file()
    clean = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(saved)], env=clean, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
