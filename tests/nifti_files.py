"""NIfTI files with any header: nothing is checked or repaired on the way to the disk."""

import gzip
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "dim_info", "intent_code"),
)
"""Fields that say where a volume lies; they are those of both versions."""


def header_of(path: Path) -> Nifti1Header:
    """Return the header as the file holds it."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.name.endswith(".gz") else content
    for size, family in ((348, Nifti1Header), (540, Nifti2Header)):
        for order in ("<", ">"):
            if int.from_bytes(content[:4], "little" if order == "<" else "big") == size:
                return family(content[:size], endianness=order, check=False)
    raise AssertionError("no NIfTI file")


def geometry_bytes(path: Path) -> dict[str, bytes]:
    header = header_of(path)
    fields = {name: np.asarray(header[name]).tobytes() for name in GEOMETRY}
    return {"size": bytes([header.sizeof_hdr % 256]), "order": header.endianness.encode(), **fields}


def write_raw(
    path: Path,
    data: np.ndarray,
    *,
    version: Literal[1, 2] = 1,
    order: Literal["<", ">"] = "<",
    qform: np.ndarray | None = None,
    sform: np.ndarray | None = None,
    **fields: Any,
) -> Path:
    """Write ``data`` as it is, with both forms (code 1 unless a field says otherwise) and any header fields."""
    header = (Nifti1Header if version == 1 else Nifti2Header)(endianness=order)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    if qform is not None:
        header.set_qform(qform, code=1)
    if sform is not None:
        header.set_sform(sform, code=1)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + data.astype(data.dtype.newbyteorder(order)).tobytes("F")
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path
