"""The demo as a visitor meets it, in Chromium: drawing, files, answer, attention; phone, desktop, dark, light."""

import base64
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_recognizer import LATEX, WIDE
from PIL import Image

ROOT = Path(__file__).parents[3]
OpenPage = Callable[..., Any]


def draw(page: Any, *lines: list[tuple[float, float]]) -> None:
    """Draws with the mouse; points are parts of the pad's width and height."""
    box = page.locator(".abm-canvas").bounding_box()
    for line in lines:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in line]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=3)
        page.mouse.up()


def screenshot(page: Any, name: str) -> None:
    """Keeps a picture of the page where `ABM_HF_SCREENSHOTS` names a folder: to be looked at."""
    folder = os.environ.get("ABM_HF_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(800)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True, timeout=120_000)


def answer_of(page: Any, latex: str = LATEX) -> None:
    page.wait_for_function("latex => document.querySelector('.abm-latex').textContent === latex", arg=latex)


def ink_on(page: Any) -> int:
    """Pixels of the pad that are not blank."""
    return page.evaluate(
        """() => { const c = document.querySelector('.abm-canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }"""
    )


def test_a_drawn_formula_is_read_when_the_pen_rests(open_page: OpenPage, recognizer: Any) -> None:
    page = open_page()
    assert page.locator("[data-do=read]").first.is_disabled()
    recognizer.calls.clear()
    draw(page, [(0.2, 0.2), (0.4, 0.8)], [(0.4, 0.2), (0.2, 0.8)])
    answer_of(page)  # without a press on the button
    (call,) = recognizer.calls  # the pen rested once
    ink = call["source"]
    assert len(ink.strokes) == 2
    assert ink.strokes[0].shape[1] == 3 and (ink.strokes[0][:, 2] >= 0).all()  # time is kept
    assert ink.strokes[1][0, 2] > ink.strokes[0][0, 2]
    page.wait_for_selector("#abm-formula .katex")
    assert "error" not in page.inner_html("#abm-formula")
    assert page.inner_text(".abm-score").startswith("probability 87")
    assert page.inner_text(".abm-time") == "12 ms"
    assert "<mfrac>" in page.text_content(".abm-mathml")
    assert page.locator(".abm-hypotheses li").count() == 3
    assert page.locator(".abm-hypotheses math").count() == 3
    assert page.locator(".abm-badge").is_hidden()
    draw(page, [(0.6, 0.2), (0.8, 0.8)])
    page.wait_for_function("document.querySelectorAll('.abm-chip').length > 0")


def test_tools_of_the_pad(open_page: OpenPage) -> None:
    page = open_page()
    status = page.locator("#abm-pad-status")
    draw(page, [(0.1, 0.5), (0.3, 0.5)], [(0.6, 0.3), (0.6, 0.7)])
    assert status.inner_text() == "2 strokes"
    two = ink_on(page)
    page.click("[data-do=undo]")
    assert status.inner_text() == "1 stroke" and ink_on(page) < two
    page.click("[data-do=redo]")
    assert status.inner_text() == "2 strokes" and ink_on(page) == two
    page.click("[data-do=erase]")
    assert page.get_attribute("[data-do=erase]", "aria-pressed") == "true"
    draw(page, [(0.5, 0.5), (0.7, 0.5)])  # across the second stroke
    assert status.inner_text() == "1 stroke"
    page.keyboard.press("Control+z")
    assert status.inner_text() == "2 strokes"
    page.click("[data-do=clear]")
    assert ink_on(page) == 0 and page.locator("[data-do=clear]").is_disabled()
    page.click("[data-do=undo]")
    assert status.inner_text() == "2 strokes"  # even that can be taken back
    page.locator(".abm-canvas").focus()
    page.keyboard.press("Enter")
    answer_of(page)


def test_an_improbable_answer_warns(open_page: OpenPage) -> None:
    page = open_page()
    draw(page, [(0.3, 0.3), (0.5, 0.7)])
    answer_of(page)
    assert "unsure" in page.inner_text(".abm-badge")
    page.click("[data-do=clear]")
    page.wait_for_function("document.querySelector('.abm-latex').textContent === ''")
    assert page.locator(".abm-badge").is_hidden() and page.locator("#abm-formula .katex").count() == 0


def test_files_are_opened_and_bad_ones_refused_as_text(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Picture, photo or ink file").click()
    chooser = page.locator(".abm-file")
    chooser.set_input_files(ROOT / "examples" / "euler.png")
    answer_of(page)
    assert page.locator(".abm-preview img").is_visible()
    evil = tmp_path / "evil.svg"
    evil.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>window.hacked = 1</script></svg>")
    notice = page.locator(".abm-notice")
    for name, content, words in [
        ("evil.svg", evil.read_bytes(), "SVG"),
        ("paper.pdf", b"%PDF-1.7 ...", "PDF"),
        ("cut.png", (ROOT / "examples" / "euler.png").read_bytes()[:200], "damaged"),
        ("bomb.inkml", b"<!DOCTYPE ink [<!ENTITY a 'b'>]><ink><trace>&a;</trace></ink>", "DOCTYPE"),
        ("html.inkml", b"<ink><trace>1 <b>&lt;img src=x onerror='window.hacked=1'&gt;</b></trace></ink>", "onerror"),
    ]:
        (tmp_path / name).write_bytes(content)
        chooser.set_input_files(tmp_path / name)
        notice.filter(has_text=words).wait_for()
        assert page.inner_text(".abm-latex") == ""
    screenshot(page, "refused")
    assert notice.locator("*").count() == 0  # text, whatever it says
    assert page.evaluate("window.hacked") is None
    (tmp_path / "large.bin").write_bytes(b"\0" * (7 * 2**20))
    chooser.set_input_files(tmp_path / "large.bin")
    page.locator("#abm-drop .abm-status.abm-bad").filter(has_text="too large").wait_for()


def test_inkml_lands_on_the_pad(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("tab", name="Picture, photo or ink file").click()
    page.locator(".abm-file").set_input_files(ROOT / "examples" / "gauss.inkml")
    answer_of(page)
    page.locator(".abm-canvas").wait_for(state="visible")  # the tab was changed
    page.wait_for_function("/\\d+ strokes/.test(document.querySelector('#abm-pad-status').textContent)")
    assert ink_on(page) > 500


def test_a_pasted_picture_is_read(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("tab", name="Picture, photo or ink file").click()
    page.locator(".abm-drop").focus()
    data = base64.b64encode((ROOT / "examples" / "euler.png").read_bytes()).decode()
    page.evaluate(
        """data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        const transfer = new DataTransfer(); transfer.items.add(new File([bytes], 'x.png', {type: 'image/png'}));
        document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true})); }""",
        data,
    )
    answer_of(page)


def test_a_photo_is_taken_and_read(open_page: OpenPage, recognizer: Any, photographed: np.ndarray) -> None:
    page = open_page(permissions=["camera"])
    page.get_by_role("tab", name="Picture, photo or ink file").click()
    page.get_by_role("button", name="Take a photo").click()
    page.wait_for_function("document.querySelector('.abm-preview video').videoWidth === 640")
    page.wait_for_timeout(500)  # the first frames are black
    screenshot(page, "camera")
    recognizer.calls.clear()
    page.get_by_role("button", name="Take it").click()
    answer_of(page)
    with Image.open(io.BytesIO(recognizer.calls[-1]["source"])) as photo:
        taken = np.asarray(photo.convert("L")).astype(int)
    assert taken.shape == photographed.shape and np.abs(taken - photographed).mean() < 25
    assert page.evaluate("document.querySelector('.abm-preview video').srcObject") is None  # the camera is off
    assert page.get_by_role("button", name="Take a photo").is_visible()
    page.get_by_role("button", name="Take a photo").click()
    page.get_by_role("button", name="Cancel").click()
    assert page.locator(".abm-preview video").is_hidden()


def test_without_a_camera_a_file_is_offered(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_role("tab", name="Picture, photo or ink file").click()
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no')) }")
    page.get_by_role("button", name="Take a photo").click()
    page.locator("#abm-drop .abm-status.abm-bad").filter(has_text="choose a photo instead").wait_for()
    assert page.get_attribute(".abm-file", "capture") == "environment"


def test_attention_is_moved_through(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(accept_downloads=True)
    page.click(".abm-example >> nth=0")
    answer_of(page)
    page.wait_for_selector(".abm-chip")
    assert [text.strip() for text in page.locator(".abm-branch h3").all_inner_texts()] == [
        "Left to right",
        "Right to left",
    ]
    branch = page.locator(".abm-branch").first
    pixels = "c => c.toDataURL()"
    whole = branch.locator("canvas").evaluate(pixels)
    branch.locator(".abm-chip").nth(3).click()
    assert branch.locator(".abm-caption").inner_text() == "2 (4 of 13, 90%)"
    screenshot(page, "attention")
    fourth = branch.locator("canvas").evaluate(pixels)
    assert fourth != whole
    slider = branch.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert branch.locator(".abm-caption").inner_text().startswith("} (5 of 13")
    assert branch.locator("canvas").evaluate(pixels) != fourth
    assert slider.get_attribute("aria-valuetext").startswith("} (5 of 13")
    with page.expect_download() as download:
        branch.get_by_text("Download GIF").click()
    assert download.value.suggested_filename == "attention-l2r.gif"
    download.value.save_as(tmp_path / "a.gif")
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF8")


def test_a_changed_setting_reads_again(open_page: OpenPage, recognizer: Any) -> None:
    page = open_page()
    page.click(".abm-example >> nth=1")
    answer_of(page)
    page.wait_for_selector(".abm-chip")
    page.get_by_role("button", name="Settings").first.click()
    recognizer.calls.clear()
    page.get_by_label("Beam search").uncheck()
    page.wait_for_function("document.querySelectorAll('.abm-hypotheses li').length === 1")
    screenshot(page, "settings")
    assert recognizer.calls[-1]["options"].num_beams == 1


def test_a_model_that_writes_nonsense_is_shown_as_text(open_page: OpenPage, recognizer: Any) -> None:
    page = open_page()
    recognizer.latex = r"\frac{a}{<img src=x onerror=window.hacked=1>"
    try:
        page.click(".abm-example >> nth=1")
        answer_of(page, recognizer.latex)
        page.locator(".abm-notice").filter(has_text="not well-formed").wait_for()
        assert page.locator("#abm-formula img").count() == 0
        assert page.evaluate("window.hacked") is None
    finally:
        recognizer.latex = None


@pytest.mark.parametrize(("width", "height", "theme"), [(360, 740, "light"), (360, 740, "dark"), (1440, 900, "dark")])
def test_it_fits_the_screen(open_page: OpenPage, width: int, height: int, theme: str) -> None:
    page = open_page(width, height, theme, has_touch=width < 500)
    assert ("dark" in page.evaluate("document.body.className")) == (theme == "dark")
    top = page.locator("#abm-viewer").bounding_box()["y"]
    box = page.locator(".abm-canvas").bounding_box()
    across = [
        (box["x"] + 4, box["y"] + box["height"] / 2),
        (box["x"] + box["width"] - 4, box["y"] + box["height"] / 2),
    ]
    touch(page, across) if width < 500 else draw(page, [(0.01, 0.5), (0.99, 0.5)])
    answer_of(page, WIDE)  # a formula of 40 terms
    page.wait_for_selector("#abm-formula .katex")
    page.wait_for_selector(".abm-chip")
    screenshot(page, f"long-{width}-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in (".abm-tool", ".abm-chip", ".abm-example"):
        for place in page.locator(name).all():
            if place.is_visible():
                assert place.bounding_box()["height"] >= 32  # for fingers
    lost = page.evaluate("""() => [...document.querySelectorAll('.abm-code, .abm-frame, .abm-tokens, .abm-formula')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)""")
    assert lost == []
    if width < 500:  # the answer is next to what was written
        order = [page.locator(name).first.bounding_box()["y"] for name in (".abm-pad", "#abm-formula", ".abm-example")]
        assert order == sorted(order)
    if width > 500:  # beside each other, the answer must not push what is below
        assert abs(page.locator("#abm-viewer").bounding_box()["y"] - top) < 60


def touch(page: Any, points: list[tuple[float, float]]) -> None:
    """One stroke with a finger."""
    session = page.context.new_cdp_session(page)
    steps = [(points[0][0] + (points[1][0] - points[0][0]) * k / 10, points[0][1]) for k in range(11)]
    for kind, place in [("touchStart", steps[0]), *(("touchMove", step) for step in steps[1:]), ("touchEnd", None)]:
        touches = [{"x": place[0], "y": place[1]}] if place else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})


def test_everything_has_a_name_and_can_be_reached(open_page: OpenPage) -> None:
    page = open_page()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(
            '.abm-pad button, .abm-drop button, .abm-example, .abm-answer button, canvas, .abm-viewer input')]
        .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.title)).map(e => e.outerHTML)"""
    )
    assert nameless == []
    page.locator(".abm-canvas").focus()
    page.keyboard.press("Tab")
    seen = page.evaluate("document.activeElement.dataset.do")
    assert seen == "erase"  # the first tool that can be used on an empty pad
    contrast = page.evaluate(
        """() => { const lum = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => { v /= 255;
            return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
            return .2126 * r + .7152 * g + .0722 * b; };
        const a = lum(getComputedStyle(document.querySelector('.abm-head p')).color);
        const b = lum(getComputedStyle(document.body).backgroundColor);
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }"""
    )
    assert contrast >= 4.5


def test_the_page_is_told_to_those_who_do_not_see_it(open_page: OpenPage) -> None:
    page = open_page()
    page.click(".abm-example >> nth=0")
    answer_of(page)
    page.wait_for_selector(".abm-chip")
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Beam search").wait_for()
    told = page.locator("body").aria_snapshot()
    for control in (
        'heading "Handwritten mathematics to LaTeX"',
        'tab "Draw" [selected]',
        'application "Drawing area',
        'toolbar "Drawing tools"',
        'button "Undo"',
        'button "Eraser"',
        'button "Read"',
        'group "Examples',
        'checkbox "Beam search" [checked]',
        'button "Copy"',
        "slider",
    ):
        assert control in told, control
    nameless = re.findall(
        r"^\s*- (?:button|tab|checkbox|slider|img|application|textbox|link)(?: \[.*\])?:?$", told, re.M
    )
    assert nameless == []


def test_everything_can_be_done_with_the_keyboard(open_page: OpenPage) -> None:
    page = open_page()
    page.locator("body").focus()
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.dataset.do || e.className || e.innerText)(document.activeElement)"))
        if reached[-1].startswith("abm-example"):
            break
    assert any("abm-canvas" in stop for stop in reached) and "erase" in reached, reached
    page.keyboard.press("Enter")
    answer_of(page)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # where one is can be seen


def test_a_visitor_who_leaves_in_the_middle_harms_nobody(open_page: OpenPage, recognizer: Any) -> None:
    page = open_page()
    draw(page, [(0.2, 0.2), (0.4, 0.8)], [(0.4, 0.2), (0.2, 0.8)])
    page.locator("[data-do=read]").click()
    page.context.close()
    other = open_page()
    draw(other, [(0.2, 0.2), (0.4, 0.8)], [(0.4, 0.2), (0.2, 0.8)])
    answer_of(other)


def test_no_request_carries_more_than_the_pen_wrote(open_page: OpenPage) -> None:
    page = open_page()
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data) if "/queue/join" in request.url else None)
    draw(page, [(0.2, 0.2), (0.4, 0.8)], [(0.4, 0.2), (0.2, 0.8)])
    answer_of(page)
    first = json.loads(sent[0])
    strokes = json.loads(first["data"][0])["strokes"]
    assert len(strokes) == 2 and first["data"][1:] == [True, True, True]
