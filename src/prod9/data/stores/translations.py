"""VolumeStore: volumes that are slow to make, made once and kept as files named by what they were made from.

One file a volume, 8 bits a voxel: the error of that, at most 1/510 of the range, is far below that of any
translation. Files are written whole or not at all, so an interrupted run goes on where it stopped.
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
    """Return a hash of ``parts``, by their text."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


class VolumeStore:
    """Volumes in [0, 1] under ``directory``, by key (see ``content_key``)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __contains__(self, key: str) -> bool:
        try:
            np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # absent, or damaged: it is made anew
            return False
        return True

    def __getitem__(self, key: str) -> Tensor:
        """Return float32 ``[1 H W D]``."""
        stored = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.divide(stored, _LEVELS, dtype=np.float32))

    def __setitem__(self, key: str, volume: Tensor) -> None:
        """Keep ``volume`` ``[1 H W D]``, clipped to [0, 1]."""
        levels = (volume.detach().float().cpu().clamp(0.0, 1.0) * _LEVELS).round().to(torch.uint8).numpy()
        self.directory.mkdir(parents=True, exist_ok=True)
        # Who sweeps holds the lock, too: a shared store may have several writers.
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
        """Make and keep what is missing of ``keys``, and delete the files of any other key, unless ``keep_others``."""
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
