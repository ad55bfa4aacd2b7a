"""YAML for configurations: the core schema of YAML 1.2, with bounded work.

PyYAML follows YAML 1.1, where ``1e-4`` is a string, ``no`` is False and ``010`` is 8; here they are a float, a
string and ten. Duplicate keys, tags, recursive aliases and oversized documents are refused, always with
file and line.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from prod9.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000  # after expanding aliases: ten nested aliases can stand for millions of nodes

_TAG = "tag:yaml.org,2002:"
_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


class PlainText(str):
    """An unquoted string: after its variables are filled in, it may turn out to be a number."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as a number or a bool."""


for _name, (_pattern, _first) in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one configuration file: a mapping with text keys. Raises ConfigError with file and line."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {MAX_BYTES} bytes, got {size}; is it a config?")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected a UTF-8 text file, got one that cannot be read ({error})"
        ) from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of sections (key: value), got {_kind(value)}")
    return value


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document; ``source`` names it in errors."""
    return _copy(_parse(text, source))


@lru_cache(maxsize=256)
def _parse(text: str, source: str) -> Any:
    # Kept: configs extend each other, and a command that looks at all of them would read the lowest dozens of times.
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        if node is None:
            return None
        _check_size(node, source)
        return _construct(node, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: not valid YAML ({problem})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML ({error})") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply for a config") from error


def _copy(value: Any) -> Any:
    """Return a value whose mappings and lists are new."""
    if isinstance(value, dict):
        return {key: _copy(below) for key, below in value.items()}
    return [_copy(below) for below in value] if isinstance(value, list) else value


def dump_yaml(value: Any) -> str:
    """Write ``value`` so that :func:`parse_yaml` gives it back: keys in order, short lists on one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


def _check_size(root: yaml.Node, source: str) -> None:
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise ConfigError(f"{_where(node, source)}: an alias refers to itself; write the value out")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    total = size(root)
    if total > MAX_NODES:
        raise ConfigError(f"{source}: expected at most {MAX_NODES} values after aliases, got {total}")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _construct(node: yaml.Node, source: str) -> Any:
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _construct_mapping(node, source)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_construct(child, source) for child in node.value]
    if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
        raise ConfigError(f"{_where(node, source)}: tag {node.tag!r} is not allowed; use plain values")
    try:
        value = _SCALARS[kind](node.value)
    except ValueError as error:
        raise ConfigError(f"{_where(node, source)}: expected {kind}, got {node.value!r}") from error
    return PlainText(value) if kind == "str" and node.style is None else value


def _construct_mapping(node: yaml.MappingNode, source: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
            got = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a collection"
            raise ConfigError(f"{_where(key_node, source)}: expected a text key, got {got}; quote it")
        if key_node.value in result:
            raise ConfigError(f"{_where(key_node, source)}: key {key_node.value!r} is given twice; keep one")
        result[key_node.value] = _construct(value_node, source)
    return result


def _where(node: yaml.Node, source: str) -> str:
    return f"{source}:{node.start_mark.line + 1}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
