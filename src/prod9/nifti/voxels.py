"""The voxels of a NIfTI file: from a stream to float32 and back, piece by piece.

Besides the volume itself, only one piece of stored numbers is held in memory.
"""

import io
import math
from collections.abc import Collection
from gzip import GzipFile
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header

from prod9.errors import DataError
from prod9.nifti.headers import Scaling

Stream = IO[bytes] | GzipFile
_PIECE = 1 << 20
"""Voxels converted at a time."""


def load(
    stream: Stream,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    scaling: Scaling,
    wanted: Collection[int],
    path: Path,
) -> dict[int, np.ndarray]:
    """Return volumes of a stream as float32 ``[H W D]``, by their index in it. DataError if it ends early.

    Args:
        stream: stands at the first voxel; the first axis runs fastest.
        shape: of one volume.
        dtype: of the stored numbers, in their byte order.
        scaling: how they become values.
        wanted: indices of the volumes to read; others are skipped.
        path: named in the error.
    """
    size = math.prod(shape)
    loaded: dict[int, np.ndarray] = {}
    for place in range(max(wanted) + 1):
        if place not in wanted:
            stream.seek(size * dtype.itemsize, io.SEEK_CUR)
            continue
        flat = np.empty(size, dtype=np.float32)
        for start in range(0, size, _PIECE):
            part = flat[start : start + _PIECE]
            content = stream.read(part.size * dtype.itemsize)
            if len(content) < part.size * dtype.itemsize:
                raise DataError(
                    f"{path}: expected {size} voxels of {dtype}, but the file ends early; copy or download it again."
                )
            part[:] = _values(np.frombuffer(content, dtype), scaling)
        loaded[place] = flat.reshape(shape, order="F")
    return loaded


def store(stream: Stream, header: Nifti1Header, data: np.ndarray, scaling: Scaling) -> None:
    """Write ``header`` and ``data`` in its type; integers are rounded.

    Args:
        stream: open for writing.
        header: of the volume.
        data: ``[H W D]``.
        scaling: how stored numbers become values.
    """
    dtype = header.get_data_dtype()
    stream.write(header.binaryblock + bytes(4))  # no extensions
    for index in range(data.shape[2]):
        stream.write(_stored(data[:, :, index], dtype, scaling).tobytes("F"))


def fits(data: np.ndarray, dtype: np.dtype, scaling: Scaling) -> bool:
    """Return whether ``dtype`` can hold all values of ``data``, rounded; NaN and infinity fit no integers."""
    if not np.issubdtype(dtype, np.integer) or not data.size:
        return True
    ends = [(float(end) - scaling.intercept) / scaling.slope for end in (data.min(), data.max())]
    limits = np.iinfo(dtype)  # compared as integers: float32 cannot represent the largest int32
    return all(math.isfinite(end) and limits.min <= round(end) <= limits.max for end in ends)


def comes_back(data: np.ndarray, dtype: np.dtype, scaling: Scaling) -> bool:
    """Return whether float32 ``data [H W D]`` survives storage as integers of ``dtype`` unchanged."""
    if not fits(data, dtype, scaling):
        return False
    return all(
        np.array_equal(_values(_stored(plane, dtype, scaling), scaling), plane)
        for plane in np.moveaxis(data, 2, 0)
    )


def _stored(values: np.ndarray, dtype: np.dtype, scaling: Scaling) -> np.ndarray:
    """Return ``values`` as stored numbers, rounded for integers."""
    if scaling.changes:
        values = (values.astype(np.float64) - scaling.intercept) / scaling.slope
    return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)


def _values(stored: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Return the float32 values of stored numbers; too large ones become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored.astype(np.float64) * scaling.slope + scaling.intercept if scaling.changes else stored
        return values.astype(np.float32)
