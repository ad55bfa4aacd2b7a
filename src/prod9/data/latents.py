"""TokenStore: every volume is encoded once; stage 2 reads memory-mapped tokens and never an image.

A store is a folder of immutable shards (``<name>.tokens.npy`` [n h w d] and ``<name>.foreground.npy``) and
one ``manifest.json`` that says which item lies in which row. An item is found by a key that hashes the
content of its source files, the preprocessing, the grid and the encoder, so what was made from other files,
options or weights is never found. Shards and manifest are written to a temporary file and renamed: a build
that is killed loses at most the shard it was filling, and the next one goes on from there.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.errors import DataError
from prod9.files import atomic_write, sha256

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_FORMAT = 1
_MANIFEST = "manifest.json"
_SHARD_BYTES = 64 * 2**20
# A shard is also closed after so long, so that an interruption costs at most this much encoding.
_SHARD_SECONDS = 60.0


@dataclass(frozen=True)
class StoreItem:
    """One volume to encode.

    content: hash of the files behind it and of their preprocessing. load: gives the preprocessed volume
    float32 [1 H W D]; the store mirrors it when ``flipped`` (left-right: the first array axis in RAS).
    """

    case_id: str
    modality: str
    label: int
    flipped: bool
    content: str
    load: Callable[[], Tensor]

    def key(self, encoder: str, grid: Sequence[int]) -> str:
        """Return the hash under which the tokens are kept; ``encoder`` is a hash of the encoder's weights."""
        parts = [str(_FORMAT), self.content, self.modality, str(self.flipped), encoder, str(tuple(grid))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class _Row:
    """Where an item lies and what it is."""

    key: str
    case_id: str
    modality: str
    label: int
    flipped: bool
    shard: str
    row: int


@dataclass
class _Manifest:
    """made_for: encoder and grid. rows: by item key. shards: by name, SHA-256 of its two files."""

    made_for: str
    rows: dict[str, _Row]
    shards: dict[str, list[str]]

    @classmethod
    def read(cls, directory: Path) -> "_Manifest":
        """Read it; empty when there is none or it is of another format: everything is encoded anew then."""
        try:
            content = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                return cls("", {}, {})
            rows = [_Row(**row) for row in content["items"]]
            return cls(content["made_for"], {row.key: row for row in rows}, dict(content["shards"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls("", {}, {})

    def write(self, directory: Path) -> None:
        """Write it, atomically."""
        content = {
            "format": _FORMAT,
            "made_for": self.made_for,
            "shards": self.shards,
            "items": [asdict(row) for row in self.rows.values()],
        }
        with atomic_write(directory / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def intact(self, directory: Path) -> "_Manifest":
        """Return the part whose shards have the content that was written (half a second for 150 MB)."""
        whole = {
            name: hashes
            for name, hashes in self.shards.items()
            if all(
                p.is_file() and sha256(p) == h for p, h in zip(_files(directory, name), hashes, strict=True)
            )
        }
        rows = {key: row for key, row in self.rows.items() if row.shard in whole}
        return _Manifest(self.made_for, rows, whole)

    def select(self, items: Sequence[StoreItem], keys: Sequence[str]) -> list[_Row]:
        """Return the rows of ``items``, with the items' names and labels as they are now."""
        return [
            replace(self.rows[key], case_id=item.case_id, modality=item.modality, label=item.label)
            for item, key in zip(items, keys, strict=True)
        ]


class TokenStore:
    """The tokens of a sequence of items, memory-mapped, in the order in which they were asked for."""

    def __init__(self, directory: Path, rows: Sequence[_Row]) -> None:
        self._directory = directory
        self._rows = tuple(rows)
        self._shards: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def open(cls, directory: Path) -> "TokenStore":
        """Open a finished store with all its items; DataError when there is none or part of it is missing."""
        manifest = _Manifest.read(directory)
        if not manifest.rows:
            raise DataError(
                f"{directory}: expected a token store, got no {_MANIFEST}; encode the data first."
            )
        if len(manifest.intact(directory).rows) < len(manifest.rows):
            raise DataError(f"{directory}: expected whole shards, some are missing or damaged; encode again.")
        return cls(directory, list(manifest.rows.values()))

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one item.

        ``indices`` int64 [h w d], ``foreground`` bool [h w d] (some voxel of the token's patch is above 0),
        ``label`` int, ``case_id``, ``modality``, ``flipped``.
        """
        row = self._rows[index]
        tokens, foreground = self._arrays(row.shard)
        return {
            "indices": torch.from_numpy(tokens[row.row].astype(np.int64)),
            "foreground": torch.from_numpy(np.array(foreground[row.row])),
            "label": row.label,
            "case_id": row.case_id,
            "modality": row.modality,
            "flipped": row.flipped,
        }

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """Return (h, w, d)."""
        h, w, d = self._arrays(self._rows[0].shard)[0].shape[1:]
        return h, w, d

    @property
    def max_index(self) -> int:
        """Return the largest token index in the store."""
        return max(int(self._arrays(shard)[0].max()) for shard in {row.shard for row in self._rows})

    def _arrays(self, shard: str) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._shards:
            tokens, foreground = _files(self._directory, shard)
            self._shards[shard] = (
                np.load(tokens, mmap_mode="r", allow_pickle=False),
                np.load(foreground, mmap_mode="r", allow_pickle=False),
            )
        return self._shards[shard]

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the file: loader processes open their own instead.
        return {**self.__dict__, "_shards": {}}


def find_in_store(
    directory: Path, items: Sequence[StoreItem], *, key: str, grid: Sequence[int]
) -> TokenStore | None:
    """Return a store of exactly ``items``, in their order, when all are there and undamaged, else None."""
    manifest = _Manifest.read(directory).intact(directory)
    keys = [item.key(key, grid) for item in items]
    if not all(k in manifest.rows for k in keys):
        return None
    return TokenStore(directory, manifest.select(items, keys))


def build_token_store(
    directory: Path,
    items: Sequence[StoreItem],
    encode: Callable[[Tensor], Tensor],
    *,
    key: str,
    grid: Sequence[int],
    batch_size: int = 1,
    progress: Progress | None = None,
) -> TokenStore:
    """Encode what the store lacks and return a store of exactly ``items``, in their order.

    encode: float32 [B 1 H W D] on CPU → int64 [B h w d] on any device. key: hash of the encoder's weights.
    Interrupted (Ctrl-C and errors included), it keeps what is done. A folder serves one encoder and grid:
    what it holds of others is deleted at the end.
    """
    directory.mkdir(parents=True, exist_ok=True)
    old = _Manifest.read(directory)
    made_for = f"{key} {tuple(grid)}"
    manifest = old.intact(directory) if old.made_for == made_for else _Manifest(made_for, {}, {})
    keys = [item.key(key, grid) for item in items]
    todo = [(item, k) for item, k in zip(items, keys, strict=True) if k not in manifest.rows]
    done = len(items) - len(todo)
    writer = _ShardWriter(directory, manifest)
    try:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            volumes = torch.stack([_volume(item, grid) for item, _ in batch])
            tokens = encode(volumes).cpu()
            writer.add(batch, tokens, foreground_of(volumes, tokens.shape[1:]))
            if progress is not None:
                progress(done + start + len(batch), len(items))
    finally:
        writer.flush()
    rows = manifest.select(items, keys)
    manifest.rows |= {row.key: row for row in rows}
    manifest.write(directory)
    for shard in old.shards.keys() - manifest.shards.keys():
        for path in _files(directory, shard):
            path.unlink(missing_ok=True)
    return TokenStore(directory, rows)


def foreground_of(volumes: Tensor, token_shape: Sequence[int]) -> Tensor:
    """Return bool [B h w d]: whether the token's patch of ``volumes`` [B 1 H W D] has a voxel above 0."""
    factors = [side // n for side, n in zip(volumes.shape[2:], token_shape, strict=True)]
    if any(n * f != side for n, f, side in zip(token_shape, factors, volumes.shape[2:], strict=True)):
        raise ValueError(
            f"the token grid must divide the volume's {tuple(volumes.shape[2:])}, got {tuple(token_shape)}."
        )
    return F.max_pool3d(volumes, kernel_size=factors)[:, 0] > 0


class _ShardWriter:
    """Collects encoded items; each full shard goes to disk and then into the manifest."""

    def __init__(self, directory: Path, manifest: _Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._clear()

    def add(self, batch: Sequence[tuple[StoreItem, str]], tokens: Tensor, foreground: Tensor) -> None:
        """Take the ``tokens`` and ``foreground``, both [B h w d], of the (item, key) pairs in ``batch``."""
        self._batch += batch
        self._tokens.append(tokens.numpy().astype(np.int32))
        self._foreground.append(foreground.numpy())
        full = sum(t.nbytes for t in self._tokens) >= _SHARD_BYTES
        if full or time.monotonic() - self._opened >= _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is collected."""
        if not self._batch:
            return
        tokens = np.concatenate(self._tokens)
        arrays = (
            tokens.astype(np.uint16) if tokens.max() < 2**16 else tokens,
            np.concatenate(self._foreground),
        )
        name = hashlib.sha256("".join(key for _, key in self._batch).encode()).hexdigest()[:16]
        paths = _files(self._directory, name)
        for path, array in zip(paths, arrays, strict=True):
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        self._manifest.shards[name] = [sha256(path) for path in paths]
        for row, (item, key) in enumerate(self._batch):
            self._manifest.rows[key] = _Row(
                key, item.case_id, item.modality, item.label, item.flipped, shard=name, row=row
            )
        self._manifest.write(self._directory)
        self._clear()

    def _clear(self) -> None:
        self._batch: list[tuple[StoreItem, str]] = []
        self._tokens: list[np.ndarray] = []
        self._foreground: list[np.ndarray] = []
        self._opened = time.monotonic()


def _files(directory: Path, shard: str) -> tuple[Path, Path]:
    return directory / f"{shard}.tokens.npy", directory / f"{shard}.foreground.npy"


def _volume(item: StoreItem, grid: Sequence[int]) -> Tensor:
    volume = item.load()
    if tuple(volume.shape) != (1, *grid):
        raise ValueError(f"{item.case_id}: expected a volume of {(1, *grid)}, got {tuple(volume.shape)}.")
    return volume.flip(1) if item.flipped else volume
