"""Every public name of the architecture's paths says its shapes, its errors, and its arguments where there are many."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.test_public_paths import HOMES

SOURCE = Path(__file__).parents[2] / "src"
SHAPE = re.compile(r"\[[A-Za-z0-9_ +·:…]*\]|haped like|scalar|\(h, w, d\)")
BARE = re.compile(r"(torch\.)?Tensor( \| None)?")
"""A tensor whose annotation does not say its shape."""
ADAPTERS = "prod9.training.lightning"
"""Their public names are Lightning's hooks."""

Entry = tuple[ast.FunctionDef, str]
"""A function, and all that its reader sees: its own docstring and that of its class."""


def entries(module: str) -> Iterator[tuple[str, Entry]]:
    tree = ast.parse(SOURCE.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    for node in tree.body:
        if getattr(node, "name", None) not in HOMES[module]:
            continue
        above = ast.get_docstring(node) or ""
        yield from ((name, (one, above)) for name, one in functions(node))


def functions(node: ast.stmt) -> Iterator[tuple[str, ast.FunctionDef]]:
    if isinstance(node, ast.FunctionDef):
        yield node.name, node
    elif isinstance(node, ast.ClassDef):
        for one in node.body:
            overload = isinstance(one, ast.FunctionDef) and "overload" in map(ast.unparse, one.decorator_list)
            shown = isinstance(one, ast.FunctionDef) and (
                not one.name.startswith("_") or one.name in ("__init__", "__call__")
            )
            if shown and not overload:
                yield f"{node.name}.{one.name}", one


PUBLIC = {
    f"{module}.{name}": entry
    for module in HOMES
    if not module.startswith(ADAPTERS)
    for name, entry in entries(module)
}


def arguments_of(function: ast.FunctionDef) -> list[ast.arg]:
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [one for one in every if one.arg not in ("self", "cls")]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_says_its_shapes_and_errors(name: str) -> None:
    function, above = PUBLIC[name]
    own = ast.get_docstring(function) or ""
    text = f"{above}\n{own}"
    assert text.strip()
    kinds = [ast.unparse(one.annotation) for one in arguments_of(function) if one.annotation]
    kinds += [ast.unparse(function.returns)] if function.returns else []
    if any(BARE.fullmatch(kind) for kind in kinds):
        assert SHAPE.search(own), "say the shape in the signature, or as ``[B h w d]`` in the docstring"
    for error in raised(function):
        assert error in text or "refuse" in text, f"say when it raises {error}"


def raised(function: ast.FunctionDef) -> set[str]:
    return {
        node.exc.func.id
        for node in ast.walk(function)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }
