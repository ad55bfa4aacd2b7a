"""TokenStore: encoded volumes, read from memory-mapped files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prod9.data.stores.manifest import IN_USE, MANIFEST, Manifest, Row, shard_file
from prod9.errors import DataError
from prod9.files import reading
from prod9.system.folders import SharedLock


class TokenStore:
    """The latents, and with FSQ the tokens, of a sequence of volumes; see :mod:`prod9.data.stores.latents`.

    Args:
        directory: of the store.
        rows: the volumes, in the order of the index.
        use: a hold on the store that was taken before ``rows`` were read; None takes one now.
    """

    def __init__(self, directory: Path, rows: Sequence[Row], use: SharedLock | None = None) -> None:
        self._directory = directory
        self._rows = tuple(rows)
        self._arrays: dict[tuple[str, str], np.ndarray] = {}
        # Nobody deletes what this object reads while it holds the lock.
        self._use = use or SharedLock(directory / IN_USE)

    @classmethod
    def open(cls, directory: Path) -> "TokenStore":
        """Open a finished store with all its volumes; DataError when there is none or part of it is missing."""
        manifest = Manifest.read(directory)
        if not manifest.rows:
            raise DataError(f"{directory}: expected a token store, got no {MANIFEST}; encode the data first.")
        if len(manifest.intact(directory).rows) < len(manifest.rows):
            raise DataError(f"{directory}: expected whole shards, some are missing or damaged; encode again.")
        return cls(directory, list(manifest.rows.values()))

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``indices`` int64 [h w d], ``foreground`` bool [h w d], and the entries of :meth:`describe`."""
        tokens = self._value(self._rows[index], "tokens").astype(np.int64)
        return {
            "indices": torch.from_numpy(tokens),
            "foreground": self.foreground(index),
            **self.describe(index),
        }

    def describe(self, index: int) -> dict[str, Any]:
        """Return which volume it is: ``label`` int, ``case_id``, ``modality``, ``flipped``."""
        row = self._rows[index]
        return {name: getattr(row, name) for name in ("label", "case_id", "modality", "flipped")}

    def latent(self, index: int) -> Tensor:
        """Return the latent of one volume: float32 [Z h w d], rounded to float16 when it was stored."""
        return torch.from_numpy(self._value(self._rows[index], "latents").astype(np.float32))

    def foreground(self, index: int) -> Tensor:
        """Return bool [h w d], True where a position's patch of the volume has a voxel above 0."""
        return torch.from_numpy(np.array(self._value(self._rows[index], "foreground")))

    def latent_std(self) -> float:
        """Return the deviation of all latent values of all volumes, in float64; reads all of them."""
        sums = np.zeros(3)
        for row in self._rows:
            values = self._value(row, "latents").astype(np.float64)
            sums += values.size, values.sum(), np.square(values).sum()
        count, total, squares = sums
        return float(np.sqrt(squares / count - (total / count) ** 2))

    @property
    def max_index(self) -> int:
        """Return the largest token index in the store."""
        return max(int(self._array(shard, "tokens").max()) for shard in {row.shard for row in self._rows})

    def _value(self, row: Row, name: str) -> np.ndarray:
        array = self._array(row.shard, name)
        if row.row >= len(array):
            raise DataError(
                f"{shard_file(self._directory, row.shard, name)}: expected more than {row.row} rows, got {len(array)}; "
                "delete the store to encode the data again."
            )
        return array[row.row]

    def _array(self, shard: str, name: str) -> np.ndarray:
        if (shard, name) not in self._arrays:
            path = shard_file(self._directory, shard, name)
            with reading(path, "an array of a store", remedy="delete the store, and it is encoded again"):
                self._arrays[shard, name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._arrays[shard, name]

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of the file, so loader processes open the file and take the lock themselves.
        return {**self.__dict__, "_arrays": {}, "_use": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._use = SharedLock(self._directory / IN_USE)
