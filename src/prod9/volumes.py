"""NIfTI in and out. Nothing else in prod9 opens or writes an image file.

Reading distrusts the file: the header is checked against limits before any voxel is read, and gzip content is
read to its end so that its checksum is verified (nibabel stops before the trailer and notices neither a
flipped bit nor a cut tail).
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from prod9.errors import DataError
from prod9.files import atomic_write

MAX_VOXELS = 1024**3
"""Largest volume read by default: 4 GiB as float32. A header can claim any size."""
SUFFIXES = (".nii", ".nii.gz")
DTYPES = frozenset(
    ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
)
_RAS = axcodes2ornt("RAS")
_NIFTI2_BYTES = 540
_HEAD_BYTES = 4096
"""Bytes of a file read for its header: a gzip header, a name in it, and 540 bytes that hardly compress."""
_SLACK = 16 << 20
"""Bytes of a file that may be no voxels: the header, its extensions, padding."""


@dataclass(frozen=True)
class Channel:
    """One volume of a 4D file: place ``index`` of the ``count`` along its last axis, known as ``name``."""

    name: str
    index: int
    count: int


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """What a file says about its volume, checked.

    shape: voxels along the file's own axes. affine: 4×4 float64, voxel indices to RAS+ millimetres.
    dtype: as stored. stored_shape: of the whole file, with trailing axes of length 1 and all channels.
    offset: bytes before the voxels, once decompressed.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: np.dtype
    stored_shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the voxels as stored, all channels of the file together."""
        return math.prod(self.stored_shape) * self.dtype.itemsize

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the file's own axes."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return x, y, z

    @property
    def orientation(self) -> str:
        """Anatomical direction of each axis, such as ``RAS``."""
        return "".join(nib.orientations.aff2axcodes(self.affine))


@dataclass(frozen=True, eq=False)
class VolumeFile:
    """Voxels, float32 ``[H W D]`` in the file's own axis order, and the header they came with."""

    data: np.ndarray
    header: VolumeHeader


def read_header(
    path: str | Path, *, channel: Channel | None = None, max_voxels: int = MAX_VOXELS
) -> VolumeHeader:
    """Read and check the header alone.

    channel: None for a 3D file (trailing axes of length 1 are dropped); otherwise the file must be 4D with as
    many channels, and the header is that of the one. Raises DataError for a missing file, a file that is no
    NIfTI, other dimensions, more than ``max_voxels``, a dtype without real numbers, or an affine that is
    singular or not finite.
    """
    return _checked(_header(Path(path)), Path(path), channel, max_voxels)


def read(
    path: str | Path,
    *,
    channel: Channel | None = None,
    allow_non_finite: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> VolumeFile:
    """Read a volume whole: of a 3D file, or one ``channel`` of a 4D file.

    Raises DataError as :func:`read_header` does, for truncated or corrupt content, and for NaN or infinite
    voxels unless ``allow_non_finite``.
    """
    (volume,) = read_channels(
        path, [channel], allow_non_finite=allow_non_finite, max_voxels=max_voxels
    ).values()
    return volume


def read_channels(
    path: str | Path,
    channels: Sequence[Channel | None],
    *,
    allow_non_finite: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> dict[Channel | None, VolumeFile]:
    """Read several channels of one file as :func:`read` does, decompressing it once."""
    path = Path(path)
    raw = _header(path)
    headers = {channel: _checked(raw, path, channel, max_voxels) for channel in channels}
    first = next(iter(headers.values()))
    volumes: dict[Channel | None, VolumeFile] = {}
    try:
        family = Nifti2Image if raw.sizeof_hdr == _NIFTI2_BYTES else Nifti1Image
        if path.name.lower().endswith(".gz"):
            image = family.from_bytes(_gunzip(path, first.num_bytes))
        else:
            image = family.from_filename(path)
        for channel, header in headers.items():
            voxels = image.dataobj if channel is None else image.dataobj[..., channel.index]
            data = np.asanyarray(voxels).reshape(header.shape).astype(np.float32)
            volumes[channel] = VolumeFile(data, header)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: expected {first.num_bytes // first.dtype.itemsize} voxels of {first.dtype}, but the file "
            f"ends early or is damaged ({error}); copy or download it again."
        ) from error
    if not allow_non_finite:
        for volume in volumes.values():
            _require_finite(volume)
    return volumes


def _require_finite(volume: VolumeFile) -> None:
    wrong = int(volume.data.size - np.isfinite(volume.data).sum())
    if wrong:
        raise DataError(
            f"{volume.header.path}: expected finite voxels, got {wrong} NaN or infinite of {volume.data.size}; "
            "repair the file (for example with numpy.nan_to_num) or leave the case out."
        )


def write(
    path: str | Path,
    data: np.ndarray,
    affine: np.ndarray,
    *,
    dtype: np.typing.DTypeLike = np.float32,
    overwrite: bool = True,
) -> None:
    """Write ``data [H W D]`` atomically as NIfTI-1, gzipped for ``.nii.gz``; both forms hold ``affine``.

    Integer ``dtype`` rounds. Raises DataError for another suffix, data that is not 3D, values outside the
    dtype, or an existing file unless ``overwrite``.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: expected a name ending in .nii or .nii.gz; rename it.")
    if data.ndim != 3:
        raise DataError(f"{path}: expected a 3D array to write, got shape {data.shape}.")
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already; ask for overwriting or choose another name.")
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        data = np.rint(data)
        if data.size and not (data.min() >= limits.min and data.max() <= limits.max):  # so that NaN fails
            raise DataError(
                f"{path}: values from {data.min():g} to {data.max():g} don't fit {dtype}; use a wider one."
            )
    image = Nifti1Image(data.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def encode(data: np.ndarray, affine: np.ndarray) -> bytes:
    """Return ``data [H W D]`` as the bytes of a NIfTI-1 file of its own dtype, not compressed."""
    image = Nifti1Image(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def to_ras(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute axes to the RAS+ order nearest to ``affine``; voxel values are not touched."""
    transform = ornt_transform(io_orientation(affine), _RAS)
    return apply_orientation(data, transform), affine @ inv_ornt_aff(transform, data.shape)


def from_ras(data: np.ndarray, reference: VolumeHeader) -> np.ndarray:
    """Undo :func:`to_ras` for data on the RAS grid of ``reference``: exact, flips and permutations only."""
    return apply_orientation(data, ornt_transform(_RAS, io_orientation(reference.affine)))


def looks_whole(header: VolumeHeader) -> bool:
    """Return whether the file is as long as its header says, without reading it.

    The length of a ``.nii.gz`` is what the last four bytes say of it (modulo 2³²). False is certain for ``.nii``;
    a gzip file may also have been written in several pieces: read it to know.
    """
    end = header.offset + header.num_bytes
    with header.path.open("rb") as stream:
        if not header.path.name.lower().endswith(".gz"):
            return stream.seek(0, 2) >= end
        stream.seek(-4, 2)
        return 0 <= int.from_bytes(stream.read(4), "little") - end % 2**32 <= _SLACK


def signature(path: str | Path) -> tuple[int, bytes]:
    """Return what equal files have in common and few others do, without reading the file whole.

    Its size, and its end with 4 kB from the middle; the end of a ``.nii.gz`` is a checksum of the content.
    """
    with Path(path).open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(size // 2)
        middle = stream.read(4096)
        stream.seek(max(0, size - 8))
        return size, middle + stream.read(8)


def _header(path: Path) -> Nifti1Header:
    """Return the header as nibabel repairs it; DataError for what is no NIfTI file."""
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path.")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: expected a NIfTI file (.nii or .nii.gz); convert it, e.g. with dcm2niix.")
    try:
        block = _first_bytes(path)
        if not block:
            raise DataError(f"{path}: expected a NIfTI file, got an empty one; copy or download it again.")
        family = Nifti2Header if _sizeof_header(block) == _NIFTI2_BYTES else Nifti1Header
        header = family(block[: family.sizeof_hdr])
        if np.asarray(header["magic"]).tobytes()[:2] != b"n+":
            raise DataError(
                f"{path}: expected a NIfTI file with its voxels inside, got the header of "
                "another file; convert it to .nii.gz."
            )
    except (OSError, EOFError, ValueError, WrapStructError, HeaderDataError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a NIfTI file, got something else or a damaged one ({error}); copy or "
            "download it again."
        ) from error
    return header


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file once decompressed: as many as the longer of the two headers has."""
    with path.open("rb") as stream:
        start = stream.read(_HEAD_BYTES)
    if path.name.lower().endswith(".gz") and start:
        return zlib.decompressobj(wbits=31).decompress(start, _NIFTI2_BYTES)
    return start[:_NIFTI2_BYTES]


def _sizeof_header(block: bytes) -> int:
    sizes = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
    known = sizes & {348, _NIFTI2_BYTES}
    if not known:
        raise ValueError("it does not begin as a NIfTI file does")
    return known.pop()


def _checked(header: Nifti1Header, path: Path, channel: Channel | None, max_voxels: int) -> VolumeHeader:
    whole = _dimensions(header)
    shape = whole if channel is None else _spatial(whole, path, channel)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        hint = (
            "split it into one file a modality, or name its channels in a dataset.json as the Medical "
            "Segmentation Decathlon does"
            if len(shape) == 4
            else "give the whole volume, not a slice"
        )
        raise DataError(f"{path}: expected a 3D volume, got {len(shape)}D of shape {shape}; {hint}.")
    if min(shape) < 1:
        raise DataError(f"{path}: expected positive sides, got {shape}; the header is damaged.")
    if math.prod(whole) > max_voxels:
        raise DataError(
            f"{path}: expected at most {max_voxels} voxels, got {whole}; crop or resample it, or repair "
            "the header."
        )
    try:
        dtype = header.get_data_dtype()
    except HeaderDataError as error:
        raise DataError(
            f"{path}: expected integer or real voxels, got {error}; convert it, e.g. to float32."
        ) from error
    if dtype.name not in DTYPES:
        raise DataError(f"{path}: expected integer or real voxels, got {dtype}; convert it, e.g. to float32.")
    if not header["sform_code"] and not _stored_voxel_size(path, header):
        # nibabel would put 1 mm in its place.
        raise DataError(f"{path}: expected voxel sizes above 0, got 0; write the true ones into pixdim.")
    affine = _affine(header, path)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            f"{path}: expected an invertible affine, got {affine[:3].tolist()}; repair the q-form or s-form."
        )
    return VolumeHeader(path, shape, affine, dtype, whole, int(header["vox_offset"]))


def _spatial(whole: tuple[int, ...], path: Path, channel: Channel) -> tuple[int, ...]:
    """Return the first three sides of a file that holds ``channel``."""
    if len(whole) != 4 or whole[3] != channel.count:
        raise DataError(
            f"{path}: expected {channel.count} channels along a fourth axis, {channel.name} being number "
            f"{channel.index}, got {len(whole)}D of shape {whole}; correct the channels in dataset.json, or the file."
        )
    return whole[:3]


def _dimensions(header: Nifti1Header) -> tuple[int, ...]:
    count, *sides = np.asarray(header["dim"]).tolist()
    return tuple(sides[:count])


def _affine(header: Nifti1Header, path: Path) -> np.ndarray:
    try:
        return np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise DataError(
            f"{path}: expected an invertible affine ({error}); repair the q-form or s-form."
        ) from error


def _stored_voxel_size(path: Path, repaired: Nifti1Header) -> bool:
    """Return whether the file itself gives voxel sizes above 0, before nibabel repaired them."""
    block = _first_bytes(path)[: repaired.sizeof_hdr]
    return bool(np.all(type(repaired)(block, check=False)["pixdim"][1:4]))


def _gunzip(path: Path, promised: int) -> bytes:
    """Return the whole content, its checksum verified, and little more than the header promises.

    The checksum is compared at the end of the stream only; a stream that goes on is a bomb or not this image.
    """
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read(promised + _SLACK)
            longer = len(stream.read(1)) > 0
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: the compressed content is cut short or damaged ({error}); copy or download it again."
        ) from error
    if longer:
        raise DataError(
            f"{path}: expected {promised} bytes of voxels once decompressed, as its header says, got many more; "
            "it is not the file that its header describes: copy or download it again."
        )
    return content
