"""Every public name of the architecture's paths says its shapes, its errors, and its arguments where there are many."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import prod9
from tests.architecture.test_public_paths import HOMES

SOURCE = Path(__file__).parents[2] / "src"
SHAPE = re.compile(r"\[[A-Za-z0-9_ +·:…]*\]|haped like|scalar|\(h, w, d\)")
BARE = re.compile(r"(torch\.)?Tensor( \| None)?")
"""A tensor whose annotation does not say its shape."""
HOME_OF = prod9._HOMES
ADAPTERS = "prod9.training.lightning"
"""Their public names are Lightning's hooks."""

SHOWN = {
    module: {*HOMES.get(module, ()), *(name for name in prod9.__all__ if HOME_OF.get(name) == module)}
    for module in sorted({*HOMES, *HOME_OF.values()})
}
"""The names of the architecture's paths, and those of ``prod9.__all__``, by module."""

Entry = tuple[ast.FunctionDef, str]
"""A function, and all that its reader sees: its own docstring and that of its class."""


def entries(module: str) -> Iterator[tuple[str, Entry]]:
    tree = ast.parse(SOURCE.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    for node in tree.body:
        if getattr(node, "name", None) not in SHOWN[module]:
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
    for module in SHOWN
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


# -- everything that can be called from outside -----------------------------------------------------

COMMANDS = "prod9.cli"
"""Its functions are commands: options say in their help what they mean."""
KEPT = "prod9.evaluation.sets"
"""Sums and distances between sets, called by prod9.evaluation alone."""
HOOK = re.compile(r"on_(train|validation|test|fit|save|load)_")
"""Hooks of Lightning, whose documentation has their arguments."""
ARGUMENTS = re.compile(r"Args:\n((?:[ ]+.*\n?)+)")
FROM_FOUR_ON = 4


def modules() -> Iterator[str]:
    for path in sorted((SOURCE / "prod9").rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        if not any(part.startswith("_") for part in name.split(".")) and not name.startswith(
            (COMMANDS, KEPT)
        ):
            yield name


def definitions(body: list[ast.stmt], above: str = "") -> Iterator[tuple[str, Entry]]:
    """Yield the public functions below ``body``, with the docstring of their class."""
    for node in body:
        name = getattr(node, "name", "_")
        if name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from ((one, (it, ast.get_docstring(node) or "")) for one, it in functions(node))
        elif isinstance(node, ast.FunctionDef):
            yield name, (node, above)


@pytest.mark.parametrize("module", list(modules()))
def test_public_functions_say_what_they_do_and_list_their_arguments_from_four_on(module: str) -> None:
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for name, (function, above) in definitions(ast.parse(file.read_text(encoding="utf-8")).body):
        setter = any(ast.unparse(one).endswith(".setter") for one in function.decorator_list)
        if setter or HOOK.match(function.name):
            continue
        text = (ast.get_docstring(function) or "") + "\n" + (above if function.name == "__init__" else "")
        assert text.strip(), f"{name}: say what it does"
        wanted = [one.arg for one in arguments_of(function)]
        if len(wanted) >= FROM_FOUR_ON:
            listed = listed_in(text)
            assert listed >= set(wanted) or "others" in listed, (
                f"{name}: list {set(wanted) - listed} under Args:"
            )


def listed_in(text: str) -> set[str]:
    """Return the names under ``Args:``; ``others`` has to say where those of it are listed."""
    block = ARGUMENTS.search(text)
    if block is None:
        return set()
    rows = dict(re.findall(r"^ +([\w, *]+): (.*)$", block[1], re.MULTILINE))
    assert ":" in rows.get("others", ":"), "say where the others are listed: see :meth:`NAME`"
    return {name.strip(" *") for names in rows for name in names.split(",")}


def test_every_name_of_the_package_is_documented() -> None:
    for name in prod9.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(prod9, name)), name
