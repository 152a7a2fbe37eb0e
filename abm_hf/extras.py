"""What to say where a package of an extra is not installed, before any work is done."""

from importlib.util import find_spec


def lacks(extra: str, what: str, *packages: str) -> str | None:
    """What `what` lacks of the `packages` that it imports, and the extra that brings them; `None` if nothing."""
    missing = [package for package in packages if find_spec(package) is None]
    return f"{what} needs {', '.join(missing)}: pip install 'abm-hf[{extra}]'" if missing else None
