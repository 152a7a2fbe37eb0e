"""Reading pictures at other sizes than their own, and at several."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from abm_hf import Ink, Recognizer
from abm_hf.cli.main import main
from abm_hf.evaluation.calibration import CalibrationArguments
from abm_hf.evaluation.evaluate import EvaluationArguments
from abm_hf.generation_abm import score_sequences
from abm_hf.inference.base import resize_picture
from abm_hf.reading_abm import read_formulas
from abm_hf.resizing_abm import resized
from abm_hf.synthetic.expressions import synthetic_ink
from abm_hf.training.arguments import ArgumentError

SCALES = (0.5, 0.85, 1.15, 1.3, 2.0)


@pytest.fixture(scope="module")
def recognizer(tiny_checkpoint: Path) -> Recognizer:
    return Recognizer(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def inks() -> list[Ink]:
    return [synthetic_ink(seed, max_tokens=12) for seed in range(3)]


@pytest.fixture(scope="module")
def inputs(recognizer: Recognizer, inks: list[Ink]) -> dict[str, Tensor]:
    return recognizer._batch([recognizer.prepare(ink) for ink in inks])


def _read(recognizer: Recognizer, inputs: dict[str, Tensor], **options: Any) -> list[list[Any]]:
    return read_formulas(
        recognizer.model, recognizer.processor.tokenizer, **inputs, **{"max_length": 12, "num_beams": 4, **options}
    )


@pytest.mark.parametrize("scale", SCALES)
def test_a_picture_in_a_batch_is_resized_as_alone_and_as_without_torch(scale: float) -> None:
    picture = np.zeros((45, 71), np.uint8)
    picture[2:-2, 2:-2] = 255 * (np.random.default_rng(0).random((41, 67)) > 0.7)
    alone = torch.from_numpy(picture / np.float32(255))[None, None]
    batch, mask = torch.zeros(2, 1, 96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    batch[0, 0, :45, :71], mask[0, :45, :71], mask[1] = alone, True, True
    expected, whole = resized(alone, None, scale)
    values, valid = resized(batch, mask, scale)
    assert whole is not None and whole.all() and valid is not None
    height, width = expected.shape[-2:]
    assert (height, width) == (int(45 * scale + 0.5), int(71 * scale + 0.5))
    torch.testing.assert_close(values[:1, :, :height, :width], expected, rtol=0, atol=1e-6)
    assert valid[0].sum() == height * width and valid[1].all()
    assert not values[0, :, height:].any() and not values[0, :, :, width:].any()
    np.testing.assert_allclose(resize_picture(picture, scale) / 255, expected[0, 0], atol=2e-5)


@pytest.mark.parametrize("two_way", [False, True])
def test_judging_at_the_same_size_again_changes_nothing(
    recognizer: Recognizer, inputs: dict[str, Tensor], two_way: bool
) -> None:
    once = _read(recognizer, inputs, two_way=two_way, top_k=3, scales=(1.0,))
    again = _read(recognizer, inputs, two_way=two_way, top_k=3, scales=(1.0, 1.0, 1.0))
    for one, other in zip(once, again, strict=True):
        assert [reading.tokens for reading in one] == [reading.tokens for reading in other]
        np.testing.assert_allclose([r.score for r in one], [r.score for r in other], rtol=1e-3)


def test_one_size_is_that_of_the_resized_picture(recognizer: Recognizer, inputs: dict[str, Tensor]) -> None:
    values, mask = resized(inputs["pixel_values"], inputs["pixel_mask"], 1.3)
    assert mask is not None
    assert _read(recognizer, inputs, scales=[1.3]) == _read(
        recognizer, {"pixel_values": values, "pixel_mask": mask}, scales=[1.0]
    )


@pytest.mark.parametrize("two_way", [False, True])
def test_several_sizes_decide_by_the_mean(recognizer: Recognizer, inputs: dict[str, Tensor], two_way: bool) -> None:
    """Each log-probability is the mean over sizes, that of two branches their weighted mean; the best mean wins."""
    model, tokenizer = recognizer.model, recognizer.processor.tokenizer
    scales = (1.0, 0.7, 1.4)
    branches = {"l2r": 0.7, "r2l": 0.3} if two_way else {"l2r": 1.0}
    options = {"two_way": two_way, "two_way_weight": 0.3 if two_way else None}
    found = _read(recognizer, inputs, top_k=4, scales=scales, **options)
    for index, readings in enumerate(found):
        assert len(readings) > 1
        for reading in readings:
            ids = torch.tensor([[*tokenizer.convert_tokens_to_ids(list(reading.tokens)), tokenizer.eos_token_id]])
            expected = 0.0
            for scale in scales:
                encoded = model.encoder(
                    *resized(inputs["pixel_values"][index : index + 1], inputs["pixel_mask"][index : index + 1], scale)
                )
                for direction, weight in branches.items():
                    with torch.no_grad():
                        expected += weight * float(score_sequences(model, encoded, ids, direction=direction).sum())
            assert reading.log_probability == pytest.approx(expected / len(scales), rel=1e-3)
        means = [reading.log_probability / (len(reading.tokens) + 1) for reading in readings]
        assert means == sorted(means, reverse=True)


def test_batches_change_nothing(recognizer: Recognizer, inks: list[Ink]) -> None:
    options: dict[str, Any] = {"num_beams": 3, "max_length": 12, "scales": (1.15, 0.8)}
    together = recognizer(inks, **options)
    for ink, result in zip(inks, together, strict=True):
        alone = recognizer(ink, **options)[0]
        assert alone.latex == result.latex and alone.score == pytest.approx(result.score, rel=1e-3)


def test_the_sizes_of_a_checkpoint(recognizer: Recognizer, inputs: dict[str, Tensor]) -> None:
    expected = _read(recognizer, inputs, scales=(1.3, 0.8))
    config = recognizer.model.generation_config
    config.reading_scales = [1.3, 0.8]
    try:
        assert _read(recognizer, inputs) == expected
    finally:
        del config.reading_scales
    assert _read(recognizer, inputs) == _read(recognizer, inputs, scales=(1.0,))


@pytest.mark.parametrize("scales", [(), (0.1,), (1.0, 5.0), 1.5, ("1",)])
def test_sizes_out_of_range(recognizer: Recognizer, inputs: dict[str, Tensor], scales: Any) -> None:
    with pytest.raises(ValueError, match="scales"):
        _read(recognizer, inputs, scales=scales)


def test_options_of_the_commands(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(Path(__file__).parents[1] / "examples" / "euler.png")
    options = ["recognize", picture, "--model", str(tiny_checkpoint), "--beams", "2", "--max-length", "8"]
    assert main([*options, "--scales", "1.2", "0.8"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main([*options, "--scales", "9"]) == 2
    assert "factors from 0.25 to 4" in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="factors"):
        EvaluationArguments(data="data", split="test", output_dir="out", scales=[0.0])
    with pytest.raises(ArgumentError, match="factors"):
        CalibrationArguments(data="data", split="test", output_dir="out", scales=[9.0])
