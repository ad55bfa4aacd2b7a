"""What every layout's search has in common: walking a tree, and the form of its result."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prod9.data.cases import Case
from prod9.errors import DataError

_MAX_DESCRIPTION = 64 << 20
"""Bytes of a dataset.json or list that are read; a case takes some hundred."""


@dataclass
class Scan:
    """Cases as found, volumes that belong to none, and messages for what cannot be used."""

    cases: list[Case] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def walk(folder: Path, seen: set[tuple[int, int]] | None = None) -> Iterator[Path]:
    """Yield the files below ``folder`` in order of names; links are followed, each folder is visited once."""
    seen = set() if seen is None else seen
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return
    seen.add(identity)
    with os.scandir(folder) as entries:
        # Real folders first, so that a link to a sibling does not give its files another path.
        found = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    for entry in found:
        if entry.is_dir():
            yield from walk(Path(entry.path), seen)
        elif entry.is_file():
            yield Path(entry.path)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; DataError when it is none or far too large."""
    try:
        if path.stat().st_size > _MAX_DESCRIPTION:
            raise DataError(f"{path}: expected a list of files, got {path.stat().st_size} bytes; split it.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON ({error}); repair the file.") from error


def inside(root: Path, name: str, source: Path) -> Path:
    """Return ``root / name``; DataError when it leads out of ``root``, as no dataset's own list does."""
    path = root / name
    if not os.path.normpath(path).startswith(os.path.normpath(root) + os.sep):
        raise DataError(f"{source}: expected files inside {root}, got {name}; correct the list.")
    return path
