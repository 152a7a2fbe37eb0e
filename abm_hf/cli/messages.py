"""What every command says to a person: one line on stderr, and an exit code."""

import sys

from ..file_names import escape_name, printable


def fail(message: str) -> int:
    """Says what went wrong in one line on stderr and returns the exit code for wrong usage."""
    print(f"abm-hf: {printable(message)}", file=sys.stderr)
    return 2


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def about(name: str, error: str) -> str:
    """An error that names the input that it is about."""
    name, error = escape_name(name), escape_name(error)
    return error if name in error else f"{name}: {error}"
