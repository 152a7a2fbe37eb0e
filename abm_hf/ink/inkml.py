"""InkML in and out: CROHME 2011 to 2023, MathWriting, and files laid out like them.

The parser is lxml rather than defusedxml over the standard library: it knows the source line of every element, which
an error message needs. Entities, DTDs, the network and huge documents are off, and a file with a document type
declaration is refused before it reaches the parser: ink needs none, and entity bombs do.
"""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from lxml import etree

from ..file_names import expand
from .strokes import MAX_COORDINATE, Ink, InkError, InkWarning, Symbol
from .trace_format import TraceFormat, TraceFormats, children, elements, identifier, read_encoded, read_values, text_of

#: Larger files are refused. The largest file of CROHME has 61 kB; an hour of writing at 200 points/s has about 10 MB.
MAX_BYTES = 16 * 2**20

#: Annotation types that hold the truth, best first: CROHME's, then MathWriting's two.
LABEL_TYPES = ("truth", "label", "normalizedLabel")

_INKML = "http://www.w3.org/2003/InkML"
# A point whose values have commas between them, in a trace whose points have spaces.
_EXCHANGED = re.compile(r"[-+]?[\d.]+(?:[eE][-+]?\d+)?(?:,[-+]?[\d.]+(?:[eE][-+]?\d+)?)+,?")

Source = str | os.PathLike[str] | bytes | BinaryIO


def read_inkml(source: Source, *, max_bytes: int = MAX_BYTES) -> Ink:
    """Reads one expression from InkML.

    Channels are taken by the names that `traceFormat` gives: X and Y, and T where every point has it; others, such as
    pressure, are left out. Without a `traceFormat` the first two values are x and y. Orientation, units, contexts,
    affine canvas transforms and differences are followed as the W3C recommendation defines them. Elements are
    recognised with or without namespace. Traces without any point and pen-up traces are left out; one that continues
    another is joined to it. A segment whose traces cannot be told is left out with an [`InkWarning`].

    Args:
        source (`str`, `os.PathLike`, `bytes` or binary file): The file, by path, by content or open.
        max_bytes (`int`, *optional*, defaults to 16 MiB): Larger files are refused.

    Returns:
        [`Ink`]: `label` is the raw truth (annotation `truth`, else `label`, else `normalizedLabel`; CROHME's
        misspelt `typx` counts as `type`), exactly as written; the file's other annotations are in `annotations`, and
        the segmentation by its `traceGroup` elements, where it has one, in `symbols`.

    Raises:
        InkError: The file is not well-formed XML, declares a document type, is too large or is not InkML; it has no
            points; a number is missing, unreadable, NaN, infinite or absurd; or its coordinates are declared in a way
            that is not supported. The error names file, line and reason.
        OSError: The file cannot be opened or read.
    """
    data, name = _load(source, max_bytes)
    root = _parse(data, name)
    label, annotations = _read_annotations(root)
    formats = TraceFormats(root, name)
    strokes: list[np.ndarray] = []
    stroke_of: dict[str, int | None] = {}  # trace id -> index of its stroke, None where the trace was left out
    repeated: set[str] = set()
    for trace in elements(root, "trace"):
        points = _read_trace(trace, formats, name)
        index = None
        if points is not None:
            prior = stroke_of.get(trace.get("priorRef", "").removeprefix("#"))
            if prior is not None and trace.get("continuation") in ("middle", "end"):
                index, columns = prior, min(strokes[prior].shape[1], points.shape[1])
                strokes[index] = np.vstack([strokes[index][:, :columns], points[:, :columns]])
            else:
                index = len(strokes)
                strokes.append(points)
        if (key := identifier(trace)) is not None:
            repeated.update({key} & stroke_of.keys())
            stroke_of[key] = index
    if not strokes:
        raise InkError("there is no trace with a point in it", name, root.sourceline)
    if min(stroke.shape[1] for stroke in strokes) == 2:  # time is of use only where every stroke has it
        strokes = [stroke[:, :2] for stroke in strokes]
    symbols = tuple(_read_symbols(root, stroke_of, repeated, name))
    return Ink(tuple(strokes), label=label, symbols=symbols, annotations=annotations)


def looks_like_inkml(data: bytes) -> bool:
    """Whether a file's first element is `ink`, or a document type declaration names it, which is refused later."""
    head = data[:4096].replace(b"\0", b"").lower()
    return re.search(rb"<(?:\w+:)?ink[\s>]|<!doctype\s+ink", head) is not None


def write_inkml(ink: Ink, target: str | os.PathLike[str] | BinaryIO) -> None:
    """Writes `ink` as InkML that [`read_inkml`] reads back as an equal ink.

    Args:
        ink ([`Ink`]): What to write. The label becomes the annotation `truth`.
        target (`str`, `os.PathLike` or binary file): Where to write it.

    Raises:
        InkError: The ink does not survive the format: a text has characters that XML cannot hold, or an annotation
            has a name that would be read back as the label.
        OSError: The file cannot be written.
    """
    try:
        root = _to_xml(ink)
    except ValueError as error:
        if isinstance(error, InkError):
            raise
        raise InkError(f"label, annotation or symbol has text that XML cannot hold: {error}") from None
    data = etree.tostring(root, xml_declaration=True, encoding="UTF-8", pretty_print=True)
    if isinstance(target, str | os.PathLike):
        Path(target).write_bytes(data)
    else:
        target.write(data)


def _load(source: Source, max_bytes: int) -> tuple[bytes, str | None]:
    """The bytes of the source, at most `max_bytes` of them, and the name to call it by."""
    name: str | None
    if isinstance(source, bytes):
        data, name = source, None
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        with expand(source).open("rb") as file:
            data = file.read(max_bytes + 1)
    else:
        name = str(source.name) if hasattr(source, "name") else None
        data = source.read(max_bytes + 1)
        if not isinstance(data, bytes):
            raise TypeError("read_inkml needs a file opened in binary mode: open(path, 'rb')")
    if len(data) > max_bytes:
        raise InkError(f"the file has more than {max_bytes} bytes; raise `max_bytes` if it is to be trusted", name)
    return data, name


def _parse(data: bytes, name: str | None) -> etree._Element:
    # UTF-16 and UTF-32 spell ASCII with NULs between. Encodings that hide the words altogether are caught below, after
    # parsing: by then libxml2's own limits on entities have held.
    plain = data.replace(b"\0", b"")
    for word in (b"<!DOCTYPE", b"<!ENTITY"):
        if word in plain:
            line = plain[: plain.index(word)].count(b"\n") + 1
            raise InkError(f"{word.decode()} is refused: ink needs no document type declaration", name, line)
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
        collect_ids=False,
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        reason = str(error.msg).partition(", line ")[0].strip()  # the error tells the line once
        raise InkError(f"not well-formed XML: {reason}", name, error.lineno) from None
    except (ValueError, LookupError) as error:  # an encoding that is unknown or declared twice
        raise InkError(f"not readable as XML: {error}", name) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise InkError("a document type declaration is refused: ink needs none", name, root.sourceline)
    if _local_name(root) != "ink":
        raise InkError(f"the root element is <{_local_name(root)}>, not InkML's <ink>", name, root.sourceline)
    return root


def _local_name(element: etree._Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""  # comments have a function as tag


def _read_annotations(root: etree._Element) -> tuple[str | None, dict[str, str]]:
    """The label, and the other annotations. Of several annotations of one type the first counts."""
    found: dict[str, str] = {}
    for element in children(root, "annotation"):
        kind, text = element.get("type", element.get("typx")), text_of(element)
        if kind is not None and (text.strip() or kind != LABEL_TYPES[0]):  # a blank truth is none
            found.setdefault(kind, text)
    for kind in LABEL_TYPES:
        if found.get(kind, "").strip():
            return found.pop(kind), found
    return None, found


def _read_trace(trace: etree._Element, formats: TraceFormats, name: str | None) -> np.ndarray | None:
    """Points of one trace on the canvas, (N, 2) or (N, 3) float64, or None where the trace has none to draw."""
    text = text_of(trace).rstrip().removesuffix(",")
    if not text.strip() or trace.get("type") == "penUp":
        return None
    trace_format = formats.of(trace)
    points = _numbers(text, trace_format)
    if points is None or not np.isfinite(points).all() or np.abs(points[:, :2]).max() > MAX_COORDINATE:
        raise _bad_point(trace, text, trace_format.used(min(len(point.split()) for point in text.split(","))), name)
    placed = trace_format.on_canvas(points)
    if np.abs(placed[:, :2]).max() > MAX_COORDINATE:
        reason = f"trace {identifier(trace)!r} is beyond ±{MAX_COORDINATE:g} on the canvas, too far for a pen"
        raise InkError(reason, name, trace.sourceline)
    return placed


def _numbers(text: str, trace_format: TraceFormat) -> np.ndarray | None:
    """Points of a trace as written: in plain numbers, in short forms, or with the two separators exchanged."""
    rows = [point.split() for point in text.split(",")]
    used = trace_format.used(min(map(len, rows)))
    try:
        return np.array([[float(row[column]) for column in used] for row in rows])
    except (ValueError, IndexError):
        pass
    # "1,119 2,119", as some programs write it, lacks Y in the recommendation's form.
    if all(_EXCHANGED.fullmatch(word) for word in text.split()):
        text = ",".join(word.strip(",").replace(",", " ") for word in text.split())
    try:
        return read_encoded(text, trace_format)
    except (ValueError, IndexError):
        return None


def _bad_point(trace: etree._Element, text: str, used: list[int], name: str | None) -> InkError:
    """The error that names the first unusable point of a trace, and its line."""
    start = 0
    for number, point in enumerate(text.split(",")):
        fault = _fault(point, used)
        if fault:
            before = text[: start + len(point) - len(point.lstrip())]
            reason = f"point {number} of trace {identifier(trace)!r}, {point.strip()[:60]!r}: {fault}"
            return InkError(reason, name, trace.sourceline + before.count("\n"))
        start += len(point) + 1
    reason = f"trace {identifier(trace)!r} has a point without X or Y, or too far for a pen"
    return InkError(reason, name, trace.sourceline)


def _fault(point: str, used: list[int]) -> str | None:
    """What keeps one point from being used, if anything does."""
    words = point.split()
    try:
        count = len(read_values(point))
    except ValueError:
        count = len(words)
    if count <= max(used):
        return f"{count} values, but at least {max(used) + 1} are needed"
    if count != len(words):  # in short form
        return None
    for rank, word in enumerate(words[column] for column in used):
        try:
            number = float(word)
        except ValueError:
            if _is_value(word):
                continue
            return f"{word!r} is not a number"
        if not np.isfinite(number):
            return f"{word!r} is not finite"
        if rank < 2 and abs(number) > MAX_COORDINATE:  # time may be of any size
            return f"{word!r} is beyond ±{MAX_COORDINATE:g}, too far for a pen"
    return None


def _is_value(word: str) -> bool:
    try:
        return len(read_values(word)) == 1
    except ValueError:
        return False


def _read_symbols(
    root: etree._Element, stroke_of: dict[str, int | None], repeated: set[str], name: str | None
) -> Iterator[Symbol]:
    """The symbols of the segmentation: groups that name traces and nothing but traces, and say what they are.

    The segmentation is what others say about the ink: where it is wrong, the ink is none the worse.
    """
    for group in elements(root, "traceGroup"):
        views = children(group, "traceView")
        labels = [text_of(a) for a in children(group, "annotation") if (a.get("type") or a.get("typx")) == "truth"]
        if not views or not labels or children(group, "traceGroup"):
            continue
        strokes = []
        for view in views:
            reference = view.get("traceDataRef", "").removeprefix("#")
            if reference not in stroke_of or reference in repeated:
                fault = "which is not there" if reference not in stroke_of else "an id that several traces have"
                reason = f"the symbol {labels[0].strip()!r} names trace {reference!r}, {fault}: it is left out"
                warnings.warn(InkWarning(reason, name, view.sourceline), stacklevel=3)
                break
            stroke = stroke_of[reference]
            if stroke is not None:
                strokes.append(stroke)
        else:
            if strokes:
                yield Symbol(labels[0], tuple(strokes))


def _to_xml(ink: Ink) -> etree._Element:
    columns = ink.strokes[0].shape[1]
    root = etree.Element(f"{{{_INKML}}}ink", nsmap={None: _INKML})
    trace_format = _add(root, "traceFormat")
    for channel in "XYT"[:columns]:
        _add(trace_format, "channel", name=channel, type="decimal")
    if ink.label is not None:
        _add(root, "annotation", ink.label, type=LABEL_TYPES[0])
    for kind, text in ink.annotations.items():
        if kind == LABEL_TYPES[0] or (kind in LABEL_TYPES and ink.label is None):
            raise InkError(f"the annotation {kind!r} would be read back as the label; rename it or set the label")
        _add(root, "annotation", text, type=kind)
    for index, stroke in enumerate(ink.strokes):
        # repr is the shortest decimal that reads back as the same float64
        points = ", ".join(" ".join(map(repr, point)) for point in stroke.tolist())
        _add(root, "trace", points, id=str(index))
    if ink.symbols:
        segmentation = _add(root, "traceGroup")
        for symbol in ink.symbols:
            group = _add(segmentation, "traceGroup")
            _add(group, "annotation", symbol.label, type="truth")
            for index in symbol.strokes:
                _add(group, "traceView", traceDataRef=str(index))
    return root


def _add(parent: etree._Element, tag: str, text: str | None = None, **attributes: str) -> etree._Element:
    element = etree.SubElement(parent, f"{{{_INKML}}}{tag}", attributes)
    element.text = text
    return element
