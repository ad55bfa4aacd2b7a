"""MedMNIST3D files: reading, checking and fetching them. The package `medmnist` is needed only for the address.

A file ``NAME.npz`` (28 voxels per side) or ``NAME_64.npz`` holds ``{train,val,test}_images`` uint8 [N S S S] and
``…_labels`` [N 1]. Counts come from the file, so that a small file of the same format works; a published file is
recognised by its MD5. Files are CC BY 4.0; ``adrenalmnist3d`` and ``vesselmnist3d`` are binary shapes, not images.
"""

import hashlib
import logging
import math
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from prod9.data.cases import PARTS, Part
from prod9.errors import DataError, MissingDependencyError
from prod9.files import atomic_write, reading
from prod9.system.machine import memory
from prod9.system.progress import Progress

_LOG = logging.getLogger(__name__)

SHAPE_SETS = ("adrenalmnist3d", "vesselmnist3d")
"""Sets of binary shapes: their voxels are 0 or 255."""
_MD5: Mapping[str, str] = {
    "organmnist3d": "a0c5a1ff56af4f155c46d46fbb45a2fe",
    "organmnist3d_64": "58a2205adf14a9d0a189cb06dc78bf10",
    "nodulemnist3d": "8755a7e9e05a4d9ce80a24c3e7a256f3",
    "nodulemnist3d_64": "c47c5b7d457bf6332200d2ea6d64ecd8",
    "adrenalmnist3d": "bbd3c5a5576322bc4cdfea780653b1ce",
    "adrenalmnist3d_64": "17721accfe9fb005146a47d33bc54b2f",
    "fracturemnist3d": "6aa7b0143a6b42da40027a9dda61302f",
    "fracturemnist3d_64": "f01d7e6316aedf4210da0da5b7437b42",
    "vesselmnist3d": "b41fd4f7e7e2feedddb201585ecafa1b",
    "vesselmnist3d_64": "6bb274a8846e1097066dcd64e2c4520f",
    "synapsemnist3d": "1235b78a3cd6280881dd7850a78eadb6",
    "synapsemnist3d_64": "43bd14ebf3af9d3dd072446fedc14d5e",
}
"""MD5 of the published files, version 3."""
_DEFLATE_RATIO = 1100
"""Deflate compresses at most 1032 times; a little more leaves room for headers."""
_EXPECTED, _REMEDY = "a MedMNIST3D file", "download it again"
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class MedMNIST3DFile:
    """A checked file. counts: samples of each part. side: voxels of a sample along each axis."""

    path: Path
    name: str
    side: int
    counts: Mapping[Part, int]

    def identities(self, part: Part) -> list[str]:
        """Return a name for each sample of ``part``, the same in every run."""
        return [f"{self.name}-{part}-{index:05d}" for index in range(self.counts[part])]

    def labels(self, part: Part) -> np.ndarray:
        """Return the labels int64 [N] of ``part``; DataError for damaged content."""
        labels = read_array(self.path, f"{part}_labels")
        if (labels.size and labels.dtype.kind not in "iu") or labels.size != self.counts[part]:
            raise DataError(
                f"{self.path}: expected {self.counts[part]} whole numbers as {part}_labels, got {labels.dtype} "
                f"{list(labels.shape)}; download it again."
            )
        return labels.reshape(-1).astype(np.int64)

    def read(self, part: Part, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [N S S S] and labels int64 [N] of ``part``.

        Constant samples are logged; DataError for damaged content or labels outside ``num_classes``.
        """
        images, labels = read_array(self.path, f"{part}_images", what=part), self.labels(part)
        if images.shape[1:] != (self.side,) * 3 or images.dtype != np.uint8 or len(images) != len(labels):
            raise DataError(
                f"{self.path}: expected {len(labels)} {part} samples uint8 of {self.side} voxels per side, got "
                f"{images.dtype} {list(images.shape)}; download it again."
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if wrong.size:
            raise DataError(
                f"{self.path}: expected labels 0 to {num_classes - 1} for {self.name}, got {labels[wrong[0]]} in "
                f"{part} sample {wrong[0]}; set data.name to the set that the file holds."
            )
        flat = images.reshape(len(images), -1)
        constant = int((flat.min(axis=1) == flat.max(axis=1)).sum()) if len(flat) else 0
        if constant:
            _LOG.warning(
                "%s: %d of %d %s samples are of one intensity.", self.path, constant, len(images), part
            )
        return images, labels


def file_name(name: str, size: int) -> str:
    """Return the name of the file of a set."""
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def open_medmnist3d(
    root: Path, name: str, size: int, *, download: bool = False, progress: Progress | None = None
) -> MedMNIST3DFile:
    """Return the file of a set in ``root``, its headers checked; no voxel is read.

    Args:
        root: the folder of the file.
        name: of the set.
        size: voxels per side.
        download: fetch the file if it is missing.
        progress: called with bytes (done, total) of a download.

    Raises:
        DataError: for a missing or malformed file.
        MissingDependencyError: for a download without the package medmnist.
    """
    path = root / file_name(name, size)
    if not path.is_file():
        if not download:
            raise DataError(missing(path))
        fetch(path, progress)
    headers = _array_headers(path)
    absent: tuple[tuple[int, ...], np.dtype | None] = (), None
    counts: dict[Part, int] = {}
    for part in PARTS:
        shape, dtype = headers.get(f"{part}_images", absent)
        labels, _ = headers.get(f"{part}_labels", absent)
        if dtype != np.uint8 or shape[1:] != (size,) * 3 or labels[:1] != shape[:1]:
            raise DataError(
                f"{path}: expected {part}_images uint8 [N {size} {size} {size}] and {part}_labels [N 1], got "
                f"{dtype} {list(shape)} and {list(labels)}; it is no MedMNIST3D file of size {size}: "
                "download it again, or set data.size."
            )
        counts[part] = math.prod(shape[:1])
    return MedMNIST3DFile(path, name, size, counts)


def missing(path: Path) -> str:
    """Return the message for a missing file: which file to place where."""
    return (
        f"{path}: no such file; place it there (MD5 {_MD5[path.stem]}; MedMNIST v3, Zenodo record 10519652), or let "
        "prod9 fetch it with --set data.download=true, which needs a network and `pip install 'prod9[medmnist]'`."
    )


def is_published(path: Path) -> bool:
    """Return whether the content of ``path`` is that of the published file."""
    return _digest(path) == _MD5[path.stem]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch(path: Path, progress: Progress | None = None) -> None:
    """Download a set's file to ``path``; nothing is left there unless it is complete and as published.

    Raises DataError, with the manual alternative, if it cannot be reached or differs.
    """
    address = address_of(path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as temporary:
            _copy(address, temporary, progress)
            digest = _digest(temporary)
            if digest != _MD5[path.stem]:
                raise DataError(
                    f"{path}: expected a file of MD5 {_MD5[path.stem]}, got one of {digest}; try again later, or place "
                    "the file by hand."
                )
    except (OSError, DataError) as error:
        if isinstance(error, DataError) and "MD5" in str(error):
            raise
        raise DataError(f"the download failed ({error}). {missing(path)}") from error


def padded(image: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Return ``image`` uint8 [S S S] as uint16 on ``grid``, centred in zeros; 255 becomes 65535 exactly."""
    return pad_evenly(image.astype(np.uint16) * np.uint16(257), grid)


def pad_evenly(image: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Return ``image`` [S S S] centred in zeros on ``grid``; the extra voxel of an odd margin comes after it."""
    before = [(side - n) // 2 for side, n in zip(grid, image.shape, strict=True)]
    room = [(b, side - n - b) for b, side, n in zip(before, grid, image.shape, strict=True)]
    return np.pad(image, room)


def address_of(stem: str) -> str:
    """Return where the set ``stem`` is published; MissingDependencyError without the package that knows it."""
    try:
        info = import_module("medmnist.info").INFO
    except ImportError as error:
        raise MissingDependencyError(
            "data.download: the address of the file is in the package medmnist; install it with "
            "`pip install 'prod9[medmnist]'`, or place the file by hand."
        ) from error
    name, _, size = stem.partition("_")
    return str(info[name][f"url_{size}" if size else "url"])


def _copy(address: str, target: Path, progress: Progress | None) -> None:
    with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer, target.open("wb") as file:
        total, done = int(answer.headers.get("Content-Length") or 0), 0
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total or done)


def read_array(path: Path, name: str, *, what: str | None = None) -> np.ndarray:
    """Return an array of an npz file; DataError for damaged content of any kind.

    what: its name in the message, by default ``name``.
    """
    remedy = f"{what or name} is damaged: {_REMEDY}"
    with reading(path, _EXPECTED, remedy=remedy), np.load(path, allow_pickle=False) as arrays:
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is no array")
    return array


def _array_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and type of every array of an npz file from their headers alone.

    A header can claim any size: arrays larger than the file can hold, or than the free memory, are refused.
    """
    found = {}
    with reading(path, _EXPECTED, remedy=_REMEDY), zipfile.ZipFile(path) as archive:
        available = memory().available
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
                    np.lib.format.read_array_header_2_0
                )  # fmt: skip
                shape, _, dtype = read(file)
            if dtype.hasobject or min(shape, default=0) < 0:
                raise ValueError(f"{entry.filename} holds {dtype} {shape}")
            claimed = math.prod(shape) * dtype.itemsize
            # The size given in the archive, and the most that the entry's bytes and the file's can hold.
            possible = min(entry.file_size, min(entry.compress_size, path.stat().st_size) * _DEFLATE_RATIO)
            if claimed > possible:
                raise ValueError(
                    f"{entry.filename} claims {claimed} bytes, the file can hold {possible} of them"
                )
            if available is not None and claimed > available:
                raise MemoryError(f"{entry.filename} takes {claimed} bytes, {available} are free")
            name = entry.filename.removesuffix(".npy")
            if name in found:
                raise ValueError(f"{name} is there twice")
            found[name] = (shape, dtype)
    return found
