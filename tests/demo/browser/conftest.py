"""A running demo and Debian's Chromium for the browser tests."""

import os
import shutil
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abm_hf.ink.inkml import read_inkml
from abm_hf.ink.rendering import render_ink

sys.path.insert(0, str(Path(__file__).parent))

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
]
#: A camera that shows a file, and that every page may use which asks the browser.
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
#: Milliseconds to wait for anything on the page: machines that run tests are often busy.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def photographed() -> np.ndarray:
    """What the camera sees, uint8 (480, 640): the ink of an example, dark on light paper."""
    frame = np.full((480, 640), 220, np.uint8)
    ink = render_ink(read_inkml(Path(__file__).parents[3] / "examples" / "gauss.inkml"))
    height, width = min(ink.shape[0], 460), min(ink.shape[1], 620)
    frame[10 : 10 + height, 10 : 10 + width] -= ink[:height, :width] // 255 * 190
    return frame


@pytest.fixture(scope="module")
def chromium(photographed: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser, or a skip that cannot be overlooked."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip_loudly("playwright is not installed (pip install playwright)")
    if not CHROMIUM:
        _skip_loudly("Chromium is not installed (apt-get install chromium, or set CHROMIUM to its path)")
    video = tmp_path_factory.mktemp("camera") / "formula.y4m"
    grey = bytes([128]) * (photographed.size // 2)  # both colours, at a quarter of the resolution
    head = f"YUV4MPEG2 W{photographed.shape[1]} H{photographed.shape[0]} F10:1 Ip A1:1 C420jpeg\nFRAME\n"
    video.write_bytes(head.encode() + photographed.tobytes() + grey)
    flags = [*FLAGS, *CAMERA, f"--use-file-for-fake-video-capture={video}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=PATIENCE)
        yield browser
        browser.close()


def _skip_loudly(reason: str) -> None:
    message = f"THE DEMO IS NOT TESTED IN A BROWSER: {reason}"
    warnings.warn(message, stacklevel=2)
    sys.stderr.write(f"\n*** {message} ***\n")
    pytest.skip(message)


@pytest.fixture(scope="module")
def recognizer() -> Any:
    from fake_recognizer import FakeRecognizer

    return FakeRecognizer()


@pytest.fixture(scope="module")
def address(recognizer: Any) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install abm-hf[demo]")
    from abm_hf.demo import app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo = app.build_demo(recognizer)
    _, url, _ = demo.launch(
        server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, **app.launch_options()
    )
    yield url
    demo.close()


@pytest.fixture
def open_page(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the demo in a window of its own; at the end no script may have failed, and no other host been asked."""
    contexts, faults = [], []

    def open_in(width: int = 1280, height: int = 900, theme: str = "light", **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=theme, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("request", lambda request: _note_other_host(request.url, address, faults))
        page.goto(address, wait_until="domcontentloaded", timeout=PATIENCE)
        page.wait_for_selector(".abm-example")
        page.wait_for_selector(".abm-canvas")
        return page

    yield open_in
    for context in contexts:
        context.close()
    assert not faults, faults


def _note_other_host(url: str, address: str, faults: list[str]) -> None:
    if url.startswith("http") and not url.startswith(address.rstrip("/")):
        faults.append(f"asked another host: {url}")
