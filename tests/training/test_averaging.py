"""The mean of checkpoints: of all their numbers, and of one build only."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from abm_hf import ABMConfig, ABMForConditionalGeneration, ABMProcessor
from abm_hf.training.averaging import average_checkpoints

SCRIPT = Path(__file__).parents[2] / "scripts" / "average_checkpoints.py"


def _checkpoint(folder: Path, config: ABMConfig, seed: int) -> Path:
    torch.manual_seed(seed)
    model = ABMForConditionalGeneration(config)
    model.train()(torch.rand(2, 1, 48, 64), labels=torch.tensor([[5, 1], [6, 1]]))  # statistics of its own
    model.save_pretrained(folder)
    ABMProcessor().save_pretrained(folder)
    return folder


def test_the_mean_of_checkpoints(
    tiny_config: ABMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [_checkpoint(tmp_path / str(seed), tiny_config, seed) for seed in range(3)]
    states = [ABMForConditionalGeneration.from_pretrained(folder).state_dict() for folder in folders]
    for name, tensor in average_checkpoints(folders).state_dict().items():
        expected = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(tensor.double(), expected, msg=name)
    assert any("running_var" in name for name in states[0])

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return int(exited.value.code or 0)

    assert run(*folders[:2], "--output", tmp_path / "mean") == 0
    assert ABMForConditionalGeneration.from_pretrained(tmp_path / "mean").config.directions == tiny_config.directions
    alone = ABMConfig(**{**tiny_config.to_diff_dict(), "directions": ("l2r",)})
    other = _checkpoint(tmp_path / "other", alone, 0)
    for arguments, message in (
        ([folders[0]], "at least two"),
        ([folders[0], other], "another build"),
        ([folders[0], tmp_path / "nothing"], "nothing"),
    ):
        assert run(*arguments, "--output", tmp_path / "none") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
