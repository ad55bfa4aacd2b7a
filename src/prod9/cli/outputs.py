"""Folders of results that a command can fill in several goes.

A folder belongs to one model and one set of settings, written into ``manifest.json`` before the first result.
Results are written atomically, so a file that exists is whole: a second run skips it. Other settings are
refused, never mixed in.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from prod9.errors import ConfigError, DataError
from prod9.machine import expand

MANIFEST = "manifest.json"


class OutputFolder:
    """An output folder and its manifest: ``settings`` (what was asked) and ``files`` (what came of it).

    settings: plain values that decide what the files hold; ``num_samples`` and the like don't belong there.
    overwrite: replace what other settings wrote. Raises DataError when the folder cannot be written,
    ConfigError when it holds results of other settings, or files that no manifest explains.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        from prod9.files import check_writable

        self.path = expand(path)
        self.overwrite = overwrite
        self.settings = json.loads(json.dumps(settings))  # as it reads back: tuples are lists
        self.files: dict[str, dict[str, Any]] = {}
        check_writable(self.path)
        self._read_manifest()

    def is_done(self, name: str) -> bool:
        """Tell whether ``name`` was written with these settings; refuse a file of unknown origin."""
        if self.overwrite or not (self.path / name).exists():
            return False
        if name in self.files:
            return True
        raise ConfigError(
            f"{self.path / name}: exists, but {MANIFEST} does not say how it was made; move it away, choose "
            "another --output-dir, or replace it with --overwrite."
        )

    def record(self, name: str, **entry: Any) -> None:
        """Note what ``name`` is: before writing it, so that a crash leaves no file of unknown origin."""
        self.files[name] = entry
        self._write_manifest()

    def _read_manifest(self) -> None:
        path = self.path / MANIFEST
        if not path.exists():
            return
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            settings, files = dict(manifest["settings"]), dict(manifest["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self.overwrite:
                return
            raise DataError(
                f"{path}: expected the manifest of an earlier run, got something else ({error}); choose "
                "another --output-dir, or replace it with --overwrite."
            ) from error
        keys = sorted(settings.keys() | self.settings.keys())
        changed = [key for key in keys if settings.get(key) != self.settings.get(key)]
        if not changed:
            self.files = files
        elif not self.overwrite:
            details = "; ".join(f"{k}: {settings.get(k)!r}, now {self.settings.get(k)!r}" for k in changed)
            raise ConfigError(
                f"{self.path} holds results of other settings ({details}); choose another --output-dir, or "
                "replace them with --overwrite."
            )

    def _write_manifest(self) -> None:
        from prod9 import __version__
        from prod9.files import atomic_write

        manifest = {"prod9": __version__, "settings": self.settings, "files": self.files}
        with atomic_write(self.path / MANIFEST) as temporary:
            text = json.dumps(manifest, indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")


def consecutive(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ``(first, count)`` of each run of consecutive numbers."""
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        yield numbers[0], len(numbers)
