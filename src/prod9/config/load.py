"""Loads a configuration: YAML file → variables and ``--set`` → checked, frozen models.

A config may start from another one (``extends: NAME_OR_PATH``, sections merged key by key, the child wins),
and may hold ``${VARIABLE}`` or ``${VARIABLE:default}`` in any value. Everything wrong with it is reported
at once, as one :class:`~prod9.errors.ConfigError`. Nothing here imports torch.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from prod9.config.errors import describe, did_you_mean, key_path, shown
from prod9.config.schema import CONFIGS, RunConfig
from prod9.config.sections import RunSection
from prod9.config.yaml import PlainText, dump_yaml, parse_yaml, read_yaml
from prod9.errors import ConfigError
from prod9.stages import STAGES
from prod9.system.machine import expand

log = logging.getLogger("prod9")
CONFIG_ROOT = Path(__file__).resolve().parent.parent / "configs"
_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Overrides = Sequence[str | tuple[str, Any]]
"""Changes to a config: ``"a.b=c"`` as typed after ``--set``, or ``("a.b", value)`` with a ready value."""
Key = tuple[str, ...]
C = TypeVar("C", bound=RunSection)


def load_config(
    name_or_path: str | Path,
    *,
    overrides: Overrides = (),
    stage: str | Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    fill_variables: bool = True,
) -> RunConfig:
    """Return the checked config of a YAML file or of a shipped name; raises ConfigError.

    Args:
        name_or_path: a path, or a name such as ``demo/stage1``.
        overrides: ``"a.b=c"`` as typed after ``--set`` (``c`` is YAML), or ``("a.b", value)`` with a ready value;
            later ones win.
        stage: the stages that the caller can run; others are refused.
        environ: the variables; None takes ``os.environ``.
        fill_variables: False leaves ``${VARIABLE}`` as written, to show a config on a machine where it is not set.

    Example:
        >>> from prod9.config.load import load_config
        >>> config = load_config("demo/stage1", overrides=["training.max_steps=10"])
        >>> config.stage, config.training.max_steps
        ('autoencoder', 10)
    """
    path = find_config(name_or_path)
    log.info("Config: %s.", path)
    values = merge_config(path)
    literal: dict[Key, str] = {}
    for override in overrides:
        _apply_override(values, override, literal)
    source = _named(path)
    _check_stage(values, stage, source)
    variables = (os.environ if environ is None else environ) if fill_variables else None
    values = _fill_variables(values, variables, literal, source)
    return _validate(values, literal, source)


def config_from_dict(values: Mapping[str, Any], *, source: str, overrides: Overrides = ()) -> RunConfig:
    """Return the config that :func:`config_to_dict` wrote, e.g. into a checkpoint; ``source`` names it in errors.

    overrides: as for :func:`load_config`; ``values`` are not changed.

    Example:
        >>> from prod9.config.load import config_from_dict, config_to_dict, load_config
        >>> values = config_to_dict(load_config("demo/stage1"))
        >>> config_from_dict(values, source="the demo", overrides=["data.batch_size=4"]).data.batch_size
        4
    """
    changed: dict[str, Any] = dict(values)
    literal: dict[Key, str] = {}
    for override in overrides:
        _apply_override(changed, override, literal)
    _check_stage(changed, None, source)
    return _validate(changed, literal, source)


def with_steps(config: RunConfig, steps: float) -> RunConfig:
    """Return ``config`` with ``steps`` training steps, rounded, and at least one."""
    count = max(1, round(steps))
    return config.model_copy(update={"training": config.training.model_copy(update={"max_steps": count})})


def of_class(config: RunConfig, kind: type[C] | tuple[type[C], ...]) -> C:
    """Return ``config``, typed as one of the classes ``kind``; ConfigError if it is of another."""
    if isinstance(config, kind):
        return config
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(one.model_fields["stage"].default for one in kinds)
    raise ConfigError(f"stage: expected {wanted}, got {config.stage}; name a config of that stage")


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Return ``config`` as plain dicts, lists, numbers and text, every default included."""
    return config.model_dump(mode="json")


def dump_config(config: RunConfig) -> str:
    """Return ``config`` as YAML, every default included, that :func:`load_config` accepts again."""
    return dump_yaml(config_to_dict(config))


@cache
def shipped_configs() -> Mapping[str, Path]:
    """Return the names of the configs inside the package, and their files."""
    files = sorted(CONFIG_ROOT.rglob("*.yaml"))
    return {file.relative_to(CONFIG_ROOT).with_suffix("").as_posix(): file for file in files}


def find_config(name_or_path: str | Path, *, folder: Path | None = None) -> Path:
    """Return the file behind a path or a shipped name; relative paths start at ``folder`` (default: here)."""
    text = str(name_or_path)
    path = (folder or Path()) / expand(text)
    if path.is_file():
        return path
    shipped = shipped_configs()
    name = text.removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    hint = did_you_mean(name, list(shipped)) or f"; shipped are: {', '.join(shipped)}"
    raise ConfigError(f"{text}: expected a YAML file or the name of a shipped config, found neither{hint}")


def _named(path: Path) -> str:
    """Return what a user calls the config in a file: its shipped name, or its path."""
    shipped = path.is_relative_to(CONFIG_ROOT)
    return path.relative_to(CONFIG_ROOT).with_suffix("").as_posix() if shipped else str(path)


def merge_config(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of a file over those of what it extends; variables are not filled in yet."""
    path = path.resolve()
    if path in _seen:
        chain = " extends ".join(str(p) for p in (*_seen, path))
        raise ConfigError(f"extends: expected a chain that ends, got a circle, {chain}; remove one `extends`")
    values = read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: extends: expected a path or the name of a shipped config, got {shown(base)}"
        )
    return _merge(merge_config(find_config(base, folder=path.parent), (*_seen, path)), values)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merge(below, value)
        merged[key] = value
    return merged


def _apply_override(values: dict[str, Any], override: str | tuple[str, Any], literal: dict[Key, str]) -> None:
    if isinstance(override, tuple):
        key, value = override
    else:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected KEY=VALUE, for example training.max_steps=100")
        value = parse_yaml(text, f"--set {key}")
        literal[tuple(key.strip().split("."))] = text
    *parents, last = key.strip().split(".")
    if not all((*parents, last)):
        raise ConfigError(f"--set {key}: expected a dotted key, for example training.max_steps")
    section = values
    for depth, name in enumerate(parents):
        below = section.get(name)
        if below is not None and not isinstance(below, dict):
            parent = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"--set {key}: expected a section {parent}, got {shown(below)}; set {parent} itself"
            )
        section[name] = dict(below or {})
        section = section[name]
    section[last] = value


def _check_stage(values: Mapping[str, Any], wanted: str | Sequence[str] | None, source: str) -> None:
    stage = values.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        hint = did_you_mean(str(stage), list(STAGES)) if stage is not None else ""
        expected = " or ".join(STAGES)
        got = shown(stage) if "stage" in values else "nothing"
        raise ConfigError(f"{source}: stage: expected {expected}, got {got}{hint}")
    allowed = (wanted,) if isinstance(wanted, str) else wanted
    if allowed is not None and stage not in allowed:
        raise ConfigError(
            f"{source}: stage: expected {' or '.join(allowed)}, got {stage}; "
            f"this config belongs to {STAGES[stage].command}"
        )


def _fill_variables(
    values: dict[str, Any], environ: Mapping[str, str] | None, literal: dict[Key, str], source: str
) -> dict[str, Any]:
    errors: list[str] = []

    def fill(value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {name: fill(below, (*key, name)) for name, below in value.items()}
        if isinstance(value, list):
            return [fill(below, (*key, str(i))) for i, below in enumerate(value)]
        if not isinstance(value, str):
            return value
        if "${" not in value or environ is None:
            return str(value)
        text = _VARIABLE.sub(lambda match: _lookup(match, environ or {}, key, errors), value)
        if "${" in text:
            errors.append(f"{'.'.join(key)}: expected ${{NAME}} or ${{NAME:default}}, got {shown(value)}")
        if not isinstance(value, PlainText):
            return text
        literal[key] = text
        # One plain word may be a YAML number, bool or null.
        return parse_yaml(text, ".".join(key)) if re.fullmatch(r"[\w.+-]*", text) else text

    filled = fill(values, ())
    if errors:
        raise ConfigError(_report(source, errors))
    return filled


def _lookup(match: re.Match[str], environ: Mapping[str, str], key: Key, errors: list[str]) -> str:
    name, colon, default = match[1].partition(":")
    if not _VARIABLE_NAME.fullmatch(name):
        errors.append(f"{'.'.join(key)}: expected ${{NAME}} or ${{NAME:default}}, got {match[0]}")
        return ""
    value = environ.get(name, "")
    if value or colon:
        return value or default.removeprefix("-")
    errors.append(
        f"{'.'.join(key)}: the variable {name} is not set; `export {name}=...`, "
        f"or pass --set {'.'.join(key)}=VALUE"
    )
    return ""


def _validate(values: dict[str, Any], literal: Mapping[Key, str], source: str) -> RunConfig:
    model = CONFIGS[values["stage"]]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        retry = _as_text(values, error, literal)
        if retry is not None:
            return _validate(retry, {}, source)
        raise ConfigError(_report(source, describe(error, model, values))) from error


def _as_text(
    values: dict[str, Any], error: ValidationError, literal: Mapping[Key, str]
) -> dict[str, Any] | None:
    """Return ``values`` with text as it was typed where text is expected: a folder may be named 2024."""
    wrong = {
        tuple(key_path(item["loc"], values))
        for item in error.errors(include_url=False)
        if item["type"] == "string_type"
    }
    keys = {key for key in wrong if literal.get(key)}
    if not keys:
        return None

    def replace(value: Any, key: Key) -> Any:
        if key in keys:
            return literal[key]
        if isinstance(value, dict):
            return {name: replace(below, (*key, name)) for name, below in value.items()}
        if isinstance(value, list):
            return [replace(below, (*key, str(i))) for i, below in enumerate(value)]
        return value

    return replace(values, ())


def _report(source: str, lines: Sequence[str]) -> str:
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return f"{source}: {len(lines)} problems\n" + "\n".join(f"  {line}" for line in lines)
