"""Caches of preprocessed cases, in memory or on disk, and the content hashes that key them.

A disk entry is named by a hash of the content of the case's files and of the preprocessing, so an edited
file or another option is never served an old entry. Entries are written whole or not at all, and are
memory-mapped: the processes of one machine share one copy.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prod9.data.cases import Case
from prod9.data.preprocessing import CaseVolumes
from prod9.data.seg_loss import Kept
from prod9.errors import DataError
from prod9.files import atomic_write, reading, sha256
from prod9.json_files import read_object
from prod9.system.progress import Progress

CacheMode = Literal["none", "memory", "disk"]
_PIECE = 4096
_PIECES = 64
# A file can change twice within one tick of its clock, unseen by the time stamp: younger ones are read again.
_SETTLED_SECONDS = 2.0


class ContentHashes:
    """SHA-256 of files, remembered by path, size and modification time in ``index`` (None: not remembered).

    A remembered hash is used only while size and time stamp (ns) are those seen when the content was read and
    the stamp was already two seconds old then; anything else is read again.
    """

    def __init__(self, index: Path | None) -> None:
        self._index = index
        self._known: dict[str, list[int | str]] = {}
        self._changed = False
        if index is not None and index.is_file():
            with suppress(DataError):  # an index is only a shortcut: a damaged one is rebuilt
                known = read_object(index)
                self._known = {path: entry for path, entry in known.items() if _is_known(entry)}

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
        """Write the index, atomically, if there is something new to remember."""
        if self._index is not None and self._changed:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._index) as temporary:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")


def _is_known(entry: Any) -> bool:
    return isinstance(entry, list) and [type(value) for value in entry] == [int, int, str]


def quick_digest(path: Path) -> str:
    """Return a hash that tells whether a file of voxels was changed, without reading a large one whole.

    Of its size and 64 pieces of 4 kB spread over it, the end among them: that of a ``.nii.gz`` is a checksum of all its
    voxels. A single voxel changed in a large file that is not compressed may pass.
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
    """Return a hash of all that decides a preprocessed case: file contents, modalities and preprocessing.

    All modalities count for each volume, since the crop of a case is found on their union.
    """
    parts = [fingerprint, case.label_scheme]
    for m in modalities:
        place = f":{case.channels[m].index}" if m in case.channels else ""
        parts.append(f"{m}:{hashes.digest(case.images[m])}{place}")
    if case.seg is not None:
        parts.append(f"seg:{hashes.digest(case.seg)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class CaseCache:
    """Preprocessed cases by position, each preprocessed once.

    mode: ``memory`` keeps them in this process (loader processes forked later share it), ``disk`` keeps them
    in ``directory`` under ``key(case)``, ``none`` preprocesses at every access but keeps the last ``num_kept`` cases
    (as many as threads read at a time).
    """

    def __init__(
        self,
        *,
        cases: Sequence[Case],
        preprocess: Callable[[Case], CaseVolumes],
        mode: CacheMode,
        directory: Path | None = None,
        key: Callable[[Case], str] | None = None,
        num_kept: int = 1,
    ) -> None:
        if mode == "disk" and (directory is None or key is None):
            raise ValueError("a disk cache needs a directory and a key")
        self.cases = tuple(cases)
        self._preprocess = preprocess
        self._mode = mode
        self._directory = directory
        self._key = key
        self._num_kept = num_kept
        self._kept: dict[int, CaseVolumes] = {}
        self._files: dict[int, Path] = {}

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> CaseVolumes:
        """Return one case; on disk its arrays are memory-mapped. DataError when its files cannot be used."""
        kept = self._kept.get(index)  # not asked for twice: another thread may drop it in between
        if kept is not None:
            return kept
        if self._mode == "disk":
            return self._from_disk(index)
        volumes = self._preprocess(self.cases[index])
        if self._mode == "none":
            for oldest in list(self._kept)[: len(self._kept) + 1 - self._num_kept]:
                self._kept.pop(oldest, None)
        self._kept[index] = volumes
        return volumes

    def warm(self, *, progress: Progress | None = None, num_threads: int = 1) -> None:
        """Preprocess all cases that are not kept yet; nothing to do for mode ``none``.

        Decompression and resampling release the interpreter lock, so threads help.
        """
        if self._mode == "none":
            return
        total = len(self)
        with ThreadPoolExecutor(num_threads) as pool:
            try:
                for done, _ in enumerate(pool.map(self.__getitem__, range(total)), start=1):
                    if progress is not None:
                        progress(done, total)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # else an error or Ctrl-C waits for all cases
                raise

    def _from_disk(self, index: int) -> CaseVolumes:
        if index not in self._files:
            assert self._directory is not None
            assert self._key is not None
            self._files[index] = self._directory / f"{self._key(self.cases[index])}.npy"
        path = self._files[index]
        volumes = _read_entry(path)
        if volumes is None:
            _write_entry(path, self._preprocess(self.cases[index]))
            volumes = _read_entry(path)
            if volumes is None:
                raise DataError(
                    f"{path}: expected the cache entry just written, got an unreadable file; "
                    "check the disk that holds data.cache_dir."
                )
        return volumes


def _write_entry(path: Path, volumes: CaseVolumes) -> None:
    """Write one array (the segmentation as the last channel) and, before it, what describes it."""
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
    """Return the entry, or None when it is absent or damaged (it is then made anew)."""
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
