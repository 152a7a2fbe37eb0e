"""Rectifier, mask and dropout of the encoder in one: the same as the three one after the other."""

import pytest
import torch
from torch import Tensor, nn

from abm_hf.activation_abm import rectify


def an_input() -> tuple[Tensor, Tensor]:
    """Features (2, 6, 16, 24), channels last, and a mask."""
    features = torch.randn(2, 6, 16, 24).to(memory_format=torch.channels_last).requires_grad_()
    mask = torch.ones(2, 1, 16, 24)
    mask[1, ..., 10:] = 0
    return features, mask


@pytest.mark.parametrize("masked", [True, False])
def test_without_dropout_it_is_relu_of_the_masked_features(masked: bool) -> None:
    features, mask = an_input()
    plain = features.detach().clone().requires_grad_()
    gradient = torch.randn(2, 6, 16, 24)
    out = rectify(features, mask if masked else None, nn.Dropout(0.0))
    expected = (plain * mask if masked else plain).relu()
    out.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(out, expected) and out.is_contiguous(memory_format=torch.channels_last)
    assert features.grad is not None and torch.equal(features.grad, plain.grad)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    features = torch.full((4, 32, 30, 31), 1.0, requires_grad=True)
    torch.manual_seed(0)
    out = rectify(features, None, nn.Dropout(0.2))
    out.sum().backward()
    dropped = out == 0
    assert dropped.float().mean() == pytest.approx(51 / 256, abs=0.004)  # four standard deviations
    assert torch.allclose(out[~dropped], torch.tensor(256 / 205))
    assert features.grad is not None and torch.equal(features.grad, out.detach())
    for axis in range(4):  # no row, channel or place is favoured, whatever bits they get
        shares = dropped.float().mean([other for other in range(4) if other != axis])
        assert shares.min() > 0.15 and shares.max() < 0.25
    torch.manual_seed(0)
    assert torch.equal(rectify(features, None, nn.Dropout(0.2)), out)
    assert not torch.equal(rectify(features, None, nn.Dropout(0.2)), out)
    assert torch.equal(rectify(features.detach(), None, nn.Dropout(0.2).eval()), features)
