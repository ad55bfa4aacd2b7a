"""Scores of pairs, kept on disk as they come, so that an interrupted evaluation continues where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prod9 import __version__
from prod9.evaluation.sets.entries import Entry
from prod9.files import sha256
from prod9.json_files import without_nan

FILE = "pairs.partial.jsonl"
Rows = dict[str, dict[str, float]]
"""Region → metric → score."""


class KeptPairs:
    """A file with one line per pair, under a key made of the content of its files and of ``settings``.

    Files that changed are scored again. A line that was cut off, or has another form, does not count.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Read what ``path`` holds; None keeps nothing."""
        self.path = path
        self.settings = {**settings, "prod9": __version__}
        self._rows: dict[str, Rows] = {}
        self._hashes: dict[Path, str] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

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

    def get(self, key: str) -> Rows | None:
        """Return the scores of a pair, NaN where there is none; None for a pair that was not scored."""
        return self._rows.get(key)

    def put(self, key: str, rows: Rows) -> None:
        """Write the scores of a pair; nothing without a key."""
        if self.path is None or not key:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, "rows": without_nan(rows)}, allow_nan=False) + "\n")

    def _read(self, line: str) -> None:
        try:
            content = json.loads(line)
            self._rows[str(content["key"])] = {
                str(region): {
                    str(name): float("nan") if value is None else float(value) for name, value in row.items()
                }
                for region, row in content["rows"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]
