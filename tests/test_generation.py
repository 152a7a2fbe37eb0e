"""Decoding: `generate` in all its forms, scoring by either branch, two-way search."""

import pytest
import torch
from torch import Tensor

from abm_hf.configuration_abm import ABMConfig
from abm_hf.generation_abm import score_sequences
from abm_hf.modeling_abm import ABMForConditionalGeneration

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
