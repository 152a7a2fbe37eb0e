"""The objective: masked means, alignment of the two directions, the distillation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abm_hf.loss_abm import aligned_distillation, cross_entropy, released_distillation, right_to_left_order


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), padding=st.integers(0, 3))
def test_the_order_reverses_tokens_and_nothing_else(lengths: list[int], padding: int) -> None:
    width = max(lengths) + 1 + padding
    labels = torch.full((len(lengths), width), -100)
    for row, length in enumerate(lengths):
        labels[row, :length] = torch.arange(10, 10 + length)
        labels[row, length] = 1
    order = right_to_left_order(labels)
    read = labels.gather(1, order)
    for row, length in enumerate(lengths):
        assert read[row].tolist() == [*range(9 + length, 9, -1), 1, *[-100] * (width - length - 1)]
    assert torch.equal(read.gather(1, order), labels), "its own inverse"


def test_cross_entropy_is_a_mean_of_means() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5)
    labels = torch.tensor([[1, 2, 3, 4], [0, -100, -100, -100]])
    log_probabilities = logits.log_softmax(-1)
    first = -sum(log_probabilities[0, j, j + 1] for j in range(4)) / 4
    second = -log_probabilities[1, 0, 0]
    torch.testing.assert_close(cross_entropy(logits, labels), (first + second) / 2)


def test_padding_changes_no_loss() -> None:
    torch.manual_seed(0)
    l2r, r2l = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.tensor([[2, 3, 4, 5, 1], [2, 3, 1, -100, -100]])
    wider = [torch.cat([tensor, torch.full((2, 2, 7), 1e4)], 1) for tensor in (l2r, r2l)]
    wide_labels = torch.cat([labels, torch.full((2, 2), -100)], 1)
    torch.testing.assert_close(cross_entropy(wider[0], wide_labels, 0.1), cross_entropy(l2r, labels, 0.1))
    torch.testing.assert_close(
        aligned_distillation(*wider, wide_labels, 4.0), aligned_distillation(l2r, r2l, labels, 4.0)
    )


def test_aligned_distillation_compares_the_same_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 7)
    labels = torch.tensor([[2, 3, 4, 1], [2, 1, -100, -100]])
    assert aligned_distillation(logits, logits, labels, 4.0).abs() < 1e-6
    other = logits.clone()
    other[0, 3] += torch.randn(7)  # the end against the start: no common meaning
    other[1, 1:] += torch.randn(3, 7)
    assert aligned_distillation(logits, other, labels, 4.0).abs() < 1e-6
    other[0, 1] += torch.randn(7)
    assert aligned_distillation(logits, other, labels, 4.0) > 1e-3
    assert released_distillation(logits, logits, labels, 4.0) > 1e-3, "the released term compares others"


def test_aligned_distillation_teaches_both_branches_alike() -> None:
    torch.manual_seed(0)
    l2r, r2l = torch.randn(1, 3, 5, requires_grad=True), torch.randn(1, 3, 5, requires_grad=True)
    labels = torch.tensor([[2, 3, 1]])
    loss = aligned_distillation(l2r, r2l, labels, 2.0)
    swapped = aligned_distillation(r2l, l2r, labels, 2.0)
    torch.testing.assert_close(loss, swapped)
    left, right = torch.autograd.grad(loss, (l2r, r2l))
    # Each side moves towards the other: softmax(own) - softmax(other), times T / (2 · tokens).
    expected = ((l2r / 2).softmax(-1) - (r2l / 2).softmax(-1))[:, :2] * 2.0 / (2 * 2)
    torch.testing.assert_close(left[:, :2], expected)
    torch.testing.assert_close(right[:, :2], -expected)


def test_distillation_of_empty_formulas_is_zero() -> None:
    value = aligned_distillation(torch.randn(1, 1, 5), torch.randn(1, 1, 5), torch.tensor([[1]]), 4.0)
    assert value == 0 and not math.isnan(value)


def test_confident_logits_stay_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4], [0.0, 0.0]]], dtype=torch.bfloat16)
    labels = torch.tensor([[1, 0]])
    assert cross_entropy(logits, labels).isfinite()
    assert aligned_distillation(logits, -logits, labels, 4.0).isfinite()
    assert cross_entropy(logits, labels).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_lowers_the_reward_of_certainty(smoothing: float) -> None:
    certain, labels = torch.tensor([[[20.0, 0.0, 0.0]]]), torch.tensor([[0]])
    loss = cross_entropy(certain, labels, smoothing)
    assert (loss > 0.5) == (smoothing > 0)
