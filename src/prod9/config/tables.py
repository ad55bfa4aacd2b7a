"""Describes a section's keys as a Markdown table: the READMEs of the configs and ``prod9 configs schema``."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from prod9.config.errors import sections, sections_of, shown


def markdown_table(model: type[BaseModel]) -> str:
    """Return one row per key below ``model``: dotted key, type with bounds, default, description."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, fields in leaf_fields(model).items():
        types = " or ".join(dict.fromkeys(map(_type_text, fields)))
        cells = (f"`{key}`", types, _default_text(key, fields), fields[0].description or "")
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def leaf_fields(model: type[BaseModel], prefix: str = "") -> dict[str, list[FieldInfo]]:
    """Return the fields behind the dotted key of every value below ``model``.

    There are several if a section is one of several kinds. A section that may be null (``ema``) has a row of its own
    before its keys.
    """
    found: dict[str, list[FieldInfo]] = {}
    for name, info in model.model_fields.items():
        below = sections_of(model, name)
        if not below or info.default is None:
            found[prefix + name] = [info]
        for section in below:
            for key, fields in leaf_fields(section, f"{prefix}{name}.").items():
                found.setdefault(key, []).extend(fields)
    return found


def _default_text(key: str, fields: list[FieldInfo]) -> str:
    """Return the default, or those of the kinds that a section may be."""
    values = {str(field.default): field.default for field in fields}
    if PydanticUndefined in values.values() or (len(values) > 1 and key == "model.kind"):
        return "required"
    if key == "data.kind":
        values = {"brats": "brats"}  # files are what a section that names no kind means
    return " or ".join(f"`{shown(list(v) if isinstance(v, tuple) else v)}`" for v in values.values())


def _type_text(info: FieldInfo) -> str:
    text = _annotation_text(info.annotation)
    bounds = _bounds(info.metadata)
    return f"{text} {bounds}" if bounds else text


def _annotation_text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = _bounds(_flatten(args[1:]))
        return f"{_annotation_text(args[0])} {bounds}".strip()
    if origin in (Union, UnionType):
        return " or ".join(_annotation_text(arg) for arg in args)
    if origin is Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        many = args[-1] is Ellipsis
        return (
            f"list of {_annotation_text(args[0])}" if many else f"{len(args)} × {_annotation_text(args[0])}"
        )
    if origin is list:
        return f"list of {_annotation_text(args[0])}"
    if origin is dict:
        return f"{_annotation_text(args[0])}: {_annotation_text(args[1])}"
    if sections(annotation):
        return "section"
    words = {NoneType: "null", str: "text", bool: "true/false"}
    return words.get(annotation) or str(annotation.__name__)


def _flatten(metadata: tuple[Any, ...]) -> list[Any]:
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _bounds(metadata: list[Any]) -> str:
    signs = {Ge: "≥ {0.ge}", Gt: "> {0.gt}", Le: "≤ {0.le}", Lt: "< {0.lt}"}
    found = [text.format(item) for item in metadata for kind, text in signs.items() if isinstance(item, kind)]
    found += ["not empty" for item in metadata if isinstance(item, MinLen)]
    return ", ".join(found)
