"""Ink: what a pen wrote, as strokes of points, with what the writer meant by it.

Coordinates are the writer's own: CROHME mixes centimetres, pixels and digitiser units that differ by orders of
magnitude, and nothing here rescales them. x grows to the right and y *down*, as in InkML and in images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

#: Largest magnitude of x and y that counts as a pen position. HIMETRIC tablets stay under 10^6, the finest research
#: digitisers under 10^8; anything larger is a broken file, and would overflow 32-bit pixel arithmetic further on.
MAX_COORDINATE = 1e9


class InkError(ValueError):
    """Ink that cannot be used, and why.

    Args:
        reason (`str`): What is wrong, in one sentence.
        file (`str`, *optional*): Name of the file the ink was read from.
        line (`int`, *optional*): Line of that file, counted from 1.
    """

    def __init__(self, reason: str, file: str | None = None, line: int | None = None):
        super().__init__(reason, file, line)  # all arguments, so that the error survives pickling between processes
        self.reason = reason
        self.file = file
        self.line = line

    def __str__(self) -> str:
        return _located(self.reason, self.file, self.line)


class InkWarning(UserWarning):
    """What was left out of ink that can be used all the same; arguments as of [`InkError`]."""

    def __init__(self, reason: str, file: str | None = None, line: int | None = None):
        super().__init__(reason, file, line)
        self.reason = reason
        self.file = file
        self.line = line

    def __str__(self) -> str:
        return _located(self.reason, self.file, self.line)


def _located(reason: str, file: str | None, line: int | None) -> str:
    if file is None and line is None:
        return reason
    if file is None or line is None:
        return f"{file or f'line {line}'}: {reason}"
    return f"{file}:{line}: {reason}"


@dataclass(frozen=True)
class Symbol:
    """One segmented symbol.

    Args:
        label (`str`): LaTeX token, as the source spells it; spaces around it are dropped.
        strokes (`tuple[int, ...]`): Indices into `Ink.strokes`, in writing order.
    """

    label: str
    strokes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label.strip())
        object.__setattr__(self, "strokes", tuple(int(index) for index in self.strokes))


@dataclass(frozen=True, eq=False)
class Ink:
    """A handwritten expression as strokes.

    Args:
        strokes (iterable of arrays):
            At least one stroke; each an array (or nested list) of shape `(N, 2)` holding x, y or `(N, 3)` holding
            x, y, t, with N ≥ 1 and the same number of columns in every stroke. Kept as read-only float64 arrays in
            the writer's units, x to the right, y down; t in the unit of the file.
        label (`str`, *optional*): The truth, as the file writes it (exact tokens for synthetic ink). A blank one
            is no label, and becomes `None`.
        symbols (iterable of [`Symbol`], *optional*): Segmentation into symbols, where known.
        annotations (`Mapping[str, str]`, *optional*): What else is known: writer, UI, age, ...

    Raises:
        InkError: There is no point at all, an array has another shape, a value is NaN or infinite, a coordinate is
            beyond ±[`MAX_COORDINATE`], or a symbol refers to a stroke that is not there.
    """

    strokes: tuple[np.ndarray, ...]
    label: str | None = None
    symbols: tuple[Symbol, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strokes", _checked_strokes(self.strokes))
        object.__setattr__(self, "label", self.label if self.label and self.label.strip() else None)
        object.__setattr__(self, "symbols", tuple(self.symbols))
        object.__setattr__(self, "annotations", dict(self.annotations))
        for symbol in self.symbols:
            if not symbol.strokes or not all(0 <= index < len(self.strokes) for index in symbol.strokes):
                raise InkError(
                    f"symbol {symbol.label!r} refers to strokes {list(symbol.strokes)}, "
                    f"but the ink has strokes 0 to {len(self.strokes) - 1}"
                )

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest x, smallest y, largest x, largest y, in the writer's units."""
        points = np.concatenate(self.strokes)[:, :2]
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def __eq__(self, other: object) -> bool:
        # The generated comparison would ask an array for its truth value.
        if not isinstance(other, Ink):
            return NotImplemented
        return (
            (self.label, self.symbols, self.annotations) == (other.label, other.symbols, other.annotations)
            and len(self.strokes) == len(other.strokes)
            and all(np.array_equal(mine, theirs) for mine, theirs in zip(self.strokes, other.strokes, strict=True))
        )


def _checked_strokes(strokes: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The strokes as read-only float64 arrays of one width, or an `InkError` that names the first bad stroke."""
    arrays: list[np.ndarray] = []
    for index, stroke in enumerate(strokes):
        try:
            array = np.asarray(stroke, dtype=np.float64).view()
        except (TypeError, ValueError) as error:
            raise InkError(f"stroke {index} is not an array of numbers: {error}") from None
        if array.ndim != 2 or array.shape[1] not in (2, 3) or not len(array):
            raise InkError(f"stroke {index} has shape {array.shape}; (points, 2) or (points, 3) is needed")
        if arrays and array.shape[1] != arrays[0].shape[1]:
            raise InkError(f"stroke {index} has {array.shape[1]} columns, the first stroke {arrays[0].shape[1]}")
        array.flags.writeable = False
        arrays.append(array)
    if not arrays:
        raise InkError("the ink has no strokes")
    points = np.concatenate(arrays)
    if not np.isfinite(points).all() or np.abs(points[:, :2]).max() > MAX_COORDINATE:
        _raise_for_bad_value(arrays)
    return tuple(arrays)


def _raise_for_bad_value(arrays: list[np.ndarray]) -> None:
    for index, array in enumerate(arrays):
        bad = ~np.isfinite(array).all(axis=1) | (np.abs(array[:, :2]) > MAX_COORDINATE).any(axis=1)
        if bad.any():
            point = int(bad.argmax())
            raise InkError(
                f"point {point} of stroke {index} is {array[point].tolist()}; "
                f"finite values are needed, and coordinates within ±{MAX_COORDINATE:g}"
            )
