"""How answers leave `abm-hf recognize`: lines on stdout, JSON lines in a file, pictures in a folder."""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..file_names import escape_name, printable

if TYPE_CHECKING:
    from ..inference.base import Recognition

FORMATS = ("latex", "mathml", "json", "png")


class Writer(AbstractContextManager["Writer"]):
    """Takes results in order.

    Args:
        min_score: answers less probable than this are left out.
    """

    def __init__(self, min_score: float = 0.0):
        self.min_score = min_score

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def write(self, name: str, result: "Recognition") -> str | None:
        """Writes a result; returns what could not be written, in one line, if anything."""
        raise NotImplementedError

    def is_unsure(self, result: "Recognition") -> bool:
        """Whether there is an answer that is too improbable to be given."""
        return result.error is None and result.score < self.min_score


class StreamWriter(Writer):
    """One line on stdout for each input: LaTeX, MathML or JSON; empty where there is no answer, or it is left out.

    Args:
        form: one of [`FORMATS`] but `png`.
        names: whether the input's name and a tab stand before LaTeX or MathML.
    """

    def __init__(self, form: str = "latex", min_score: float = 0.0, names: bool = False):
        super().__init__(min_score)
        self.form = form
        self.names = names

    def write(self, name: str, result: "Recognition") -> str | None:
        unsure = self.is_unsure(result)
        if self.form == "json":
            # What the terminal's encoding lacks is escaped as JSON does it, so that it stays JSON.
            print(json_line(name, result, unsure, only_ascii=not _is_unicode(sys.stdout.encoding)), flush=True)
        else:
            text = "" if unsure else result.mathml if self.form == "mathml" else result.latex
            print(f"{printable(name)}\t{text or ''}" if self.names else text or "", flush=True)
            if text is None and result.error is None:
                return f"there is no MathML for {result.latex!r}"
        return None


class FileWriter(Writer):
    """Appends JSON lines to a file.

    Args:
        options: what the answers depend on: a part of each line, so that no later run takes them for its own.
    """

    def __init__(self, path: Path, min_score: float, options: Mapping[str, Any], mathml: bool = False):
        super().__init__(min_score)
        self.options = options
        self.mathml = mathml
        self.file = path.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, name: str, result: "Recognition") -> str | None:
        record = _record(name, result, self.is_unsure(result), self.mathml) | {"options": self.options}
        print(json.dumps(record, ensure_ascii=False), file=self.file, flush=True)
        return None


class PictureWriter(Writer):
    """Draws each answer as a PNG and prints its path.

    Args:
        output: a folder, made where it does not exist, for `NAME.png` each; or the file, for a single input.
    """

    def __init__(self, output: Path, min_score: float = 0.0, single: bool = False):
        super().__init__(min_score)
        self.file = output if single and output.suffix.lower() == ".png" else None
        self.folder = output.parent if self.file else output
        self.folder.mkdir(parents=True, exist_ok=True)
        self.taken: set[Path] = set()

    def write(self, name: str, result: "Recognition") -> str | None:
        if result.error is not None or self.is_unsure(result):
            return None
        try:
            picture = result.render()
        except ValueError as error:
            return str(error)
        path = self.file or self._path(name)
        picture.save(path)
        print(printable(path), flush=True)
        return None

    def _path(self, name: str) -> Path:
        """`NAME.png`; inputs of one name in several folders are numbered."""
        stem = printable(Path(name).stem) if name != "-" else "stdin"
        path, number = self.folder / f"{stem}.png", 2
        while path in self.taken:
            path, number = self.folder / f"{stem}-{number}.png", number + 1
        self.taken.add(path)
        return path


def json_line(
    name: str, result: "Recognition", unsure: bool = False, mathml: bool = False, only_ascii: bool = False
) -> str:
    """A result as one line of JSON, without line break."""
    return json.dumps(_record(name, result, unsure, mathml), ensure_ascii=only_ascii)


def _is_unicode(encoding: str | None) -> bool:
    return (encoding or "utf-8").lower().startswith("utf")


def _record(name: str, result: "Recognition", unsure: bool, mathml: bool = False) -> dict[str, Any]:
    name = escape_name(name)
    if result.error is not None:
        return {"file": name, "error": escape_name(result.error)}
    assert result.image is not None
    height, width = result.image.shape
    return {
        "file": name,
        "latex": None if unsure else result.latex,
        **({"mathml": None if unsure else result.mathml} if mathml else {}),
        "score": round(result.score, 6),
        "n_best": [{"latex": found.latex, "score": round(found.score, 6)} for found in result.alternatives],
        "tokens": list(result.tokens),
        "token_scores": [round(score, 4) for score in result.token_scores],
        "width": width,
        "height": height,
        "milliseconds": round(result.milliseconds, 1),
    }
