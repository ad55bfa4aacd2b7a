"""NIfTI headers: each field is checked before it is used, and the geometry can be restored exactly.

The header is kept as the bytes of the file. nibabel parses it, without its own repairs, whose warnings do not name the
file.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from prod9.errors import DataError

SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = (348, 540)
"""Length of the header in both versions."""
ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
DTYPES = frozenset(
    ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
)
LONGEST_MM = 1000.0
"""Length of an axis above which a volume is refused: its unit is wrong, since no scan of a patient is longer."""
SHORTEST_MM = 10.0
"""Length of the longest axis below which a volume is refused."""
_THINNEST_MM = 1.0
_FLATTEST = 1e-4
"""Least volume of a voxel over that of a box with its edges; below, the axes practically lie in one plane."""
_FAMILIES: dict[int, type[Nifti1Header]] = dict(zip(HEADER_BYTES, (Nifti1Header, Nifti2Header), strict=True))
_UNITS = {1: ("metres", 1000.0), 2: ("millimetres", 1.0), 3: ("micrometres", 1e-3)}
_MAX_CODE = 5
_HEAD_BYTES = 4096
"""Bytes of a file read for its header: a gzip header, a name in it, and 540 bytes that hardly compress."""
_DEFLATE_RATIO = 1100
"""Largest factor of compression by gzip: 1032, and some room."""
_CONVERTERS = {
    (".dcm", ".ima"): "dcm2niix",
    (".mgz", ".mgh"): "FreeSurfer's mri_convert",
    (".head", ".brik", ".brik.gz"): "AFNI's 3dAFNItoNIFTI",
    (".mif", ".mif.gz"): "MRtrix's mrconvert",
    (".bz2", ".xz", ".zst", ".zip"): "a program that unpacks it",
}
_SIZES = {size.to_bytes(4, order) for size in HEADER_BYTES for order in ORDERS}
"""First bytes of a NIfTI file that is not compressed."""
_POINTERS = {b"/annex/objects/": "git annex get", b"version http": "git lfs pull"}
_TEXTS = ("descrip", "aux_file", "data_type", "db_name")
_RANGES = ("cal_max", "cal_min", "glmax", "glmin", "extents", "session_error")


@dataclass(frozen=True)
class Scaling:
    """How stored numbers become values: value = slope · stored + intercept."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether values differ from the stored numbers."""
        return self != Scaling()


UNSCALED = Scaling()


def is_gzip(path: Path) -> bool:
    """Return whether a file of this name is compressed."""
    return path.name.lower().endswith(".gz")


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file, decompressed: as many as the longer header has."""
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        converter = next((tool for ends, tool in _CONVERTERS.items() if name.endswith(ends)), "SimpleITK")
        raise DataError(
            f"{path}: expected a NIfTI file (.nii or .nii.gz); convert it, for example with {converter}."
        )
    with path.open("rb") as stream:
        start = stream.read(_HEAD_BYTES)
    if not start:
        raise DataError(f"{path}: expected a NIfTI file, got an empty one; copy or download it again.")
    for text, command in _POINTERS.items():
        if start.startswith(text):
            raise DataError(
                f"{path}: expected a NIfTI file, got a note of where its content is kept; fetch it (`{command}`)."
            )
    packed = start[:2] == b"\x1f\x8b"
    if packed != is_gzip(path) and (packed or start[:4] in _SIZES):
        got, suffix = ("gzip content", ".nii.gz") if packed else ("content that is not compressed", ".nii")
        raise DataError(f"{path}: expected a NIfTI file, got {got}; rename it to end in {suffix}.")
    return (
        zlib.decompressobj(wbits=31).decompress(start, HEADER_BYTES[1])
        if packed
        else start[: HEADER_BYTES[1]]
    )


def parse(block: bytes, path: Path) -> Nifti1Header:
    """Return the header that ``block`` begins with, of either version and byte order, without any repair.

    Raises DataError for a header whose voxels are in another file, ValueError for other content.
    """
    orders = {size: order for order in ORDERS if (size := int.from_bytes(block[:4], order)) in _FAMILIES}
    if not orders:
        raise ValueError("it does not begin as a NIfTI file does")
    size, order = orders.popitem()
    header = _FAMILIES[size](block[:size], endianness="<" if order == "little" else ">", check=False)
    magic = np.asarray(header["magic"]).tobytes()[:3]
    if magic != (b"n+1" if size == HEADER_BYTES[0] else b"n+2"):
        kind = "NIfTI" if magic in (b"ni1", b"ni2") else "Analyze or an unknown kind"
        raise DataError(
            f"{path}: expected a NIfTI file with its voxels inside, got a header of {kind} for voxels in another "
            "file; convert the pair to .nii.gz, for example with SimpleITK."
        )
    return header


def dimensions(header: Nifti1Header, path: Path) -> tuple[int, ...]:
    """Return the sides of all axes, which may be 0 or negative; DataError for another number of axes than 1 to 7."""
    count, *sides = np.asarray(header["dim"]).tolist()
    if not 1 <= count <= len(sides):
        raise DataError(
            f"{path}: expected 3 axes, got dim[0] = {count}; the header is damaged: copy it again."
        )
    return tuple(sides[:count])


def voxel_dtype(header: Nifti1Header, path: Path) -> np.dtype:
    """Return the type of the stored numbers, in the file's byte order; DataError for any but real numbers."""
    try:
        dtype = header.get_data_dtype()
    except (KeyError, HeaderDataError):
        raise ValueError(f"data code {int(header['datatype'])} not recognized") from None
    if dtype.name not in DTYPES:
        raise DataError(f"{path}: expected integer or real voxels, got {dtype}; convert it, e.g. to float32.")
    return dtype


def voxel_offset(header: Nifti1Header, path: Path) -> int:
    """Return the offset of the voxels; DataError if it is not a finite number beyond the header."""
    offset, least = float(header["vox_offset"]), _first_voxel(header)
    if not (math.isfinite(offset) and offset >= least and offset == int(offset)):
        raise DataError(
            f"{path}: expected vox_offset, where the voxels begin, to be at least {least}, got {offset:g}; the header "
            "is damaged: copy or download the file again, or write it anew with the program that made it."
        )
    return int(offset)


def scaling(header: Nifti1Header, path: Path) -> Scaling:
    """Return how stored numbers become values, unscaled if the slope is 0 or NaN; DataError if it is infinite."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return Scaling()
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise DataError(
            f"{path}: expected finite scl_slope and scl_inter, got {slope:g} and {intercept:g}; write the true ones "
            "into the header, or 1 and 0 if the stored numbers are the values."
        )
    return Scaling(slope, intercept)


def affine_mm(header: Nifti1Header, path: Path) -> np.ndarray:
    """Return the 4×4 float64 affine, voxel indices to RAS+ millimetres: s-form, else q-form, else the voxel sizes.

    The unit is that of ``xyzt_units``, millimetres where there is none. Raises DataError for unknown codes, voxel
    sizes of 0 and an affine that is singular or not finite.
    """
    for name in ("qform_code", "sform_code"):
        if not 0 <= int(header[name]) <= _MAX_CODE:
            raise DataError(
                f"{path}: expected {name} from 0 to {_MAX_CODE}, got {int(header[name])}; correct the header: 1 says "
                "that the form holds scanner coordinates, 0 that there is none."
            )
    fixed = header.copy()
    pixdim: np.ndarray = np.asarray(fixed["pixdim"])  # a view: what follows changes the header
    # As other software takes them: the sign of pixdim[0] matters, that of a voxel size does not.
    pixdim[0] = -1.0 if pixdim[0] < 0 else 1.0
    pixdim[1:4] = np.abs(pixdim[1:4])
    if not header["sform_code"] and not np.all(pixdim[1:4]):
        raise DataError(f"{path}: expected voxel sizes above 0, got 0; write the true ones into pixdim.")
    try:
        affine: np.ndarray = np.array(fixed.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise DataError(
            f"{path}: expected an invertible affine ({error}); repair the q-form or s-form."
        ) from error
    affine[:3] *= _unit(header)[1]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not (
        np.isfinite(affine).all()
        and (sizes > 0).all()
        and abs(np.linalg.det(affine[:3, :3] / sizes)) > _FLATTEST
        and _has_axes(affine.tobytes())
    ):
        raise DataError(
            f"{path}: expected an invertible affine, got {affine[:3].tolist()}; repair the q-form or s-form."
        )
    return affine


def require_extent(header: Nifti1Header, shape: tuple[int, ...], affine: np.ndarray, path: Path) -> None:
    """Raise DataError for a volume larger or smaller than any patient: its voxel size or unit is wrong.

    Args:
        header: for the unit in the message.
        shape: voxels along its three axes.
        affine: voxel indices to millimetres.
        path: named in the message.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    extent = spacing * np.asarray(shape)
    slack = 1 + 1e-6  # float32 in the file
    if (
        extent.max() <= LONGEST_MM * slack
        and extent.max() * slack >= SHORTEST_MM
        and extent.min() >= _THINNEST_MM
    ):
        return
    raise DataError(
        f"{path}: expected a volume of 1 cm to 1 m, got {times(extent)} mm ({times(shape)} voxels of "
        f"{times(spacing)} mm, {_unit(header)[0]} by xyzt_units); correct the voxel size, or its unit."
    )


def require_content(path: Path, voxels: int, dtype: np.dtype, offset: int) -> None:
    """Raise DataError for a header with more voxels than a file of its length can hold.

    Args:
        path: of the file.
        voxels: that its header claims.
        dtype: of the stored voxels.
        offset: bytes before the voxels.
    """
    size = path.stat().st_size
    most = size * _DEFLATE_RATIO if is_gzip(path) else size
    if offset + voxels * dtype.itemsize > most:
        raise DataError(
            f"{path}: expected {voxels} voxels of {dtype}, but the file ends early: its {size} bytes cannot hold "
            "them; copy or download it again."
        )


def made(
    shape: tuple[int, ...], affine: np.ndarray, dtype: np.dtype, scale: Scaling, code: int = 1
) -> Nifti1Header:
    """Return a new NIfTI-1 header.

    Args:
        shape: of the volume.
        affine: 4×4, voxels to mm.
        dtype: of the stored voxels.
        scale: how stored numbers become values.
        code: of the space, for both forms.
    """
    header = Nifti1Header(endianness="<")
    header.set_xyzt_units("mm")
    header.set_data_shape(shape)
    header.set_qform(affine, code=code)
    header.set_sform(affine, code=code)
    return _stored_as(header, dtype, scale)


def restored(
    block: bytes, path: Path, shape: tuple[int, ...], dtype: np.dtype, scale: Scaling
) -> Nifti1Header:
    """Return the header of a new volume ``[H W D]`` with the geometry of the file that began with ``block``.

    Version, byte order, both forms with their codes, voxel sizes, unit and intent are those of the file. Fields that
    describe the old scan (texts, intensity ranges) are cleared.

    Args:
        block: the first bytes of the file.
        path: of the new volume.
        shape: of the new volume.
        dtype: of the stored voxels.
        scale: how stored numbers become values.
    """
    header = parse(block, path)
    several = len([side for side in dimensions(header, path)[3:] if side != 1]) > 0
    header["dim"] = (3, *shape, 1, 1, 1, 1)
    names = header.keys()
    for name in (*_TEXTS, *(["intent_name"] if several else [])):
        if name in names:
            header[name] = b""
    for name in (*_RANGES, *(["intent_code", "intent_p1", "intent_p2", "intent_p3"] if several else [])):
        if name in names:
            header[name] = 0
    return _stored_as(header, dtype, scale)


@lru_cache(maxsize=256)  # slower than all other checks, and the files of a set share few affines
def _has_axes(affine: bytes) -> bool:
    """Return whether nibabel finds an anatomical direction for each axis of a 4×4 float64 affine."""
    return None not in nib.orientations.aff2axcodes(np.frombuffer(affine).reshape(4, 4))


def _stored_as(header: Nifti1Header, dtype: np.dtype, scale: Scaling) -> Nifti1Header:
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = scale.slope, scale.intercept
    header["vox_offset"] = _first_voxel(header)
    return header


def _first_voxel(header: Nifti1Header) -> int:
    """Return the least offset of voxels: the header, and four bytes for the presence of extensions."""
    return int(header.sizeof_hdr) + 4


def _unit(header: Nifti1Header) -> tuple[str, float]:
    return _UNITS.get(int(header["xyzt_units"]) & 7, ("unit unknown", 1.0))


def times(numbers: np.ndarray | Sequence[float]) -> str:
    """Return numbers along axes as text: ``240×240×155``."""
    return "×".join(f"{number:.4g}" for number in np.asarray(numbers).tolist())
