"""A segmentation from a file to the grid of a model, by the preprocessing that training uses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prod9 import volumes
from prod9.data.labels import canonical_seg
from prod9.data.layouts import scan_dataset
from prod9.data.segmentations import check_classes
from prod9.errors import DataError
from prod9.pipelines.placement import GridPlacement, share_beyond
from prod9.volumes import VolumeFile

DEFAULT_SCHEME = "canonical"


@dataclass(frozen=True, eq=False)
class PlacedSegmentation:
    """Canonical labels on a model's grid: ``seg`` uint8 ``[H W D]``, ``affine`` 4×4, voxel to mm.

    found_by: what centred it: ``reference``, ``case`` (volumes beside the file) or ``field`` (of view).
    cut: share of the segmented voxels that lies beyond the grid.
    """

    seg: np.ndarray
    affine: np.ndarray
    found_by: str
    cut: float


def place_segmentation(
    path: Path,
    placement: GridPlacement,
    *,
    num_classes: int,
    reference: Path | None = None,
    label_scheme: str = "auto",
) -> PlacedSegmentation:
    """Read a segmentation of any orientation, size and spacing and bring it to the model's grid, nearest only.

    Training centres the head. reference: a volume of the head on the segmentation's voxels; without one the
    volumes of its case beside it are looked for, and without those its field of view counts as the head, so
    that a file on the model's own grid stays as it is. label_scheme: what its values mean; ``auto`` goes by
    the name of its case, else canonical. Raises DataError for values outside the scheme or of
    ``num_classes`` and above, volumes on other voxels, or when all that is segmented lies beyond the grid.
    """
    images, scheme = _its_case(path)
    if label_scheme != "auto":
        scheme = label_scheme
    file = volumes.read(path)
    labels = canonical_seg(file.data, scheme, path)
    check_classes(labels, num_classes, path)
    found_by = "reference" if reference is not None else "case" if images else "field"
    if reference is not None:
        images = {"reference": reference}
    heads = {name: volumes.read(image) for name, image in images.items()}
    for head in heads.values():
        _require_same_voxels(file, head)
    heads = heads or {"field": _field_of_view(file, placement)}
    placed = placement.place(heads, seg=VolumeFile(labels.astype(np.float32), file.header))
    assert placed.seg is not None
    cut = share_beyond(labels > 0, file.header, placed.affine, placement.grid)
    if labels.any() and not placed.seg.any():
        raise DataError(
            f"{path}: expected something segmented within the model's grid of {placement.grid} voxels, got all "
            f"of it beyond (the head was found by {found_by}); name the scan it belongs to as the reference."
        )
    return PlacedSegmentation(placed.seg, placed.affine, found_by, cut)


def _its_case(path: Path) -> tuple[dict[str, Path], str]:
    """Return the single-volume files of the case that ``path`` is the segmentation of, and its label scheme."""
    try:
        cases = scan_dataset(path.parent).cases
    except DataError:  # a folder of no known layout holds no case
        return {}, DEFAULT_SCHEME
    for case in cases:
        if case.seg is not None and case.seg.resolve() == path.resolve():
            images: Mapping[str, Path] = {} if case.channels else case.images
            return dict(images), case.label_scheme
    return {}, DEFAULT_SCHEME


def _require_same_voxels(seg: VolumeFile, head: VolumeFile) -> None:
    one, other = seg.header, head.header
    if one.shape != other.shape or not np.allclose(one.affine, other.affine, atol=1e-2):
        raise DataError(
            f"{one.path}: expected the voxel grid of {other.path}, {other.shape}, got {one.shape} or another "
            "affine; a segmentation lies on the voxels of its scan: resample it (nearest) or name its own scan."
        )


def _field_of_view(file: VolumeFile, placement: GridPlacement) -> VolumeFile:
    """Return a volume that is head throughout; a ramp, since one intensity throughout is refused."""
    ramp = np.linspace(1.0, 2.0, file.data.size, dtype=np.float32).reshape(file.data.shape)
    return VolumeFile(ramp + max(0.0, placement.intensity.lower), file.header)
