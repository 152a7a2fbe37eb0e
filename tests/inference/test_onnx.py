"""ONNX: the same answers as PyTorch, without importing it, and one clear line for each kind of damage."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import abm_hf
from abm_hf import ABMOnnxModel, Ink, Recognition, Recognizer
from abm_hf.cli.main import main
from abm_hf.data.offline import read_offline
from abm_hf.hub.onnx_export import export_onnx
from abm_hf.image_processing_abm import ImageInputError
from abm_hf.inference.base import pad_images
from abm_hf.inference.loading import load_recognizer
from abm_hf.inference.onnx_files import checkpoint_with_onnx
from abm_hf.ink.rendering import render_ink
from abm_hf.modeling_abm import ABMForConditionalGeneration
from abm_hf.pretrained import CheckpointError
from abm_hf.processing_abm import ABMProcessor
from abm_hf.synthetic.expressions import synthetic_ink


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(tiny_checkpoint, tmp_path_factory.mktemp("onnx"), "float32")


@pytest.fixture(scope="module")
def onnx_model(exported: Path) -> ABMOnnxModel:
    return ABMOnnxModel(exported, threads=1)


@pytest.fixture(scope="module")
def recognizer(tiny_checkpoint: Path) -> Recognizer:
    return Recognizer(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def inks() -> list[Ink]:
    return [synthetic_ink(seed, max_tokens=20) for seed in range(6)]


def _assert_same(actual: Sequence[Recognition], expected: Sequence[Recognition]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert [found.tokens for found in one.alternatives] == [found.tokens for found in other.alternatives]
        assert (one.latex, one.tokens) == (other.latex, other.tokens)
        for left, right in zip(one.alternatives, other.alternatives, strict=True):
            assert left.score == pytest.approx(right.score, rel=1e-3) and left.finished == right.finished
            np.testing.assert_allclose(left.token_scores, right.token_scores, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 1, "grammar": False},
        {"num_beams": 4, "top_k": 3, "rescore": False},
        {"num_beams": 3, "grammar": False, "top_k": 2},
        {"num_beams": 3, "top_k": 3},
        {"num_beams": 1, "rescore": True},
        {"num_beams": 2, "max_length": 3},
        {"num_beams": 2, "rescoring_weight": 0.3},
        {"num_beams": 4, "length_penalty": 0.5, "top_k": 4},
        {"num_beams": 3, "direction": "r2l", "top_k": 2},
    ],
    ids=str,
)
def test_the_same_answers_as_torch(
    onnx_model: ABMOnnxModel, recognizer: Recognizer, inks: list[Ink], options: dict[str, int]
) -> None:
    options = {"max_length": 14, "batch_size": 4, **options}
    _assert_same(onnx_model(inks, **options), recognizer(inks, **options))  # type: ignore[arg-type]


def test_crohme_is_read_as_torch_reads_it(crohme_offline: Path, tmp_path: Path) -> None:
    """The packaged checkpoint on every n-th image of the 2014 test."""
    every = int(os.environ.get("ABM_HF_CROHME_EVERY", 0))
    if not every:
        pytest.skip("a minute or more: set ABM_HF_CROHME_EVERY=5 to compare 198 images")
    pictures = [item.image for item in read_offline(crohme_offline, "2014")[::every]]
    model = ABMOnnxModel(export_onnx(None, tmp_path, "float32"))
    for beams in (1, 10):
        _assert_same(model(pictures, num_beams=beams), Recognizer(device="cpu")(pictures, num_beams=beams))


def test_any_picture_and_any_order(onnx_model: ABMOnnxModel, recognizer: Recognizer, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (310, 150), (240, 235, 220))
    ImageDraw.Draw(image).line([(30, 40), (220, 100), (60, 110)], fill=(20, 30, 90), width=5)
    image.save(tmp_path / "photo.jpg")
    inputs = [image, tmp_path / "photo.jpg", np.asarray(image), (tmp_path / "photo.jpg").read_bytes()]
    together = onnx_model(inputs, num_beams=2, max_length=8)
    _assert_same(together, recognizer(inputs, num_beams=2, max_length=8))
    single = onnx_model.recognize(image, num_beams=2, max_length=8)
    assert isinstance(single, Recognition) and single.latex == together[0].latex


def test_bad_pictures(onnx_model: ABMOnnxModel, inks: list[Ink], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    results = onnx_model([inks[0], tmp_path / "text.png"], num_beams=1, max_length=6, errors="return")
    assert results[0].latex is not None and "text.png" in str(results[1].error)
    with pytest.raises(ImageInputError, match=r"text\.png"):
        onnx_model(tmp_path / "text.png")


def test_the_encoder_in_8_bits(exported: Path, tiny_checkpoint: Path, inks: list[Ink], tmp_path: Path) -> None:
    import onnx

    folder = export_onnx(tiny_checkpoint, tmp_path / "int8", "int8")
    graph = onnx.load(folder / "onnx" / "encoder.onnx").graph
    integers = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert weights and set(weights) <= dequantized and len(integers) >= len(weights)
    floats, quantized = ABMOnnxModel(exported), ABMOnnxModel(folder)
    image = render_ink(inks[0])
    encoded = [
        model.engine.encode(*pad_images([image], model.pad_to_multiple_of))["values"] for model in (floats, quantized)
    ]
    assert 0 < np.abs(encoded[0] - encoded[1]).mean() < 0.1 * np.abs(encoded[0]).mean()
    assert len(quantized(inks, num_beams=2, max_length=8)) == len(inks)


def test_recognizing_imports_no_torch(exported: Path, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("L", (200, 80), 255)
    ImageDraw.Draw(image).line([(20, 20), (150, 60)], fill=0, width=3)
    image.save(tmp_path / "formula.png")
    arguments = ["recognize", str(tmp_path / "formula.png"), "--model", str(exported)]
    code = (
        "import sys; from abm_hf.cli.main import main; "
        f"code = main({[*arguments, '--max-length', '8']!r}); "
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_an_export_beside_the_weights_is_used_while_it_belongs_to_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="abm-hf export onnx"):
        checkpoint_with_onnx(folder)
    assert isinstance(load_recognizer(folder, "cpu"), Recognizer)
    export_onnx(folder, encoder="float32")
    assert isinstance(load_recognizer(folder, "cpu"), ABMOnnxModel)
    assert isinstance(load_recognizer(folder, "cpu", engine="torch"), Recognizer)
    model = ABMForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.stem.weight.mul_(1.5)
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="changed"):
        load_recognizer(folder, "cpu", engine="onnx")
    assert isinstance(load_recognizer(folder, "cpu"), Recognizer)


def test_the_packaged_checkpoint_comes_with_its_export() -> None:
    assert isinstance(load_recognizer(device="cpu"), ABMOnnxModel)


def test_an_unknown_engine_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="auto, onnx or torch"):
        load_recognizer(exported, engine="tensorrt")  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["truncated", "no encoder", "no step", "no config", "no tokenizer", "nothing"])
def test_damaged_folders(exported: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(exported, tmp_path / "damaged")
    match damage:
        case "truncated":
            step = folder / "onnx" / "step_l2r.onnx"
            step.write_bytes(step.read_bytes()[:3000])
        case "nothing":
            shutil.rmtree(folder)
        case _:
            name = {"encoder": "onnx/encoder.onnx", "step": "onnx/step_r2l.onnx", "tokenizer": "tokenizer.json"}
            (folder / name.get(damage[3:], "config.json")).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        ABMOnnxModel(folder)
    capsys.readouterr()
    picture = tmp_path / "formula.png"
    picture.touch()
    assert main(["recognize", str(picture), "--engine", "onnx", "--model", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1, captured.err


def test_command(exported: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "onnx", "--output", str(tmp_path / "out"), "--model", str(tmp_path / "missing")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "file").write_text("")
    assert main(["export", "onnx", "--output", str(tmp_path / "file"), "--model", str(tiny_checkpoint)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("direction", ["l2r", "r2l"])
def test_the_same_explanation_as_torch(
    onnx_model: ABMOnnxModel, recognizer: Recognizer, inks: list[Ink], direction: str
) -> None:
    tokens = ["x", "+", "1"]
    one, other = (model.explain(inks[0], direction, tokens) for model in (onnx_model, recognizer))
    assert one.tokens == other.tokens == tuple(tokens if direction == "l2r" else tokens[::-1])
    np.testing.assert_allclose(one.token_scores, other.token_scores, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


def test_a_model_of_one_branch_refuses_to_rescore(tiny_checkpoint: Path, inks: list[Ink], tmp_path: Path) -> None:
    ABMForConditionalGeneration.from_pretrained(tiny_checkpoint, directions=("l2r",)).save_pretrained(tmp_path / "one")
    ABMProcessor.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "one")
    one = ABMOnnxModel(export_onnx(tmp_path / "one", encoder="float32"))
    with pytest.raises(ValueError, match="no r2l"):
        one(inks, rescore=True, max_length=8)
    assert one(inks, max_length=8)[0].error is None


def test_exported_name() -> None:
    assert abm_hf.ABMOnnxModel is ABMOnnxModel
