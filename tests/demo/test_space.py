"""The demo without a browser: what is taken and refused, what is answered, the guard, starting, and the API."""

import asyncio
import base64
import contextlib
import functools
import importlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install abm-hf[demo]")

from abm_hf import Recognizer
from abm_hf.demo import app, components, guard, inputs, service
from abm_hf.demo.inputs import RefusedError
from abm_hf.ink.strokes import Ink

sys.path.insert(0, str(Path(__file__).parent / "browser"))
fake = importlib.import_module("fake_recognizer")

ROOT = Path(__file__).parents[2]
TOKENS = list(fake.TOKENS)
STROKES = [[[0, 0], [30, 40]], [[30, 0], [0, 40]]]
BOMB = b'<?xml version="1.0"?><!DOCTYPE ink [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ink><trace>&b;</trace></ink>'


def png(picture: np.ndarray | None = None) -> bytes:
    if picture is None:
        picture = np.zeros((40, 120), np.uint8)
        picture[18:22, 10:110] = 255
    with io.BytesIO() as stream:
        Image.fromarray(picture).save(stream, "PNG")
        return stream.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels: reading it must not allocate them."""
    chunks = (
        b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0]),
        b"IDAT",
        b"IEND",
    )
    framed = ((len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_base64_is_taken_with_and_without_a_prefix() -> None:
    data = png()
    assert inputs.decode_base64(base64_of(data)) == data
    assert inputs.decode_base64("data:image/png;base64," + base64_of(data)) == data


def test_base64_is_taken_as_programs_write_it() -> None:
    """Line breaks of `base64` and MIME, a trailing one, any `data:` prefix, no padding, the alphabet of addresses."""
    data = png() + b"\xfb\xff" * 2
    plain = base64_of(data)
    assert plain.endswith("=") and "/" in plain and "+" in plain and len(plain) > 64
    for text in (
        base64.encodebytes(data).decode(),
        plain + "\n",
        "  " + plain.replace("A", "A\r\n") + "\t",
        "data:image/png;name=a b.png;base64,\n" + plain,
        "DATA:;base64," + plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
    ):
        assert inputs.decode_base64(text) == data, text[:40]


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "../../secret", "http://localhost/x.png", "file:///etc/passwd", "data:image/png,abc"]
)
def test_paths_and_addresses_are_not_followed(text: str) -> None:
    with pytest.raises(RefusedError, match="not base64"):
        inputs.decode_base64(text)


@pytest.mark.parametrize("value", [None, "", 7, ["x"], {"path": "/etc/passwd"}])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(RefusedError, match="no file"):
        inputs.decode_base64(value)


def test_a_large_file_is_refused_before_it_is_decoded() -> None:
    # Not base64 at all: had it been decoded, the message would be another.
    with pytest.raises(RefusedError, match="too large"):
        inputs.decode_base64("!" * (inputs.MAX_PICTURE_BYTES * 2))
    limit = inputs.decode_base64(base64_of(b"x" * inputs.MAX_PICTURE_BYTES))
    assert len(limit) == inputs.MAX_PICTURE_BYTES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_of_every_kind_are_taken(kind: str) -> None:
    with io.BytesIO() as stream:
        Image.new("RGB", (50, 40), "white").save(stream, kind)
        data = stream.getvalue()
    assert inputs.read_file(data) == data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%PDF-1.7\n1 0 obj", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg onload='x'/>", "SVG"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
        (b"<html><body>no</body></html>", "not InkML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"just text", "not a picture"),
        (b"\0" * 200, "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff\xe0", "damaged"),
        (png_header(4001, 4000), "megapixels"),
        (png_header(2**30, 2**30), "megapixels"),
        (BOMB, "DOCTYPE"),
        (b"<ink><trace>1 2, nan 3</trace></ink>", "not finite"),
        (b"<ink></ink>", "no trace"),
    ],
)
def test_other_files_are_refused_with_a_reason(data: bytes, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        inputs.read_file(data)


def test_inkml_is_told_by_content_and_kept_within_limits() -> None:
    ink = inputs.read_file((ROOT / "examples" / "gauss.inkml").read_bytes())
    assert isinstance(ink, Ink) and len(ink.strokes) > 5
    many = b"<ink>" + b"<trace>1 2</trace>" * (inputs.MAX_STROKES + 1) + b"</ink>"
    with pytest.raises(RefusedError, match="strokes"):
        inputs.read_file(many)
    with pytest.raises(RefusedError, match="too large"):
        inputs.ink_from_inkml(b"<ink>" + b" " * inputs.MAX_INK_BYTES)


def test_ink_from_a_page_and_from_programs() -> None:
    for value in (STROKES, json.dumps(STROKES), {"strokes": STROKES}, json.dumps({"strokes": STROKES})):
        ink = inputs.ink_from_json(value)
        assert ink is not None and len(ink.strokes) == 2
    assert inputs.ink_from_json([[[0, 0, 5], [1, 1, 9]]]).strokes[0].shape == (2, 3)
    for nothing in (None, "", "[]", [], {"strokes": []}, [[], []]):
        assert inputs.ink_from_json(nothing) is None


@pytest.mark.parametrize(
    "value",
    [
        "no json",
        "[" * 100_000,
        7,
        [7],
        ["ab"],
        [[1, 2]],
        [[[1]]],
        [[["a", "b"]]],
        [[[1, 2, 3, 4]]],
        [[[float("nan"), 0]]],
        [[[1e12, 0]]],
        [[[0, 0]]] * (inputs.MAX_STROKES + 1),
        [[[0, 0]] * (inputs.MAX_POINTS + 1)],
        '[[["' + "1" * 5_000_000 + '"]]]',
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bad_ink_is_refused(value: Any) -> None:
    with pytest.raises(RefusedError):
        inputs.ink_from_json(value)


# --- what is answered ------------------------------------------------------------------------------------------------


@pytest.fixture
def recognizer() -> Any:
    return fake.FakeRecognizer()


@pytest.fixture
def demo_service(recognizer: Any) -> service.Service:
    return service.Service(recognizer)


def test_limits_reach_the_model(demo_service: service.Service, recognizer: Any) -> None:
    demo_service.read(png())
    assert recognizer.calls[-1]["options"].max_time == service.TIME_LIMIT
    assert recognizer.max_megapixels == inputs.MAX_MEGAPIXELS


@pytest.mark.parametrize(
    "settings", [service.Settings(beam=False), service.Settings(), service.Settings(rescore=False)]
)
def test_a_reading_stops_at_its_time_limit(tiny_checkpoint: Path, settings: service.Settings) -> None:
    ink = Ink(tuple(map(np.array, STROKES)))
    recognizer = Recognizer(tiny_checkpoint, device="cpu")
    assert len(service.Service(recognizer).read(ink, settings)["tokens"]) > 2
    assert len(service.Service(recognizer, time_limit=0.0).read(ink, settings)["tokens"]) <= 1


def test_an_answer_has_all_that_the_page_shows(demo_service: service.Service) -> None:
    answer = demo_service.read(Ink(tuple(map(np.array, STROKES))))
    assert answer["latex"] == fake.LATEX and answer["mathml"].startswith("<math")
    assert answer["score"] == 0.87 and not answer["unsure"] and answer["complete"]
    assert [found["score"] for found in answer["hypotheses"]] == [0.87, 0.05, 0.01]
    assert len(answer["tokens"]) == len(answer["token_scores"])
    assert json.dumps(answer)  # plain data
    seen = service.from_png(answer["seen"])
    assert seen.dtype == np.uint8 and seen.max() == 255


def test_an_improbable_answer_is_marked(demo_service: service.Service) -> None:
    assert demo_service.read(Ink((np.array(STROKES[0]),)))["unsure"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            service.Settings(),
            {"num_beams": service.BEAMS, "top_k": service.HYPOTHESES, "grammar": True, "rescore": None},
        ),
        (service.Settings(beam=False), {"num_beams": 1, "top_k": 1}),
        (service.Settings(grammar=False), {"grammar": False}),
        (service.Settings(rescore=False), {"rescore": False}),
    ],
)
def test_settings_reach_the_model(
    demo_service: service.Service, recognizer: Any, settings: service.Settings, expected: dict[str, Any]
) -> None:
    demo_service.read(png(), settings)
    assert vars(recognizer.calls[-1]["options"]).items() >= expected.items()


def test_a_model_of_one_direction_is_not_asked_for_the_other() -> None:
    recognizer = fake.FakeRecognizer(directions=("l2r",))
    single = service.Service(recognizer)
    seen = single.read(png())["seen"]
    assert [branch["direction"] for branch in single.explain(seen, TOKENS)["branches"]] == ["l2r"]
    with pytest.raises(RefusedError, match="no such direction"):
        single.gif(seen, TOKENS, "r2l")


def test_a_picture_that_cannot_be_read_is_refused_with_the_reason(demo_service: service.Service) -> None:
    with pytest.raises(RefusedError, match="cannot be read: there is no ink"):
        demo_service.read(png(np.zeros((30, 30), np.uint8)))
    with pytest.raises(RefusedError, match="damaged"):
        demo_service.read(png()[:-30])


def test_attention_of_both_directions_survives_the_journey(demo_service: service.Service) -> None:
    picture = np.zeros((40, 120), np.uint8)
    picture[18:22, 10:110] = 255
    shown = demo_service.explain(service.to_png(picture), TOKENS)
    assert (shown["width"], shown["height"]) == (120, 40)
    left, right = shown["branches"]
    assert (left["direction"], right["direction"]) == ("l2r", "r2l")
    maps = np.frombuffer(base64.b64decode(left["maps"]), np.uint8)
    maps = maps.reshape(len(left["tokens"]), left["rows"], left["columns"])
    expected = fake.FakeRecognizer().explain(picture).attention
    np.testing.assert_array_equal(maps, (255 * expected).astype(np.uint8))
    assert right["tokens"] == left["tokens"]  # in the order of the formula, though written from its end
    backwards = np.frombuffer(base64.b64decode(right["maps"]), np.uint8).reshape(maps.shape)
    np.testing.assert_array_equal(backwards[0], maps[0])


@pytest.mark.parametrize("seen", [None, "", "/etc/passwd", base64_of(b"GIF89a"), base64_of(b"%PDF-1.4"), 3])
def test_attention_takes_nothing_but_pictures(demo_service: service.Service, seen: Any) -> None:
    with pytest.raises(RefusedError):
        demo_service.explain(seen, TOKENS)


@pytest.mark.parametrize("tokens", [None, "x", [1], ["x"] * 1000])
def test_attention_takes_nothing_but_answers(demo_service: service.Service, tokens: Any) -> None:
    with pytest.raises(RefusedError, match="list of LaTeX tokens"):
        demo_service.explain(demo_service.read(png())["seen"], tokens)


def test_attention_is_that_of_the_answer(tiny_checkpoint: Path) -> None:
    """Not of another formula, which a branch would find by itself."""
    demo_service = service.Service(Recognizer(tiny_checkpoint, device="cpu"))
    seen = demo_service.read(Ink(tuple(map(np.array, STROKES))))["seen"]
    for branch in demo_service.explain(seen, ["a", "+", "b"])["branches"]:
        assert branch["tokens"] == ["a", "+", "b"]
    with pytest.raises(RefusedError, match="does not know"):
        demo_service.explain(seen, ["a", "no token"])


def test_gif_comes_as_data(demo_service: service.Service) -> None:
    data = demo_service.gif(demo_service.read(png())["seen"], TOKENS, "r2l", dark=True)
    assert base64.b64decode(data.removeprefix("data:image/gif;base64,")).startswith(b"GIF8")


def test_the_model_always_runs_in_the_same_thread(
    demo_service: service.Service, recognizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread in which torch has computed keeps memory."""
    seen: set[int] = set()
    prepare = fake.prepare
    monkeypatch.setattr(fake, "prepare", lambda source: seen.add(threading.get_ident()) or prepare(source))
    pictures: list[Any] = []
    for _ in range(3):
        visitor = threading.Thread(target=lambda: pictures.append(demo_service.read(png())["seen"]))
        visitor.start()
        visitor.join()
    demo_service.explain(pictures[0], TOKENS)
    assert len(pictures) == 3 and len(seen) == 1 and threading.get_ident() not in seen


def test_whoever_waits_too_long_is_told() -> None:
    recognizer = fake.FakeRecognizer()
    impatient = service.Service(recognizer, wait_limit=0.05)
    started, finish = threading.Event(), threading.Event()
    original = recognizer.explain

    def slow(*arguments: Any, **options: Any) -> Any:
        started.set()
        finish.wait(10)
        return original(*arguments, **options)

    recognizer.explain = slow
    seen = service.to_png(np.eye(40, dtype=np.uint8) * 255)
    worker = threading.Thread(target=impatient.explain, args=(seen, TOKENS))
    worker.start()
    assert started.wait(5)
    try:
        with pytest.raises(RefusedError, match="Too many people"):
            impatient.read(png())
    finally:
        finish.set()
        worker.join()
    assert impatient.read(png())["latex"]  # and the next one is served


@pytest.mark.parametrize(
    ("latex", "good"),
    [
        (r"\frac{a}{b}<c", True),
        (r"\frac{a}{", False),
        (r"\frac{a}{<b", False),
        ("x_", False),
        ("", False),
        (None, False),
    ],
)
def test_mathml_or_nothing(latex: str | None, good: bool) -> None:
    markup = service.to_mathml(latex)
    assert (markup is not None) == good
    if markup:
        assert "<mo>&#x0003C;</mo>" in markup  # signs are escaped


def test_formula_is_shown_as_formula_or_as_text() -> None:
    assert components.formula_markdown("a<b", True) == r"$$a\lt b$$"
    broken = components.formula_markdown(r"\frac{<img src=x onerror=alert(1)>", False)
    assert broken == "```text\n\\frac{<img src=x onerror=alert(1)>\n```"  # a block of code
    assert components.formula_markdown("a$$ <b>x</b> $$", True).startswith("```text\n")
    assert components.formula_markdown("```\n<b>x</b>", False) == "````text\n``` <b>x</b>\n````"  # cannot be left
    assert components.formula_markdown(None, False) == ""


def test_examples_are_those_of_the_repository_and_readable() -> None:
    names = components.example_names()
    assert len(names) >= 5 and any(name.endswith(".inkml") for name in names)
    for name in names:
        assert components.example_bytes(name) == (ROOT / "examples" / name).read_bytes()
        inputs.read_file(components.example_bytes(name))
    for button in components.example_buttons():
        assert button["label"] and button["image"].startswith("data:image/png;base64,")
    for path in ("../app.py", "/etc/passwd", "labels.tsv", None):
        with pytest.raises(KeyError):
            components.example_bytes(path)


def test_limits_told_by_the_page_are_those_of_the_server() -> None:
    script = components.asset("drop.js")
    (megabytes,) = re.findall(r"MOST_BYTES = (\d+) \* 1024 \* 1024", script)
    assert int(megabytes) * 2**20 == inputs.MAX_PICTURE_BYTES
    assert inputs.MAX_PICTURE_BYTES * 4 / 3 < guard.MAX_REQUEST_BYTES  # what is taken also gets through


def test_scripts_never_make_html_of_text() -> None:
    for script in ("pad", "drop", "answer", "viewer", "saver", "examples"):
        source = components.asset(f"{script}.js")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source)
        assert not re.search("https?://(?!www.w3.org/1998/Math/MathML)", source)
    for template in ("pad", "drop", "answer", "viewer", "examples"):
        source = components.asset(f"{template}.html")
        assert "{{" not in source and "${" not in source and "`" not in source  # Gradio would evaluate these


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "closed"),
    [
        ("/gradio_api/upload", True),
        ("/gradio_api/upload_progress", True),
        ("/gradio_api/file=/etc/passwd", True),
        ("/gradio_api//file=/etc/passwd", True),
        ("/file=/etc/passwd", True),
        ("/gradio_api/proxy=http://x", True),
        ("/gradio_api/component_server", True),
        ("/gradio_api/component_server/", True),
        ("/monitoring/summary", True),
        ("/gradio_api/queue/join", False),
        ("/gradio_api/call/recognize_ink", False),
        ("/assets/file.js", False),
        ("/", False),
        ("/config", False),
        ("/theme.css", False),
    ],
)
def test_closed_routes(path: str, closed: bool) -> None:
    assert guard.is_closed(path) == closed


@pytest.mark.parametrize(
    ("body", "refers"),
    [
        ({"data": ["aGVsbG8="]}, False),
        ({"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}, True),
        ({"data": [[[{"a": {"path": "x", "meta": {"_type": "gradio.FileData"}}}]]]}, True),
        ({"data": ["an essay on FileData"]}, False),
        ({"data": ["ü and \u2028"]}, False),
    ],
)
def test_references_to_files_are_seen(body: Any, refers: bool) -> None:
    plain = json.dumps(body).encode()
    assert guard.refers_to_file(plain) == refers
    hidden = plain.replace(b"FileData", b"File\\u0044ata")
    assert guard.refers_to_file(hidden) == refers


def test_a_body_that_cannot_be_parsed_is_not_passed_on() -> None:
    assert guard.refers_to_file(b'{"FileData": ')
    assert guard.refers_to_file(b'"FileData"' + b"[" * 100_000)


@pytest.mark.parametrize("declared", [b"1000000000", b"7", b"none"])
def test_who_sends_too_much_is_heard_out_and_then_told(declared: bytes) -> None:
    sizes = [2**20] * 30  # three times the limit, whatever was declared
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"A" * sizes.pop(), "more_body": bool(sizes)}

    async def send(message: Any) -> None:
        said.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError("a large request was passed on")

    headers = [(b"content-length", declared)]
    scope = {"type": "http", "path": "/gradio_api/queue/join", "method": "POST", "headers": headers}
    asyncio.run(guard.Guard(never)(scope, receive, send))
    assert said[0]["status"] == 413 and not sizes


def test_who_never_stops_sending_is_cut_off() -> None:
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 2**20
        return {"type": "http.request", "body": b"A" * 2**20, "more_body": True}

    async def send(_: Any) -> None:
        pass

    scope = {"type": "http", "path": "/gradio_api/queue/join", "method": "POST", "headers": []}
    asyncio.run(guard.Guard(send)(scope, receive, send))
    assert received <= guard.MAX_DISCARDED_BYTES + 2**20


# --- starting --------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(app.DemoError, match=rf"127\.0\.0\.1:{port} .*in use.*another port") as caught:
            app.launch(port=port, model="/nowhere")
    assert "\n" not in str(caught.value)
    with pytest.raises(app.DemoError, match="65535"):
        app.check_port("127.0.0.1", 70_000)


def test_a_missing_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(app.DemoError, match="cannot load the model") as caught:
        app.load_recognizer(tmp_path / "none")
    assert "\n" not in str(caught.value)


def test_the_space_says_why_it_does_not_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = os.environ | {"GRADIO_SERVER_PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, ROOT / "space" / "app.py"], env=environment, capture_output=True, text=True, timeout=280
        )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("demo: cannot listen on") and done.stderr.count("\n") == 1


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    demo = app.build_demo(fake.FakeRecognizer())
    _, url, _ = demo.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, server_port=_free_port(), **app.launch_options()
    )
    yield url
    demo.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def test_api_reads_a_picture(client: Any) -> None:
    answer = client.predict(image=base64_of(png()), api_name="/recognize_picture")
    assert answer["latex"] == fake.LATEX and len(answer["hypotheses"]) == 3
    assert "seen" not in answer
    broken = base64.encodebytes(png()).decode()
    greedy = client.predict("data:image/png;base64," + broken, False, api_name="/recognize_picture")
    assert len(greedy["hypotheses"]) == 1


def test_api_reads_ink_and_inkml(client: Any) -> None:
    assert client.predict(ink=STROKES, api_name="/recognize_ink")["latex"] == fake.LATEX
    inkml = (ROOT / "examples" / "gauss.inkml").read_text()
    assert client.predict(ink=inkml, beam=False, api_name="/recognize_ink")["latex"]


@pytest.mark.parametrize(
    ("endpoint", "value", "words"),
    [
        ("/recognize_picture", "/etc/passwd", "not base64"),
        ("/recognize_picture", base64_of(b"%PDF-1.4"), "PDF"),
        ("/recognize_picture", base64_of(png()[:60]), "damaged"),
        ("/recognize_picture", base64_of(BOMB), "DOCTYPE"),
        ("/recognize_ink", [], "no stroke"),
        ("/recognize_ink", BOMB.decode(), "DOCTYPE"),
        ("/recognize_ink", [[["x", 1]]], "cannot be used"),
    ],
)
def test_api_says_what_is_wrong(client: Any, endpoint: str, value: Any, words: str) -> None:
    with pytest.raises(Exception, match=words) as caught:
        client.predict(value, api_name=endpoint)
    assert "Traceback" not in str(caught.value)


def test_api_has_two_endpoints_and_no_more(client: Any) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/recognize_picture", "/recognize_ink"}
    assert not client.view_api(return_format="dict")["unnamed_endpoints"]


def _post(url: str, body: bytes) -> tuple[int, Any]:
    import httpx

    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30)
    with contextlib.suppress(ValueError):
        return answer.status_code, answer.json()
    return answer.status_code, answer.text


def test_large_and_forged_requests_stop_at_the_door(address: str) -> None:
    url = f"{address}gradio_api/call/recognize_picture"
    status, answer = _post(url, b'{"data": ["' + b"A" * 30_000_000 + b'"]}')
    assert status == 413 and "limit" in answer["error"]
    forged = {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}
    status, answer = _post(url, json.dumps(forged).encode())
    assert status == 400 and "base64" in answer["error"]


def test_a_body_without_declared_length_is_measured(address: str) -> None:
    import httpx

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b"A" * 2**18

    answer = httpx.post(f"{address}gradio_api/queue/join", content=pieces(), timeout=30)
    assert answer.status_code == 413


def test_files_of_the_server_cannot_be_had(address: str) -> None:
    import httpx

    for path in (
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=abm_hf/demo/app.py",
        "file=/etc/passwd",
        "gradio_api/proxy=http://127.0.0.1:1/",
    ):
        assert httpx.get(address + path).status_code == 403
    upload = httpx.post(f"{address}gradio_api/upload", files={"files": ("x.png", png())})
    assert upload.status_code == 403


def test_page_comes_from_this_server_alone(address: str) -> None:
    import httpx

    page = httpx.get(address).text
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](https?://[^"']+)""", page)
    assert not [url for url in loaded if not url.startswith(address)]


def test_nothing_is_left_on_disk(client: Any, tmp_path: Path) -> None:
    folder = Path(os.environ.get("GRADIO_TEMP_DIR", "") or Path(__import__("tempfile").gettempdir()) / "gradio")
    before = {path for path in folder.rglob("*") if path.is_file()}
    client.predict(image=base64_of(png()), api_name="/recognize_picture")
    assert {path for path in folder.rglob("*") if path.is_file()} == before


# --- the README's examples -------------------------------------------------------------------------------------------


@functools.cache
def _code_blocks(language: str) -> list[str]:
    text = (ROOT / "space" / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_python_of_the_readme_runs(address: str) -> None:
    (block,) = _code_blocks("python")
    code = block.replace("http://127.0.0.1:7860/", address)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(fake.LATEX) == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_of_the_readme_runs(address: str) -> None:
    blocks = [block for block in _code_blocks("bash") if "curl" in block]
    assert len(blocks) == 2
    for block in blocks:
        code = block.replace("http://127.0.0.1:7860/", address)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "event: complete" in done.stdout
        (answer,) = json.loads(re.findall(r"^data: (.*)$", done.stdout, flags=re.MULTILINE)[-1])
        assert answer["latex"] == fake.LATEX


def test_space_metadata_names_what_is_here() -> None:
    import yaml

    text = (ROOT / "space" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["sdk"] == "gradio" and (ROOT / "space" / metadata["app_file"]).is_file()
    assert metadata["sdk_version"].split(".")[0] == "6" and len(metadata["short_description"]) <= 60


def test_many_visitors_at_once_are_all_answered(address: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from gradio_client import Client

    def visit(number: int) -> str:
        visitor = Client(address, verbose=False)
        time.sleep(0.01 * number)
        return str(visitor.predict(ink=STROKES, beam=False, api_name="/recognize_ink")["latex"])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(visit, range(8))) == {fake.LATEX}
