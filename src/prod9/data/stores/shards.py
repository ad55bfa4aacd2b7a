"""What stores are made of: volumes to encode, their encodings, and the shards that these are written to."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.data.stores.manifest import FORMAT, LOCK, Manifest, Row, shard_file
from prod9.files import atomic_write, exclusive, sha256

_SHARD_BYTES = 64 * 2**20
# A shard is also written after this time, so that an interruption loses no more encoding than that.
_SHARD_SECONDS = 60.0


@dataclass(frozen=True)
class Encoded:
    """Encoded volumes ``[B 1 H W D]``, on any device.

    Attributes:
        latents: float ``[B Z h w d]``, z before quantisation (FSQ) or its mean (KL); the store rounds to float16.
        tokens: int64 ``[B h w d]``; None from an encoder that does not quantise.
    """

    latents: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class StoreItem:
    """One volume to encode.

    Attributes:
        case_id: the case that it belongs to.
        modality: name of its modality, or of its class.
        label: class that generation can ask for.
        flipped: mirror it left to right, along the first array axis (RAS), before it is encoded.
        content: hash of its source files and their preprocessing.
        load: returns the preprocessed volume, float32 [1 H W D], not mirrored.
    """

    case_id: str
    modality: str
    label: int
    flipped: bool
    content: str
    load: Callable[[], Tensor]

    def key(self, encoder: str, grid: Sequence[int]) -> str:
        """Return the key of the volume in a store; ``encoder`` is a hash of the encoder's weights."""
        parts = [str(FORMAT), self.content, self.modality, str(self.flipped), encoder, str(tuple(grid))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def token_dtype(largest: int) -> type[np.integer]:
    """Return the smallest of the types that tokens are stored in which holds the number ``largest``."""
    return next(dtype for dtype in (np.uint16, np.int32, np.int64) if largest <= np.iinfo(dtype).max)


class ShardWriter:
    """Collects encoded volumes; each full shard is written to disk and then to the manifest."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._clear()

    def add(self, batch: Sequence[tuple[StoreItem, str]], encoded: Encoded, foreground: Tensor) -> None:
        """Collect the (item, key) pairs of ``batch``, their encoding and their ``foreground`` [B h w d]."""
        self._batch += batch
        self._collect("latents", encoded.latents.cpu().to(torch.float16))
        self._collect("foreground", foreground)
        if encoded.tokens is not None:
            self._collect("tokens", encoded.tokens.cpu())
        full = sum(part.nbytes for parts in self._parts.values() for part in parts) >= _SHARD_BYTES
        if full or time.monotonic() - self._opened >= _SHARD_SECONDS:
            self.flush()

    def _collect(self, name: str, values: Tensor) -> None:
        self._parts.setdefault(name, []).append(values.numpy())

    def flush(self) -> None:
        """Write what is collected as a shard."""
        if not self._batch:
            return
        arrays = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        if "tokens" in arrays:
            arrays["tokens"] = arrays["tokens"].astype(token_dtype(int(arrays["tokens"].max())))
        name = hashlib.sha256("".join(key for _, key in self._batch).encode()).hexdigest()[:16]
        paths = {array: shard_file(self._directory, name, array) for array in arrays}
        with exclusive(self._directory / LOCK):
            self._manifest.merge(self._directory)
            # Another process may have written the same shard in the meantime.
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
