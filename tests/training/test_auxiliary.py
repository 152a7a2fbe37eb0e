"""What ink teaches in training besides the label: targets, losses, gradients, and that nothing of it stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from training_runs import STEPS, assert_same, final_state, history, options

from abm_hf.data.items import load_split
from abm_hf.ink.alignment import strokes_of_tokens, written_places
from abm_hf.ink.rendering import render_ink
from abm_hf.ink.strokes import Ink, Symbol
from abm_hf.modeling_abm import ABMForConditionalGeneration
from abm_hf.recurrence_abm import Memory, Weights, run_recurrence
from abm_hf.synthetic.expressions import synthetic_ink
from abm_hf.training import loop
from abm_hf.training.arguments import ArgumentError, Arguments, parse_arguments
from abm_hf.training.auxiliary import attention_loss, count_loss, symbol_loss
from abm_hf.training.data import VARIATIONS
from abm_hf.training.loop import train
from abm_hf.training.placement import pad_cells, token_cells

SUPERVISED = ("--symbol_weight", "0.5", "--count_weight", "0.5", "--attention_weight", "0.5")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Any:
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


# -- targets


def test_written_places_leave_out_braces_and_scripts() -> None:
    latex = "\\frac { x ^ { 2 } } { \\sqrt [ 3 ] { [ y ] } } + \\sum _ { i } i"
    tokens = latex.split()
    written = ["\\frac", "x", "2", "\\sqrt", "3", "[", "y", "]", "+", "\\sum", "i", "i"]
    places = written_places(tokens)
    assert [tokens[place] for place in places] == written
    assert tokens[places[5] - 1] == "{"  # the bracket that is written, not the root's


def test_strokes_of_tokens_come_in_the_order_of_the_label() -> None:
    strokes = [np.array([[x, 0.0], [x + 1, 10.0]]) for x in (40.0, 20.0, 0.0)]
    symbols = (Symbol("y", (0,)), Symbol("+", (1,)), Symbol("x", (2,)))
    assert strokes_of_tokens(Ink(tuple(strokes), symbols=symbols), ["x", "+", "y"]) == [(2,), (1,), (0,)]
    assert strokes_of_tokens(Ink(tuple(strokes), symbols=symbols), ["x", "+", "z"]) is None
    assert strokes_of_tokens(Ink(tuple(strokes)), ["x", "+", "y"]) is None


def test_cells_hold_the_ink_of_their_tokens() -> None:
    # A vertical line on the left, a dot and a horizontal line with two points on the right, 100 × 40 pixels.
    ink = Ink(
        (np.array([[0.0, 0.0], [0.0, 40.0]]), np.array([[60.0, 30.0]]), np.array([[50.0, 0.0], [100.0, 0.0]])),
        label="1 ^ { - . }",
        symbols=(Symbol("1", (0,)), Symbol("-", (2,)), Symbol(".", (1,))),
    )
    cells = token_cells(ink, (8.0, 8.0, 108.0, 48.0), (64, 120), 16)
    assert cells is not None and cells.shape == (6, 4, 8) and cells.dtype == np.uint8
    found = {place: set(zip(*np.nonzero(cells[place]), strict=True)) for place in range(6)}
    assert found[0] == {(0, 0), (1, 0), (2, 0), (3, 0)}
    assert found[3] == {(0, column) for column in range(3, 7)}
    assert found[4] == {(2, 4)}
    assert not found[1] and not found[2] and not found[5]
    assert cells[0, 1, 0] == 4  # the line crosses all four rows of the cell
    unknown = token_cells(Ink(ink.strokes, ink.label), (8.0, 8.0, 108.0, 48.0), (64, 120), 16)
    padded = pad_cells([cells, unknown], (9, 5, 9))
    assert unknown is None and padded.shape == (2, 9, 5, 9)
    assert np.array_equal(padded[0, :6, :4, :8].numpy(), cells) and not padded[1].any()


@pytest.mark.parametrize("name", ["none", "ink"])
def test_cells_follow_what_is_drawn(name: str) -> None:
    items = load_split("synthetic", "train", synthetic_items=6)
    for index in range(6):
        drawing = VARIATIONS[name](items, index, np.random.default_rng(index), (1.2, 1.1))
        cells = token_cells(drawing.ink, drawing.box, drawing.image.shape, 8)
        assert cells is not None and drawing.ink is not None
        places = written_places((drawing.ink.label or "").split())
        assert [place for place in range(len(cells)) if cells[place].any()] == places
        height, width = cells.shape[1:]
        padded = np.zeros((height * 8, width * 8), np.uint8)
        padded[: drawing.image.shape[0], : drawing.image.shape[1]] = drawing.image
        inked = padded.reshape(height, 8, width, 8).max((1, 3)) > 127
        touched = cells.any(0)
        # The brush is wider than the line: cells beside it may be inked.
        assert grown(inked)[touched].all() and grown(touched)[inked].all()
        assert touched[inked].mean() > 0.5


def grown(cells: np.ndarray) -> np.ndarray:
    """With the neighbours of all cells that are set."""
    (height, width), padded = cells.shape, np.pad(cells, 1)
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


# -- losses


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Cells (1, 3, 2, 2) of the label `5 ^ 7 eos`-like ids: token 0 above, token 2 at the lower right."""
    cells = torch.zeros(1, 4, 2, 2, dtype=torch.uint8)
    cells[0, 0, 0] = 3
    cells[0, 2, 1, 1] = 9
    return cells, torch.tensor([[5, 8, 7, 1]])


def test_the_symbol_at_each_position_is_named() -> None:
    cells, labels = maps()
    inside = torch.ones(1, 4, dtype=torch.bool)
    right = torch.full((1, 4, 11), -20.0)
    for position, symbol in enumerate((5, 5, 10, 7)):  # 10: none
        right[0, position, symbol] = 20
    assert symbol_loss(right, cells, labels, inside) < 1e-6
    wrong_none = right.roll(1, -1).where(torch.tensor([False, False, True, False])[None, :, None], right)
    wrong_symbol = right.roll(1, -1).where(torch.tensor([False, False, False, True])[None, :, None], right)
    assert symbol_loss(wrong_none, cells, labels, inside) * 4.9 < symbol_loss(wrong_symbol, cells, labels, inside)
    inside[0, 3] = False
    assert symbol_loss(wrong_symbol, cells, labels, inside) < 1e-6
    assert symbol_loss(wrong_symbol, torch.zeros_like(cells), labels, inside) == 0  # nothing is known


def test_symbols_are_counted() -> None:
    labels = torch.tensor([[5, 8, 5, 1], [7, 1, -100, -100]])
    counted = torch.ones(10, dtype=torch.bool)
    counted[[1, 8]] = False
    inside = torch.tensor([[True] * 3, [True, True, False]])
    logits = torch.full((2, 3, 10), -30.0)
    logits[0, :2, 5] = 30.0
    logits[1, 1, 7] = 30.0
    logits[1, 2, 3] = 30.0  # outside
    assert count_loss(logits, labels, inside, counted) < 1e-6
    logits[0, 1, 5] = -30.0
    assert count_loss(logits, labels, inside, counted) == pytest.approx(0.5 / 2 / 2)


def test_attention_is_paid_to_the_ink_of_the_token() -> None:
    cells, _ = maps()
    attention = torch.zeros(1, 4, 2, 2)
    attention[0, 0, 0] = 0.5
    attention[0, 2, 1, 1] = 1.0
    assert attention_loss(attention, cells) < 1e-3
    attention[0, 2] = 0.25
    assert attention_loss(attention, cells) == pytest.approx(-np.log(0.25) / 2, rel=1e-3)
    attention[0, 2] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    attention.requires_grad_()
    attention_loss(attention, cells).backward()
    assert attention.grad is not None and attention.grad[0, 2, 1, 1] < 0  # even where nothing is paid yet
    assert not attention.grad[0, [1, 3]].any()


def test_gradients_reach_what_attention_is_computed_from() -> None:
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    memory = Memory(torch.randn(2, 6, 3, **double), torch.randn(2, 6, 5, **double), torch.ones(2, 2, 3).bool())
    shapes = {"token": (12, 4), "query": (5, 4), "kernel": (9, 5), "energy": (5,), "context_input": (12, 3)}
    shapes |= {"context_recurrent": (12, 4), "context_bias": (12,)}
    weights = {name: torch.randn(shape, **double) for name, shape in shapes.items()}
    inputs = [torch.randn(2, 4, 12, **double), torch.randn(2, 4, **double), memory.keys, *weights.values()]
    target = torch.randn(4, 2, 2, 3, **double)

    def supervised(values: list[torch.Tensor]) -> torch.Tensor:
        projected, hidden, keys, *rest = values
        _, _, attention, _ = run_recurrence(
            projected, hidden, torch.zeros(2, 2, 3, **double), memory._replace(keys=keys), Weights(*rest)
        )
        return (attention * target).sum()

    leaves = [value.clone().requires_grad_() for value in inputs]
    gradients = torch.autograd.grad(supervised(leaves), leaves)
    for number, gradient in enumerate(gradients):
        direction = torch.randn_like(inputs[number])
        moved = []
        for sign in (1, -1):
            values = list(inputs)
            values[number] = inputs[number] + sign * 1e-5 * direction
            moved.append(supervised(values))
        # The coverage that the first step is given gets no gradient; of the rest, all.
        torch.testing.assert_close((gradient * direction).sum(), (moved[0] - moved[1]) / 2e-5, rtol=1e-5, atol=1e-8)


# -- runs


def arguments(output: Path, *more: str) -> Arguments:
    return parse_arguments(options(Path("synthetic"), output, "--synthetic_items", "24", *more))


def test_a_supervised_run_resumes_exactly_and_leaves_an_ordinary_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*SUPERVISED, "--augmentation", "ink", "--attention_fading_steps", "6", "--max_label_tokens", "12")
    assert train(arguments(tmp_path / "whole", *line))["finished"]
    _ = AcceleratorState._reset_state(), PartialState._reset_state()
    honest = loop.training_step

    def kill(run: Any, batches: Any) -> Any:
        if run.progress.step == 5:
            raise KeyboardInterrupt
        return honest(run, batches)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", kill)
        with pytest.raises(KeyboardInterrupt):
            train(arguments(tmp_path / "cut", *line))
    _ = AcceleratorState._reset_state(), PartialState._reset_state()
    assert train(arguments(tmp_path / "cut", *line))["finished"]
    rows = history(tmp_path / "whole")
    assert history(tmp_path / "cut") == rows
    assert_same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))
    trained = [row for row in rows if row["kind"] == "train"]
    assert len(trained) == STEPS and all({"symbols", "counts"} <= row.keys() for row in trained)
    assert ["attention" in row for row in trained] == [True] * 6 + [False] * 3  # it has faded
    model, loaded = ABMForConditionalGeneration.from_pretrained(tmp_path / "whole" / "final", output_loading_info=True)
    assert not loaded["unexpected_keys"] and not loaded["missing_keys"]
    assert not any("head" in name for name, _ in model.named_parameters())


def test_a_run_that_is_extended_can_be_supervised_from_then_on(tmp_path: Path) -> None:
    line = ("--augmentation", "ink", "--max_label_tokens", "12")
    assert train(arguments(tmp_path / "run", *line))["finished"]
    before = final_state(tmp_path / "run")["optimizer"]
    for more, steps in ((SUPERVISED, STEPS + 2), ((), STEPS + 4)):
        _ = AcceleratorState._reset_state(), PartialState._reset_state()
        result = train(arguments(tmp_path / "run", *line, *more, "--extend", "--max_steps", str(steps)))
        assert result["finished"] and result["step"] == steps
    after = final_state(tmp_path / "run")["optimizer"]
    assert before["state"].keys() == after["state"].keys()
    assert all(entry["step"] == STEPS + 4 for entry in after["state"].values())


def test_negative_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="count_weight must be at least 0"):
        arguments(tmp_path, "--count_weight", "-1")


def test_synthetic_ink_is_segmented_in_the_order_of_its_label() -> None:
    for seed in range(20):
        ink = synthetic_ink(seed)
        tokens = (ink.label or "").split()
        assert [symbol.label for symbol in ink.symbols] == [tokens[place] for place in written_places(tokens)]
        assert render_ink(ink).any()
