"""What visitors send, to a picture or ink that is safe to process, or to one sentence that says why not.

Everything arrives as JSON: pictures as base64, ink as numbers or as InkML. No path and no address is ever taken from
a visitor, so none can be read on their behalf. Sizes are checked before anything is decoded.
"""

import base64
import binascii
import io
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..ink.inkml import looks_like_inkml, read_inkml
from ..ink.strokes import Ink, InkError

#: Bytes of a picture file at most; the page itself sends photographs scaled down to a fraction of it.
MAX_PICTURE_BYTES = 6 * 2**20
#: Megapixels of a picture at most, checked in the header: a phone's photograph has 12.
MAX_MEGAPIXELS = 16.0
#: Bytes of an InkML file at most. The largest of CROHME has 61 kB.
MAX_INK_BYTES = 2 * 2**20
#: Strokes and points of ink at most: a hundred times a long formula.
MAX_STROKES = 2_000
MAX_POINTS = 100_000

#: The kinds of pictures that are decoded. Pillow knows many more, some of which start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_PREFIX = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_ALPHABET = str.maketrans("-_", "+/")


class RefusedError(ValueError):
    """An input that is not processed; the message is one sentence for the visitor."""


def decode_base64(text: Any, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """The bytes behind base64, with or without `data:…;base64,` before it, in whatever form a program writes it.

    Line breaks and other white space do not count, the padding may be missing, and the alphabet may be that of
    addresses, with `-` and `_`.

    Raises:
        RefusedError: It is no text, no base64, empty, or more than `max_bytes`; the last before decoding.
    """
    if not isinstance(text, str) or not text:
        raise RefusedError("There is no file in this request: send its bytes as base64 text.")
    if len(text) > 2 * max_bytes + 1000:  # white space and all
        raise RefusedError(f"This file is too large: {_megabytes(max_bytes)} MB are the limit.")
    prefix = _PREFIX.match(text)
    text = "".join(text[prefix.end() if prefix else 0 :].split()).translate(_ALPHABET)
    if len(text.rstrip("=")) * 3 // 4 > max_bytes:
        raise RefusedError(f"This file is too large: {_megabytes(max_bytes)} MB are the limit.")
    if len(text) > 64:  # a shorter text that lacks padding is rather a path
        text = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            "This is not base64: send the file's bytes as base64 text, not a path or an address."
        ) from None
    if not data:
        raise RefusedError("This file is empty.")
    return data


def check_picture(data: bytes) -> bytes:
    """`data` itself if it is a picture of a kind and size that are read, judged by its header alone.

    Raises:
        RefusedError: It is something else, or too large.
    """
    if len(data) > MAX_PICTURE_BYTES:
        raise RefusedError(f"This file is too large: {_megabytes(MAX_PICTURE_BYTES)} MB are the limit.")
    try:
        with io.BytesIO(data) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream, formats=FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise RefusedError(f"This picture has over {MAX_MEGAPIXELS:g} megapixels: scale it down.") from None
    except Exception as error:  # Pillow's header parsers raise what they please
        if isinstance(error, UnidentifiedImageError) and not data.startswith(_MAGIC):
            raise RefusedError(_what_it_is(data)) from None
        raise RefusedError("This picture is damaged: its header cannot be read.") from None
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise RefusedError(
            f"This picture has {width} × {height} pixels, over {MAX_MEGAPIXELS:g} megapixels: scale it down."
        )
    return data


def read_file(data: bytes) -> bytes | Ink:
    """A picture's checked bytes, or the ink of InkML, told apart by content rather than by name.

    Raises:
        RefusedError: It is neither.
    """
    return ink_from_inkml(data) if looks_like_inkml(data) else check_picture(data)


def ink_from_inkml(data: bytes) -> Ink:
    """Ink from the bytes of an InkML file.

    Raises:
        RefusedError: The file is too large or no usable InkML.
    """
    if len(data) > MAX_INK_BYTES:
        raise RefusedError(f"This InkML file is too large: {_megabytes(MAX_INK_BYTES)} MB are the limit.")
    try:
        return _within_limits(read_inkml(data, max_bytes=MAX_INK_BYTES))
    except InkError as error:
        raise RefusedError(f"This InkML file cannot be used: {error}.") from None


def ink_from_json(value: Any) -> Ink | None:
    """Ink from `[[[x, y], …], …]` (a third number is time in ms), as a list or as JSON; `None` if it has no stroke.

    Raises:
        RefusedError: It is of another shape, too much, or out of range.
    """
    if isinstance(value, str):
        value = _parse_json(value)
    if isinstance(value, dict):
        value = value.get("strokes")
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RefusedError("Ink is a list of strokes, each a list of points [x, y] or [x, y, milliseconds].")
    if len(value) > MAX_STROKES:
        raise RefusedError(f"This ink has {len(value)} strokes; {MAX_STROKES} are the limit.")
    if not all(isinstance(stroke, Sequence) and not isinstance(stroke, str) for stroke in value):
        raise RefusedError("Ink is a list of strokes, each a list of points [x, y] or [x, y, milliseconds].")
    _check_points(sum(map(len, value)))
    strokes = [stroke for stroke in value if stroke]
    if not strokes:
        return None
    try:
        return Ink(tuple(strokes))
    except InkError as error:
        raise RefusedError(f"This ink cannot be used: {error}.") from None


def _parse_json(text: str) -> Any:
    if not text.strip():
        return None
    if len(text) > MAX_INK_BYTES * 2:
        raise RefusedError("This ink is too large.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedError("This ink is not readable: JSON is needed, a list of strokes.") from None


def _within_limits(ink: Ink) -> Ink:
    if len(ink.strokes) > MAX_STROKES:
        raise RefusedError(f"This ink has {len(ink.strokes)} strokes; {MAX_STROKES} are the limit.")
    _check_points(sum(map(len, ink.strokes)))
    return ink


def _check_points(count: int) -> None:
    if count > MAX_POINTS:
        raise RefusedError(f"This ink has {count} points; {MAX_POINTS} are the limit.")


def _what_it_is(data: bytes) -> str:
    """A sentence about a file that is no picture, naming the kinds that people try most."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"%pdf"):
        return f"This is a PDF: take a screenshot of the formula, or export the page as {_KINDS}."
    if b"<svg" in head:
        return f"This is an SVG, which is not opened: export it as {_KINDS}."
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif", b"ftyphevc"):
        return f"This is a HEIC or AVIF picture, which is not read here: save it as {_KINDS}."
    if head.startswith((b"<?xml", b"<")):
        return "This is XML or HTML, but not InkML: its first element is not <ink>."
    return f"This is not a picture that can be read: {_KINDS} are, and InkML."


def _megabytes(count: int) -> str:
    return f"{count / 2**20:g}"
