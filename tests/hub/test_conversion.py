"""Released checkpoints: complete ones convert and load, anything else is one error and leaves nothing behind."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abm_hf import ABMForConditionalGeneration, ABMProcessor
from abm_hf.hub.conversion import ConversionError, convert_state_dict, read_state_dict

FIXTURE = Path(__file__).parents[1] / "fixtures" / "abm_reference_small.safetensors"
SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_abm_checkpoint.py"


def _convert(source: Path, target: Path) -> int:
    """The script's exit code, in this process: importing torch anew for each case takes longer than the test."""
    return runpy.run_path(str(SCRIPT))["main"]([str(source), str(target)])


def test_script_writes_a_directory_that_loads(tmp_path: Path) -> None:
    weights = {f"module.{name}": value for name, value in read_state_dict(FIXTURE).items()}
    torch.save(weights, tmp_path / "released.pkl")
    command = [sys.executable, SCRIPT, tmp_path / "released.pkl", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = ABMForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert ABMProcessor.from_pretrained(tmp_path / "out").tokenizer.convert_tokens_to_ids("\\geq") == 2
    expected, direct = convert_state_dict(read_state_dict(FIXTURE))[1], model.state_dict()
    assert all(torch.equal(direct[name], value) for name, value in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "released.pkl"]


def test_errors_list_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = read_state_dict(FIXTURE)
    del weights["gru_model2.fc_Uhh2.bias"]
    weights["gru_model.fc_Wyz.weight"] = torch.zeros(3, 3)
    weights["something.else"] = torch.zeros(1)
    with pytest.raises(ConversionError) as caught:
        convert_state_dict(weights)
    message = str(caught.value)
    assert "missing: gru_model2.fc_Uhh2.bias" in message
    assert "misshapen: gru_model.fc_Wyz.weight is [3, 3]" in message
    assert "surplus: something.else" in message
    torch.save(weights, tmp_path / "broken.pt")
    assert _convert(tmp_path / "broken.pt", tmp_path / "out") == 2
    assert "missing: gru_model2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"], "nothing may be left behind"


@pytest.mark.parametrize("content", [b"", b"no tensors here", b"\x80\x04K*."])
def test_other_files_are_refused(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("odd.pkl", "odd.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert _convert(tmp_path / name, tmp_path / "out") == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1 and name in errors[0], errors
    assert not (tmp_path / "out").exists()


def test_pickles_run_no_code(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    payload = f"cos\nsystem\n(S'touch {flag}'\ntR.".encode()
    (tmp_path / "evil.pkl").write_bytes(payload)
    assert _convert(tmp_path / "evil.pkl", tmp_path / "out") == 2 and not flag.exists()


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    assert _convert(FIXTURE, tmp_path / "out") == 2 and (tmp_path / "out" / "mine").read_text() == "precious"
