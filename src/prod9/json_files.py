"""JSON in and out: a reader whose errors name the file, a writer without NaN. Standard library only."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prod9.errors import DataError, Prod9Error
from prod9.files import atomic_write, reading

MAX_BYTES = 64 << 20
"""Size of the largest file that is read: manifests of large stores take a few MiB."""


def read_json(
    path: Path,
    expected: str = "JSON",
    *,
    error: Callable[[str], Prod9Error] = DataError,
    remedy: str = "repair the file, or make it again",
) -> Any:
    """Return the content of a JSON file; ``error``, with the file's name, for other content or too much of it.

    Args:
        path: of the file.
        expected: what it should be, for messages.
        error: made of the message and raised.
        remedy: what to do, for messages.
    """
    with reading(path, expected, error=error, remedy=remedy):
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise error(f"{path}: expected {expected} of at most {MAX_BYTES} bytes, got {size}; {remedy}.")
        return json.loads(path.read_text(encoding="utf-8-sig"))


def read_object(
    path: Path,
    expected: str = "a JSON object",
    *,
    error: Callable[[str], Prod9Error] = DataError,
    remedy: str = "repair the file, or make it again",
) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object, as :func:`read_json` does.

    Args:
        path: of the file.
        expected: what it should be, for messages.
        error: made of the message and raised.
        remedy: what to do, for messages.
    """
    content = read_json(path, expected, error=error, remedy=remedy)
    if not isinstance(content, dict):
        raise error(f"{path}: expected {expected}, got {type(content).__name__}; {remedy}.")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` as JSON, atomically; what is not finite becomes null."""
    text = json.dumps(without_nan(content), indent=2, ensure_ascii=False, default=str, allow_nan=False)
    with atomic_write(path) as temporary:
        # A name with half a surrogate pair loses that character; the file is written all the same.
        Path(temporary).write_text(text + "\n", encoding="utf-8", errors="replace")


def without_nan(value: Any) -> Any:
    """Return nested plain values with None for NaN and infinity, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
