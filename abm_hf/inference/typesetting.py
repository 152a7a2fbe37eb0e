r"""Readings in other forms than LaTeX: MathML, and pictures of the typeset formula.

Both take packages of the extra `output`: latex2mathml, and matplotlib, whose mathtext is a small TeX without TeX. It
draws all tokens of the CROHME labels but `\limits`; that is left out, so the limits of an integral stand beside it.
"""

import io
import re
from typing import Any

from PIL import Image

from ..latex.normalization import LatexError, is_well_formed, lex_latex


class TypesetError(ValueError):
    """A formula that cannot be drawn; the message says which and why."""


def to_mathml(latex: str | None) -> str | None:
    """MathML of `latex`, or `None` where it is not well formed.

    Raises:
        ImportError: if latex2mathml is not installed.
    """
    if not latex:
        return None
    try:
        if not is_well_formed(lex_latex(latex)):  # latex2mathml closes braces that nobody closed
            return None
    except LatexError:
        return None
    converter = _import("latex2mathml.converter")
    try:
        return str(converter.convert(latex))
    except Exception:  # latex2mathml has an exception for each mistake, and lets others through
        return None


def render_latex(latex: str | None, *, font_size: float = 20, dpi: int = 200, color: str = "black") -> Image.Image:
    """Draws a formula.

    Args:
        latex: as the model writes it.
        font_size: points.
        dpi: pixels for each inch.
        color: any that matplotlib knows.

    Returns:
        An RGBA picture, transparent but for the formula, with a small margin.

    Raises:
        TypesetError: if there is nothing to draw, or mathtext cannot draw it.
        ImportError: if matplotlib is not installed.
    """
    if not latex or not latex.strip():
        raise TypesetError("there is nothing to draw: the reading is empty")
    figure = _import("matplotlib.figure").Figure()
    _import("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    figure.text(0, 0, f"${_for_mathtext(latex)}$", fontsize=font_size, color=color, math_fontfamily="cm")
    with io.BytesIO() as stream:
        try:
            figure.savefig(
                stream, format="png", dpi=dpi, transparent=True, bbox_inches="tight", pad_inches=0.15 * font_size / 72
            )
        except ValueError as error:
            reason = str(error).strip().splitlines()[-1]
            raise TypesetError(f"matplotlib's mathtext cannot draw {latex!r}: {reason}") from error
        return Image.open(stream).convert("RGBA")


def _for_mathtext(latex: str) -> str:
    """Without `\\limits`, and with something in empty groups, which mathtext refuses."""
    return re.sub(r"(?<!\\)\{\s*\}", r"{\\/}", re.sub(r"\\limits(?![A-Za-z])\s*", "", latex))


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f"this needs {package}: pip install 'abm-hf[output]'", name=package) from error
