"""The documentation does what it says: every block of Python and bash of the pages in `RUN` is run, in order.

The blocks of a page share one folder, in which made-up inputs lie under the names that the pages use. `documents.toml`
says which blocks take hours or need what is not here, and how they are changed or why they are left out.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from abm_hf.hub.conversion import read_state_dict
from abm_hf.ink.inkml import write_inkml
from abm_hf.ink.rendering import render_ink
from abm_hf.ink.strokes import Ink
from abm_hf.synthetic.expressions import synthetic_ink

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
#: Pages whose blocks are run here.
RUN = ["README.md", "docs/data.md", "docs/decoding.md", "docs/export.md", "docs/training.md"]
#: Pages whose blocks need a server or a Hub: tests/demo/test_space.py and tests/hub/test_publishing.py run them.
ELSEWHERE = ["space/README.md", "abm_hf/pretrained/small/README.md"]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTES = tomllib.loads(Path(__file__).with_name("documents.toml").read_text(encoding="utf-8"))["block"]


@dataclass(frozen=True)
class Block:
    """A block of code as a page shows it, with what `documents.toml` says of it."""

    language: str
    code: str
    note: dict[str, Any]

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "bash") and "skip" not in self.note

    @property
    def tested(self) -> str:
        """The code with its changes."""
        code = self.code
        for old, new in self.note.get("change", ()):
            assert old in code, f"documents.toml changes {old!r}, which is not in the block"
            code = code.replace(old, new)
        return code


def blocks_of(page: str) -> list[Block]:
    notes = [note for note in NOTES if note["page"] == page]
    return [
        Block(language, code, next((note for note in notes if note["block"] in code), {}))
        for language, code in _FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has at hand: the checkout, pictures, ink, CROHME's archives, the authors' checkpoint; made up."""
    folder = tmp_path_factory.mktemp("inputs")
    inks = [synthetic_ink(seed, max_tokens=5) for seed in range(12)]
    write_inkml(inks[0], folder / "formula.inkml")
    for name in ("formula.png", "more/a.png", "more/b.png", "scans/a.png"):
        _write_picture(inks[1], folder / name)
    for number, ink in enumerate(inks):
        split = "test2014" if number < 2 else "test2013" if number < 4 else "train/HAMEX"
        path = folder / "crohme" / split / f"e{number}_w{number % 3}.inkml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_inkml(Ink(ink.strokes, f"$ {ink.label} $", ink.symbols), path)
    _write_offline(inks, folder)
    weights = {
        f"module.{name}": value
        for name, value in read_state_dict(ROOT / "tests/fixtures/abm_reference_small.safetensors").items()
    }
    torch.save(weights, folder / "ABM_params162_lr0.03125_56.75126903553299.pkl")
    return folder


def _write_picture(ink: Ink, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), render_ink(ink))


def _write_offline(inks: Sequence[Ink], folder: Path) -> None:
    """`crohme-offline.zip`: pictures and captions of a training set and the 2014 test."""
    for number, ink in enumerate(inks):
        split = folder / "offline" / "data" / ("2014" if number < 2 else "train")
        _write_picture(ink, split / "img" / f"e{number}_w{number % 3}.bmp")
        with (split / "caption.txt").open("a") as captions:
            captions.write(f"e{number}_w{number % 3}\t{ink.label}\n")
    with zipfile.ZipFile(folder / "crohme-offline.zip", "w") as archive:
        for path in sorted((folder / "offline").rglob("*.*")):
            archive.write(path, path.relative_to(folder / "offline"))
    shutil.rmtree(folder / "offline")


@pytest.fixture
def checkout(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the blocks of a page run: a checkout's, as far as they look, and the inputs."""
    folder = tmp_path / "checkout"
    shutil.copytree(inputs, folder)
    for name in ("abm_hf", "examples", "scripts", "space", "tests", "constraints.txt", "pyproject.toml", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    commands = tmp_path / "bin"
    commands.mkdir()
    _write_command(commands / "abm-hf", f'exec {sys.executable} -m abm_hf.cli.main "$@"')
    _write_command(commands / "pip", 'case "$*" in install*) ;; *) exit 2 ;; esac')  # nothing is installed
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    for name, value in {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return folder


def _write_command(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.timeout(1500)  # a dozen commands, each of which loads torch: a minute, but many on a busy machine
@pytest.mark.parametrize("page", RUN)
def test_every_block_of_a_page_runs(page: str, checkout: Path) -> None:
    for number, block in enumerate(blocks_of(page), 1):
        if not block.is_run:
            continue
        if block.language == "python":
            exec(compile(block.tested, f"{page}, block {number}", "exec"), {"__name__": "block"})
        else:
            command = ["bash", "-euo", "pipefail", "-c", block.tested]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page}, block {number}:\n{block.tested}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES + ELSEWHERE)
def test_pages_show_nothing_of_their_tests(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = blocks_of(page)
    assert len(blocks) == len(re.findall(r"^```\w+$", text, re.MULTILINE))  # none escaped
    assert "<!--" not in text
    if page in ELSEWHERE:  # what is run there: Python, and curl
        assert all(
            block.language in ("python", "bibtex") or "curl" in block.code or not block.is_run for block in blocks
        )


def test_each_note_is_about_one_block_and_gives_its_reason() -> None:
    for note in NOTES:
        text = (ROOT / note["page"]).read_text(encoding="utf-8")
        assert sum(note["block"] in code for _, code in _FENCE.findall(text)) == 1, note
        assert ("skip" in note) != ("change" in note and note["because"] != ""), note


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_extras_that_pages_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {
        extra
        for page in PAGES + ELSEWHERE
        for group in re.findall(r"(?:abm-hf|\.)\[([a-z,]+)\]", (ROOT / page).read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert named <= set(extras) and "demo" in named


def test_links_of_a_page_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not target.startswith(("http", "#")):
                assert ((ROOT / page).parent / target.split("#")[0]).exists(), f"{page}: {target}"
