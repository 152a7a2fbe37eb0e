"""A dense block with its own backward pass, against its layers one after the other."""

import copy

import pytest
import torch
from torch import Tensor, nn

from abm_hf.dense_block_abm import can_train, dense_block
from abm_hf.modeling_abm import ABMDenseLayer


def a_block(dropout: float = 0.0) -> nn.ModuleList:
    """Three layers that add 4 channels each to 6, with batch norms that do something."""
    torch.manual_seed(0)
    block = nn.ModuleList(ABMDenseLayer(6 + 4 * index, 4, 2, dropout) for index in range(3))
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
            nn.init.normal_(module.bias, std=0.3)
    return block.to(memory_format=torch.channels_last)


def one_by_one(block: nn.ModuleList, features: Tensor, mask: Tensor | None) -> Tensor:
    """REFERENCE: the same with autograd."""
    for layer in block:
        features = torch.cat([features, layer(mask, features)], dim=1)
    return features


def a_mask(height: int, width: int) -> Tensor:
    mask = torch.ones(2, 1, height, width)
    mask[1, ..., width // 2 :] = 0
    return mask


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("sides", [(5, 7), (1, 2), (4, 1)])
def test_values_gradients_and_statistics_are_those_of_the_layers(
    masked: bool, dropout: float, sides: tuple[int, int]
) -> None:
    ours, theirs = a_block(dropout).double(), a_block(dropout).double()
    features = torch.randn(2, 6, *sides, dtype=torch.double).to(memory_format=torch.channels_last)
    mask = a_mask(*sides) if masked else None
    results = []
    for block, apply in (
        (ours, lambda x: dense_block(x, mask, ours)),
        (theirs, lambda x: one_by_one(theirs, x, mask)),
    ):
        read = features.clone().requires_grad_()
        torch.manual_seed(1)  # of dropout
        out = apply(read)
        torch.manual_seed(2)
        out.backward(torch.randn_like(out))
        results.append((out, read.grad, {name: p.grad for name, p in block.named_parameters()}, block.state_dict()))
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-10)
    assert results[0][0].shape == (2, 18, *sides)
    assert int(ours[0].norm1.num_batches_tracked) == 1


def test_under_autocast_it_is_as_exact_as_the_layers() -> None:
    block = a_block()
    features = torch.randn(4, 6, 12, 20).to(memory_format=torch.channels_last)
    exact = one_by_one(copy.deepcopy(block), features, None)
    with torch.autocast("cpu", torch.bfloat16):
        plain = one_by_one(copy.deepcopy(block), features, None)
        ours = dense_block(features, None, block)
    assert ours.dtype == torch.bfloat16
    errors = [(rough.float() - exact).norm() / exact.norm() for rough in (ours, plain)]
    assert errors[0] < max(1.5 * errors[1], 0.01)
    ours.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())


def test_what_is_not_a_number_reaches_the_gradient() -> None:
    block, features = a_block(), torch.randn(2, 6, 4, 4)
    features[0, 0, 0, 0] = float("nan")
    dense_block(features, None, block).sum().backward()
    for name in ("conv1", "norm1", "conv2", "norm2"):
        assert block[0].get_submodule(name).weight.grad.isnan().any(), name


def test_it_stands_for_layers_as_the_encoder_made_them_only() -> None:
    features = torch.randn(2, 6, 4, 4)
    block = a_block()
    assert can_train(block, features)
    with torch.no_grad():
        assert not can_train(block, features)
    block[1].norm2.eval()
    assert not can_train(block, features)
    replaced = a_block()
    replaced[0].conv1 = nn.Sequential(replaced[0].conv1)
    assert not can_train(replaced, features)
