"""NIfTI in and out. No other module of prod9 opens or writes an image file.

Files are checked before they are used: the header before any voxel is read, its sizes against the length of the file
and the free memory. Gzip content is read to its end, which verifies its checksum (nibabel stops before the trailer and
misses flipped bits and truncation).
"""

import gzip
import io
import math
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from prod9.errors import DataError
from prod9.files import atomic_write, reading
from prod9.nifti import headers as nifti
from prod9.nifti.headers import UNSCALED, Scaling, times
from prod9.nifti.voxels import fits, load, store
from prod9.system.machine import memory

MAX_VOXELS = 1024**3
"""Largest volume read by default: 4 GiB as float32. A header can claim any size."""
_RAS = axcodes2ornt("RAS")
_FEW_SLICES = 5
"""A volume with fewer voxels along its thinnest axis counts as a few slices."""
_SLACK = 16 << 20
"""Bytes of a file that may be something other than voxels: the header, its extensions, padding."""
_COPIES = 2
"""Copies of a volume as float32 that have to fit into memory: itself, and one to work with."""
_EXPECTED = "a NIfTI file"


@dataclass(frozen=True)
class Channel:
    """One volume of a 4D file, called ``name``: at ``index`` of the ``count`` along its last axis."""

    name: str
    index: int
    count: int


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """The checked header of one volume.

    Attributes:
        path: of the file.
        shape: voxels along the file's own axes.
        affine: 4×4 float64, voxel indices to RAS+ millimetres.
        dtype: as stored.
        stored_shape: shape of the whole file, with trailing axes of length 1 and all channels.
        offset: bytes before the voxels, once decompressed.
        scaling: how stored numbers become values.
        space: NIfTI's code of the space that the affine leads to: 1 scanner, 2 aligned, 3 Talairach, 4 MNI, 0 unknown
            (then nibabel's default applies).
        block: the header's own bytes, from which :func:`write` restores its geometry; empty for a volume that was
            not read from a file.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: np.dtype
    stored_shape: tuple[int, ...]
    offset: int
    scaling: Scaling = UNSCALED
    space: int = 1
    block: bytes = field(default=b"", repr=False)

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
        return "".join(map(str, nib.orientations.aff2axcodes(self.affine)))

    @property
    def ras_spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the axes that run left-right, back-front and down-up."""
        axes = [next(i for i, to in enumerate(self.orientation) if to in ends) for ends in ("LR", "PA", "SI")]
        x, y, z = (self.spacing[axis] for axis in axes)
        return x, y, z


@dataclass(frozen=True, eq=False)
class VolumeFile:
    """Voxels, float32 ``[H W D]`` in the file's own axis order, and the header they came with."""

    data: np.ndarray
    header: VolumeHeader


def read_header(
    path: str | Path, *, channel: Channel | None = None, max_voxels: int = MAX_VOXELS
) -> VolumeHeader:
    """Read and check the header alone.

    Args:
        path: of the file.
        channel: one of a 4D file with as many channels, or None for a 3D file, whose trailing axes of length 1 are
            dropped.
        max_voxels: the largest volume allowed.

    Raises:
        DataError: for a missing or unreadable file, a file other than NIfTI, other dimensions, more voxels than
            ``max_voxels`` or than the file can hold, a dtype of other than real numbers, an affine that is singular
            or not finite, and an extent above 1 m or below 1 cm.
    """
    return _checked(Path(path), [channel], max_voxels)[channel]


def read(
    path: str | Path,
    *,
    channel: Channel | None = None,
    allow_non_finite: bool = False,
    max_voxels: int = MAX_VOXELS,
) -> VolumeFile:
    """Read the volume of a 3D file, or one ``channel`` of a 4D file.

    Raises DataError as :func:`read_header` does, for truncated or corrupt content, and for NaN or infinite
    voxels unless ``allow_non_finite``.

    Args:
        path: of the file.
        channel: of a 4D file; None for a 3D file.
        allow_non_finite: take NaN and infinite voxels too.
        max_voxels: the largest volume allowed.

    Example:
        >>> import numpy as np
        >>> from prod9 import volumes
        >>> volumes.write("scan.nii.gz", np.ones((8, 9, 10)), np.diag([2, 2, 3, 1]))
        >>> scan = volumes.read("scan.nii.gz")
        >>> scan.data.shape, scan.header.spacing, scan.header.orientation
        ((8, 9, 10), (2.0, 2.0, 3.0), 'RAS')
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
    """Read several channels of one file, as :func:`read` does, but decompress it only once.

    Args:
        path: of the file.
        channels: of the file.
        others: see :func:`read`.
    """
    path = Path(path)
    headers = _checked(path, channels, max_voxels)
    first = next(iter(headers.values()))
    _require_memory(path, first.shape, len(headers))
    with reading(path, _EXPECTED):
        places = {channel: 0 if channel is None else channel.index for channel in headers}
        loaded = _loaded(first, set(places.values()))
        volumes = {
            channel: VolumeFile(loaded[places[channel]], header) for channel, header in headers.items()
        }
        for volume in volumes.values() if not allow_non_finite else ():
            wrong = int(volume.data.size - np.isfinite(volume.data).sum())
            if wrong:
                raise DataError(
                    f"{path}: expected finite voxels, got {wrong} NaN or infinite of {volume.data.size}; repair the "
                    "file (for example with numpy.nan_to_num) or leave the case out."
                )
    return volumes


def write(
    path: str | Path,
    data: np.ndarray,
    geometry: np.ndarray | VolumeHeader,
    *,
    dtype: np.typing.DTypeLike = np.float32,
    scaling: Scaling = UNSCALED,
    space: int = 1,
    overwrite: bool = True,
) -> None:
    """Write ``data [H W D]`` atomically as NIfTI, gzipped for ``.nii.gz``.

    Raises DataError for another suffix, data that is not 3D or not of the reference's shape, values that ``dtype``
    cannot hold, or an existing file unless ``overwrite``.

    Args:
        path: of the file to write, in an existing folder.
        data: values, on the voxels of ``geometry`` in its axis order.
        geometry: the header of a file with the same voxels, whose forms with their codes, voxel sizes, unit, version
            and byte order are restored; or, without such a file, a 4×4 affine to RAS+ mm for both forms.
        dtype: of the stored numbers; integers are rounded.
        scaling: how stored numbers become values, such as that of a reference.
        space: code of both forms if ``geometry`` is an affine, see :attr:`VolumeHeader.space`; 0 becomes 1.
        overwrite: replace an existing file.

    Example:
        >>> import numpy as np
        >>> from prod9 import volumes
        >>> volumes.write("scan.nii.gz", np.ones((8, 9, 10)), np.diag([2, 2, 3, 1]))
        >>> scan = volumes.read("scan.nii.gz")
        >>> volumes.write("seg.nii.gz", scan.data > 0.5, scan.header, dtype=np.uint8)
        >>> volumes.read("seg.nii.gz").header.dtype.name
        'uint8'
    """
    path, dtype = Path(path), np.dtype(dtype)
    if not path.name.lower().endswith(nifti.SUFFIXES):
        raise DataError(f"{path}: expected a name ending in .nii or .nii.gz; rename it.")
    if data.ndim != 3:
        raise DataError(f"{path}: expected a 3D array to write, got shape {data.shape}.")
    if not overwrite and path.exists():
        raise DataError(
            f"{path}: expected no such file, got one; ask for overwriting or choose another name."
        )
    if not fits(data, dtype, scaling):
        raise DataError(
            f"{path}: expected values that fit {dtype}, got {data.min():g} to {data.max():g}; use a wider type."
        )
    header = _new_header(path, data, geometry, dtype, scaling, space)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        if nifti.is_gzip(path):
            # Without name and time, equal volumes become equal files. nibabel uses level 1 too.
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0) as packed:
                store(packed, header, data, scaling)
        else:
            store(stream, header, data, scaling)


def encode(data: np.ndarray, affine: np.ndarray) -> bytes:
    """Return ``data [H W D]`` as the bytes of a NIfTI-1 file of its own dtype, not compressed."""
    stream = io.BytesIO()
    store(stream, nifti.made(data.shape, affine, data.dtype, UNSCALED), data, UNSCALED)
    return stream.getvalue()


def resampled_shape(
    shape: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float],
    *,
    path: Path,
    max_voxels: int = MAX_VOXELS,
) -> tuple[int, int, int]:
    """Return the largest sides that a volume can have after resampling.

    Raises DataError for more than ``max_voxels``, or for more than the free memory can hold.

    Args:
        shape: voxels along each axis now.
        spacing: voxel size in mm along the same axes now.
        target: voxel size in mm along the same axes afterwards.
        path: of the volume, named in the error.
        max_voxels: the largest volume allowed.
    """
    sides = [
        max(1, math.ceil(side * now / then)) for side, now, then in zip(shape, spacing, target, strict=True)
    ]
    if math.prod(sides) > max_voxels:
        raise DataError(
            f"{path}: expected at most {max_voxels} voxels after resampling to {times(target)} mm, got "
            f"{times(sides)}; use a larger spacing, or crop the volume."
        )
    _require_memory(path, sides, 1)
    return sides[0], sides[1], sides[2]


def to_ras(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute axes to the RAS+ order nearest to ``affine``; voxel values do not change."""
    transform = ornt_transform(io_orientation(affine), _RAS)
    return apply_orientation(data, transform), affine @ inv_ornt_aff(transform, data.shape)


def from_ras(data: np.ndarray, reference: VolumeHeader) -> np.ndarray:
    """Undo :func:`to_ras` for data on the RAS grid of ``reference``: exact, flips and permutations only."""
    return apply_orientation(data, ornt_transform(_RAS, io_orientation(reference.affine)))


def cautions(header: VolumeHeader) -> dict[str, str]:
    """Return the doubts about a readable file: messages under ``slice`` and ``orientation``."""
    found = {}
    if (thinnest := min(header.shape)) < _FEW_SLICES:
        what = "a single slice" if thinnest == 1 else f"only {thinnest} slices"
        found["slice"] = (
            f"{header.path}: {times(header.shape)} voxels are {what}, and models are made for whole heads; "
            "give the whole volume, or leave it out."
        )
    if not header.space:
        found["orientation"] = (
            f"{header.path}: the file does not say how its axes lie (q-form and s-form codes are 0); they are taken "
            f"as {header.orientation}, so left and right may be exchanged: set the codes if you know."
        )
    return found


def looks_whole(header: VolumeHeader) -> bool:
    """Return whether the file is as long as its header says, without reading it.

    The length of a ``.nii.gz`` is stored in its last four bytes (modulo 2³²). False is certain for ``.nii``; a gzip
    file may also consist of several pieces, so only reading it is certain.
    """
    end = header.offset + header.num_bytes
    with reading(header.path, _EXPECTED), header.path.open("rb") as stream:
        if not nifti.is_gzip(header.path):
            return stream.seek(0, 2) >= end
        stream.seek(-4, 2)
        return 0 <= int.from_bytes(stream.read(4), "little") - end % 2**32 <= _SLACK


def signature(path: str | Path) -> tuple[int, bytes]:
    """Return a value that equal files share and different files rarely do, without reading the whole file.

    It is made of the size, 4 kB from the middle, and the end, which in a ``.nii.gz`` is a checksum of the content.
    """
    with reading(path, _EXPECTED), Path(path).open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(size // 2)
        middle = stream.read(4096)
        stream.seek(max(0, size - 8))
        return size, middle + stream.read(8)


# ---- headers ----


def _checked(
    path: Path, channels: Sequence[Channel | None], max_voxels: int
) -> dict[Channel | None, VolumeHeader]:
    """Return the header of each channel of a file, all its fields checked."""
    with reading(path, _EXPECTED):
        raw = nifti.parse(nifti.first_bytes(path), path)
        block = raw.binaryblock
        whole = nifti.dimensions(raw, path)
        shapes = {channel: _spatial(whole, path, channel) for channel in channels}
        if math.prod(whole) > max_voxels:
            raise DataError(
                f"{path}: expected at most {max_voxels} voxels, got {whole}; crop or resample it, or repair "
                "the header."
            )
        dtype, offset = nifti.voxel_dtype(raw, path), nifti.voxel_offset(raw, path)
        scaling, affine = nifti.scaling(raw, path), nifti.affine_mm(raw, path)
        space = int(raw["sform_code"]) or int(raw["qform_code"])
        for shape in shapes.values():
            nifti.require_extent(raw, shape, affine, path)
        nifti.require_content(path, math.prod(whole), dtype, offset)
        return {
            channel: VolumeHeader(path, shape, affine, dtype, whole, offset, scaling, space, block)
            for channel, shape in shapes.items()
        }


def _spatial(whole: tuple[int, ...], path: Path, channel: Channel | None) -> tuple[int, int, int]:
    """Return the sides of one volume, without trailing axes of length 1 and the axis of channels."""
    if channel is not None and (len(whole) != 4 or whole[3] != channel.count):
        raise DataError(
            f"{path}: expected {channel.count} channels along a fourth axis, {channel.name} being number "
            f"{channel.index}, got {len(whole)}D of shape {whole}; correct the channels in dataset.json, or the file."
        )
    shape = whole if channel is None else whole[:3]
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        hint = (
            "split it into one file per modality, or name its channels in a dataset.json as the Medical "
            "Segmentation Decathlon does"
            if len(shape) == 4
            else "give the whole volume, not a slice"
        )
        raise DataError(f"{path}: expected a 3D volume, got {len(shape)}D of shape {shape}; {hint}.")
    if min(shape) < 1:
        raise DataError(f"{path}: expected positive sides, got {shape}; the header is damaged.")
    return shape[0], shape[1], shape[2]


def _require_memory(path: Path, shape: Sequence[int], num_channels: int) -> None:
    needed = _COPIES * num_channels * math.prod(shape) * np.dtype(np.float32).itemsize
    free = memory().available
    if free is not None and needed > free:
        raise DataError(
            f"{path}: expected a volume that fits into the {free / 2**30:.1f} GiB of memory that are free, "
            f"got {times(shape)} voxels, which take {needed / 2**30:.1f}; crop or resample it, or use a "
            "machine with more memory."
        )


# ---- voxels ----


def _loaded(header: VolumeHeader, places: Collection[int]) -> dict[int, np.ndarray]:
    """Return the volumes at these indices of the last axis of a 4D file; a 3D file has index 0 only."""
    path, what = header.path, (header.shape, header.dtype, header.scaling)
    if not nifti.is_gzip(path):
        with path.open("rb") as stream:
            stream.seek(header.offset)
            return load(stream, *what, places, path)
    try:
        with gzip.open(path, "rb") as packed:
            packed.seek(header.offset)
            found = load(packed, *what, places, path)
            # The checksum is compared only at the end of the stream; a longer stream is a bomb or another image.
            packed.seek(header.offset + header.num_bytes + _SLACK)
            longer = len(packed.read(1)) > 0
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: the compressed content is cut short or damaged ({error}); copy or download it again."
        ) from error
    if longer:
        raise DataError(
            f"{path}: expected {header.num_bytes} bytes of voxels once decompressed, as its header says, got many "
            "more; it is not the file that its header describes: copy or download it again."
        )
    return found


def _new_header(
    path: Path,
    data: np.ndarray,
    geometry: np.ndarray | VolumeHeader,
    dtype: np.dtype,
    scaling: Scaling,
    space: int,
) -> Nifti1Header:
    if not isinstance(geometry, VolumeHeader):
        return nifti.made(data.shape, geometry, dtype, scaling, max(1, space))
    if data.shape != geometry.shape:
        raise DataError(
            f"{path}: expected the {times(geometry.shape)} voxels of {geometry.path}, got {times(data.shape)}."
        )
    # A header with a new affine, as after resampling, no longer has the geometry of its file.
    stored = nifti.affine_mm(nifti.parse(geometry.block, path), path) if geometry.block else None
    if stored is None or not np.array_equal(stored, geometry.affine):
        return nifti.made(data.shape, geometry.affine, dtype, scaling, max(1, geometry.space))
    return nifti.restored(geometry.block, path, data.shape, dtype, scaling)
