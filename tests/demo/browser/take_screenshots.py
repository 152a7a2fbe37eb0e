"""Takes the pictures of the demo that the documentation shows.

    abm-hf demo &
    python tests/demo/browser/take_screenshots.py http://127.0.0.1:7860 docs/images

Writes `demo.png` (desktop, light, an example of ink) and `demo_phone.png` (360 px, dark, another; as far down as the
desktop's picture goes when they stand side by side).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from conftest import CHROMIUM, FLAGS, PATIENCE
from playwright.sync_api import sync_playwright

#: Name, width, height, theme, example (from 1), token whose attention is shown (from 0), pixels kept from the top.
SHOTS = (("demo", 1280, 900, "light", 1, 10, 2000), ("demo_phone", 360, 740, "dark", 2, 3, 1010))


def take(browser: Any, address: str, folder: Path, shot: tuple[str, int, int, str, int, int, int]) -> str:
    """One picture; returns the LaTeX on it."""
    name, width, height, theme, example, token, kept = shot
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address, wait_until="domcontentloaded", timeout=PATIENCE)
    page.locator(f".abm-example:nth-child({example})").click()
    page.wait_for_selector(".abm-chip")
    page.wait_for_selector("#abm-formula .katex")
    for branch in page.locator(".abm-branch").all():
        chips = branch.locator(".abm-chip")
        chips.nth(min(token, chips.count() - 1)).click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    kept = min(kept, page.evaluate("document.documentElement.scrollHeight"))
    part = {"x": 0, "y": 0, "width": width, "height": kept}
    page.screenshot(path=folder / f"{name}.png", full_page=True, clip=part, timeout=PATIENCE)
    latex = page.inner_text(".abm-latex") + "  " + page.inner_text(".abm-facts").replace("\n", " ")
    context.close()
    return str(latex)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        for shot in SHOTS:
            sys.stdout.write(f"{shot[0]}: {take(browser, options.address, options.folder, shot)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
