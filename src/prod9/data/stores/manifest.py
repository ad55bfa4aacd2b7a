"""The manifest of a token store: which item lies in which row of which shard, and what the shards must hash to."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prod9.errors import DataError
from prod9.files import atomic_write, inside, sha256
from prod9.json_files import read_object
from prod9.system.folders import finals, sweep

FORMAT = 2
MANIFEST = "manifest.json"
_SHARD_NAME = re.compile(r"[0-9a-f]{16}")
_ARRAY_NAME = re.compile(r"latents|foreground|tokens")


@dataclass(frozen=True)
class Row:
    """Where an item lies and what it is."""

    key: str
    case_id: str
    modality: str
    label: int
    flipped: bool
    shard: str
    row: int


_ROW_TYPES = {
    "key": str, "case_id": str, "modality": str, "label": int, "flipped": bool, "shard": str, "row": int,
}  # fmt: skip


@dataclass
class Manifest:
    """made_for: encoder and grid. rows: by item key. shards: by name, array name to SHA-256 of its file.

    damaged: shards that another manifest lists and that are not what was written.
    """

    made_for: str
    rows: dict[str, Row]
    shards: dict[str, dict[str, str]]
    damaged: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read it; empty when there is none or it is of an older format: everything is encoded anew then.

        Raises DataError when it is of a newer format, or when names in it are not those of shards.
        """
        path = directory / MANIFEST
        if not path.is_file():
            return cls("", {}, {})
        try:
            content = read_object(path)
            version = content["format"]
            if isinstance(version, int) and version > FORMAT:
                raise DataError(
                    f"{path}: expected a store of format {FORMAT}, got format {version}, which is newer than this "
                    "program; use the prod9 version that wrote it, or another data.store_dir."
                )
            if version != FORMAT:
                return cls("", {}, {})
            rows = [Row(**row) for row in content["items"]]
            shards = {name: dict(hashes) for name, hashes in content["shards"].items()}
            made_for = str(content["made_for"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{path}: expected the manifest of a store, got something else ({error!r}); delete the store, or name "
                "another data.store_dir."
            ) from error
        for row in rows:
            kinds = {name: type(value) for name, value in asdict(row).items()}
            if kinds != _ROW_TYPES or row.row < 0:
                raise DataError(
                    f"{path}: expected rows of a store, got {str(row)[:120]}; delete the store, or name another "
                    "data.store_dir."
                )
        for name in [*shards, *(row.shard for row in rows)]:
            _require_name(name, _SHARD_NAME, path)
        for hashes in shards.values():
            for name in hashes:
                _require_name(name, _ARRAY_NAME, path)
        return cls(made_for, {row.key: row for row in rows}, shards)

    def merge(self, directory: Path) -> None:
        """Take in what other processes have written of the same encoder and grid; call with the lock held."""
        there = Manifest.read(directory)
        if there.made_for != self.made_for:
            return
        new = {name: h for name, h in there.shards.items() if self.damaged.get(name) != h}
        self.shards = self.shards | new
        rows = {key: row for key, row in there.rows.items() if row.shard in new and key not in self.rows}
        self.rows |= rows

    def write(self, directory: Path) -> None:
        """Write it, atomically."""
        content = {
            "format": FORMAT,
            "made_for": self.made_for,
            "shards": self.shards,
            "items": [asdict(row) for row in self.rows.values()],
        }
        with atomic_write(directory / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def sweep(self, directory: Path) -> None:
        """Delete what killed processes left: temporary files, and shards that no manifest lists; hold the lock."""
        sweep(directory)
        for path in finals(directory, "*.npy"):
            shard, _, array = path.name.removesuffix(".npy").partition(".")
            ours = _SHARD_NAME.fullmatch(shard) and _ARRAY_NAME.fullmatch(array)
            if ours and shard not in self.shards:
                path.unlink(missing_ok=True)

    def intact(self, directory: Path) -> "Manifest":
        """Return the part whose shards have the content that was written (half a second for 150 MB)."""
        whole = {
            name: hashes
            for name, hashes in self.shards.items()
            if all(
                path.is_file() and sha256(path) == digest
                for array, digest in hashes.items()
                for path in [shard_file(directory, name, array)]
            )
        }
        rows = {key: row for key, row in self.rows.items() if row.shard in whole}
        damaged = {name: hashes for name, hashes in self.shards.items() if name not in whole}
        return Manifest(self.made_for, rows, whole, damaged)


def shard_file(directory: Path, shard: str, array: str) -> Path:
    """Return the file of one array of a shard."""
    return inside(directory, f"{shard}.{array}.npy")


def _require_name(name: Any, pattern: re.Pattern[str], path: Path) -> None:
    if not isinstance(name, str) or pattern.fullmatch(name) is None:
        raise DataError(
            f"{path}: expected names of shards, got {str(name)[:60]!r}; delete the store, or name another "
            "data.store_dir."
        )
