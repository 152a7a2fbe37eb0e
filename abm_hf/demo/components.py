"""The page's own components: Gradio's HTML component around the files in `assets/`.

Templates are fixed texts: nothing that comes from a visitor or from the model is ever put into them. What changes goes
through a component's value, which its script sets as text.
"""

import base64
import csv
import io
import re
from importlib import resources
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ..ink.inkml import read_inkml
from ..ink.rendering import render_ink

_PACKAGE = resources.files(__package__)
_DELIMITERS: list[dict[str, str | bool]] = [{"left": "$$", "right": "$$", "display": True}]


def asset(name: str) -> str:
    """Text of a file in `assets/`."""
    return (_PACKAGE / "assets" / name).read_text(encoding="utf-8")


def component(name: str, value: Any = None, **options: Any) -> gr.HTML:
    """The component of `assets/NAME.html` (none for one that is never seen) and `assets/NAME.js`."""
    seen = (_PACKAGE / "assets" / f"{name}.html").is_file()
    return gr.HTML(
        value,
        html_template=asset(f"{name}.html") if seen else "",
        js_on_load=asset(f"{name}.js"),
        apply_default_css=False,
        elem_id=f"abm-{name}",
        **options,
    )


def formula_view() -> gr.Markdown:
    """Where the formula is rendered, by the KaTeX that Gradio ships."""
    return gr.Markdown("", latex_delimiters=_DELIMITERS, elem_id="abm-formula", container=False)


def formula_markdown(latex: str | None, well_formed: bool) -> str:
    """What [`formula_view`] shows: the formula, or its source as text where it is not well formed."""
    if not latex:
        return ""
    if not well_formed or "$" in latex:
        longest = max((len(run) for run in re.findall("`+", latex)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}text\n{' '.join(latex.split())}\n{fence}"  # a block of code: nothing in it is markup
    # Markdown would take the signs for the beginning of a tag.
    return "$$" + latex.replace("<", r"\lt ").replace(">", r"\gt ") + "$$"


def example_names() -> list[str]:
    """File names of the packaged examples, in the order in which they are shown."""
    return [name for name, _ in _example_list()]


def example_bytes(name: Any) -> bytes:
    """Content of a packaged example.

    Raises:
        KeyError: There is no example of that name; a path is none.
    """
    if name not in example_names():
        raise KeyError(name)
    return (_PACKAGE / "examples" / name).read_bytes()


def example_buttons() -> list[dict[str, Any]]:
    """The examples as their component takes them: name, label, and a picture with its size (px)."""
    buttons = []
    for name, label in _example_list():
        picture = _picture(example_bytes(name), name)
        with io.BytesIO() as stream:
            picture.save(stream, "PNG", optimize=True)
            address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        size = {"width": picture.width, "height": picture.height}
        buttons.append({"name": name, "label": label, "image": address, **size})
    return buttons


def _picture(data: bytes, name: str) -> Image.Image:
    if name.endswith(".inkml"):
        return Image.fromarray(render_ink(read_inkml(data)))
    with Image.open(io.BytesIO(data)) as picture:
        return Image.fromarray(np.asarray(picture.convert("L")))


def _example_list() -> list[tuple[str, str]]:
    rows = csv.reader(io.StringIO((_PACKAGE / "examples" / "labels.tsv").read_text(encoding="utf-8")), delimiter="\t")
    return [(name, label) for name, label in rows]
