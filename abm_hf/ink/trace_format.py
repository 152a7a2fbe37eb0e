"""What the values of an InkML trace mean: its channels, their units and orientation, and the canvas they are on.

Section numbers are those of the W3C recommendation of 20 September 2011, https://www.w3.org/TR/InkML. What it defines
and this module does not follow is refused by name: ink that is drawn distorted would be read as something else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from lxml import etree

from .strokes import InkError

_XML_ID = "{http://www.w3.org/XML/1998/namespace}id"
# Millimetres in each unit of length (5.1). `himetric` is none of the recommendation's: tablets count in it.
_MILLIMETRES = {"m": 1e3, "cm": 10.0, "mm": 1.0, "in": 25.4, "pt": 25.4 / 72, "pc": 25.4 / 6, "himetric": 0.01}
# Contexts may refer to each other; a longer chain goes in a circle.
_MAX_DEPTH = 50

# A value (3.2.1) and its prefix: a number, a truth value, the last one again, or none. Only digits need space before
# them: "1-2'3" are three values.
_VALUE = re.compile(
    r"""(?:\s+|^|(?=[-+!'"#TF*?]))([!'"]?)\s*([-+]?(?:\#[0-9A-Fa-f]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|[TF*?])"""
)


def elements(root: etree._Element, name: str) -> Iterator[etree._Element]:
    """Descendants of that name, in or out of any namespace, in document order."""
    return root.iter(f"{{*}}{name}")


def children(element: etree._Element, name: str) -> list[etree._Element]:
    """Children of that name, in or out of any namespace."""
    return element.findall(f"{{*}}{name}")


def identifier(element: etree._Element) -> str | None:
    """The id, with or without the prefix `xml`, which CROHME leaves out."""
    return element.get(_XML_ID) or element.get("id")


def text_of(element: etree._Element) -> str:
    """The text, comments left out."""
    return str(element.xpath("string()")) if len(element) else element.text or ""


@dataclass(frozen=True)
class TraceFormat:
    """How x, y and t are made of the values of a point.

    Args:
        x, y: where X and Y stand among the values.
        t: where T stands, if it is declared.
        matrix: (2, 3) float64, from x, y and 1 to an x that grows to the right and a y that grows down, both in one
            unit; `None` where the values are that already.
    """

    x: int = 0
    y: int = 1
    t: int | None = None
    matrix: np.ndarray | None = None

    def used(self, count: int) -> list[int]:
        """Which values of a point are x, y and t, where each point of a trace has at least `count` values."""
        return [self.x, self.y] if self.t is None or count <= self.t else [self.x, self.y, self.t]

    def on_canvas(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 2) or (N, 3) as they are written to points on the canvas."""
        if self.matrix is None:
            return points
        placed = points.copy()
        placed[:, :2] = points[:, :2] @ self.matrix[:, :2].T + self.matrix[:, 2]
        return placed


class TraceFormats:
    """The format of each trace of a file.

    Args:
        root: the element `ink`.
        name: the file's name, for errors.
    """

    def __init__(self, root: etree._Element, name: str | None):
        self._root = root
        self._name = name
        self._named = {key: element for element in root.iter("{*}*") if (key := identifier(element)) is not None}
        # In a stream, a context between the traces holds for those that follow (7.2).
        self._current: dict[etree._Element, etree._Element] = {}
        current = None
        for child in root:
            current = child if _is(child, "context") else current
            if current is not None:
                self._current[child] = current
        self._known: dict[etree._Element | None, TraceFormat] = {}

    def of(self, trace: etree._Element) -> TraceFormat:
        """The format of a trace: by its context, that of a group around it, or the current one.

        Raises:
            InkError: It refers to what is not there, has no X and Y, or needs what is not supported.
        """
        context = self._context_of(trace)
        if context not in self._known:
            self._known[context] = self._read(context)
        return self._known[context]

    def _context_of(self, trace: etree._Element) -> etree._Element | None:
        around = [trace, *trace.iterancestors()]
        for element in around:
            if reference := element.get("contextRef"):
                return self._find(reference, element)
        return next((self._current[element] for element in around if element in self._current), None)

    def _find(self, reference: str, element: etree._Element) -> etree._Element | None:
        """What a reference names; `None` for the defaults that every file has, such as `#DefaultContext`."""
        key = reference.removeprefix("#")
        if key not in self._named and not key.startswith("Default"):
            raise self._error(f"<{_tag(element)}> refers to {reference!r}, which is not in this file", element)
        return self._named.get(key)

    def _read(self, context: etree._Element | None) -> TraceFormat:
        trace_format = self._part(context, "traceFormat")
        if trace_format is None:  # CROHME writes it beside the traces; others in a context that no trace names
            beside = children(self._root, "traceFormat")
            anywhere = elements(self._root, "traceFormat") if context is None else iter(())
            trace_format = next((one for one in (*beside, *anywhere) if _channels(one) and not _of_canvas(one)), None)
        channels = _channels(trace_format)
        names = [channel.get("name", "").upper() for channel in channels]
        x, y, t = 0, 1, None
        if channels:
            if "X" not in names or "Y" not in names:
                raise self._error(f"traceFormat has no X and Y among {names}", trace_format)
            x, y, t = names.index("X"), names.index("Y"), names.index("T") if "T" in names else None
        return TraceFormat(x, y, t, self._matrix(context, channels))

    def _part(self, context: etree._Element | None, kind: str, depth: int = 0) -> etree._Element | None:
        """The `traceFormat`, `canvas` or `canvasTransform` of a context: its own, by reference, or inherited (4.1)."""
        if context is None:
            return None
        if depth > _MAX_DEPTH:
            raise self._error("contexts refer to each other in a circle", context)
        if own := children(context, kind):
            return own[0]
        if reference := context.get(f"{kind}Ref"):
            return self._find(reference, context)
        sources: list[etree._Element | None] = list(children(context, "inkSource"))
        if not sources and (reference := context.get("inkSourceRef")):
            sources = [self._find(reference, context)]
        for source in sources if kind == "traceFormat" else ():
            if (found := self._part(source, kind, depth + 1)) is not None:  # that of the device
                return found
        if reference := context.get("contextRef"):
            return self._part(self._find(reference, context), kind, depth + 1)
        return None

    def _matrix(self, context: etree._Element | None, channels: list[etree._Element]) -> np.ndarray | None:
        for channel in channels:
            for mapping in children(channel, "mapping") if channel.get("name", "").upper() in ("X", "Y") else ():
                if mapping.get("type") != "identity":
                    raise self._error("a mapping of X or Y is not supported: export their values", mapping)
        transform = self._part(context, "canvasTransform")
        matrix = np.eye(2, 3)
        if transform is not None:
            matrix = self._transform(transform, channels)
            canvas = self._part(context, "canvas")  # whose axes the transformed values are on
            channels = _channels(self._part(canvas, "traceFormat"))
        of = {channel.get("name", "").upper(): channel for channel in channels}
        signs = {name: -1.0 if channel.get("orientation") == "-ve" else 1.0 for name, channel in of.items()}
        matrix[0] *= signs.get("X", 1.0)
        matrix[1] *= signs.get("Y", 1.0) * self._ratio_of_units(of.get("X"), of.get("Y"))
        return None if np.array_equal(matrix, np.eye(2, 3)) else matrix

    def _ratio_of_units(self, x: etree._Element | None, y: etree._Element | None) -> float:
        """How many units of X a unit of Y is long."""
        # A channel that names no unit is in millimetres (3.1.2).
        unit_x, unit_y = ("mm" if channel is None else channel.get("units", "mm") for channel in (x, y))
        if unit_x == unit_y:
            return 1.0
        try:
            return _MILLIMETRES[unit_y.lower()] / _MILLIMETRES[unit_x.lower()]
        except KeyError:
            raise self._error(f"X is in {unit_x!r} and Y in {unit_y!r}: their ratio is not known", y) from None

    def _transform(self, transform: etree._Element, channels: list[etree._Element]) -> np.ndarray:
        """A `canvasTransform` (4.4) as a matrix (2, 3). The first of its mappings leads to the canvas."""
        mapping = next(iter(children(transform, "mapping")), None)
        if mapping is not None and (reference := mapping.get("mappingRef")):
            mapping = self._find(reference, mapping)
        kind = "identity" if mapping is None else mapping.get("type", "unknown")
        if mapping is None or kind == "identity":
            return np.eye(2, 3)
        found = children(mapping, "affine")
        if kind != "affine" or not found:
            raise self._error(f"a canvasTransform of type {kind!r} is not supported: export the coordinates", mapping)
        text = " ".join(text_of(found[0]).split()).rstrip(", ")
        try:
            matrix = np.array([[float(number) for number in row.split()] for row in text.split(",")])
        except ValueError:
            matrix = np.empty(0)
        if matrix.shape != (2, 3) or not np.isfinite(matrix).all():
            raise self._error(f"the affine matrix {text!r} is not supported: two rows of three numbers are", found[0])
        binds = children(mapping, "bind")
        sources = [name.upper() for bind in binds if (name := bind.get("source"))]
        targets = [name.upper() for bind in binds if (name := bind.get("target"))]
        if {*sources, *targets} - {"X", "Y"}:
            raise self._error("a canvasTransform of other channels than X and Y is not supported", mapping)
        order = [name for channel in channels if (name := channel.get("name", "").upper()) in ("X", "Y")]
        if order == ["Y", "X"] and not sources:
            raise self._error("an affine matrix without <bind> is not supported where Y comes before X", mapping)
        if sources[:1] == ["Y"]:
            matrix = matrix[:, [1, 0, 2]]
        return matrix[::-1].copy() if targets[:1] == ["Y"] else matrix

    def _error(self, reason: str, element: etree._Element | None) -> InkError:
        return InkError(reason, self._name, None if element is None else element.sourceline)


def read_values(point: str) -> list[tuple[str, float | None]]:
    """Prefix and number of each value of a point; `None` for `*`, NaN for `?`, which says that there is no value.

    Raises:
        ValueError: Something in it is no value.
    """
    point, values, position = point.strip(), [], 0
    while position < len(point):
        found = _VALUE.match(point, position)
        if found is None:
            raise ValueError(f"{point[position:]!r} is no value")
        values.append((found.group(1), _number(found.group(2))))
        position = found.end()
    return values


def read_encoded(text: str, trace_format: TraceFormat) -> np.ndarray:
    """Points of a trace that is written in the short forms of the recommendation (3.2.1).

    A prefix holds for its channel until the next one: `!` for values, `'` for differences from the value before, `"`
    for differences of those differences. `*` goes on as before, `#` begins a number to base 16.

    Returns:
        (N, 2) or (N, 3) float64 as written, before any transform.

    Raises:
        ValueError: The text cannot be read so, or a point lacks X or Y.
    """
    points = [read_values(point) for point in text.split(",")]
    rows: list[list[float]] = []
    orders: dict[int, str] = {}
    for point in points:
        row: list[float] = []
        for channel, (prefix, number) in enumerate(point):
            order = orders[channel] = prefix or orders.get(channel, "!")
            past = [earlier[channel] for earlier in rows[-3:] if len(earlier) > channel]
            row.append(_next_value(past, order, number))
        rows.append(row)
    used = trace_format.used(min(map(len, rows)))
    return np.array([[row[channel] for channel in used] for row in rows])


def _number(token: str) -> float | None:
    if token in ("*", "?", "T", "F"):
        return {"*": None, "?": float("nan"), "T": 1.0, "F": 0.0}[token]
    sign, hexadecimal, digits = token.rpartition("#")
    return float(f"{sign}{int(digits, 16)}") if hexadecimal else float(token)


def _next_value(past: list[float], order: str, number: float | None) -> float:
    """The value after `past`, of which the last three count, by a number of the given order."""
    last = past[-1] if past else 0.0
    change = last - past[-2] if len(past) > 1 else 0.0
    if number is None:
        if not past:
            raise ValueError("there is nothing before the first point to go on with")
        growth = change - (past[-2] - past[-3]) if len(past) > 2 else 0.0
        number = {"!": last, "'": change, '"': growth}[order]
    return number + {"!": 0.0, "'": last, '"': last + change}[order]


def _channels(trace_format: etree._Element | None) -> list[etree._Element]:
    """Channels in the order of a point's values: those that it may leave out come last (3.1.3)."""
    if trace_format is None:
        return []
    return sorted(
        elements(trace_format, "channel"), key=lambda channel: _is(channel.getparent(), "intermittentChannels")
    )


def _of_canvas(trace_format: etree._Element) -> bool:
    return _is(trace_format.getparent(), "canvas")


def _is(element: etree._Element | None, name: str) -> bool:
    return element is not None and _tag(element) == name


def _tag(element: etree._Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""  # comments have a function as tag
