"""`recognize` and the pipeline: every kind of input, batches, n-best, errors in their place."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import GeneratorType
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import abm_hf
from abm_hf import Ink, Recognizer, write_inkml
from abm_hf.decoding_abm import DecodingOptions
from abm_hf.image_processing_abm import ImageInputError
from abm_hf.inference.generation import score_sequences
from abm_hf.torch_engine_abm import recognize_images


@pytest.fixture(scope="module")
def recognizer(tiny_checkpoint: Path) -> Recognizer:
    return Recognizer(tiny_checkpoint, device="cpu")


def _drawing(width: int = 200, height: int = 80, seed: int = 0) -> Image.Image:
    image = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(image)
    points = np.random.default_rng(seed).integers(12, (width - 12, height - 12), (6, 2))
    draw.line([tuple(point) for point in points.tolist()], fill=0, width=3)
    return image


def test_every_kind_of_input_gives_the_same_answer(recognizer: Recognizer, tmp_path: Path) -> None:
    image = _drawing()
    image.save(tmp_path / "formula.png")
    array = np.asarray(image)
    inputs = [image, array, torch.from_numpy(array.copy()), str(tmp_path / "formula.png"), tmp_path / "formula.png"]
    inputs += [(tmp_path / "formula.png").read_bytes(), io.BytesIO((tmp_path / "formula.png").read_bytes())]
    results = recognizer(inputs, num_beams=2, max_length=12)
    assert len({result.latex for result in results}) == 1
    assert all(0 <= result.score <= 1 and result.error is None for result in results)
    assert all(np.array_equal(result.image, results[0].image) for result in results)


def test_a_batch_as_an_array(recognizer: Recognizer) -> None:
    together = np.stack([np.asarray(_drawing(seed=seed)) for seed in range(3)])
    expected = [result.latex for result in recognizer(list(together), num_beams=2, max_length=12)]
    for batch in (together[:, None], torch.from_numpy(together.copy())[:, None], together[..., None]):
        assert [result.latex for result in recognizer(batch, num_beams=2, max_length=12)] == expected
    with pytest.raises(ValueError, match="errors must be 'raise' or 'return'"):
        recognizer(_drawing(), errors="ignore")
    with pytest.raises(ImageInputError, match="2 images in the place of one"):
        recognizer([[_drawing(), _drawing()]])


def test_ink_and_inkml(recognizer: Recognizer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ink = Ink(strokes=tuple(np.cumsum(rng.normal(size=(20, 2)), axis=0) * 10 for _ in range(3)))
    write_inkml(ink, tmp_path / "formula.inkml")
    content = (tmp_path / "formula.inkml").read_bytes()
    inputs = [ink, tmp_path / "formula.inkml", content, io.BytesIO(content)]
    drawn, *read = recognizer(inputs, num_beams=1, max_length=12)
    assert {result.latex for result in read} == {drawn.latex} and drawn.image is not None and drawn.image.max() == 255


def test_order_and_batching_change_nothing(recognizer: Recognizer) -> None:
    images = [_drawing(60 + 37 * (seed % 4), 50 + 23 * (seed % 3), seed) for seed in range(7)]
    alone = [recognizer(image, num_beams=3, max_length=15)[0] for image in images]
    together = recognizer(images, num_beams=3, max_length=15, batch_size=4)
    assert [result.latex for result in together] == [result.latex for result in alone]
    np.testing.assert_allclose([r.score for r in together], [r.score for r in alone], rtol=1e-3)


def test_n_best(recognizer: Recognizer) -> None:
    result = recognizer(_drawing(), num_beams=4, top_k=4, max_length=12, rescore=False)[0]
    scores = [found.score for found in result.alternatives]
    texts = [found.latex for found in result.alternatives]
    assert scores == sorted(scores, reverse=True) and len(set(texts)) == len(texts) > 1
    assert (result.latex, result.score) == (texts[0], scores[0])
    assert sum(scores) <= 1 + 1e-6, "probabilities of different answers"
    for found in result.alternatives:
        assert len(found.tokens) == len(found.token_scores)
        assert found.score <= np.prod(found.token_scores) + 1e-9


def test_scores_are_those_of_the_model(recognizer: Recognizer) -> None:
    """The product of the probabilities that a plain teacher-forced pass gives."""
    result = recognizer(_drawing(), num_beams=1, grammar=False, max_length=8)[0]
    tokens = recognizer.processor.tokenizer.convert_tokens_to_ids(list(result.tokens))
    inputs = recognizer.processor(images=_drawing())
    with torch.no_grad():
        logits = recognizer.model(**inputs, decoder_input_ids=torch.tensor([[0, *tokens]])).logits
    probabilities = logits.softmax(-1)[0]
    expected = [float(probabilities[step, token]) for step, token in enumerate(tokens)]
    np.testing.assert_allclose(result.token_scores, expected, rtol=1e-4)


@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("num_beams, grammar", [(1, True), (4, True), (3, False)])
def test_the_search_and_a_second_pass_give_the_same_scores(
    recognizer: Recognizer, direction: str, num_beams: int, grammar: bool
) -> None:
    """For pictures that are finished at different steps, and for hypotheses that are cut off."""
    model, tokenizer = recognizer.model, recognizer.processor.tokenizer
    pixels = torch.rand(3, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    top_k = 1 if num_beams == 1 else num_beams
    options = DecodingOptions(
        direction=direction, num_beams=num_beams, top_k=top_k, max_length=9, grammar=grammar, rescore=False
    )
    for index, hypotheses in enumerate(recognize_images(model, tokenizer, pixels, options=options)):
        encoded = model.encoder(pixels[index : index + 1])
        assert hypotheses
        for found in hypotheses:
            ids = tokenizer.convert_tokens_to_ids(list(found.tokens)) + [tokenizer.eos_token_id] * found.finished
            scored = score_sequences(model, encoded, torch.tensor([ids]), direction=direction)[0]
            np.testing.assert_allclose(found.token_scores, scored[: len(found.tokens)].exp(), rtol=1e-4, atol=1e-6)
            assert found.log_probability == pytest.approx(float(scored.sum()), abs=1e-4)


def test_a_bad_image_among_good_ones(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    blank = Image.new("L", (100, 60), 255)
    inputs = [_drawing(), tmp_path / "text.png", blank, _drawing(seed=1)]
    results = recognizer(inputs, num_beams=1, max_length=8, errors="return")
    assert [result.error is None for result in results] == [True, False, False, True]
    assert results[1].latex is None and "text.png" in str(results[1].error)
    with pytest.raises(ImageInputError):
        recognizer(inputs, num_beams=1, max_length=8)


def test_the_one_liner(tiny_checkpoint: Path) -> None:
    one = abm_hf.recognize(_drawing(), model=tiny_checkpoint, num_beams=1, max_length=8)
    many = abm_hf.recognize([_drawing(), _drawing()], model=tiny_checkpoint, num_beams=1, max_length=8)
    assert isinstance(many, list) and one.latex == many[0].latex == many[1].latex  # type: ignore[union-attr]


def test_explanation(recognizer: Recognizer) -> None:
    for direction in ("l2r", "r2l"):
        explanation = recognizer.explain(_drawing(), direction)
        answer = recognizer(_drawing())[0]
        assert explanation.tokens == answer.tokens[:: 1 if direction == "l2r" else -1], (
            "what was answered is explained"
        )
        steps, rows, columns = explanation.attention.shape
        assert steps == len(explanation.tokens) == len(explanation.token_scores)
        assert (rows, columns) == tuple(-(-side // explanation.stride) for side in explanation.image.shape)
        np.testing.assert_allclose(explanation.attention.sum((1, 2)), 1, rtol=1e-4)


def test_pipeline(tiny_checkpoint: Path, recognizer: Recognizer) -> None:
    recognizer_pipeline = pipeline("image-to-latex", model=str(tiny_checkpoint), trust_remote_code=True)
    images = [_drawing(100 + 40 * seed, 60 + 10 * seed, seed) for seed in range(3)]
    expected = [result.latex for result in recognizer(images, num_beams=2, max_length=10)]
    answers = recognizer_pipeline(images, batch_size=2, num_beams=2, max_length=10)
    assert [answer[0]["latex"] for answer in answers] == expected
    single = recognizer_pipeline(images[0], num_beams=2, max_length=10)
    assert single == [{"latex": expected[0], "score": pytest.approx(answers[0][0]["score"], rel=1e-3)}]
    assert len(recognizer_pipeline(images[0], num_beams=3, top_k=3, max_length=10)) > 1
    assert recognizer_pipeline(images[0], num_beams=1, max_length=10, min_score=1.1)[0]["latex"] is None
    streamed = recognizer_pipeline((image for image in images), num_beams=2, max_length=10)
    assert [answer[0]["latex"] for answer in streamed] == expected
    options = {"num_beams": 2, "max_length": 10}
    weighed = [recognizer_pipeline(images[0], **options, rescoring_weight=w)[0]["score"] for w in (0.1, 0.9)]
    assert weighed[0] != weighed[1]
    with pytest.raises(TypeError, match="beams"):
        recognizer_pipeline(images[0], beams=3)
    with pytest.raises(ValueError, match="rescoring_weight"):
        recognizer_pipeline(images[0], rescoring_weight=2.0)
    unsure = pipeline("image-to-latex", model=str(tiny_checkpoint), trust_remote_code=True, min_score=1.1, num_beams=1)
    assert unsure(images[0], max_length=10)[0]["latex"] is None, "options count when they are given at construction"


def test_columns_and_prompts(tiny_checkpoint: Path, recognizer: Recognizer) -> None:
    """What people hand to a pipeline: columns of data sets, data sets of torch, tuples, arrays, generators."""
    reader = pipeline("image-to-latex", model=str(tiny_checkpoint), trust_remote_code=True)
    images = [_drawing(seed=seed) for seed in range(3)]
    rows = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    options = {"num_beams": 1, "max_length": 8}
    expected = [result.latex for result in recognizer(images, **options)]
    collections = [rows["image"], tuple(images), np.stack([np.asarray(image) for image in images])[..., None]]
    lazy = [rows.to_iterable_dataset()["image"], KeyDataset(rows, "image"), (image for image in images)]
    for given in (*collections, *lazy):
        for size in (1, 2):
            if isinstance(given, GeneratorType):
                given = (image for image in images)
            answers = reader(given, batch_size=size, **options)
            assert isinstance(answers, list) == any(given is one for one in collections), type(given)
            assert [answer[0]["latex"] for answer in answers] == expected, type(given)
    for given in (rows["image"], KeyDataset(rows, "image"), (image for image in images), tuple(images)):
        assert [result.latex for result in recognizer(given, **options)] == expected
    assert reader(images=images[0], **options)[0]["latex"] == expected[0]
    assert reader([], **options) == reader((), **options) == []


def test_the_time_of_a_batch_is_shared_by_size(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(images: Sequence[np.ndarray], options: DecodingOptions) -> list[list[Any]]:
        clock[0] += 8.0
        return [[] for _ in images]

    clock = [0.0]
    monkeypatch.setattr("abm_hf.inference.base.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(recognizer, "prepare", lambda image: image)
    monkeypatch.setattr(recognizer, "decode", decode)
    small, large = recognizer([np.zeros((10, 10), np.uint8), np.zeros((10, 30), np.uint8)])
    assert (small.milliseconds, large.milliseconds) == (2000, 6000)


def test_rescoring_is_the_default_with_beams(recognizer: Recognizer) -> None:
    images = [_drawing(seed=seed) for seed in range(2)]
    options = {"num_beams": 3, "top_k": 3, "max_length": 10}
    default, rescored = (recognizer(images, **options, **more) for more in ({}, {"rescore": True}))
    assert [r.alternatives for r in default] == [r.alternatives for r in rescored]
    alone = recognizer(images, **options, rescore=False)
    assert [r.alternatives for r in default] != [r.alternatives for r in alone]
    for result in default:
        scores = [found.score for found in result.alternatives]
        assert scores == sorted(scores, reverse=True) and 0 < scores[0] <= 1
    greedy = {"num_beams": 1, "max_length": 10}
    assert recognizer(images, **greedy)[0].score == recognizer(images, **greedy, rescore=False)[0].score


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rescoring_weight": 2.0}, "from 0"),
        ({"rescoring_weight": 0.5, "rescore": False}, "no effect"),
        ({"direction": "r2l", "rescore": True}, "left to right"),
        ({"direction": "up"}, "'l2r' or 'r2l'"),
        ({"max_time": -1.0}, "seconds"),
        ({"num_beams": 2.5}, "whole number"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingOptions(**options)


def test_the_generation_config_gives_the_defaults(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num_beams": 3, "max_length": 7, "length_penalty": 0.5, "rescoring_weight": 0.1, "max_time": 9.0}
    resolved = DecodingOptions().resolve(settings, ("l2r", "r2l"))
    assert vars(resolved).items() >= settings.items() and resolved.rescore
    assert DecodingOptions(num_beams=4).resolve(settings, ("l2r", "r2l")).num_beams == 4
    assert not DecodingOptions().resolve(settings, ("l2r",)).rescore
    monkeypatch.setattr(recognizer.model.generation_config, "max_length", 4)
    assert len(recognizer(_drawing())[0].tokens) <= 2
    with pytest.raises(TypeError, match="beams"):
        recognizer(_drawing(), beams=3)


def test_only_well_formed_latex(recognizer: Recognizer) -> None:
    from abm_hf.latex.normalization import is_well_formed

    results = recognizer([_drawing(seed=seed) for seed in range(6)], num_beams=3, top_k=3, max_length=20)
    for result in results:
        for found in result.alternatives:
            assert is_well_formed(list(found.tokens)), found.latex


def test_length_of_an_answer(recognizer: Recognizer) -> None:
    """Start and end token count: three leave room for one token, and with the grammar every answer ends in time."""
    for length in (1, 2):
        with pytest.raises(ValueError, match="at least 3"):
            recognizer(_drawing(), max_length=length)
    for num_beams in (1, 4):
        result = recognizer(_drawing(), num_beams=num_beams, max_length=3)[0]
        assert len(result.tokens) <= 1 and result.alternatives[0].finished


@pytest.mark.parametrize("name", ["num_beams", "top_k", "batch_size"])
def test_numbers_start_at_one(recognizer: Recognizer, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*at least 1"):
        recognizer(_drawing(), **{name: 0})


def test_more_beams_than_tokens(recognizer: Recognizer) -> None:
    """Beams that cannot be filled do not become answers."""
    result = recognizer(_drawing(), num_beams=150, top_k=150, max_length=3)[0]
    texts = [found.latex for found in result.alternatives]
    assert 1 < len(texts) == len(set(texts)) < 113
    assert all(len(found.tokens) <= 1 and found.score > 0 for found in result.alternatives)


def test_right_to_left_alone(recognizer: Recognizer) -> None:
    """What it writes, turned round; the same as `generate` from that side."""
    options = {"num_beams": 1, "max_length": 10, "grammar": False}
    found = recognizer(_drawing(), direction="r2l", **options)[0]
    inputs = recognizer.processor(images=_drawing())
    ids = recognizer.model.generate(**inputs, decoder_direction="r2l", num_beams=1, max_length=10)[0].flip(0)
    assert recognizer.processor.decode(ids, skip_special_tokens=True) == found.latex


def test_a_list_without_hypotheses(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(recognizer), "decode", lambda self, images, options: [[] for _ in images])
    result = recognizer(_drawing())[0]
    assert result.latex is None and result.score == 0 and "no formula" in str(result.error)


def test_a_long_formula_and_a_page(recognizer: Recognizer) -> None:
    """Read with best effort, within the length that was asked for."""
    long = Image.new("L", (6000, 90), 255)
    page = Image.new("L", (900, 1200), 255)
    for index in range(100):
        long.paste(_drawing(60, 60, index), (60 * index, 15))
        page.paste(_drawing(80, 60, index), (90 * (index % 10), 120 * (index // 10)))
    for result in recognizer([long, page], num_beams=2, max_length=60):
        assert result.error is None and len(result.tokens) <= 58
