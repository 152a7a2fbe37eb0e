"""Decoding: `generate` in all its forms, scoring by either branch, rescoring."""

import itertools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from transformers import TextIteratorStreamer

from abm_hf.configuration_abm import ABMConfig
from abm_hf.data.collator import ABMCollator
from abm_hf.decoding_abm import DecodingOptions, formula, rescore, rescore_enlarged, search
from abm_hf.hub.conversion import convert_state_dict, read_state_dict
from abm_hf.inference.generation import LatexGrammarLogitsProcessor, RescoredOutput, rescored_generate, score_sequences
from abm_hf.ink.rendering import render_ink
from abm_hf.latex.normalization import is_well_formed
from abm_hf.modeling_abm import ABMForConditionalGeneration
from abm_hf.pretrained import checkpoint_path
from abm_hf.synthetic.expressions import synthetic_ink
from abm_hf.tokenization_abm import ABMTokenizer
from abm_hf.torch_engine_abm import TorchEngine, recognize_images

FIXTURES = Path(__file__).parents[1] / "fixtures"
BOS, EOS, PAD = 0, 1, 113
TINY = {
    "stem_channels": 8,
    "block_layers": (2, 2, 2),
    "growth_rates": (4, 4, 4),
    "hidden_size": 16,
    "embedding_size": 16,
    "attention_size": 16,
}


def tiny_model(seed: int = 0, **overrides: object) -> ABMForConditionalGeneration:
    torch.manual_seed(seed)
    return ABMForConditionalGeneration(ABMConfig(**{**TINY, **overrides})).eval()


@pytest.fixture(scope="module")
def model() -> ABMForConditionalGeneration:
    return tiny_model()


def pictures(*sizes: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """Random pictures of these heights and widths, padded to one size."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = torch.zeros(len(sizes), 1, height, width)
    mask = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        pixels[index, 0, :h, :w] = (torch.rand(h, w, generator=generator) < 0.3).float()
        mask[index, :h, :w] = True
    return {"pixel_values": pixels, "pixel_mask": mask}


def padded(rows: list[list[int]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


# ------------------------------------------------------------------------------------------------------------- scoring

SEQUENCES = [[5, 9, 30, EOS], [7, EOS], [EOS], [44, 45, 46, 47, 48, EOS]]


@torch.no_grad()
@pytest.mark.parametrize("direction", ["l2r", "r2l"])
def test_scores_are_those_of_one_token_after_another(model: ABMForConditionalGeneration, direction: str) -> None:
    inputs = pictures((32, 48), (48, 32))
    encoded = model.encoder(**inputs)
    scores = score_sequences(model, encoded, padded(SEQUENCES), direction=direction)
    assert scores.shape == (4, 6)
    for row, ids in enumerate(SEQUENCES):
        body = ids[:-1]
        read = [BOS, *body] if direction == "l2r" else [EOS, *body[::-1]]
        written = ids if direction == "l2r" else [*body[::-1], BOS]
        image = {name: value[row // 2 : row // 2 + 1] for name, value in inputs.items()}
        logits = model(**image, decoder_input_ids=torch.tensor([read]), decoder_direction=direction).logits
        expected = logits[0].log_softmax(-1)[range(len(written)), written]
        if direction == "r2l":
            expected = torch.cat([expected[:-1].flip(0), expected[-1:]])
        torch.testing.assert_close(scores[row, : len(ids)], expected, atol=1e-4, rtol=1e-4)
        assert scores[row, len(ids) :].eq(0).all()


@torch.no_grad()
def test_what_follows_the_end_is_ignored_and_a_missing_end_costs_nothing(model: ABMForConditionalGeneration) -> None:
    encoded = model.encoder(**pictures((32, 48)))
    for direction in ("l2r", "r2l"):
        clean = score_sequences(model, encoded, torch.tensor([[5, 9, EOS, PAD, PAD]]), direction=direction)
        messy = score_sequences(model, encoded, torch.tensor([[5, 9, EOS, EOS, 12]]), direction=direction)
        open_ended = score_sequences(model, encoded, torch.tensor([[5, 9]]), direction=direction)
        torch.testing.assert_close(messy, clean)
        torch.testing.assert_close(open_ended, clean[:, :2])


def test_scoring_refuses_uneven_sequences_and_missing_branches(model: ABMForConditionalGeneration) -> None:
    encoded = model.encoder(**pictures((32, 48), (48, 32)))
    with pytest.raises(ValueError, match="evenly"):
        score_sequences(model, encoded, padded(SEQUENCES[:3]))
    with pytest.raises(ValueError, match="no branch"):
        score_sequences(tiny_model(directions=("l2r",)), encoded, padded(SEQUENCES), direction="r2l")


# ------------------------------------------------------------------------------------------------------------ generate


def written(model: ABMForConditionalGeneration, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    """What `generate` writes, without start, end and padding."""
    rows = model.generate(**inputs, **options).tolist()
    return [list(itertools.takewhile(lambda index: index not in (BOS, EOS, PAD), row[1:])) for row in rows]


def alone(inputs: dict[str, Tensor], index: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """One picture of a batch, without its padding and without a mask."""
    height, width = size
    return {"pixel_values": inputs["pixel_values"][index : index + 1, :, :height, :width]}


def sharpened(model: ABMForConditionalGeneration) -> ABMForConditionalGeneration:
    """Random weights that lead to different ends on different pictures: what a random model writes is all alike."""
    with torch.no_grad():
        for branch in model.branches.values():
            branch.classifier.weight.mul_(8)
            branch.output_context.weight.mul_(4)
            branch.classifier.bias[:2] += 1.0
    return model


@pytest.fixture(scope="module")
def lively() -> ABMForConditionalGeneration:
    return sharpened(tiny_model(seed=3))


@pytest.fixture(scope="module")
def reference() -> ABMForConditionalGeneration:
    """The released implementation's small fixture; with the padding masked, as by default."""
    config, weights = convert_state_dict(read_state_dict(FIXTURES / "abm_reference_small.safetensors"))
    model = ABMForConditionalGeneration(config).eval()
    model.load_state_dict(weights)
    return model


SIZES = st.lists(st.tuples(st.integers(16, 70), st.integers(16, 90)), min_size=2, max_size=4)
MODES = [{}, {"num_beams": 3}, {"decoder_direction": "r2l"}, {"decoder_direction": "r2l", "num_beams": 3}]


@pytest.mark.parametrize("options", MODES, ids=str)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, seed=st.integers(0, 100))
def test_a_padded_batch_gives_what_its_pictures_give_alone(
    lively: ABMForConditionalGeneration, options: dict[str, Any], sizes: list[tuple[int, int]], seed: int
) -> None:
    inputs = pictures(*sizes, seed=seed)
    together = written(lively, inputs, max_length=14, **options)
    for index, size in enumerate(sizes):
        assert together[index] == written(lively, alone(inputs, index, size), max_length=14, **options)[0]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_the_model_of_these_tests_reads_pictures(lively: ABMForConditionalGeneration, options: dict[str, Any]) -> None:
    found = written(lively, pictures((32, 48), (48, 32), (64, 64), (16, 90), (70, 30)), max_length=14, **options)
    assert len({tuple(row) for row in found}) > 2, "a model that writes the same of all proves nothing here"


@pytest.mark.parametrize("options", MODES, ids=str)
def test_the_batch_of_the_fixture_gives_what_its_pictures_give_alone(
    reference: ABMForConditionalGeneration, options: dict[str, Any]
) -> None:
    with safe_open(FIXTURES / "abm_reference_small.safetensors", framework="pt") as file:
        inputs = {
            "pixel_values": file.get_tensor("inputs.pixel_values").float(),
            "pixel_mask": file.get_tensor("inputs.pixel_mask"),
        }
    together = written(reference, inputs, max_length=40, **options)
    if "decoder_direction" not in options:  # from right to left this model writes the same of all three
        assert len({tuple(row) for row in together}) == 3
    for index, mask in enumerate(inputs["pixel_mask"]):
        size = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert together[index] == written(reference, alone(inputs, index, size), max_length=40, **options)[0]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_without_the_cache_the_same_is_written(lively: ABMForConditionalGeneration, options: dict[str, Any]) -> None:
    inputs = pictures((32, 48), (48, 32), (16, 64))
    cached, plain = (lively.generate(**inputs, max_length=12, use_cache=on, **options) for on in (True, False))
    assert torch.equal(cached, plain)


def test_encoded_pictures_are_as_good_as_pictures(lively: ABMForConditionalGeneration) -> None:
    inputs = pictures((32, 48), (48, 32))
    with torch.no_grad():
        encoded = lively.encoder(**inputs)
    for options in MODES:
        expected = lively.generate(**inputs, max_length=12, **options)
        assert torch.equal(lively.generate(encoder_outputs=encoded, max_length=12, **options), expected)


def test_right_to_left_starts_at_the_end(lively: ABMForConditionalGeneration) -> None:
    ids = lively.generate(**pictures((32, 48), (48, 32)), max_length=30, decoder_direction="r2l")
    assert ids[:, 0].eq(EOS).all()
    for row in ids.tolist():
        end = row.index(BOS) if BOS in row else len(row)
        assert all(index == PAD for index in row[end + 1 :])


@pytest.mark.parametrize("direction", ["l2r", "r2l"])
def test_scores_of_hypotheses_are_their_log_probabilities(lively: ABMForConditionalGeneration, direction: str) -> None:
    inputs = pictures((32, 48), (48, 32))
    output = lively.generate(
        **inputs,
        max_length=12,
        num_beams=6,
        num_return_sequences=4,
        length_penalty=0.0,
        decoder_direction=direction,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert output.sequences.shape[0] == 8 and output.sequences_scores.shape == (8,)
    assert (output.sequences_scores.view(2, 4).diff(dim=1) <= 0).all(), "the best comes first"
    assert len(set(map(tuple, output.sequences[:4].tolist()))) == 4
    stop = EOS if direction == "l2r" else BOS
    formulas = []
    for row in output.sequences[:, 1:].tolist():
        body = list(itertools.takewhile(lambda index: index not in (stop, PAD), row))
        # Cut off at max_length, it has no end to be scored.
        formulas.append((body if direction == "l2r" else body[::-1]) + [EOS] * (stop in row))
    with torch.no_grad():
        scores = score_sequences(lively, lively.encoder(**inputs), padded(formulas), direction=direction)
    torch.testing.assert_close(scores.sum(1), output.sequences_scores, atol=1e-3, rtol=1e-4)


def test_sampling_is_reproducible_and_varied(lively: ABMForConditionalGeneration) -> None:
    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        ids = lively.generate(**pictures((32, 48)), do_sample=True, top_k=0, max_length=10, num_return_sequences=6)
        assert isinstance(ids, Tensor)
        return ids

    first = sample(0)
    assert torch.equal(first, sample(0)) and len({tuple(row) for row in first.tolist()}) > 1
    assert first.max() < 113 or first[first >= 113].eq(PAD).all(), "an id without an output row was written"


def test_streaming_prints_what_is_returned(lively: ABMForConditionalGeneration) -> None:
    tokenizer = ABMTokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True, timeout=60)
    inputs = pictures((32, 48))
    thread = threading.Thread(target=lively.generate, kwargs={**inputs, "max_length": 12, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    ids = lively.generate(**inputs, max_length=12)[0]
    assert streamed == tokenizer.decode(ids, skip_special_tokens=True) and streamed


@pytest.mark.parametrize("num_beams", [1, 3])
def test_attention_maps_are_returned(lively: ABMForConditionalGeneration, num_beams: int) -> None:
    output = lively.generate(
        **pictures((32, 48), (48, 32)),
        max_length=8,
        num_beams=num_beams,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    assert len(output.cross_attentions) >= output.sequences.shape[1] - 1
    for attention in output.cross_attentions:
        assert attention.shape == (2 * num_beams, 1, 3, 3)
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2 * num_beams, 1))
        assert attention[:num_beams, :, 2].eq(0).all(), "the first picture has two rows of features"


def test_more_beams_than_tokens(lively: ABMForConditionalGeneration) -> None:
    output = lively.generate(
        **pictures((16, 16)),
        max_length=4,
        num_beams=120,
        num_return_sequences=120,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert output.sequences.shape[0] == 120 and output.sequences_scores.isfinite().all()


def test_no_room_for_any_token_is_an_error_that_says_so(model: ABMForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="max_length"):
        model.generate(**pictures((32, 48)), max_length=1)
    assert model.generate(**pictures((32, 48)), max_length=2).shape == (1, 2)


# ----------------------------------------------------------------------------------------------------------- rescoring


def every_formula(length: int) -> list[list[int]]:
    """All formulas up to a length over a few tokens."""
    return [list(row) for count in range(length + 1) for row in itertools.product(FEW_IDS, repeat=count)]


FEW_IDS = (5, 6, 7)


@pytest.fixture(scope="module")
def narrow() -> ABMForConditionalGeneration:
    """A model that writes three tokens only, so that its beams reach every formula."""
    model = sharpened(tiny_model(seed=5))
    with torch.no_grad():
        for stop, direction in ((EOS, "l2r"), (BOS, "r2l")):
            branch = model.branches[direction]
            others = torch.ones(113, dtype=torch.bool)
            others[[stop, *FEW_IDS]] = False
            branch.classifier.bias[others] = -1e4
    return model


def rescored(model: ABMForConditionalGeneration, inputs: dict[str, Tensor], **options: Any) -> RescoredOutput:
    options = {"latex_tokenizer": ABMTokenizer(), **options}
    return model.generate(**inputs, custom_generate=rescored_generate, return_dict_in_generate=True, **options)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_rescoring_finds_the_best_by_both_branches(
    narrow: ABMForConditionalGeneration, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abm_hf.decoding_abm._MARGIN", float("inf"))
    inputs = pictures((32, 48), (48, 32), (64, 64))
    output = rescored(narrow, inputs, num_beams=40, num_return_sequences=3, max_length=5, rescoring_weight=weight)
    formulas = [[*row, EOS] for row in every_formula(3)]
    with torch.no_grad():
        encoded = narrow.encoder(**inputs)
    every = padded(formulas * 3)
    l2r, r2l = (score_sequences(narrow, encoded, every, direction=d).sum(1).view(3, -1) for d in ("l2r", "r2l"))
    lengths = torch.tensor([len(row) for row in formulas])
    expected = ((1 - weight) * l2r + weight * r2l) / lengths
    scores, best = expected.topk(3, dim=1)
    torch.testing.assert_close(output.scores.view(3, 3), scores, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(output.l2r_scores.view(3, 3), l2r.gather(1, best), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(output.r2l_scores.view(3, 3), r2l.gather(1, best), atol=1e-3, rtol=1e-4)
    found = [[index for index in row[1:] if index != PAD] for row in output.sequences.tolist()]
    assert found == [formulas[index] for index in best.flatten().tolist()]


def test_rescoring_marks_what_is_missing(narrow: ABMForConditionalGeneration) -> None:
    output = rescored(narrow, pictures((32, 48), (48, 32)), num_beams=120, num_return_sequences=120, max_length=3)
    exists = output.scores.view(2, 120) > float("-inf")
    for rows, row_exists in zip(output.sequences.view(2, 120, -1).tolist(), exists, strict=True):
        kept = [tuple(row) for row, there in zip(rows, row_exists, strict=True) if there]
        assert len(set(kept)) == len(kept) >= len(every_formula(1))
    nothing = output.sequences[output.scores == float("-inf")]
    assert len(nothing) and nothing[:, :2].eq(torch.tensor([BOS, EOS])).all() and nothing[:, 2:].eq(PAD).all()


@pytest.mark.parametrize("grammar", [False, True])
def test_rescoring_a_batch_equals_rescoring_its_pictures(lively: ABMForConditionalGeneration, grammar: bool) -> None:
    sizes = [(32, 48), (48, 32), (20, 70)]
    inputs, tokenizer = pictures(*sizes), ABMTokenizer()
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 2, "max_length": 12, "grammar": grammar}
    together = rescored(lively, inputs, **options)
    for index, size in enumerate(sizes):
        single = rescored(lively, alone(inputs, index, size), **options)
        rows = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(together.scores[rows], single.scores, atol=1e-4, rtol=1e-4)
        found = together.sequences[rows, : single.sequences.shape[1]]
        assert torch.equal(found, single.sequences) and together.sequences[rows, found.shape[1] :].eq(PAD).all()
    if grammar:
        for row in together.sequences.tolist():
            assert is_well_formed(tokenizer.convert_ids_to_tokens(row[1 : row.index(EOS)]))


def test_rescoring_through_generate_is_that_of_recognize(lively: ABMForConditionalGeneration) -> None:
    inputs, tokenizer = pictures((32, 48), (48, 32)), ABMTokenizer()
    options = {"num_beams": 3, "max_length": 10}
    hypotheses = recognize_images(lively, tokenizer, **inputs, options=DecodingOptions(top_k=2, **options))
    ids = lively.generate(
        **inputs, custom_generate=rescored_generate, latex_tokenizer=tokenizer, num_return_sequences=2, **options
    )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts == [found.latex for row in hypotheses for found in row]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"do_sample": True}, "does not sample"),
        ({"decoder_direction": "r2l"}, "leave decoder_direction out"),
        ({"repetition_penalty": 2.0}, "RepetitionPenaltyLogitsProcessor"),
        ({"logits_processor": [LatexGrammarLogitsProcessor.from_tokenizer(ABMTokenizer())]}, "LatexGrammarLogits"),
        ({"stopping_criteria": [lambda ids, scores: False]}, "stopping criteria"),
        ({"latex_tokenizer": None}, "pass latex_tokenizer"),
        ({"rescoring_weight": 2.0}, "from 0"),
    ],
)
def test_rescoring_refuses_what_it_cannot_do(
    lively: ABMForConditionalGeneration, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rescored(lively, pictures((32, 48)), num_beams=3, max_length=10, **options)


def test_rescoring_needs_both_branches() -> None:
    with pytest.raises(ValueError, match="both branches"):
        rescored(tiny_model(directions=("l2r",)), pictures((32, 48)), num_beams=2, max_length=8)


@torch.no_grad()
def test_what_hypotheses_share_is_scored_once_and_nothing_changes(
    lively: ABMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rescoring goes through the common beginnings of all candidates; the oracle scores them one by one."""
    inputs = pictures((32, 48), (48, 32), (64, 64))
    monkeypatch.setattr("abm_hf.decoding_abm._MARGIN", float("inf"))
    engine = TorchEngine(lively, ABMTokenizer())
    encoded = engine.encode(inputs["pixel_values"].numpy(), inputs["pixel_mask"].numpy())
    options = DecodingOptions(num_beams=5, max_length=14, rescoring_weight=1.0, rescore=True)
    options = options.resolve(engine.settings, engine.directions)
    found = search(engine, encoded, options)
    for index, row in enumerate(rescore(engine, encoded, found, options)):
        part = engine.encode(*(value[index : index + 1].numpy() for value in inputs.values()))
        for candidate, joint in row:
            ids = torch.tensor([[*formula(engine.tokenizer, candidate), EOS]])
            expected = score_sequences(lively, part, ids, direction="r2l").sum()
            assert joint == pytest.approx(float(expected), abs=1e-3)


def test_hopeless_candidates_follow_without_being_rescored(
    lively: ABMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(lively, ABMTokenizer())
    encoded = engine.encode(*(value.numpy() for value in pictures((32, 48), (48, 32)).values()))
    options = DecodingOptions(num_beams=5, max_length=14, rescore=True).resolve(engine.settings, engine.directions)
    found = search(engine, encoded, options)
    monkeypatch.setattr("abm_hf.decoding_abm._MARGIN", 0.0)
    for candidates, row in zip(found, rescore(engine, encoded, found, options), strict=True):
        assert [candidate for candidate, _ in row] == candidates, "alone, the first one stays the first"
        assert [total == sum(candidate.log_probs) for candidate, total in row[1:]] == [True] * (len(row) - 1)


def test_close_candidates_are_scored_on_a_larger_image(
    lively: ABMForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of both sizes decides; each image by itself, however its batch is padded."""
    monkeypatch.setattr("abm_hf.decoding_abm._CLOSE", float("inf"))
    inputs, engine = pictures((32, 48), (48, 32)), TorchEngine(lively, ABMTokenizer())
    values, mask = inputs["pixel_values"].numpy(), inputs["pixel_mask"].numpy()
    options = DecodingOptions(num_beams=4, max_length=12, rescore=True, rescoring_weight=0.3)
    options = options.resolve(engine.settings, engine.directions)
    encoded = engine.encode(values, mask)
    once = rescore(engine, encoded, search(engine, encoded, options), options)
    twice = rescore_enlarged(engine, values, mask, once, replace(options, rescoring_size=1.5))
    for index, size in enumerate(((32, 48), (48, 32))):
        large = torch.nn.functional.interpolate(
            inputs["pixel_values"][index : index + 1], scale_factor=1.5, mode="bilinear"
        )[..., : size[0] * 3 // 2, : size[1] * 3 // 2]
        seen = engine.encode(large.numpy(), np.ones((1, *large.shape[2:]), bool))
        first = dict(once[index])
        for candidate, joint in twice[index]:
            ids = torch.tensor([[*formula(engine.tokenizer, candidate), EOS]])
            l2r, r2l = (float(score_sequences(lively, seen, ids, direction=d).sum()) for d in ("l2r", "r2l"))
            assert joint == pytest.approx((first[candidate] + 0.7 * l2r + 0.3 * r2l) / 2, abs=1e-2)
        means = [joint / (len(formula(engine.tokenizer, candidate)) + 1) for candidate, joint in twice[index]]
        assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_search_stops_when_its_time_is_over(lively: ABMForConditionalGeneration, num_beams: int) -> None:
    inputs, tokenizer = pictures((32, 48), (48, 32)), ABMTokenizer()

    def found(**limit: float) -> Any:
        options = DecodingOptions(num_beams=num_beams, max_length=40, rescore=False, **limit)
        return recognize_images(lively, tokenizer, **inputs, options=options)

    whole = found()
    assert min(len(row[0].tokens) for row in whole) > 2
    cut = found(max_time=0.0)
    assert len(cut) == 2 and max(len(row[0].tokens) for row in cut if row) == 1
    assert not any(row[0].finished for row in cut)
    assert found(max_time=1e6) == whole


@pytest.fixture(scope="module")
def trained() -> ABMForConditionalGeneration:
    """The packaged checkpoint, which ends its formulas by itself."""
    return ABMForConditionalGeneration.from_pretrained(checkpoint_path()).eval()


@pytest.fixture(scope="module")
def formulas() -> dict[str, Tensor]:
    inks = [synthetic_ink(seed, max_tokens=count) for seed, count in ((1, 3), (2, 9), (3, 16))]
    batch = ABMCollator((32, 64))([{"image": render_ink(ink)} for ink in inks])
    return {name: batch[name] for name in ("pixel_values", "pixel_mask")}


@pytest.mark.parametrize("grammar", [False, True])
@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_the_search_finds_what_generate_finds(
    trained: ABMForConditionalGeneration, formulas: dict[str, Tensor], num_beams: int, direction: str, grammar: bool
) -> None:
    tokenizer = ABMTokenizer()
    engine = TorchEngine(trained, tokenizer)
    encoded = engine.encode(formulas["pixel_values"].numpy(), formulas["pixel_mask"].numpy())
    options = DecodingOptions(
        num_beams=num_beams, max_length=40, direction=direction, grammar=grammar, rescore=False
    ).resolve(engine.settings, engine.directions)
    found = [candidate for row in search(engine, encoded, options) for candidate in row]
    processors = []
    if grammar:
        processors = [LatexGrammarLogitsProcessor.from_tokenizer(tokenizer, direction=direction, max_length=40)]
    output = trained.generate(
        encoder_outputs=encoded,
        decoder_direction=direction,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_length=40,
        logits_processor=processors,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert torch.equal(padded([list(candidate.ids) for candidate in found]), output.sequences[:, 1:])
    assert len({len(candidate.ids) for candidate in found[::num_beams]}) == 3, "they end at different times"
    if num_beams > 1:
        means = torch.tensor([sum(candidate.log_probs) / len(candidate.ids) for candidate in found])
        torch.testing.assert_close(means, output.sequences_scores, atol=1e-4, rtol=1e-4)
