"""Options that every command has, words in place of type names in the help, and names that options had before."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

from prod9.system.verbosity import set_verbosity

VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more: what is opened and found, every measured value.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and results only.")]
COMMON: Mapping[str, Any] = {"verbose": VerboseOption, "quiet": QuietOption}
_WORDS: Mapping[type, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""What the help shows for an option without a word of its own, by type."""
RENAMED: Mapping[str, tuple[str, ...]] = {
    "--num": ("--num-samples",),
    "--num-subjects": ("--num-samples",),
    "--num-patients": ("--num-samples",),
    "--volumes": ("--num-samples",),
    "--steps": ("--training-steps",),
    "--example": ("--example-patient",),
    "--part": ("--subset",),
}
"""Old name of an option, and what it is called now in the commands that have one of these and not the old one."""
_TRIPLES = ("--spacing",)
"""Options of one value that were three words once."""


def with_common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` as a command that also has the options of :data:`COMMON`."""
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    parameters = [
        one.replace(annotation=hints.get(one.name, one.annotation))
        for one in inspect.signature(function).parameters.values()
    ]
    for one in parameters:
        _fill_word(one.annotation)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint)
        for name, hint in COMMON.items()
    ]

    @wraps(function)
    def run(*given: Any, verbose: bool = False, quiet: bool = False, **values: Any) -> Any:
        if verbose and quiet:
            raise typer.BadParameter("expected --verbose or --quiet, got both; leave one out")
        set_verbosity("verbose" if verbose else "quiet" if quiet else "normal")
        return function(*given, **values)

    run.__signature__ = inspect.Signature([*parameters, *extra])  # pyrefly: ignore[missing-attribute]
    run.__annotations__ = {one.name: one.annotation for one in (*parameters, *extra)}
    return run


def _fill_word(annotation: Any) -> None:
    """Give an option or argument without ``metavar`` one that says what to type."""
    if get_origin(annotation) is not Annotated:
        return
    kind, *notes = get_args(annotation)
    for info in notes:
        if isinstance(info, ParameterInfo) and info.metavar is None:
            inner = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and one in _WORDS]
            inner += [one for part in get_args(kind) for one in get_args(part) if one in _WORDS]
            if inner:
                info.metavar = _WORDS[inner[0]]


def in_present_words(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return ``args`` with old names of options in present ones, and three words of a spacing as one.

    Args:
        args: a command line, without the command.
        options: the names of the command's options.
    """
    found: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*found, word, *rest]
        name, equals, value = word.partition("=")
        if name in RENAMED and name not in options:
            name = next((new for new in RENAMED[name] if new in options), name)
        found.append(f"{name}{equals}{value}")
        if name in _TRIPLES and name in options and not equals and all(map(_is_number, rest[:3])):
            count = 3 if len(rest) >= 3 else 1
            found.append(",".join(rest[:count]))
            del rest[:count]
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
