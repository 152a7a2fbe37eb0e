"""Who imports whom: no cycles, one direction, and only what a checkpoint needs carries the suffix `_abm`."""

import ast
from functools import cache
from pathlib import Path

from abm_hf.hub.publish import _AUTO_CLASSES, save_pretrained

PACKAGE = Path(__file__).resolve().parents[1] / "abm_hf"

#: From the ground up: a package imports those before it, and the modules at the top, which import no package.
PACKAGES = (
    "latex",
    "ink",
    "synthetic",
    "data",
    "inference",
    "evaluation",
    "hub",
    "training",
    "demo",
    "cli",
)


_RELATIVE = "imports of this package are relative"


@cache
def imports() -> dict[str, set[str]]:
    """For each module, as `data.shards`, those of this package that it imports anywhere, functions included."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: _imports_of(name, path, modules.keys()) - {name} for name, path in modules.items()}


def _imports_of(name: str, path: Path, modules: object) -> set[str]:
    folder = list(path.parent.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            assert not (isinstance(node, ast.Import) and any(one.name.startswith("abm_hf") for one in node.names)), (
                name
            )
            continue
        if not node.level:
            assert (node.module or "").partition(".")[0] != "abm_hf", f"{name}: {_RELATIVE}"
            continue
        base = [*folder[: len(folder) - node.level + 1], *(node.module.split(".") if node.module else [])]
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            found.add(inner if inner in modules else ".".join(base))  # type: ignore[operator]
    return found - {""}  # the package itself has only names that are looked up when they are used


def test_no_cycle_of_imports() -> None:
    assert {"data.shards", "data.source"} <= imports()["data.wap"] | imports()["data.prepare"]
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for imported in sorted(imports()[name]):
                walk(imported, (*path, name))
            done.add(name)

    for name in imports():
        walk(name, ())


def test_imports_go_one_way() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(PACKAGES)

    def rank(name: str) -> int:
        package = name.partition(".")[0]
        return PACKAGES.index(package) if package in PACKAGES else -1

    assert not [f"{name} -> {one}" for name, found in imports().items() for one in found if rank(one) > rank(name)]


def test_files_that_travel_import_each_other_alone() -> None:
    for name, found in imports().items():
        if name.endswith("_abm") and "." not in name:
            assert not {one for one in found if "." in one or not one.endswith("_abm")}, name


def test_only_what_a_checkpoint_needs_has_the_suffix() -> None:
    """The classes that `auto_map` names, the pipeline, and what these import."""
    needed: set[str] = set()
    waiting = [*(cls.__module__.removeprefix("abm_hf.") for cls in _AUTO_CLASSES), "pipeline_abm"]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += imports()[name]
    assert needed == {name for name in imports() if name.endswith("_abm") and "." not in name}


def test_those_files_and_no_others_are_uploaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from abm_hf import ABMForConditionalGeneration

    save_pretrained(ABMForConditionalGeneration.from_pretrained(tiny_checkpoint), tmp_path)
    assert {path.stem for path in tmp_path.glob("*.py")} == {name for name in imports() if name.endswith("_abm")} - {
        name for name in imports() if "." in name
    }
