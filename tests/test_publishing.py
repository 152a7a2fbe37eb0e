"""Publishing against a Hub on loopback: what `push` and `push-space` upload is what loads and runs elsewhere."""

import json
import socket
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from fake_hub import FakeHub, running_hub

from abm_hf.cli import main
from abm_hf.hub import HubError, export_space, push_space

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def published(hub: FakeHub, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publishes a model and a Space that takes its weights from it, with the command; returns what that said."""
    code = f"""
    from abm_hf.cli import main
    assert main(["push", "me/abm-tiny", "--model", {str(tiny_checkpoint)!r}]) == 0
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
    assert {"model.safetensors", "modeling_abm.py", "tokenizer.json", "generation_config.json"} <= set(
        repository.files
    )
    assert b"me/abm-tiny" in repository.files["README.md"]


def test_a_published_model_loads_where_the_package_is_unknown(
    published: str, hub: FakeHub, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    code = """
    import importlib.util, json, sys, torch
    sys.modules["abm_hf"] = None  # an import of it fails
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained("me/abm-tiny", trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained("me/abm-tiny", trust_remote_code=True)
    inputs = processor(images=torch.eye(40).mul(255).byte().numpy())
    print(json.dumps(model.generate(**inputs, max_length=10).tolist()))
    """
    remote = json.loads(_run(code, hub.environment(tmp_path)))
    import torch

    from abm_hf import ABMForConditionalGeneration, ABMProcessor

    inputs = ABMProcessor()(images=torch.eye(40).mul(255).byte().numpy())
    local = ABMForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    assert remote == local.generate(**inputs, max_length=10).tolist()


def test_a_published_space_runs(published: str, hub: FakeHub, tmp_path: Path) -> None:
    space = hub.repositories["space", "me/handwriting"]
    assert space.made_with["sdk"] == "gradio" and space.made_with["visibility"] == "public"
    assert space.variables == {"MODEL_ID": "me/abm-tiny"}
    assert not [name for name in space.files if "pretrained/" in name or "__pycache__" in name]
    for name, data in space.files.items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    card = yaml.safe_load((tmp_path / "space" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["models"] == ["me/abm-tiny"] and card["app_file"] == "app.py"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = hub.environment(tmp_path) | space.variables | {"GRADIO_SERVER_PORT": str(port)}
    environment.pop("PYTHONPATH", None)
    _ask_for_a_formula(tmp_path / "space", environment, f"http://127.0.0.1:{port}")


def _ask_for_a_formula(folder: Path, environment: dict[str, str], address: str) -> None:
    """Starts the Space's app as Hugging Face does, and has it read two strokes."""
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(address, process, log)
            plus = [[[0, 20], [40, 20]], [[20, 0], [20, 40]]]
            asked = httpx.post(
                f"{address}/gradio_api/call/recognize_ink", json={"data": [plus, False, False, True]}, timeout=60
            )
            answer = httpx.get(f"{address}/gradio_api/call/recognize_ink/{asked.json()['event_id']}", timeout=60).text
        finally:
            process.terminate()
            process.wait(30)
    assert "event: complete" in answer and '"readings"' in answer


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
    monkeypatch.setattr("abm_hf.hub.export_space", lambda folder, *_: Path(folder))
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
    needed = project["dependencies"] + project["optional-dependencies"]["demo"]
    assert (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8").split() == needed


def test_exporting_twice_gives_the_same_space(tmp_path: Path) -> None:
    first, second = (export_space(tmp_path / "space", "me/abm") for _ in range(2))
    assert first == second and (first / "README.md").read_text(encoding="utf-8").count("me/abm\n") == 1
    assert not (first / "abm_hf" / "pretrained").exists()
