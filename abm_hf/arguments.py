"""What the arguments of scripts share: their error, and a check."""

from typing import Any


class ArgumentError(ValueError):
    """An option or recipe that cannot be used; the message says what to write instead."""


def check_minimum(arguments: Any, least: int, *names: str) -> None:
    """Raises [`ArgumentError`] for the first of the options that is set and less than `least`."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ArgumentError(f"{name} must be at least {least}, not {value!r}")
