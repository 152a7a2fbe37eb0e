"""The wheel holds code, weights and what loading them needs, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What is in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(ROOT / "space", folder / "space")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "abm_hf", folder / "abm_hf", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = (folder / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_code_weights_and_what_loading_needs_are_in_the_wheel(names: set[str]) -> None:
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "abm_hf").rglob("*.py")}
    assert code - {name for name in code if "/space_files/" in name} <= names
    folder = ROOT / "abm_hf" / "pretrained" / "small"
    needed = [*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("onnx/*"), *folder.glob("results/*")]
    assert len(needed) > 10
    assert {path.relative_to(ROOT).as_posix() for path in needed} <= names
    for needed_name in ("py.typed", "training/recipes/small.yaml", "demo/space_files/app.py"):
        assert f"abm_hf/{needed_name}" in names
    assert any(name.startswith("abm_hf/demo/assets/") for name in names)


def test_curves_galleries_and_logs_are_not(names: set[str]) -> None:
    pretrained = [name for name in names if name.startswith("abm_hf/pretrained/")]
    assert not [name for name in pretrained if not name.endswith((".json", ".safetensors", ".onnx"))]
    assert not [name for name in names if name.startswith(("tests/", "docs/", "scripts/"))]


def test_pictures_of_the_packaged_card_are_there() -> None:
    card = ROOT / "abm_hf" / "pretrained" / "small" / "README.md"
    pictures = [line.partition("](")[2].rstrip(")") for line in card.read_text().splitlines() if line.startswith("![")]
    assert len(pictures) == 3 and all((card.parent / picture).is_file() for picture in pictures)
