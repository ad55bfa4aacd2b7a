"""Scores of pairs, kept on disk as they come, so that an interrupted evaluation continues where it stopped."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from prod9 import __version__
from prod9.evaluation.sets.entries import Entry
from prod9.files import sha256
from prod9.json_files import without_nan

FILE = "pairs.partial.jsonl"
Rows = dict[str, dict[str, float]]
"""Region → metric → score."""


R = TypeVar("R")


class AbstractKept(ABC, Generic[R]):
    """A file with one line per result, under a key of what it depends on.

    A line that was cut off, or has another form, does not count.
    """

    field: ClassVar[str]
    """The name of a result in its line."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Read what ``path`` holds; None keeps nothing. settings: plain values that decide the results."""
        self.path = path
        self.settings = {**settings, "prod9": __version__}
        self._results: dict[str, R] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    @abstractmethod
    def plain(self, result: R) -> Any:
        """Return a result as lists, mappings and numbers, NaN allowed."""

    @abstractmethod
    def parsed(self, content: Any) -> R:
        """Return the result of what ``plain`` returned, null for NaN; raises for another form."""

    def get(self, key: str) -> R | None:
        """Return the result of ``key``, NaN where there is none; None for one that is not kept."""
        return self._results.get(key)

    def put(self, key: str, result: R) -> None:
        """Write a result; nothing without a path or a key."""
        if self.path is None or not key:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": key, self.field: without_nan(self.plain(result))}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(content, allow_nan=False) + "\n")

    def _read(self, line: str) -> None:
        try:
            content = json.loads(line)
            self._results[str(content["key"])] = self.parsed(content[self.field])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return


def number_of(value: Any) -> float:
    """Return a number that was kept; null stands for NaN."""
    return float("nan") if value is None else float(value)


class KeptPairs(AbstractKept[Rows]):
    """Scores of pairs, by the content of their files and by ``settings``: files that changed are scored again."""

    field = "rows"

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Read what ``path`` holds; None keeps nothing."""
        self._hashes: dict[Path, str] = {}
        super().__init__(path, settings)

    def key(self, real: Entry, generated: Entry) -> str:
        """Return what the scores of a pair depend on, as text; empty where nothing is kept or a file is unreadable."""
        if self.path is None:
            return ""
        try:
            about = [
                [self._hash(entry.path), entry.channel.index if entry.channel else None]
                for entry in (real, generated)
            ]
            seg = None if real.seg is None else [self._hash(real.seg), real.label_scheme]
        except OSError:
            return ""
        return json.dumps([about, seg, self.settings], sort_keys=True)

    def plain(self, result: Rows) -> Any:
        """Return the rows."""
        return result

    def parsed(self, content: Any) -> Rows:
        """Return the rows of a line."""
        return {
            str(region): {str(name): number_of(value) for name, value in row.items()}
            for region, row in content.items()
        }

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]
