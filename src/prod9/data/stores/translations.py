"""VolumeStore: volumes that are slow to make, kept as files that are named by a hash of what they were made from.

There is one file per volume, with 8 bits per voxel: the rounding error, at most 1/510 of the range, is far below the
error of any translation. Files are written completely or not at all, so an interrupted run continues where it stopped.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.files import atomic_write, exclusive
from prod9.system.folders import finals, sweep
from prod9.system.progress import Progress

_LEVELS = 255.0


def content_key(*parts: object) -> str:
    """Return a hash of the text of ``parts``."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


class VolumeStore:
    """Volumes in [0, 1] in ``directory``, by key (see :func:`content_key`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __contains__(self, key: str) -> bool:
        try:
            np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # absent or damaged
            return False
        return True

    def __getitem__(self, key: str) -> Tensor:
        """Return float32 ``[1 H W D]``."""
        stored = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.divide(stored, _LEVELS, dtype=np.float32))

    def __setitem__(self, key: str, volume: Tensor) -> None:
        """Store ``volume [1 H W D]``, clipped to [0, 1]."""
        levels = (volume.detach().float().cpu().clamp(0.0, 1.0) * _LEVELS).round().to(torch.uint8).numpy()
        self.directory.mkdir(parents=True, exist_ok=True)
        # Temporary files are swept under the same lock, since a shared store may have several writers.
        with (
            exclusive(self.directory),
            atomic_write(self._path(key)) as temporary,
            temporary.open("wb") as file,
        ):
            np.save(file, levels, allow_pickle=False)

    def fill(
        self,
        keys: Iterable[str],
        make: Callable[[str], Tensor],
        *,
        progress: Progress | None = None,
        keep_others: bool = False,
    ) -> None:
        """Make and store the volumes of ``keys`` that are missing, and delete all others.

        Args:
            keys: of the volumes.
            make: returns the volume of a key.
            progress: called with (done, total) after every key.
            keep_others: delete nothing.
        """
        keys = list(keys)
        self.directory.mkdir(parents=True, exist_ok=True)
        with exclusive(self.directory):
            sweep(self.directory)
        for done, key in enumerate(keys, start=1):
            if key not in self:
                self[key] = make(key)
            if progress is not None:
                progress(done, len(keys))
        if keep_others:
            return
        wanted = {self._path(key).name for key in keys}
        for path in finals(self.directory, "*.npy"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.npy"
