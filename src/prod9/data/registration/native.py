"""The way back: a volume made from a preprocessed case, on the voxels of the scan that the case came from."""

from pathlib import Path
from typing import Literal

import numpy as np

from prod9.data.registration.geometry import Placed, resample
from prod9.data.registration.record import CaseRecord
from prod9.errors import ConfigError, DataError
from prod9.files import sha256
from prod9.volumes import UNSCALED, VolumeHeader, read, read_header, write

Kind = Literal["auto", "image", "labels"]
KINDS: tuple[Kind, ...] = ("auto", "image", "labels")
_MAX_LABELS = 32


def to_native(
    result: Path,
    output: Path,
    *,
    case: Path,
    scan: str | None = None,
    kind: Kind = "auto",
    overwrite: bool = False,
) -> str:
    """Write ``result`` on the voxels of one of the case's scans, and return the name of that modality.

    Args:
        result: any volume in the space of the preprocessed case, on any grid of it.
        output: file to write.
        case: folder of the preprocessed case.
        scan: modality whose voxels the result gets; by default the reference scan.
        kind: ``labels`` are resampled by the nearest voxel and keep their values and type, an ``image`` linearly;
            ``auto`` takes whole numbers, at most 32 different ones, for labels, whatever type they are stored in.
        overwrite: replace an existing file.

    Raises:
        DataError: for a folder without a record, and for a result that lies elsewhere than the case.
        ConfigError: for an unknown modality.
    """
    record = CaseRecord.read(case)
    scan = scan or record.reference
    if scan not in record.scans:
        raise ConfigError(f"--scan: expected one of {', '.join(record.scans)}, got {scan}; correct it.")
    if output.exists() and not overwrite:
        raise DataError(f"{output}: expected no such file, got one; add --overwrite, or choose another name.")
    place = record.scans[scan]
    volume = read(result)
    labels = _are_labels(volume.data) if kind == "auto" else kind == "labels"
    source = Placed(volume.data, volume.header.affine)
    affine = np.asarray(place.affine)
    data = resample(source, place.shape, affine, place.matrix, order=0 if labels else 1)
    if np.any(volume.data) and not np.any(data):
        raise DataError(
            f"{result}: expected a volume in the space of {case}, got one that lies beside the scan; name the case "
            "that it was made from."
        )
    geometry = _header(place.source, place.sha256, place.channel) or affine
    if not labels:
        write(output, data, geometry)
    else:
        dtype = volume.header.dtype
        scaling = volume.header.scaling if np.issubdtype(dtype, np.integer) else UNSCALED
        write(output, data, geometry, dtype=dtype, scaling=scaling)
    return scan


def _are_labels(data: np.ndarray) -> bool:
    # An integer type alone says nothing: its numbers may be scaled to values between whole ones.
    return bool(np.array_equal(data, np.rint(data)) and len(np.unique(data)) <= _MAX_LABELS)


def _header(source: str, digest: str, channel: int | None) -> VolumeHeader | None:
    """Return the header of the scan itself, with its codes and units, if the file is still there unchanged."""
    path = Path(source)
    if channel is not None or not path.is_file() or sha256(path) != digest:
        return None
    return read_header(path)
