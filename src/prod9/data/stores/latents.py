"""Builds stores of encoded volumes: each volume is encoded once, and stages 2 and 3 read the result.

A store is a folder of immutable shards (``<name>.latents.npy`` float16 [n Z h w d], ``<name>.foreground.npy``
and, with FSQ, ``<name>.tokens.npy`` [n h w d]) and a ``manifest.json`` that lists the row of each volume. The key of a
volume is a hash of its source files, the preprocessing, the grid and the encoder, so a volume made from other files,
options or weights is never found. Shards and manifest are written to temporary files and renamed: a process that is
killed loses the shard that it was filling, and the next one continues from there.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.data.stores.manifest import IN_USE, LOCK, MANIFEST, Manifest, Row, shard_file
from prod9.data.stores.prefetch import prefetched
from prod9.data.stores.shards import Encoded as Encoded
from prod9.data.stores.shards import ShardWriter, StoreItem
from prod9.data.stores.shards import token_dtype as token_dtype
from prod9.data.stores.token_store import TokenStore
from prod9.errors import DataError
from prod9.files import exclusive
from prod9.system.folders import SharedLock, is_temporary
from prod9.system.progress import Progress

_LOG = logging.getLogger("prod9")


Encode = Callable[[Tensor], Encoded]
"""Float32 volumes [B 1 H W D] on the CPU → latents and tokens."""


@runtime_checkable
class ParallelEncode(Protocol):
    """An encoder that works on several batches at a time.

    Attributes:
        num_ahead: batches to submit before the first result is awaited.
    """

    num_ahead: int

    def submit(self, volumes: Tensor) -> Any:
        """Start to encode float32 volumes [B 1 H W D] on the CPU, and return a future."""
        ...

    def result(self, future: Any) -> Encoded:
        """Wait for a future that ``submit`` returned."""
        ...


def find_in_store(
    directory: Path, items: Sequence[StoreItem], *, key: str, grid: Sequence[int]
) -> TokenStore | None:
    """Return a store of exactly ``items``, in their order; None unless all of them are there and undamaged.

    Args:
        directory: where stores are.
        items: what it has to hold.
        key: of the autoencoder that encoded it.
        grid: ``(h, w, d)`` of the latents.
    """
    _sweep(directory)
    use = SharedLock(directory / IN_USE)
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

    An error or Ctrl-C keeps what is encoded so far. Several processes may fill one folder: each adds its shards to the
    manifest under a lock.

    Args:
        directory: of the store, which holds volumes of one encoder and grid.
        items: the volumes.
        encode: float32 [B 1 H W D] on the CPU → :class:`Encoded`.
        key: hash of the encoder's weights.
        grid: voxels of a volume.
        batch_size: volumes encoded at a time.
        num_workers: cases that threads read while others are encoded; 0 reads none ahead.
        progress: called with (done, total) after every batch.
        overwrite: delete the volumes of another encoder or grid, if nobody reads them.

    Raises:
        DataError: if the store belongs to another encoder or grid, or its manifest has a newer format.
    """
    directory.mkdir(parents=True, exist_ok=True)
    made_for = f"{key} {tuple(grid)}"
    use = _enter(directory, made_for, overwrite=overwrite)
    manifest = Manifest.read(directory).intact(directory)
    manifest.made_for = made_for
    keys = [item.key(key, grid) for item in items]
    todo = [(item, k) for item, k in zip(items, keys, strict=True) if k not in manifest.rows]
    done = len(items) - len(todo)
    writer = ShardWriter(directory, manifest)
    try:
        groups = group_cases(todo, batch_size)
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
        except DataError as error:  # the first error matters more
            _LOG.warning("The last encoded volumes are lost: %s", error)
        raise
    writer.flush()
    rows = _select(manifest, items, keys)
    with exclusive(directory / LOCK):
        manifest.merge(directory)
        manifest.rows |= {row.key: row for row in rows}
        manifest.write(directory)
        manifest.sweep(directory)
    return TokenStore(directory, rows, use)


def _enter(directory: Path, made_for: str, *, overwrite: bool) -> SharedLock:
    """Return a hold on the store for ``made_for``; volumes of another encoder are deleted first, or refused."""
    with exclusive(directory / LOCK):
        use = SharedLock(directory / IN_USE)
        there = Manifest.read(directory)
        if there.made_for in ("", made_for) or not there.rows:
            there.sweep(directory)
            return use
        if not overwrite:
            raise DataError(
                f"{directory}: expected a store of this run's autoencoder and data.grid, got {len(there.rows)} volumes "
                "of others, which another run may be reading; name another data.store_dir, or replace the store with "
                "`prod9 encode --overwrite`."
            )
        if not use.make_exclusive():
            raise DataError(
                f"{directory}: expected a store that nobody reads, to replace it, got one in use by another process; "
                "wait for that process, or name another data.store_dir."
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
    """Empty a store that belongs to another encoder or grid than these; DataError while a process reads it."""
    if directory.is_dir():
        _enter(directory, f"{key} {tuple(grid)}", overwrite=True)


def _sweep(directory: Path) -> None:
    """Delete what killed processes left, if the store can be written to."""
    # The lock is taken only if there is something to delete: a store on a read-only disk has no lock file.
    if any(is_temporary(path) for path in directory.glob(".*")):
        with suppress(DataError), exclusive(directory / LOCK):
            Manifest.read(directory).sweep(directory)


Batch = Sequence[tuple[StoreItem, str]]


def _encoded(
    batches: Iterator[tuple[Batch, Tensor]], encode: Encode | ParallelEncode
) -> Iterator[tuple[Batch, Tensor, Encoded]]:
    """Yield each batch with its encoding, in order; a :class:`ParallelEncode` gets batches ahead of that."""
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
    """What a store holds.

    Attributes:
        items: number of encoded volumes.
        num_bytes: size of all shards.
        damaged: names of the shards that are not as they were written.
    """

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


def group_cases(todo: Sequence[tuple[StoreItem, str]], batch_size: int) -> list[list[tuple[StoreItem, str]]]:
    """Divide ``todo`` into what one thread loads: whole cases, each of which is read once, and at least a batch."""
    groups: list[list[tuple[StoreItem, str]]] = []
    for pair in todo:
        same = groups and groups[-1][-1][0].case_id == pair[0].case_id
        if same or (groups and len(groups[-1]) < batch_size):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    return groups


def foreground_of(volumes: Tensor, token_shape: Sequence[int]) -> Tensor:
    """Return bool [B h w d], True where a position's patch of ``volumes`` [B 1 H W D] has a voxel above 0."""
    factors = [side // n for side, n in zip(volumes.shape[2:], token_shape, strict=True)]
    if any(n * f != side for n, f, side in zip(token_shape, factors, volumes.shape[2:], strict=True)):
        raise ValueError(
            f"token_shape: expected divisors of the volume's {tuple(volumes.shape[2:])}, got {tuple(token_shape)}; "
            "encode to such a grid."
        )
    return F.max_pool3d(volumes, kernel_size=factors)[:, 0] > 0


def _volume(item: StoreItem, grid: Sequence[int]) -> Tensor:
    volume = item.load()
    if tuple(volume.shape) != (1, *grid):
        raise ValueError(
            f"{item.case_id}: expected a volume of {(1, *grid)}, got {tuple(volume.shape)}; bring it to the grid."
        )
    return volume.flip(1) if item.flipped else volume
