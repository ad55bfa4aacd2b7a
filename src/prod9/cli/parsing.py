"""How command lines are read: what Typer and Click leave to be wished for."""

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from prod9.cli.front.common import in_present_words, with_common_options

F = TypeVar("F", bound=Callable[..., Any])

_OF_TYPER = frozenset(("--help", "--install-completion", "--show-completion"))
"""Flags that Typer adds, without a default."""


class _PlainHelp:
    """Keeps the names of types out of a help: a flag has none, and the name of an argument says enough."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for one in self.params:  # pyrefly: ignore[missing-attribute]
            if one.param_type_name == "argument":
                one.display_type_rich = lambda ctx: None

    def get_params(self, ctx: Any) -> Any:
        """Return all parameters, those of Typer itself included, with flags that show no type."""
        found = super().get_params(ctx)  # pyrefly: ignore[missing-attribute]
        for one in found:
            if getattr(one, "is_flag", False):
                one.metavar = ""
            if one.default is None and not _OF_TYPER.isdisjoint(one.opts):
                one.default = False  # Typer would import pydantic, 0.1 s, to find that None is no value
        return found


class Group(_PlainHelp, TyperGroup):
    """A group of commands, in the order in which they were added to ``order`` or, without it, were registered."""

    order: Sequence[str] = ()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands as the help shows them."""
        names = super().list_commands(ctx)
        places = {name: place for place, name in enumerate(self.order)}
        return sorted(names, key=lambda name: places.get(name, len(places)))


class Command(_PlainHelp, TyperCommand):
    """A command that refuses an option whose value is missing, or empty as an unset variable of a shell leaves it.

    Click takes whatever follows: in ``--output-dir --check`` the folder would be called ``--check``, and the run start.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse ``args``; raises a usage error (exit code 2)."""
        options: dict[str, Any] = {
            name: one for one in self.params for name in (*one.opts, *one.secondary_opts)
        }
        args = in_present_words(args, list(options))
        given = args[: args.index("--")] if "--" in args else args
        for position, argument in enumerate(given):
            name, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
            option = options.get(name)
            if option is None or option.param_type_name != "option" or option.is_flag or option.count:
                continue
            following = [value] if equals else given[position + 1 : position + 1 + option.nargs]
            if not equals and any(word in options and word.startswith("-") for word in following):
                ctx.fail(f"Option '{name}' requires an argument.")
            if "" in following:
                ctx.fail(f"Option '{name}' requires an argument, got an empty one.")
        return super().parse_args(ctx, args)


class ResumeCommand(Command):
    """A command whose ``--resume`` may stand without a value: ``auto`` is filled in."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse ``args`` after giving a bare ``--resume`` its value."""
        filled: list[str] = []
        for position, argument in enumerate(args):
            filled.append(argument)
            bare = position + 1 == len(args) or args[position + 1].startswith("-")
            if argument == "--resume" and bare:
                filled.append("auto")
        return super().parse_args(ctx, filled)


class App(typer.Typer):
    """A command group of prod9: its commands are read strictly, and their help is there under ``python -OO`` too."""

    def command(  # pyrefly: ignore[bad-override]
        self,
        name: str | None = None,
        *,
        cls: type[TyperCommand] = Command,
        help: str | None = None,
        example: str | None = None,
        **settings: Any,
    ) -> Callable[[F], F]:
        """Register a function as a command.

        Args:
            name: of the command; by default that of the function.
            cls: how its line is read.
            help: by default its docstring.
            example: a line that can be typed as it is, shown below the help.
            settings: further ones of Typer.
        """
        add = super().command
        if example is not None:
            settings["epilog"] = f"Example: `{example}`"

        def register(function: F) -> F:
            text = help or documentation(function)
            add(name or function.__name__.replace("_", "-"), cls=cls, help=text, **settings)(
                with_common_options(function)
            )
            return function

        return register


def documentation(function: Callable[..., Any]) -> str | None:
    """Return the docstring of ``function``, from its source where Python has dropped it (``-OO``)."""
    function = inspect.unwrap(function)
    text = inspect.getdoc(function)
    if text is not None or not inspect.isfunction(function):
        return text
    try:
        source, _ = inspect.findsource(function)
        tree = ast.parse("".join(source))
    except (OSError, SyntaxError):  # installed without sources
        return None
    found = _definition(list(ast.walk(tree)), function.__code__.co_firstlineno, function.__name__)
    return None if found is None else ast.get_docstring(found)


def _definition(nodes: Sequence[ast.AST], line: int, name: str) -> ast.FunctionDef | None:
    """Return the definition whose first line, decorators included, is ``line``."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == line:
                return node
    return None
