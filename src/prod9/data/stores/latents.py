"""TokenStore: every volume is encoded once; stage 2 reads memory-mapped tokens and never an image.

A store is a folder of immutable shards (``<name>.latents.npy`` float16 [n Z h w d], ``<name>.foreground.npy``
and, for a quantising encoder, ``<name>.tokens.npy`` [n h w d]) and one ``manifest.json`` that says which item
lies in which row. An item is found by a key that hashes the
content of its source files, the preprocessing, the grid and the encoder, so what was made from other files,
options or weights is never found. Shards and manifest are written to a temporary file and renamed: a build
that is killed loses at most the shard it was filling, and the next one goes on from there.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.data.stores.manifest import FORMAT, MANIFEST, Manifest, Row, shard_file
from prod9.data.stores.prefetch import prefetched
from prod9.errors import DataError
from prod9.files import atomic_write, exclusive, reading, sha256
from prod9.system.folders import SharedLock, is_temporary
from prod9.system.progress import Progress

_LOG = logging.getLogger("prod9")
_LOCK = "manifest.lock"
_IN_USE = "in-use.lock"
_SHARD_BYTES = 64 * 2**20
# A shard is also closed after so long, so that an interruption costs at most this much encoding.
_SHARD_SECONDS = 60.0


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of volumes ``[B 1 H W D]``, on any device.

    latents: float ``[B Z h w d]``, z before quantisation (FSQ) or its mean (KL); the store rounds to float16.
    tokens: int64 ``[B h w d]``, None for an encoder that does not quantise.
    """

    latents: Tensor
    tokens: Tensor | None = None


Encode = Callable[[Tensor], Encoded]
"""Float32 volumes [B 1 H W D] on CPU → what the store keeps of them."""


@runtime_checkable
class ParallelEncode(Protocol):
    """An encoder that works on several batches at a time; num_ahead: how many it is worth handing over."""

    num_ahead: int

    def submit(self, volumes: Tensor) -> Any:
        """Begin with float32 volumes [B 1 H W D] on CPU."""
        ...

    def result(self, future: Any) -> Encoded:
        """Wait for what ``submit`` returned."""
        ...


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
        parts = [str(FORMAT), self.content, self.modality, str(self.flipped), encoder, str(tuple(grid))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class TokenStore:
    """The tokens of a sequence of items, memory-mapped, in the order in which they were asked for."""

    def __init__(self, directory: Path, rows: Sequence[Row], use: SharedLock | None = None) -> None:
        self._directory = directory
        self._rows = tuple(rows)
        self._arrays: dict[tuple[str, str], np.ndarray] = {}
        # Held as long as this lives: what it reads is not deleted meanwhile.
        self._use = use or SharedLock(directory / _IN_USE)

    @classmethod
    def open(cls, directory: Path) -> "TokenStore":
        """Open a finished store with all its items; DataError when there is none or part of it is missing."""
        manifest = Manifest.read(directory)
        if not manifest.rows:
            raise DataError(f"{directory}: expected a token store, got no {MANIFEST}; encode the data first.")
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
        return {
            "indices": torch.from_numpy(self._value(row, "tokens").astype(np.int64)),
            "foreground": self.foreground(index),
            **self.describe(index),
        }

    def describe(self, index: int) -> dict[str, Any]:
        """Return what one item is: ``label`` int, ``case_id``, ``modality``, ``flipped``."""
        row = self._rows[index]
        names = ("label", "case_id", "modality", "flipped")
        return {name: getattr(row, name) for name in names}

    def latent(self, index: int) -> Tensor:
        """Return the latent of one item: float32 [Z h w d], rounded to float16 when it was stored."""
        row = self._rows[index]
        return torch.from_numpy(self._value(row, "latents").astype(np.float32))

    def foreground(self, index: int) -> Tensor:
        """Return where the patches of one item hold any of the head: bool [h w d]."""
        row = self._rows[index]
        return torch.from_numpy(np.array(self._value(row, "foreground")))

    def latent_std(self) -> float:
        """Return the deviation of all latent values of all items, in float64; reads every one of them."""
        sums = np.zeros(3)
        for row in self._rows:
            values = self._value(row, "latents").astype(np.float64)
            sums += values.size, values.sum(), np.square(values).sum()
        count, total, squares = sums
        return float(np.sqrt(squares / count - (total / count) ** 2))

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """Return (h, w, d)."""
        h, w, d = self._array(self._rows[0].shard, "foreground").shape[1:]
        return h, w, d

    @property
    def max_index(self) -> int:
        """Return the largest token index in the store."""
        return max(int(self._array(shard, "tokens").max()) for shard in {row.shard for row in self._rows})

    def _value(self, row: Row, name: str) -> np.ndarray:
        array = self._array(row.shard, name)
        if row.row >= len(array):
            raise DataError(
                f"{shard_file(self._directory, row.shard, name)}: expected more than {row.row} rows, got {len(array)}; "
                "delete the store, and it is encoded again."
            )
        return array[row.row]

    def _array(self, shard: str, name: str) -> np.ndarray:
        if (shard, name) not in self._arrays:
            path = shard_file(self._directory, shard, name)
            with reading(path, "an array of a store", remedy="delete the store, and it is encoded again"):
                self._arrays[shard, name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._arrays[shard, name]

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the file: loader processes open their own instead, and hold their own lock.
        return {**self.__dict__, "_arrays": {}, "_use": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._use = SharedLock(self._directory / _IN_USE)


def find_in_store(
    directory: Path, items: Sequence[StoreItem], *, key: str, grid: Sequence[int]
) -> TokenStore | None:
    """Return a store of exactly ``items``, in their order, when all are there and undamaged, else None."""
    _sweep(directory)
    use = SharedLock(directory / _IN_USE)
    manifest = Manifest.read(directory).intact(directory)
    keys = [item.key(key, grid) for item in items]
    if not all(k in manifest.rows for k in keys):
        return None
    return TokenStore(directory, _select(manifest, items, keys), use)


def build_token_store(
    directory: Path,
    items: Sequence[StoreItem],
    encode: Encode | ParallelEncode,
    *,
    key: str,
    grid: Sequence[int],
    batch_size: int = 1,
    num_workers: int = 0,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> TokenStore:
    """Encode what the store lacks and return a store of exactly ``items``, in their order.

    Interrupted (Ctrl-C and errors included), it keeps what is done. Several processes may fill one folder: each adds
    its shards to the manifest under a lock.

    Args:
        directory: of the store. It serves one encoder and grid.
        items: what to encode.
        encode: float32 [B 1 H W D] on CPU → :class:`Encoded`.
        key: hash of the encoder's weights.
        grid: voxels of a volume.
        batch_size: volumes encoded at a time.
        num_workers: cases that threads read while others are encoded; 0 reads none ahead.
        progress: told of every batch.
        overwrite: delete what another encoder or grid has left there, if nobody reads it.

    Raises DataError when the store belongs to another encoder or grid, or its manifest is of a newer format.
    """
    directory.mkdir(parents=True, exist_ok=True)
    made_for = f"{key} {tuple(grid)}"
    use = _enter(directory, made_for, overwrite=overwrite)
    manifest = Manifest.read(directory).intact(directory)
    manifest.made_for = made_for
    keys = [item.key(key, grid) for item in items]
    todo = [(item, k) for item, k in zip(items, keys, strict=True) if k not in manifest.rows]
    done = len(items) - len(todo)
    writer = _ShardWriter(directory, manifest)
    try:
        groups = _groups(todo, batch_size)
        loads = [lambda group=group: [_volume(item, grid) for item, _ in group] for group in groups]
        batches = (
            (group[start : start + batch_size], torch.stack(loaded[start : start + batch_size]))
            for group, loaded in zip(groups, prefetched(loads, num_workers), strict=True)
            for start in range(0, len(group), batch_size)
        )
        for batch, volumes, encoded in _encoded(batches, encode):
            writer.add(batch, encoded, foreground_of(volumes, encoded.latents.shape[2:]))
            done += len(batch)
            if progress is not None:
                progress(done, len(items))
    except BaseException:
        try:
            writer.flush()
        except DataError as error:  # what ended the encoding matters more
            _LOG.warning("What was encoded last is lost: %s", error)
        raise
    writer.flush()
    rows = _select(manifest, items, keys)
    with exclusive(directory / _LOCK):
        manifest.merge(directory)
        manifest.rows |= {row.key: row for row in rows}
        manifest.write(directory)
        manifest.sweep(directory)
    return TokenStore(directory, rows, use)


def _enter(directory: Path, made_for: str, *, overwrite: bool) -> SharedLock:
    """Return a hold on the store for ``made_for``; what another encoder left is deleted first, or refused."""
    with exclusive(directory / _LOCK):
        use = SharedLock(directory / _IN_USE)
        there = Manifest.read(directory)
        if there.made_for in ("", made_for) or not there.rows:
            there.sweep(directory)
            return use
        if not overwrite:
            raise DataError(
                f"{directory}: expected a store of the autoencoder and data.grid of this run, got one of others "
                f"({len(there.rows)} volumes), which another run may be reading; name another data.store_dir, or "
                "replace it with `prod9 encode --overwrite`."
            )
        if not use.make_exclusive():
            raise DataError(
                f"{directory}: expected a store that nobody reads, to replace it, got one in use by another process; "
                "wait for that, or name another data.store_dir."
            )
        empty = Manifest(made_for, {}, {})
        empty.write(directory)
        empty.sweep(directory)
        use.make_shared()
        return use


def _select(manifest: Manifest, items: Sequence[StoreItem], keys: Sequence[str]) -> list[Row]:
    """Return the rows of ``items``, with the items' names and labels as they are now."""
    return [
        replace(manifest.rows[key], case_id=item.case_id, modality=item.modality, label=item.label)
        for item, key in zip(items, keys, strict=True)
    ]


def replace_store(directory: Path, *, key: str, grid: Sequence[int]) -> None:
    """Empty a store that belongs to another encoder or grid than these; DataError while somebody reads it."""
    if directory.is_dir():
        _enter(directory, f"{key} {tuple(grid)}", overwrite=True)


def _sweep(directory: Path) -> None:
    """Delete what killed processes left, where the store can be written."""
    # Not under the lock unless there is something: a store on a read-only disk has no lock to take.
    if any(is_temporary(path) for path in directory.glob(".*")):
        with suppress(DataError), exclusive(directory / _LOCK):
            Manifest.read(directory).sweep(directory)


Batch = Sequence[tuple[StoreItem, str]]


def _encoded(
    batches: Iterator[tuple[Batch, Tensor]], encode: Encode | ParallelEncode
) -> Iterator[tuple[Batch, Tensor, Encoded]]:
    """Yield each batch with what ``encode`` makes of it, in order; some are ahead where it works on several."""
    if not isinstance(encode, ParallelEncode):
        for batch, volumes in batches:
            yield batch, volumes, encode(volumes)
        return
    waiting: deque[tuple[Batch, Tensor, Any]] = deque()
    for batch, volumes in batches:
        waiting.append((batch, volumes, encode.submit(volumes)))
        if len(waiting) > encode.num_ahead:
            first, its_volumes, future = waiting.popleft()
            yield first, its_volumes, encode.result(future)
    for batch, volumes, future in waiting:
        yield batch, volumes, encode.result(future)


@dataclass(frozen=True)
class StoreReport:
    """What lies in a store. items: encoded volumes. num_bytes: of all shards. damaged: names of shards."""

    items: int
    num_bytes: int
    damaged: tuple[str, ...]


def verify_store(directory: Path) -> StoreReport:
    """Hash every shard of a store again; DataError when there is no store."""
    manifest = Manifest.read(directory)
    if not manifest.rows:
        raise DataError(f"{directory}: expected a token store, got no {MANIFEST}; encode the data first.")
    files = [
        shard_file(directory, shard, array) for shard, arrays in manifest.shards.items() for array in arrays
    ]
    damaged = manifest.shards.keys() - manifest.intact(directory).shards.keys()
    return StoreReport(
        items=len(manifest.rows),
        num_bytes=sum(path.stat().st_size for path in files if path.is_file()),
        damaged=tuple(sorted(damaged)),
    )


def _groups(todo: Sequence[tuple[StoreItem, str]], batch_size: int) -> list[list[tuple[StoreItem, str]]]:
    """Divide ``todo`` into what one thread loads: whole cases, so that each is read once, at least a batch."""
    groups: list[list[tuple[StoreItem, str]]] = []
    for pair in todo:
        same = groups and groups[-1][-1][0].case_id == pair[0].case_id
        if same or (groups and len(groups[-1]) < batch_size):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


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

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._clear()

    def add(self, batch: Sequence[tuple[StoreItem, str]], encoded: Encoded, foreground: Tensor) -> None:
        """Take what was made of the (item, key) pairs in ``batch``, and their ``foreground`` [B h w d]."""
        self._batch += batch
        self._collect("latents", encoded.latents.cpu().to(torch.float16))
        self._collect("foreground", foreground)
        if encoded.tokens is not None:
            self._collect("tokens", encoded.tokens.cpu().to(torch.int32))
        full = sum(part.nbytes for parts in self._parts.values() for part in parts) >= _SHARD_BYTES
        if full or time.monotonic() - self._opened >= _SHARD_SECONDS:
            self.flush()

    def _collect(self, name: str, values: Tensor) -> None:
        self._parts.setdefault(name, []).append(values.numpy())

    def flush(self) -> None:
        """Write what is collected."""
        if not self._batch:
            return
        arrays = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        if "tokens" in arrays and arrays["tokens"].max() < 2**16:
            arrays["tokens"] = arrays["tokens"].astype(np.uint16)
        name = hashlib.sha256("".join(key for _, key in self._batch).encode()).hexdigest()[:16]
        paths = {array: shard_file(self._directory, name, array) for array in arrays}
        with exclusive(self._directory / _LOCK):
            self._manifest.merge(self._directory)
            # Another process may have written the very same shard meanwhile.
            if name not in self._manifest.shards:
                for array, path in paths.items():
                    with atomic_write(path) as temporary, temporary.open("wb") as file:
                        np.save(file, arrays[array], allow_pickle=False)
                self._manifest.shards[name] = {array: sha256(path) for array, path in paths.items()}
            for row, (item, key) in enumerate(self._batch):
                self._manifest.rows[key] = Row(
                    key, item.case_id, item.modality, item.label, item.flipped, shard=name, row=row
                )
            self._manifest.write(self._directory)
        self._clear()

    def _clear(self) -> None:
        self._batch: list[tuple[StoreItem, str]] = []
        self._parts: dict[str, list[np.ndarray]] = {}
        self._opened = time.monotonic()


def _volume(item: StoreItem, grid: Sequence[int]) -> Tensor:
    volume = item.load()
    if tuple(volume.shape) != (1, *grid):
        raise ValueError(f"{item.case_id}: expected a volume of {(1, *grid)}, got {tuple(volume.shape)}.")
    return volume.flip(1) if item.flipped else volume
