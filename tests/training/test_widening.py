"""A widened checkpoint computes what the small one does, and its new weights learn."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abm_hf.configuration_abm import ABMConfig
from abm_hf.modeling_abm import ABMForConditionalGeneration
from abm_hf.training.widening import widen_checkpoint, widened

SMALL = {
    "stem_channels": 6,
    "block_layers": (1, 2, 2),
    "growth_rates": (4, 4, 6),
    "hidden_size": 16,
    "embedding_size": 12,
    "attention_size": 10,
    "coverage_kernels": (5, 3),
    "encoder_dropout": 0.0,
}


def make_model(seed: int = 0) -> ABMForConditionalGeneration:
    """With statistics and biases as after some training: those of a fresh model hide mistakes."""
    torch.manual_seed(seed)
    model = ABMForConditionalGeneration(ABMConfig(**SMALL)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(torch.rand(value.shape) if "var" in name else 0.3 * torch.randn(value.shape))
    return model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(2, 1, 64, 160, generator=generator)
    mask = torch.ones(2, 64, 160, dtype=torch.bool)
    mask[1, 40:] = mask[1, :, 100:] = False
    labels = torch.randint(2, 110, (2, 7), generator=generator)
    labels[0, -1] = labels[1, 4] = 1
    labels[1, 5:] = -100
    return {"pixel_values": pixels, "pixel_mask": mask, "labels": labels}


def logits_of(model: ABMForConditionalGeneration) -> list[torch.Tensor]:
    output = model(**batch())
    known = batch()["labels"] >= 0
    count = model.config.num_output_tokens
    return [logits[known][:, :count] for logits in (output.logits, output.r2l_logits)]


@pytest.mark.parametrize(
    "sizes",
    [
        {"stem_channels": 9},
        {"block_layers": (2, 3, 2)},
        {"growth_rates": (4, 7, 8)},
        {"hidden_size": 23},
        {"attention_size": 16},
        {
            "stem_channels": 8,
            "block_layers": (1, 4, 3),
            "growth_rates": (5, 4, 9),
            "hidden_size": 20,
            "attention_size": 13,
        },
    ],
    ids=lambda sizes: "+".join(sizes),
)
def test_both_branches_write_what_they_wrote(sizes):
    old = make_model()
    new = widened(old, sizes)
    assert {name: getattr(new.config, name) for name in sizes} == sizes
    assert sum(p.numel() for p in new.parameters()) > sum(p.numel() for p in old.parameters())
    for training in (False, True):  # with the batch's own statistics, too
        for model in (old, new):
            model.train(training)
            for branch in model.branches.values():
                branch.dropout.p = 0.0
        for expected, logits in zip(logits_of(old), logits_of(new), strict=True):
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_what_is_new_learns():
    new = widened(make_model(), {"stem_channels": 8, "growth_rates": (5, 5, 8), "hidden_size": 20})
    optimizer = torch.optim.SGD(new.parameters(), lr=0.05)
    new.train()
    for _ in range(2):  # the first step moves the zeros, and with them the second reaches what lies behind
        optimizer.zero_grad()
        new(**batch()).loss.backward()
        optimizer.step()
    new_channels = new.encoder.blocks[2][0].conv2.weight.grad[6:]
    new_units = new.branches["r2l"].token_gru.recurrent.weight.grad[16:20]
    assert new_channels.abs().max() > 0
    assert new_units.abs().max() > 0


def test_the_seed_decides_the_new_weights(tmp_path):
    make_model().save_pretrained(tmp_path)
    states = [widen_checkpoint(tmp_path, {"attention_size": 12}, seed=seed).state_dict() for seed in (1, 1, 2)]
    same = [all(torch.equal(states[0][name], state[name]) for name in state) for state in states[1:]]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"attention_size": 8}, "attention_size must not become smaller"),
        ({"block_layers": (2, 2)}, "block_layers must not become smaller"),
        ({"embedding_size": 64}, "embedding_size cannot grow"),
    ],
)
def test_sizes_that_cannot_hold_the_old_weights_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        widened(make_model(), sizes)


def test_the_script_writes_a_checkpoint_that_loads(tmp_path):
    make_model().save_pretrained(tmp_path / "old")
    from abm_hf.processing_abm import ABMProcessor

    ABMProcessor().save_pretrained(tmp_path / "old")
    root = Path(__file__).parents[2]
    command = [sys.executable, "scripts/widen_checkpoint.py", str(tmp_path / "old"), "--output", str(tmp_path / "new")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for sizes, code in ((["--growth-rates", "4", "5", "6"], 0), (["--hidden-size", "3"], 2)):
        done = subprocess.run([*command, *sizes], cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert "hidden_size must not become smaller" in done.stderr
    new = ABMForConditionalGeneration.from_pretrained(tmp_path / "new").eval()
    assert new.config.growth_rates == (4, 5, 6)
    for expected, logits in zip(logits_of(make_model()), logits_of(new), strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
