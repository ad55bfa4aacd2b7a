"""Caches of preprocessed cases, in memory or on disk, and the content hashes that key them.

The name of a disk entry is a hash of the case's files and of the preprocessing, so an old entry is never used for an
edited file or another option. Entries are written completely or not at all. They are memory-mapped, so all processes
of a machine share one copy.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from prod9.data.cases import Case
from prod9.data.preprocessing import CaseVolumes
from prod9.data.seg_loss import Kept
from prod9.errors import DataError
from prod9.files import atomic_write, reading, sha256
from prod9.json_files import read_object
from prod9.modalities import SEG
from prod9.system.progress import Progress

CacheMode = Literal["none", "memory", "disk"]
_PIECE = 4096
_PIECES = 64
# A file can change twice within one tick of the clock with the same time stamp, so hashes of newer files are not kept.
_SETTLED_SECONDS = 2.0


class ContentHashes:
    """SHA-256 of files, kept by path, size and modification time in ``index`` (None: not kept).

    A kept hash is used while the size and the time stamp (ns) are still the same, if the stamp was at least two seconds
    old when the content was read; otherwise the file is read again.
    """

    def __init__(self, index: Path | None) -> None:
        self._index = index
        self._known: dict[str, list[int | str]] = {}
        self._changed = False
        if index is not None and index.is_file():
            with suppress(DataError):  # a damaged index is rebuilt: it only saves time
                self._known = {
                    path: entry
                    for path, entry in read_object(index).items()
                    if isinstance(entry, list) and [type(value) for value in entry] == [int, int, str]
                }

    def digest(self, path: Path) -> str:
        """Return the hexadecimal SHA-256 of the content of ``path``."""
        stat = path.stat()
        known = self._known.get(str(path))
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        content = sha256(path)
        if time.time() - stat.st_mtime > _SETTLED_SECONDS:
            self._known[str(path)] = [stat.st_size, stat.st_mtime_ns, content]
            self._changed = True
        return content

    def save(self) -> None:
        """Write the index atomically, if there are new hashes."""
        if self._index is not None and self._changed:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._index) as temporary:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")


def quick_digest(path: Path) -> str:
    """Return a hash that shows whether a file of voxels was changed, without reading all of a large file.

    It covers the size and 64 pieces of 4 kB spread over the file, the end included: a ``.nii.gz`` ends in a checksum
    of all its voxels. In a large uncompressed file, a change of a single voxel may go unnoticed.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as stream:
        size = stream.seek(0, 2)
        digest.update(str(size).encode())
        last = max(0, size - _PIECE)
        for place in sorted({last * k // (_PIECES - 1) for k in range(_PIECES)}):
            stream.seek(place)
            digest.update(stream.read(_PIECE))
    return digest.hexdigest()[:16]


def case_digest(case: Case) -> str:
    """Return :func:`quick_digest` of all files of a case together."""
    return hashlib.sha256("".join(quick_digest(path) for path in case.files).encode()).hexdigest()[:16]


def case_key(case: Case, modalities: Sequence[str], fingerprint: str, hashes: ContentHashes) -> str:
    """Return a hash of everything that determines a preprocessed case.

    All modalities count for each volume, since the crop of a case is found on their union.

    Args:
        case: the files.
        modalities: to be used.
        fingerprint: the preprocessing, as text.
        hashes: of file contents.
    """
    parts = [fingerprint, case.label_scheme]
    if SEG in modalities:
        parts.append("label map")
    for m in [name for name in modalities if name != SEG] or case.images:
        place = f":{case.channels[m].index}" if m in case.channels else ""
        parts.append(f"{m}:{hashes.digest(case.images[m])}{place}")
    if case.seg is not None:
        parts.append(f"seg:{hashes.digest(case.seg)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(kw_only=True, eq=False)
class CaseCache:
    """Preprocessed cases by position.

    Attributes:
        cases: to be preprocessed at their first use.
        preprocess: reads a case and brings it to the grid.
        mode: ``memory`` keeps cases in this process (loader processes that are forked later share them), ``disk`` keeps
            them in ``directory`` under ``key(case)``, ``none`` keeps the last ``num_kept`` cases only.
        directory: of mode ``disk``.
        key: hash of a case's files and preprocessing, for mode ``disk``.
        num_kept: cases that mode ``none`` keeps, as many as threads read at a time.
    """

    cases: Sequence[Case]
    preprocess: Callable[[Case], CaseVolumes]
    mode: CacheMode
    directory: Path | None = None
    key: Callable[[Case], str] | None = None
    num_kept: int = 1

    def __post_init__(self) -> None:
        if self.mode == "disk" and (self.directory is None or self.key is None):
            raise ValueError("mode: expected a directory and a key with disk, got one or none; give both.")
        self._kept: dict[int, CaseVolumes] = {}
        self._files: dict[int, Path] = {}

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> CaseVolumes:
        """Return one case; on disk its arrays are memory-mapped. DataError if its files cannot be used."""
        kept = self._kept.get(index)  # one look-up only: another thread may drop the case after it
        if kept is not None:
            return kept
        if self.mode == "disk":
            return self._from_disk(index)
        volumes = self.preprocess(self.cases[index])
        if self.mode == "none":
            for oldest in list(self._kept)[: len(self._kept) + 1 - self.num_kept]:
                self._kept.pop(oldest, None)
        self._kept[index] = volumes
        return volumes

    def warm(self, *, progress: Progress | None = None, num_threads: int = 1) -> None:
        """Preprocess all cases that are not kept yet; does nothing in mode ``none``.

        Threads help, since decompression and resampling release the interpreter lock.
        """
        if self.mode == "none":
            return
        total = len(self)
        with ThreadPoolExecutor(num_threads) as pool:
            try:
                for done, _ in enumerate(pool.map(self.__getitem__, range(total)), start=1):
                    if progress is not None:
                        progress(done, total)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # otherwise an error or Ctrl-C waits for all cases
                raise

    def _from_disk(self, index: int) -> CaseVolumes:
        if index not in self._files:
            assert self.directory is not None
            assert self.key is not None
            self._files[index] = self.directory / f"{self.key(self.cases[index])}.npy"
        path = self._files[index]
        volumes = _read_entry(path)
        if volumes is None:
            _write_entry(path, self.preprocess(self.cases[index]))
            volumes = _read_entry(path)
            if volumes is None:
                raise DataError(
                    f"{path}: expected the cache entry just written, got an unreadable file; "
                    "check the disk that holds data.cache_dir."
                )
        return volumes


def _write_entry(path: Path, volumes: CaseVolumes) -> None:
    """Write a description and then one array, with the segmentation as the last channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {
        "affine": volumes.affine.tolist(),
        "extent": volumes.extent,
        "kept": {label: asdict(kept) for label, kept in volumes.kept.items()},
        "has_seg": volumes.seg is not None,
    }
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(meta), encoding="utf-8")
    channels = (
        [volumes.images] if volumes.seg is None else [volumes.images, volumes.seg[None].astype(np.uint16)]
    )
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(channels), allow_pickle=False)


def _read_entry(path: Path) -> CaseVolumes | None:
    """Return the entry; None if it is absent or damaged, which makes it anew."""
    try:
        meta = read_object(path.with_suffix(".json"))
        with reading(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        images, seg = (array[:-1], array[-1]) if meta["has_seg"] else (array, None)
        affine = np.asarray(meta["affine"], dtype=np.float64)
        x, y, z = (int(side) for side in meta["extent"])
        kept = {int(label): Kept(**values) for label, values in meta["kept"].items()}
    except (DataError, KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError):
        return None
    if array.ndim != 4 or affine.shape != (4, 4):
        return None
    return CaseVolumes(images=images, seg=seg, affine=affine, extent=(x, y, z), kept=kept)
