"""Decoding: `generate` in all its forms, scoring by either branch, two-way search."""

import copy
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from transformers import TextIteratorStreamer

from abm_hf.configuration_abm import ABMConfig
from abm_hf.data.collator import ABMCollator
from abm_hf.generation_abm import LatexGrammarLogitsProcessor, score_sequences, two_way_generate, two_way_search
from abm_hf.hub.conversion import convert_state_dict, read_state_dict
from abm_hf.inference_abm import Reader
from abm_hf.ink.rendering import render_ink
from abm_hf.latex.normalization import is_well_formed
from abm_hf.modeling_abm import ABMCache, ABMForConditionalGeneration
from abm_hf.pretrained import checkpoint_path
from abm_hf.reading_abm import read_formulas
from abm_hf.synthetic.expressions import synthetic_ink
from abm_hf.tokenization_abm import ABMTokenizer
from abm_hf.torch_search_abm import find_hypotheses, searches_plainly, stacked

FIXTURES = Path(__file__).parent / "fixtures"
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
@pytest.mark.parametrize("direction", ["l2r", "r2l"])
def test_scoring_in_pieces_changes_nothing(
    model: ABMForConditionalGeneration, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = model.encoder(**pictures((32, 48)))
    whole = score_sequences(model, encoded, padded(SEQUENCES), direction=direction)
    monkeypatch.setattr("abm_hf.generation_abm._ACTIVATION_BUDGET", 1)
    torch.testing.assert_close(score_sequences(model, encoded, padded(SEQUENCES), direction=direction), whole)


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


def ending_at(lengths: list[int], options: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor with which the n-th picture's formula has `lengths[n]` tokens."""
    stop = BOS if options.get("decoder_direction") == "r2l" else EOS

    def end(ids: Tensor, scores: Tensor) -> Tensor:
        due = torch.tensor(lengths).repeat_interleave(len(ids) // len(lengths)) == ids.shape[1] - 1
        is_stop = torch.arange(scores.shape[1]) == stop
        return scores.masked_fill(due[:, None] ^ is_stop, float("-inf"))

    return end


@pytest.mark.parametrize("options", MODES, ids=str)
def test_finished_pictures_are_left_out_and_nothing_changes(
    lively: ABMForConditionalGeneration, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    step = Reader.step

    def counting_step(self: Reader, tokens: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        read.append(len(tokens))
        return step(self, tokens, *state)

    monkeypatch.setattr(Reader, "step", counting_step)
    inputs = pictures((32, 48), (48, 32), (64, 64), (16, 90), (70, 30))
    lengths = [7, 2, 12, 5, 2]
    end = ending_at(lengths, options)
    options = {"logits_processor": [end], "return_dict_in_generate": True, "output_scores": True, **options}
    found = lively.generate(**inputs, **options)
    assert (found.sequences != PAD).sum(1).tolist() == [length + 2 for length in lengths]
    beams = options.get("num_beams", 1)
    late = 1 if beams == 1 else 0  # without beams, that a sequence is finished shows in the padding after its end
    assert read == [beams * sum(length + late >= step for length in lengths) for step in range(13)]
    monkeypatch.setattr(ABMCache, "keep", lambda self, images: None)
    read.clear()
    plain = lively.generate(**inputs, **options)
    assert set(read) == {read[0]}
    assert torch.equal(found.sequences, plain.sequences)
    if "num_beams" in options:
        torch.testing.assert_close(found.sequences_scores, plain.sequences_scores)


def test_a_search_does_not_disturb_one_inside_it(lively: ABMForConditionalGeneration) -> None:
    """As in two-way search, or a processor that asks the model itself."""
    inputs = pictures((32, 48), (48, 32), (64, 64))
    expected = lively.generate(**inputs, num_beams=3, max_length=12)

    def asking(ids: Tensor, scores: Tensor) -> Tensor:
        lively.generate(**pictures((16, 90), (70, 30)), max_length=3)
        return scores

    assert torch.equal(lively.generate(**inputs, num_beams=3, max_length=12, logits_processor=[asking]), expected)


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


# ------------------------------------------------------------------------------------------------------------- two-way


def every_formula(length: int) -> list[list[int]]:
    """All formulas up to a length over a few tokens."""
    return [list(row) for count in range(length + 1) for row in itertools.product(TWO_WAY_IDS, repeat=count)]


TWO_WAY_IDS = (5, 6, 7)


@pytest.fixture(scope="module")
def narrow() -> ABMForConditionalGeneration:
    """A model that writes three tokens only, so that its beams reach every formula."""
    model = sharpened(tiny_model(seed=5))
    with torch.no_grad():
        for stop, direction in ((EOS, "l2r"), (BOS, "r2l")):
            branch = model.branches[direction]
            others = torch.ones(113, dtype=torch.bool)
            others[[stop, *TWO_WAY_IDS]] = False
            branch.classifier.bias[others] = -1e4
    return model


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_two_way_search_finds_the_best_by_both_branches(narrow: ABMForConditionalGeneration, weight: float) -> None:
    inputs = pictures((32, 48), (48, 32), (64, 64))
    options = {"num_beams": 40, "num_return_sequences": 3, "max_length": 5, "grammar_tokenizer": ABMTokenizer()}
    output = two_way_search(narrow, **inputs, weight=weight, **options)
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


def test_two_way_search_returns_no_formula_twice_and_marks_what_is_missing(
    narrow: ABMForConditionalGeneration,
) -> None:
    output = two_way_search(
        narrow, **pictures((32, 48), (48, 32)), num_beams=40, num_return_sequences=60, max_length=4
    )
    exists = output.scores.view(2, 60) > float("-inf")
    for rows, row_exists in zip(output.sequences.view(2, 60, -1).tolist(), exists, strict=True):
        kept = [tuple(row) for row, there in zip(rows, row_exists, strict=True) if there]
        assert len(set(kept)) == len(kept) >= len(every_formula(2))
    nothing = output.sequences[output.scores == float("-inf")]
    assert len(nothing) and nothing[:, :2].eq(torch.tensor([BOS, EOS])).all() and nothing[:, 2:].eq(PAD).all()


def test_two_way_search_of_a_batch_equals_that_of_its_pictures(lively: ABMForConditionalGeneration) -> None:
    sizes = [(32, 48), (48, 32), (20, 70)]
    inputs = pictures(*sizes)
    tokenizer = ABMTokenizer()
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 2, "max_length": 12}
    for grammar in (None, tokenizer):
        together = two_way_search(lively, **inputs, grammar_tokenizer=grammar, **options)
        for index, size in enumerate(sizes):
            single = two_way_search(lively, **alone(inputs, index, size), grammar_tokenizer=grammar, **options)
            rows = slice(2 * index, 2 * index + 2)
            torch.testing.assert_close(together.scores[rows], single.scores, atol=1e-4, rtol=1e-4)
            found = together.sequences[rows, : single.sequences.shape[1]]
            assert torch.equal(found, single.sequences) and together.sequences[rows, found.shape[1] :].eq(PAD).all()
        if grammar is not None:
            for row in together.sequences.tolist():
                assert is_well_formed(tokenizer.convert_ids_to_tokens(row[1 : row.index(EOS)]))


def test_two_way_search_through_generate(lively: ABMForConditionalGeneration) -> None:
    inputs, tokenizer = pictures((32, 48), (48, 32)), ABMTokenizer()
    expected = two_way_search(
        lively, **inputs, grammar_tokenizer=tokenizer, num_beams=3, num_return_sequences=2, weight=0.4, max_length=10
    )
    options = {"custom_generate": two_way_generate, "num_beams": 3, "num_return_sequences": 2, "max_length": 10}
    options |= {"two_way_weight": 0.4, "grammar_tokenizer": tokenizer}
    assert torch.equal(lively.generate(**inputs, **options), expected.sequences)
    output = lively.generate(**inputs, **options, return_dict_in_generate=True)
    torch.testing.assert_close(output.scores, expected.scores)
    for other, message in (
        ({"do_sample": True}, "does not sample"),
        ({"decoder_direction": "r2l"}, "leave decoder_direction out"),
        ({"repetition_penalty": 2.0}, "RepetitionPenaltyLogitsProcessor"),
        ({"logits_processor": [LatexGrammarLogitsProcessor.from_tokenizer(tokenizer)]}, "LatexGrammarLogits"),
        ({"stopping_criteria": [lambda ids, scores: False]}, "stopping criteria"),
    ):
        with pytest.raises(ValueError, match=message):
            lively.generate(**inputs, **options, **other)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("two_way", [False, True])
def test_a_search_stops_when_its_time_is_over(
    lively: ABMForConditionalGeneration, num_beams: int, two_way: bool
) -> None:
    inputs, tokenizer = pictures((32, 48), (48, 32)), ABMTokenizer()
    options = {"num_beams": num_beams, "max_length": 40, "two_way": two_way}
    whole = read_formulas(lively, tokenizer, **inputs, **options)
    assert min(len(row[0].tokens) for row in whole) > 2
    cut = read_formulas(lively, tokenizer, **inputs, **options, max_time=0.0)
    assert len(cut) == 2 and max(len(row[0].tokens) for row in cut if row) == 1
    assert two_way or not any(row[0].finished for row in cut)
    assert read_formulas(lively, tokenizer, **inputs, **options, max_time=1e6) == whole
    limited = copy.deepcopy(lively)
    limited.generation_config.max_time = 0.0
    assert read_formulas(limited, tokenizer, **inputs, **options) == cut


def test_two_way_search_refuses_what_it_cannot_do(model: ABMForConditionalGeneration) -> None:
    inputs = pictures((32, 48))
    with pytest.raises(ValueError, match="weight"):
        two_way_search(model, **inputs, weight=2.0)
    with pytest.raises(ValueError, match="num_return_sequences"):
        two_way_search(model, **inputs, num_beams=2, num_return_sequences=5)
    with pytest.raises(ValueError, match="both branches"):
        two_way_search(tiny_model(directions=("l2r",)), **inputs)


@pytest.fixture(scope="module")
def trained() -> ABMForConditionalGeneration:
    """The packaged checkpoint, which ends its formulas by itself."""
    return ABMForConditionalGeneration.from_pretrained(checkpoint_path()).eval()


@pytest.fixture(scope="module")
def formulas() -> dict[str, Tensor]:
    inks = [synthetic_ink(seed, max_tokens=count) for seed, count in ((1, 3), (2, 9), (3, 16))]
    batch = ABMCollator((32, 64))([{"image": render_ink(ink)} for ink in inks])
    return {name: batch[name] for name in ("pixel_values", "pixel_mask")}


@pytest.mark.parametrize("grammar", [None, ABMTokenizer()], ids=["anything", "grammar"])
@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("num_beams, arranged", [(1, True), (4, True), (4, False)])
def test_the_search_finds_what_generate_finds(
    trained: ABMForConditionalGeneration,
    formulas: dict[str, Tensor],
    num_beams: int,
    arranged: bool,
    direction: str,
    grammar: ABMTokenizer | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With steps of inference and with those of training, in which pictures are left out differently."""
    monkeypatch.setattr(trained.branches[direction], "arranged", arranged)
    with torch.no_grad():
        encoded = trained.encoder(**formulas)
    options = {"num_beams": num_beams, "max_length": 40}
    found = find_hypotheses(trained, encoded, direction, tokenizer=grammar, **options)
    processors = []
    if grammar is not None:
        processors = [LatexGrammarLogitsProcessor.from_tokenizer(grammar, direction=direction, max_length=40)]
    output = trained.generate(
        encoder_outputs=encoded,
        decoder_direction=direction,
        num_return_sequences=num_beams,
        logits_processor=processors,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    ids, log_probs, known = stacked(found, num_beams, PAD)
    expected = output.sequences[:, 1:]
    assert known.all() and torch.equal(ids, expected)
    assert len({len(row[0].ids) for row in found}) == len(found), "they end at different times"
    if num_beams > 1:
        means = log_probs.sum(1) / (ids != PAD).sum(1)
        torch.testing.assert_close(means, output.sequences_scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("direction, num_beams", [("l2r", 1), ("r2l", 4)])
def test_reading_is_the_same_through_generate(
    trained: ABMForConditionalGeneration, formulas: dict[str, Tensor], direction: str, num_beams: int
) -> None:
    options = {"num_beams": num_beams, "top_k": num_beams, "max_length": 40, "direction": direction}
    ours = read_formulas(trained, ABMTokenizer(), **formulas, **options)
    theirs = read_formulas(trained, ABMTokenizer(), **formulas, **options, logits_processor=[])
    for own, other in zip(ours, theirs, strict=True):
        assert [reading.latex for reading in own] == [reading.latex for reading in other]
        for a, b in zip(own, other, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert a.token_scores == pytest.approx(b.token_scores, abs=1e-4)


def test_a_generation_config_that_searches_otherwise_is_followed(
    trained: ABMForConditionalGeneration, formulas: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searches_plainly(trained.generation_config)
    assert searches_plainly(ABMForConditionalGeneration(trained.config).generation_config)
    usual = read_formulas(trained, ABMTokenizer(), **formulas, num_beams=4)
    first = usual[2][0].tokens[0]
    monkeypatch.setattr(trained.generation_config, "suppress_tokens", ABMTokenizer().convert_tokens_to_ids([first]))
    assert not searches_plainly(trained.generation_config)
    other = read_formulas(trained, ABMTokenizer(), **formulas, num_beams=4)
    assert first not in other[2][0].tokens


@pytest.mark.parametrize("num_beams", [1, 5])
def test_hypotheses_of_given_lengths(lively: ABMForConditionalGeneration, num_beams: int) -> None:
    with torch.no_grad():
        encoded = lively.encoder(**pictures((32, 48), (48, 32), (64, 64)))
    lengths = [7, 1, 12]
    options = {"num_beams": num_beams, "max_length": 40, "tokenizer": ABMTokenizer(), "lengths": lengths}
    found = find_hypotheses(lively, encoded, "l2r", **options)
    assert [{len(hypothesis.ids) for hypothesis in row} for row in found] == [{length} for length in lengths]
