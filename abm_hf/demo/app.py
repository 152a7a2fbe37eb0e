"""The demo's page and API, and how it is started.

Draw, open, paste or photograph a formula; read its LaTeX; see what the model saw. Two named endpoints do the same for
programs: `/recognize_picture` and `/recognize_ink`.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.middleware import Middleware

from .components import asset, component, example_buttons, example_bytes, formula_markdown, formula_view
from .guard import Guard
from .inputs import RefusedError, decode_base64, ink_from_inkml, ink_from_json, read_file
from .service import BEAMS, Service, Settings, from_png

if TYPE_CHECKING:
    from ..inference.base import BaseRecognizer

#: Requests that wait at most; further ones are refused at once.
QUEUE_SIZE = 64
#: Sessions whose last values Gradio keeps. The page needs none of them.
SESSIONS = 16

_LOGGER = logging.getLogger(__name__)
_MODEL_EVENT: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "model"}
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **_MODEL_EVENT}


class DemoError(RuntimeError):
    """The demo cannot start; the message is one line that says why and what to do."""


def build_demo(recognizer: "BaseRecognizer") -> gr.Blocks:
    """The page and the API around a loaded recognizer.

    Args:
        recognizer ([`abm_hf.Recognizer`] or [`abm_hf.ABMOnnxModel`]): Reads pictures and ink.

    Returns:
        [`gradio.Blocks`]; its look comes from the options of [`launch_options`].
    """
    service = Service(recognizer)
    with gr.Blocks(title="Handwritten mathematics to LaTeX", analytics_enabled=False, fill_width=False) as demo:
        gr.HTML(asset("head.html"), js_on_load=None, apply_default_css=False, elem_classes="abm-head")
        with gr.Row(equal_height=False, elem_classes="abm-work"):
            with gr.Column(min_width=320, elem_classes="abm-left"):
                with gr.Tabs() as tabs:
                    with gr.Tab("Draw", id="draw"):
                        pad = component("pad")
                    with gr.Tab("Picture, photo or ink file", id="file"):
                        drop = component("drop")
                gr.HTML("<h2 class='abm-label'>Or try one of these</h2>", js_on_load=None, apply_default_css=False)
                examples = component("examples", example_buttons())
                settings = _settings(rescore=len(service.directions) == 2)
            with gr.Column(min_width=320, elem_classes="abm-right"):
                formula = formula_view()
                answer = component("answer", {})
        gr.HTML("<h2 class='abm-section'>What the model saw</h2>", js_on_load=None, apply_default_css=False)
        viewer = component("viewer", {})
        saver = component("saver", {}, elem_classes="abm-saver")
        gr.HTML(asset("foot.html"), js_on_load=None, apply_default_css=False, elem_classes="abm-foot")
        page = _Page(service)
        shown = [formula, answer, viewer]
        explain: dict[str, Any] = {"fn": page.explain, "inputs": viewer, "outputs": viewer, **_PRIVATE}
        for event in (pad.rest, pad.read):
            event(page.read_pad, [pad, *settings], shown, trigger_mode="always_last", **_PRIVATE).success(**explain)
        drop.picked(page.read_drop, [drop, *settings], [drop, pad, tabs, *shown], **_PRIVATE).success(**explain)
        examples.pick(page.read_example, settings, [pad, tabs, *shown], **_PRIVATE).success(**explain)
        for setting in settings:
            again = setting.input(page.read_again, [viewer, *settings], shown, trigger_mode="always_last", **_PRIVATE)
            again.success(**explain)
        viewer.gif(page.make_gif, viewer, [saver, viewer], **_PRIVATE)
        _add_api(service)
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=2)
    return demo


def _settings(rescore: bool) -> list[gr.Checkbox]:
    with gr.Accordion("Settings", open=False):
        return [
            gr.Checkbox(
                True,
                label="Beam search",
                info=f"Follows {BEAMS} hypotheses and shows the best; off, the most probable token is taken at "
                "each step: faster, less accurate.",
            ),
            gr.Checkbox(
                True,
                label="Rescoring",
                info="The branch that writes from right to left rescores what beam search has found; off, the other "
                "one decides alone: faster, less accurate.",
                visible=rescore,
            ),
            gr.Checkbox(
                True,
                label="Grammar",
                info="Only well-formed LaTeX can be written: braces match, every fraction has two parts.",
            ),
        ]


class _Page:
    """What the page's events do. Each returns what its outputs show, refusals included."""

    def __init__(self, service: Service):
        self.service = service

    def read_pad(self, ink: Any, *settings: Any) -> tuple[Any, ...]:
        """The pen rests, or the button was pressed."""
        return self._shown(lambda: ink_from_json(ink), settings)

    def read_drop(self, data: Any, *settings: Any) -> tuple[Any, ...]:
        """A file was opened; ink goes to the pad, where it can be changed."""
        try:
            source = read_file(decode_base64(data))
        except RefusedError as error:
            return (None, gr.skip(), gr.skip(), *_refused(error))
        shown = self._shown(lambda: source, settings)
        if isinstance(source, bytes):
            return (None, gr.skip(), gr.skip(), *shown)
        return (None, _strokes(source), gr.Tabs(selected="draw"), *shown)

    def read_example(self, event: gr.EventData, *settings: Any) -> tuple[Any, ...]:
        """An example was pressed: ink goes to the pad."""
        try:
            source = read_file(example_bytes(event._data.get("name")))
        except (KeyError, AttributeError, TypeError):
            return (gr.skip(), gr.skip(), *_refused(RefusedError("There is no such example.")))
        shown = self._shown(lambda: source, settings)
        if isinstance(source, bytes):
            return ("", gr.skip(), *shown)
        return (_strokes(source), gr.Tabs(selected="draw"), *shown)

    def read_again(self, seen: Any, *settings: Any) -> tuple[Any, ...]:
        """A setting was changed: the same picture is read again."""
        image = seen.get("image") if isinstance(seen, dict) else None
        if not image:
            return (gr.skip(), gr.skip(), gr.skip())
        return self._shown(lambda: from_png(image), settings)

    def explain(self, seen: Any) -> Any:
        """After each answer: the attention over what the model saw."""
        image = seen.get("image") if isinstance(seen, dict) else None
        if not image:
            return gr.skip()
        try:
            return self.service.explain(image, seen.get("tokens")) | {"tokens": seen.get("tokens")}
        except RefusedError as error:
            return {"image": image, "note": str(error)}

    def make_gif(self, event: gr.EventData, seen: Any) -> tuple[Any, Any]:
        """The download button of a direction."""
        wanted = event._data if isinstance(event._data, dict) else {}
        direction = str(wanted.get("direction"))
        seen = seen if isinstance(seen, dict) else {}
        try:
            data = self.service.gif(seen.get("image"), seen.get("tokens"), direction, dark=bool(wanted.get("dark")))
        except RefusedError as error:
            return gr.skip(), seen | {"note": str(error)}
        return {"data": data, "name": f"attention-{direction}.gif", "serial": _serial()}, gr.skip()

    def _shown(self, load: Callable[[], Any], settings: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        """Formula, answer and picture for what `load` gives; all empty for no ink at all."""
        try:
            source = load()
            if source is None:
                return "", {"serial": _serial()}, {}
            result = self.service.read(source, Settings(*map(bool, settings)))
        except RefusedError as error:
            return _refused(error)
        except Exception:
            _LOGGER.exception("a request failed")
            return _refused(RefusedError("Something went wrong here, not with your input. Please try again."))
        seen = {"image": result.pop("seen"), "tokens": result["tokens"]}
        return formula_markdown(result["latex"], result["mathml"] is not None), result | {"serial": _serial()}, seen


def _refused(error: RefusedError) -> tuple[Any, Any, Any]:
    return "", {"error": str(error), "serial": _serial()}, {}


def _serial() -> int:
    """A number that never comes twice: a page does not notice an answer that equals the last one."""
    return time.monotonic_ns() // 1000  # a script's numbers are exact up to 2⁵³


def _strokes(ink: Any) -> str:
    """Ink as the pad takes it; its time is left out, as its unit is not known."""
    return json.dumps({"strokes": [stroke[:, :2].round(4).tolist() for stroke in ink.strokes]})


def _add_api(service: Service) -> None:
    def recognize_picture(image: str, beam: bool = True, rescore: bool = True, grammar: bool = True) -> dict[str, Any]:
        """Read the formula in a picture.

        Parameters:
            image: the picture file (PNG, JPEG, WebP, GIF, BMP or TIFF) in base64, with or without "data:…;base64,".
            beam: follow ten hypotheses instead of one.
            rescore: let the right-to-left branch rescore the hypotheses; without effect unless beam is on.
            grammar: only well-formed LaTeX.
        Returns:
            latex, mathml, score, unsure, complete, milliseconds, tokens, token_scores and hypotheses.
        """
        return _answer(service, lambda: read_file(decode_base64(image)), Settings(beam, rescore, grammar))

    def recognize_ink(
        ink: list[list[list[float]]] | str, beam: bool = True, rescore: bool = True, grammar: bool = True
    ) -> dict[str, Any]:
        """Read the formula that a pen wrote.

        Parameters:
            ink: strokes, each a list of points [x, y] or [x, y, milliseconds], y down; or the text of an InkML file.
            beam: follow ten hypotheses instead of one.
            rescore: let the right-to-left branch rescore the hypotheses; without effect unless beam is on.
            grammar: only well-formed LaTeX.
        Returns:
            As for /recognize_picture.
        """
        return _answer(service, lambda: _ink_from(ink), Settings(beam, rescore, grammar))

    for function in (recognize_picture, recognize_ink):
        gr.api(function, api_name=function.__name__, **_MODEL_EVENT)


def _ink_from(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip("\ufeff \t\r\n").startswith("<"):
        return ink_from_inkml(value.encode("utf-8", "replace"))
    return ink_from_json(value)


def _answer(service: Service, load: Callable[[], Any], settings: Settings) -> dict[str, Any]:
    try:
        source = load()
        if source is None:
            raise RefusedError("There is no stroke in this ink.")
        answer = service.read(source, settings)
    except RefusedError as error:
        raise gr.Error(str(error), print_exception=False) from None
    del answer["seen"]
    return answer


def launch_options() -> dict[str, Any]:
    """Options of `demo.launch` that the page needs: looks, limits, and what of Gradio stays closed."""
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return {
        "theme": gr.themes.Soft(
            primary_hue="indigo", neutral_hue="zinc", font=["system-ui", "sans-serif"], font_mono=mono
        ),
        "css": asset("page.css"),
        "app_kwargs": {"middleware": [Middleware(Guard)]},
        "state_session_capacity": SESSIONS,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": 1,
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
    }


def load_recognizer(model: str | Path | None = None, device: str | None = None) -> "BaseRecognizer":
    """The recognizer of the demo.

    Raises:
        DemoError: There is no such checkpoint, or it cannot be loaded.
    """
    from ..inference import loading

    try:
        return loading.load_recognizer(model, device)
    except Exception as error:  # loading goes through three libraries, each with errors of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DemoError(f"cannot load the model {model or '(packaged)'}: {lines[0]}") from error


def launch(
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    inbrowser: bool = False,
    block: bool = True,
    quiet: bool = False,
) -> gr.Blocks:
    """Starts the demo.

    Args:
        host (`str`, *optional*): Address to listen on; `"0.0.0.0"` for other machines too.
        port (`int`, *optional*): Port to listen on.
        model (`str` or `Path`, *optional*): Directory or Hub id; the packaged checkpoint by default.
        device (`str`, *optional*): Such as `"cpu"` or `"cuda"`.
        inbrowser (`bool`, *optional*): Whether to open the page in a browser.
        block (`bool`, *optional*): Whether to stay until interrupted.
        quiet (`bool`, *optional*): Whether to leave out Gradio's lines about where it listens.

    Returns:
        The running [`gradio.Blocks`]; `close()` stops it.

    Raises:
        DemoError: The port is in use, or there is no checkpoint; the message is one line.
    """
    check_port(host, port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    demo = build_demo(load_recognizer(model, device))
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            inbrowser=inbrowser,
            quiet=quiet,
            prevent_thread_lock=True,
            **launch_options(),
        )
    except OSError as error:
        raise DemoError(f"cannot listen on {host}:{port}: {error}") from error
    if block:
        with contextlib.suppress(KeyboardInterrupt):
            demo.block_thread()
    return demo


def check_port(host: str, port: int) -> None:
    """Raises a [`DemoError`] where nothing could listen on `host` and `port`; done before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as the server itself does: a port that was just left is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise DemoError(f"there is no port {port}: choose one from 1 to 65535") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise DemoError(f"cannot listen on {host}:{port} ({reason}): choose another port") from error
