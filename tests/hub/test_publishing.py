"""Publishing against a Hub on loopback: what `push` and `push-space` upload is what loads and runs elsewhere."""

import asyncio
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import load_space
import numpy as np
import pytest
import yaml
from fake_hub import FakeHub, running_hub
from PIL import Image

from abm_hf import Recognizer
from abm_hf.cli.main import main
from abm_hf.hub.onnx_export import export_onnx
from abm_hf.hub.publish import HubError, export_space, push_space

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def published(hub: FakeHub, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publishes a model and a Space that takes its weights from it, with the command; returns what that said."""
    # With its encoder in floats: random weights in 8 bits would give other answers than PyTorch.
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("checkpoint") / "tiny")
    export_onnx(checkpoint, encoder="float32")
    code = f"""
    from abm_hf.cli.main import main
    assert main(["push", "me/abm-tiny", "--model", {str(checkpoint)!r}]) == 0
    assert main(["push-space", "me/handwriting", "--model", "me/abm-tiny", "--public"]) == 0
    """
    return _run(code, hub.environment(tmp_path_factory.mktemp("home")) | {"PYTHONPATH": str(ROOT)})


def _run(code: str, environment: dict[str, str]) -> str:
    """In a process of its own, as huggingface_hub takes its address from the environment when it is imported."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_published_model_holds_all_that_it_needs(published: str, hub: FakeHub) -> None:
    repository = hub.repositories["model", "me/abm-tiny"]
    assert f"{hub.address}/me/abm-tiny/commit/" in published
    assert repository.made_with["visibility"] == "private"
    assert {
        "model.safetensors",
        "onnx/encoder.onnx",
        "modeling_abm.py",
        "tokenizer.json",
        "generation_config.json",
    } <= set(repository.files)
    assert b"me/abm-tiny" in repository.files["README.md"]


def test_the_cards_code_runs_where_the_package_is_unknown(
    published: str, hub: FakeHub, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    card = hub.repositories["model", "me/abm-tiny"].files["README.md"].decode()
    alone, pipelined, packaged = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    Image.fromarray(255 * np.eye(40, dtype=np.uint8)).save(tmp_path / "formula.png")
    # None for a module: an import of it fails.
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
sys.modules["abm_hf"] = None
{alone}
{pipelined}
del sys.modules["abm_hf"]
sys.path.insert(0, {str(ROOT)!r})
{packaged}"""
    answers = _run(code, hub.environment(tmp_path / "home")).splitlines()
    recognizer = Recognizer(tiny_checkpoint)
    inputs = recognizer.processor(images=tmp_path / "formula.png")
    written = recognizer.model.generate(**inputs, num_beams=10)
    assert answers[0] == str(recognizer.processor.batch_decode(written, skip_special_tokens=True))
    latex = recognizer([tmp_path / "formula.png"])[0].latex
    assert repr(latex) in answers[1] and answers[2].startswith(latex)


def test_a_published_space_holds_no_weights(published: str, hub: FakeHub) -> None:
    space = hub.repositories["space", "me/handwriting"]
    assert space.made_with["sdk"] == "gradio" and space.made_with["visibility"] == "public"
    assert space.variables == {"MODEL_ID": "me/abm-tiny"}
    assert not [name for name in space.files if "pretrained/" in name or "__pycache__" in name]
    card = yaml.safe_load(space.files["README.md"].decode().split("---")[1])
    assert card["models"] == ["me/abm-tiny"] and card["app_file"] == "app.py"


@pytest.fixture(scope="module")
def space(published: str, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The published Space, started as Hugging Face does; its address and process."""
    folder, repository = tmp_path_factory.mktemp("space"), hub.repositories["space", "me/handwriting"]
    for name, data in repository.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"GRADIO_SERVER_PORT": str(port), "HF_HOME": str(folder / "home")}
    environment = hub.environment(folder) | repository.variables | own
    environment.pop("PYTHONPATH", None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}", process, folder / "log")
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(30)


def test_a_published_space_reads(space: tuple[str, int]) -> None:
    address, _ = space
    plus = [[[0, 20], [40, 20]], [[20, 0], [20, 40]]]
    asked = httpx.post(
        f"{address}/gradio_api/call/recognize_ink", json={"data": [plus, False, False, True]}, timeout=60
    )
    answer = httpx.get(f"{address}/gradio_api/call/recognize_ink/{asked.json()['event_id']}", timeout=60).text
    assert "event: complete" in answer and '"hypotheses"' in answer


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_crowd_gets_answers_or_reasons_and_leaves_no_memory_behind(space: tuple[str, int]) -> None:
    address, pid = space
    result = asyncio.run(load_space.press(address, clients=12, seconds=5, warm_up=3, pid=pid))
    assert result["faults"] == [] and result["answers"] >= 5
    assert any(kind.endswith("refusal") for kind in result["kinds"])
    assert result["memory_growth_mb"] < load_space.GROWTH_LIMIT_MB


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        try:
            httpx.get(f"{address}/config", timeout=30).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"the Space did not start: {log.read_text()}")


def test_a_dry_run_of_a_space_takes_the_weights_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", _no_network)
    assert main(["push-space", "me/handwriting", "--dry-run", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    for name in ("app.py", "README.md", "requirements.txt", "abm_hf/demo/assets/pad.js", "abm_hf/modeling_abm.py"):
        assert (tmp_path / "out" / name).is_file(), name
    weights = "abm_hf/pretrained/small/model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (ROOT / weights).read_bytes()
    assert not list((tmp_path / "out").rglob("space_files"))


def _no_network(*_: object) -> None:
    raise AssertionError("a dry run must not touch the network")


def test_mistakes_with_spaces(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push-space", "me/x", "--dry-run"]) == 2
    for model, words in ((str(tiny_checkpoint), "publish them with `push`"), ("./absent", "no model directory")):
        assert main(["push-space", "me/x", "--model", model, "--dry-run", "--output", str(tmp_path / "o")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_hub_that_refuses_or_is_away_is_told_in_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abm_hf.hub.publish.export_space", lambda folder, *_: Path(folder))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr(hub, "refuse", True)
    with pytest.raises(HubError, match=r"cannot publish me/other: .*hf auth login"):
        push_space("me/other", token="hf_none")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot publish me/other: .*connection to the Hub"):
        push_space("me/other", token="hf_none")
    with pytest.raises(HubError, match="cannot publish me/a/b: ") as caught:
        push_space("me/a/b", token="hf_none")
    assert "\n" not in str(caught.value)


def test_the_space_needs_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {*project["dependencies"], "abm-hf[demo]"}
    while extras := {need for need in needed if need.startswith("abm-hf[")}:  # extras may name others
        needed -= extras
        for name in ",".join(extra[len("abm-hf[") : -1] for extra in extras).split(","):
            needed |= set(project["optional-dependencies"][name])
    assert set((ROOT / "space" / "requirements.txt").read_text(encoding="utf-8").split()) == needed


def test_exporting_twice_gives_the_same_space(tmp_path: Path) -> None:
    first, second = (export_space(tmp_path / "space", "me/abm") for _ in range(2))
    assert first == second and (first / "README.md").read_text(encoding="utf-8").count("me/abm\n") == 1
    assert not (first / "abm_hf" / "pretrained").exists()
