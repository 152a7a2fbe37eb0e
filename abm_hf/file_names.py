"""Names of files, as texts that can be written: on Linux a name is bytes, and need not be text in any encoding."""

import os
import re
import unicodedata
from pathlib import Path

# Python holds a byte that is no UTF-8 as one of these.
_UNDECODED = re.compile("[\udc80-\udcff]")


def escape_name(name: str | os.PathLike[str]) -> str:
    r"""A name, or a text with one in it, as text that UTF-8 can hold: the byte 0xE9 comes out as `\xe9`."""
    text = _UNDECODED.sub(lambda found: f"\\x{ord(found.group()) - 0xDC00:02x}", os.fspath(name))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str | os.PathLike[str]) -> str:
    r"""As [`escape_name`], on one line: line breaks and other control characters come out as `\n`, `\x1b`."""
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in escape_name(text)
    )


def expand(path: str | os.PathLike[str]) -> Path:
    """A path with `~` as the user's folder, where no shell has put it there, as in `--output=~/x`."""
    path = Path(path)
    return path.expanduser() if path.parts[:1] == ("~",) else path
