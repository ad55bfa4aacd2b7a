"""Scores of pairs on disk as they come, so that an interrupted evaluation goes on where it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prod9 import __version__
from prod9.evaluation.score_table import finite
from prod9.evaluation.sets.entries import Entry
from prod9.files import sha256

FILE = "pairs.partial.jsonl"
Rows = dict[str, dict[str, float]]
"""Region → metric → score."""


class KeptPairs:
    """One line a pair, under a key of the content of its files and of ``settings``: other files are scored anew.

    A line that was cut off, or is of another form, counts as not there.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = {**settings, "prod9": __version__}
        self._rows: dict[str, Rows] = {}
        self._hashes: dict[Path, str] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def key(self, real: Entry, generated: Entry) -> str:
        """Return what the scores of a pair depend on, as text."""
        about = [
            [self._hash(entry.path), entry.channel.index if entry.channel else None]
            for entry in (real, generated)
        ]
        seg = None if real.seg is None else [self._hash(real.seg), real.label_scheme]
        return json.dumps([about, seg, self.settings], sort_keys=True)

    def get(self, key: str) -> Rows | None:
        """Return the scores of a pair, NaN where there is none; None for a pair that was not scored."""
        return self._rows.get(key)

    def put(self, key: str, rows: Mapping[str, Mapping[str, float]]) -> None:
        """Write the scores of a pair."""
        plain = {region: {name: finite(value) for name, value in row.items()} for region, row in rows.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, "rows": plain}, allow_nan=False) + "\n")

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
