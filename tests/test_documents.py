"""The documentation does what it says: every block of Python and bash of the pages in `RUN` is run, in order.

The blocks of a page share one folder, in which made-up inputs lie under the names that the pages use. A block that
takes hours or needs what is not here says so in a comment above it, which readers of the page do not see:

    <!-- not run by tests, because REASON -->
    <!-- tested with `OLD` as `NEW`, because REASON -->
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
#: Pages whose blocks need a server or a Hub: tests/test_space.py and tests/test_publishing.py run them.
ELSEWHERE = ["space/README.md", "abm_hf/pretrained/small/README.md"]
_FENCE = re.compile(r"((?:^<!--(?:(?!-->).)*-->\n+)*)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CHANGED = re.compile(r"<!-- tested with `([^`]+)` as `([^`]+)`, because \w.+? -->", re.DOTALL)
_LEFT_OUT = re.compile(r"<!-- not run by tests, because \w.+? -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code as the page shows it, with the comments above it."""

    comments: str
    language: str
    code: str

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "bash") and not _LEFT_OUT.search(self.comments)

    @property
    def tested(self) -> str:
        """The code with what the comments change."""
        code = self.code
        for old, new in _CHANGED.findall(self.comments):
            assert old in code, f"the comment changes {old!r}, which is not in the block"
            code = code.replace(old, new)
        return code


def blocks_of(page: str) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall((ROOT / page).read_text(encoding="utf-8"))]


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
def test_what_is_not_run_says_why(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = blocks_of(page)
    assert len(blocks) == len(re.findall(r"^```\w+$", text, re.MULTILINE))  # none escaped
    comments = re.findall(r"<!--.*?-->", text, re.DOTALL)
    understood = [
        note for note in comments if _CHANGED.match(note) or _LEFT_OUT.match(note) or note == "<!-- test -->"
    ]
    assert comments == understood
    if page in ELSEWHERE:  # what is run there: Python, and curl
        assert all(
            block.language in ("python", "bibtex") or "curl" in block.code or not block.is_run for block in blocks
        )


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
