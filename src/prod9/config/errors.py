"""Turns errors of pydantic into lines that a user can act on: key, expected, got, "did you mean"."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prod9.config.data import DEFAULT_KIND
from prod9.config.sections import RunSection

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "at least {min_length} character",
    "bool_type": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section (key: value)",
    "model_attributes_type": "a section (key: value)",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a section with a `kind`",
}


def describe(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Return one line per wrong key of ``values``, which ``model`` refused.

    If a key may hold one of several types, its line names all of them.
    """
    lines: dict[str, str] = {}
    expected: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        key = ".".join(key_path(item["loc"], values))
        if item["type"] == "union_tag_invalid":
            key += ".kind"
        elif item["type"] == "missing" and isinstance(item["loc"][-1], int):
            key = key.rpartition(".")[0]
        statement = _statement(item, key, model)
        if not statement:
            branches = expected.setdefault(key, [])
            branches.append(_expectation(item))
            statement = f"expected {' or '.join(dict.fromkeys(branches))}, got {shown(_input(item))}"
            statement += _suggest_literal(item)
        lines[key] = f"{key}: {statement}" if key else statement
    return list(lines.values())


def key_path(loc: Sequence[str | int], values: Any) -> list[str]:
    """Return pydantic's location as keys of the file: the names of union branches are dropped."""
    path: list[str] = []
    for position, part in enumerate(loc):
        if isinstance(values, Mapping) and isinstance(part, str):
            kind = values.get("kind", DEFAULT_KIND)
            is_branch = part not in values and (position < len(loc) - 1 or kind == part)
            if not is_branch:
                path.append(part)
                values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            path.append(str(part))
            values = values[part] if part < len(values) else None
    return path


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every field below ``model``: sections too, and all branches of unions."""
    for name in model.model_fields:
        yield prefix + name
        for section in sections_of(model, name):
            yield from known_keys(section, f"{prefix}{name}.")


def sections_of(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """Return the section classes that a field may hold, without dataset families that the stage does not take."""
    found = sections(model.model_fields[name].annotation)
    if name == "data" and issubclass(model, RunSection):
        return [section for section in found if section.model_fields["kind"].default in model.data_kinds]
    return found


def sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the section classes an annotation may hold: one for a section, several for a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return sections(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [found for branch in get_args(annotation) for found in sections(branch)]
    return []


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest candidate, an empty string without one."""
    close = get_close_matches(word, candidates, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(value: Any) -> str:
    """Return ``value`` as a user would write it, at most 60 characters long."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _statement(item: ErrorDetails, key: str, model: type[BaseModel]) -> str:
    """Return the whole message for errors that are not of the form expected-got."""
    if item["type"] == "extra_forbidden":
        return f"unknown key{_suggest_key(key, model)}"
    if item["type"] == "missing":
        if isinstance(item["loc"][-1], int):
            return f"expected more than {len(item['input'])} values, got {shown(item['input'])}"
        return f"required, but not given; add it to the file, or pass --set {key}=VALUE"
    if item["type"] == "value_error":
        return str(item.get("ctx", {}).get("error", item["msg"]))
    return ""


def _input(item: ErrorDetails) -> Any:
    return item.get("ctx", {})["tag"] if item["type"] == "union_tag_invalid" else item["input"]


def _expectation(item: ErrorDetails) -> str:
    template = _EXPECTED.get(item["type"])
    if template is None:
        return item["msg"].removeprefix("Input should be ")
    return template.format(**item.get("ctx", {}))


def _suggest_literal(item: ErrorDetails) -> str:
    context, value = item.get("ctx", {}), _input(item)
    options = context.get("expected") or context.get("expected_tags")
    if not options or not isinstance(value, str):
        return ""
    return did_you_mean(value, [part.strip("' ") for part in options.replace(" or ", ",").split(",")])


def _suggest_key(key: str, model: type[BaseModel]) -> str:
    parent, _, name = key.rpartition(".")
    keys = list(dict.fromkeys(known_keys(model)))
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    near = did_you_mean(name, [known.rpartition(".")[2] for known in siblings])
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    if near or not elsewhere:
        return near or f"; known here: {', '.join(known.rpartition('.')[2] for known in siblings)}"
    return f"; did you mean {elsewhere[0]!r}?"
