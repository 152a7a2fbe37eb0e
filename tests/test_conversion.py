"""Released checkpoints: complete ones convert and load, anything else is one error and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from abm_hf import ABMForConditionalGeneration, ABMProcessor
from abm_hf.conversion import ConversionError, convert_state_dict, read_state_dict

FIXTURE = Path(__file__).parent / "fixtures" / "abm_reference_small.safetensors"
SCRIPT = Path(__file__).parent.parent / "scripts" / "convert_abm_checkpoint.py"


def _convert(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, source, target], capture_output=True, text=True, check=False)


def test_script_writes_a_directory_that_loads(tmp_path: Path) -> None:
    weights = {f"module.{name}": value for name, value in read_state_dict(FIXTURE).items()}
    torch.save(weights, tmp_path / "released.pkl")
    done = _convert(tmp_path / "released.pkl", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    model = ABMForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert ABMProcessor.from_pretrained(tmp_path / "out").tokenizer.convert_tokens_to_ids("\\geq") == 2
    expected, direct = convert_state_dict(read_state_dict(FIXTURE))[1], model.state_dict()
    assert all(torch.equal(direct[name], value) for name, value in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "released.pkl"]


def test_errors_list_every_problem(tmp_path: Path) -> None:
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
    done = _convert(tmp_path / "broken.pt", tmp_path / "out")
    assert done.returncode == 2 and "missing" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"], "nothing may be left behind"


@pytest.mark.parametrize("content", [b"", b"no tensors here", b"\x80\x04K*."])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.pkl").write_bytes(content)
    done = _convert(tmp_path / "odd.pkl", tmp_path / "out")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_pickles_run_no_code(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    payload = f"cos\nsystem\n(S'touch {flag}'\ntR.".encode()
    (tmp_path / "evil.pkl").write_bytes(payload)
    done = _convert(tmp_path / "evil.pkl", tmp_path / "out")
    assert done.returncode == 2 and not flag.exists()


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    done = _convert(FIXTURE, tmp_path / "out")
    assert done.returncode == 2 and (tmp_path / "out" / "mine").read_text() == "precious"
