"""The manifest of a token store: the shard and row of each encoded volume, and the hash of each shard."""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from prod9.errors import DataError
from prod9.files import atomic_write, inside, sha256
from prod9.json_files import read_object
from prod9.system.folders import finals, sweep

FORMAT = 2
MANIFEST = "manifest.json"
LOCK = "manifest.lock"
IN_USE = "in-use.lock"
"""The lock file that readers share."""
_REMEDY = "delete the store, or name another data.store_dir"
_SHARD_NAME = re.compile(r"[0-9a-f]{16}")
_ARRAY_NAME = re.compile(r"latents|foreground|tokens")


@dataclass(frozen=True)
class Row:
    """One encoded volume and its place in the store."""

    key: str
    case_id: str
    modality: str
    label: int
    flipped: bool
    shard: str
    row: int


_ROW_TYPES = {part.name: part.type for part in fields(Row)}


@dataclass
class Manifest:
    """The content of a store.

    Attributes:
        made_for: encoder and grid.
        rows: by key.
        shards: by name; for each, the SHA-256 of the file of each array.
        damaged: shards that the manifest on disk lists and that are not as they were written.
    """

    made_for: str
    rows: dict[str, Row]
    shards: dict[str, dict[str, str]]
    damaged: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of a store; an empty one if there is none or an older format, which is encoded again.

        Raises DataError for a newer format, and for names that are not those of shards.
        """
        path = directory / MANIFEST
        if not path.is_file():
            return cls("", {}, {})
        content = read_object(path, "the manifest of a store", remedy=_REMEDY)
        if "format" not in content:
            raise DataError(f"{path}: expected the manifest of a store, got no format; {_REMEDY}.")
        version = content["format"]
        if isinstance(version, int) and version > FORMAT:
            raise DataError(
                f"{path}: expected a store of format {FORMAT}, got format {version} of a newer prod9; use the "
                "version that wrote it, or another data.store_dir."
            )
        if version != FORMAT:
            return cls("", {}, {})
        try:
            rows = [Row(**row) for row in content["items"]]
            # A list of pairs passes as a dictionary here, and its keys may be anything.
            shards = {name: dict(hashes) for name, hashes in content["shards"].items()}
            made_for = str(content["made_for"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{path}: expected the manifest of a store, got another file ({error!r}); {_REMEDY}."
            ) from error
        for row in rows:
            if {name: type(value) for name, value in asdict(row).items()} != _ROW_TYPES or row.row < 0:
                raise DataError(f"{path}: expected rows of a store, got {str(row)[:120]}; {_REMEDY}.")
        names: list[tuple[Any, re.Pattern[str]]] = [
            (name, _SHARD_NAME) for name in (*shards, *(row.shard for row in rows))
        ]
        names += [(name, _ARRAY_NAME) for hashes in shards.values() for name in hashes]
        for name, pattern in names:
            if not isinstance(name, str) or pattern.fullmatch(name) is None:
                raise DataError(f"{path}: expected names of shards, got {str(name)[:60]!r}; {_REMEDY}.")
        return cls(made_for, {row.key: row for row in rows}, shards)

    def merge(self, directory: Path) -> None:
        """Add what other processes wrote for the same encoder and grid; call it with the lock held."""
        there = Manifest.read(directory)
        if there.made_for != self.made_for:
            return
        new = {name: h for name, h in there.shards.items() if self.damaged.get(name) != h}
        self.shards = self.shards | new
        rows = {key: row for key, row in there.rows.items() if row.shard in new and key not in self.rows}
        self.rows |= rows

    def write(self, directory: Path) -> None:
        """Write the manifest atomically."""
        content = {
            "format": FORMAT,
            "made_for": self.made_for,
            "shards": self.shards,
            "items": [asdict(row) for row in self.rows.values()],
        }
        with atomic_write(directory / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def sweep(self, directory: Path) -> None:
        """Delete what killed processes left (temporary files, unlisted shards); call it with the lock held."""
        sweep(directory)
        for path in finals(directory, "*.npy"):
            if is_shard(path.name) and path.name.partition(".")[0] not in self.shards:
                path.unlink(missing_ok=True)

    def intact(self, directory: Path) -> "Manifest":
        """Return the part whose shards are as they were written (takes half a second per 150 MB)."""
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


def is_shard(name: str) -> bool:
    """Return whether ``name`` is that of a file of a shard."""
    shard, _, array = name.removesuffix(".npy").partition(".")
    return bool(_SHARD_NAME.fullmatch(shard) and _ARRAY_NAME.fullmatch(array))


def shard_file(directory: Path, shard: str, array: str) -> Path:
    """Return the file of one array of a shard."""
    return inside(directory, f"{shard}.{array}.npy")
