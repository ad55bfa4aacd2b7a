"""Limits of the house: small folders and functions, shallow classes, and one place that knows the stages."""

import ast
import re
from functools import cache
from pathlib import Path

import prod9

PACKAGE = Path(prod9.__file__).parent
MOST_FILES = 16
MOST_LINES = 60
DEEPEST = 3
THIN = 15
"""Lines of a module that hands on a class, or ends a class in its own name."""


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def sources() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))]


def test_no_folder_holds_too_many_modules() -> None:
    folders: dict[Path, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py" and path.read_text(encoding="utf-8").count("\n") > THIN:
            folders.setdefault(path.parent, []).append(path.name)
    full = {name(folder): len(files) for folder, files in folders.items() if len(files) > MOST_FILES}
    assert not full, "divide it by what its modules are about"


def test_no_function_is_too_long() -> None:
    """Docstrings and decorators excepted; of commands the body, since their options are a table."""
    long = [
        f"{name(path)}:{node.lineno} {node.name}: {lines} lines"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := length(node, is_command=name(path).startswith("cli/"))) > MOST_LINES
    ]
    assert not long, "\n".join(long)


def length(node: ast.FunctionDef | ast.AsyncFunctionDef, *, is_command: bool) -> int:
    first = node.body[0].lineno if is_command else node.lineno
    lines = (node.end_lineno or first) - first + 1
    if ast.get_docstring(node) is not None:
        lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return lines


def test_adapters_are_shallow() -> None:
    """A reader of an adapter opens few files: at most three classes below LightningModule."""
    bases = {
        node.name: [re.sub(r"\[.*", "", ast.unparse(base)).rpartition(".")[2] for base in node.bases]
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def depth(cls: str, *above: str) -> int:
        """Return how far ``cls`` lies below LightningModule, -1 for a class that does not derive from it."""
        if cls == "LightningModule":
            return 0
        # A class may bear the name of the library's class that it derives from.
        known = [base for base in bases.get(cls, []) if base not in (cls, *above)]
        found = max((depth(base, cls, *above) for base in known), default=-1)
        return found + 1 if found >= 0 else -1

    depths = {cls: depth(cls) for cls in bases}
    assert max(depths.values()) >= 1, "no adapter was found"
    assert not {cls: deep for cls, deep in depths.items() if deep > DEEPEST}


def test_nobody_asks_a_config_which_stage_it_is() -> None:
    """``prod9.stages``, or what a stage itself offers, answers that."""
    asking = [
        f"{name(path)}:{number}: {line.strip()}"
        for path, _ in sources()
        if not name(path).startswith("config/")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\bisinstance\((\w+\.)*config, [A-Z]", line)
    ]
    assert not asking, "\n".join(asking)
