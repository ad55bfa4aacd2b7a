"""Brings a segmentation from a file to the grid of a model, with the preprocessing of training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prod9 import volumes
from prod9.data.labels import canonical_seg, doubt
from prod9.data.layouts.find import case_of
from prod9.data.seg_loss import Kept, describe_loss
from prod9.data.stores.segmentations import check_classes
from prod9.errors import ConfigError, DataError
from prod9.pipelines.placement import GridPlacement, Placed, same_grid, share_beyond
from prod9.volumes import VolumeFile

DEFAULT_SCHEME = "canonical"
CUT = 0.001
"""Share of a head or a segmentation beyond the grid that is worth a warning."""


@dataclass(frozen=True, eq=False)
class PlacedSegmentation:
    """Canonical labels on a model's grid.

    Attributes:
        seg: uint8 ``[H W D]``.
        affine: 4×4, voxel to mm.
        found_by: what centred it: ``reference``, ``case`` (volumes beside the file), ``sources`` or ``field`` (of
            view).
        cut: share of the segmented voxels that lies beyond the grid.
        images: source images float32 ``[N H W D]`` in [0, 1] beside it, or None.
        has_seg: False for images alone; ``seg`` is background then.
        kept: per label, how much of what is not cut remains on the voxels of the grid.
        space: NIfTI's code of the space of the affine.
        doubt: another meaning that the values of the file may have, if their scheme was guessed.
    """

    seg: np.ndarray
    affine: np.ndarray
    found_by: str
    cut: float
    images: np.ndarray | None = None
    has_seg: bool = True
    kept: Mapping[int, Kept] = field(default_factory=dict)
    space: int = 1
    doubt: str | None = None

    def warnings(self, *, remedy: str) -> Iterator[str]:
        """Yield what may make it another segmentation than the user means. remedy: how to name the scan of the head."""
        if not self.seg.any():
            yield "nothing is segmented: the volumes will show a brain without lesion"
        elif self.found_by == "field":
            yield (
                "no scan lies beside it, so its field of view is centred on the grid, where training centres the "
                f"head; {remedy} does better"
            )
        if self.cut > CUT:
            yield f"{self.cut:.1%} of the segmented voxels lie beyond the model's grid and are lost"
        if self.doubt is not None:
            yield self.doubt
        loss = describe_loss(self.kept)
        if loss is not None:
            yield f"some of it falls between the voxels of the model ({loss})"


def place_segmentation(
    path: Path,
    placement: GridPlacement,
    *,
    num_classes: int,
    reference: Path | None = None,
    label_scheme: str = "auto",
    sources: Mapping[str, Path] | None = None,
    slots: Sequence[str] = (),
) -> PlacedSegmentation:
    """Read a segmentation of any orientation, size and spacing and bring it to the model's grid (nearest neighbour).

    Training centres the head, so the head is needed: of ``reference``, of ``sources``, or of the volumes of its case
    beside the file. Without any of them the field of view counts as the head, so that a file on the model's own grid
    stays as it is. Raises DataError for values outside of the scheme or of ``num_classes`` and above, volumes on other
    voxels, or when nothing segmented is left on the grid.

    Args:
        path: the segmentation.
        placement: the model's grid.
        num_classes: classes that the model has, background included.
        reference: a volume of the head on the segmentation's voxels.
        label_scheme: what the values mean; ``auto`` decides by the name of its case, else canonical.
        sources: see :func:`place_sources`.
        slots: see there.
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
    if sources:
        found_by, images = "sources", dict(sources)
    heads = {name: volumes.read(image) for name, image in images.items()}
    for head in heads.values():
        _require_same_voxels(file, head)
    heads = heads or {"field": _field_of_view(file, placement)}
    placed = placement.place(heads, seg=VolumeFile(labels.astype(np.float32), file.header))
    assert placed.seg is not None
    cut = share_beyond(labels > 0, file.header, placed.affine, placement.grid)
    if labels.any() and not placed.seg.any():
        raise DataError(_nothing_left(path, placement, found_by, placed))
    shown = _in_slots(placed, sources, slots) if sources else None
    unclear = (
        doubt(np.unique(np.rint(file.data)).astype(int).tolist(), scheme) if label_scheme == "auto" else None
    )
    return PlacedSegmentation(
        placed.seg,
        placed.affine,
        found_by,
        cut,
        shown,
        kept=placed.kept,
        space=file.header.space,
        doubt=unclear,
    )


def place_sources(
    sources: Mapping[str, Path], placement: GridPlacement, *, slots: Sequence[str]
) -> PlacedSegmentation:
    """Bring source images of one voxel grid to the model's grid, without a segmentation.

    Raises ConfigError for other modalities or none, DataError for volumes on different voxels.

    Args:
        sources: modality → file.
        placement: the model's grid.
        slots: the modalities that the model takes; those without a file stay 0.
    """
    if not sources:
        raise ConfigError(
            f"--source: expected at least one of {', '.join(slots) or 'nothing'}, got none; name it."
        )
    placed = placement.place({name: volumes.read(path) for name, path in sources.items()})
    nothing = np.zeros(placement.grid, dtype=np.uint8)
    shown = _in_slots(placed, sources, slots)
    return PlacedSegmentation(
        nothing, placed.affine, "sources", 0.0, shown, has_seg=False, space=placed.reference.space
    )


def _nothing_left(path: Path, placement: GridPlacement, found_by: str, placed: Placed) -> str:
    """Return why nothing of a segmentation is left on the grid, and what to do about it."""
    if not placed.kept:
        return (
            f"{path}: expected something segmented within the model's grid of {placement.grid} voxels, got all "
            f"of it beyond (the head was found by {found_by}); name the scan it belongs to as the reference."
        )
    size = " × ".join(f"{mm:.3g}" for mm in np.linalg.norm(placed.affine[:3, :3], axis=0))
    return (
        f"{path}: expected something segmented that is as large as a voxel of the model, {size} mm, got only parts "
        f"that fall between its voxels ({describe_loss(placed.kept)}); use a model of smaller voxels, or "
        "draw it larger."
    )


def _in_slots(placed: Placed, sources: Mapping[str, Path], slots: Sequence[str]) -> np.ndarray:
    unknown = [name for name in sources if name not in slots]
    if unknown:
        raise ConfigError(
            f"--source: expected {', '.join(slots) or 'none'} for this model, got {', '.join(unknown)}; leave it out."
        )
    empty = np.zeros(placed.images[next(iter(sources))].shape, dtype=np.float32)
    return np.stack([placed.images.get(name, empty) for name in slots])


def _its_case(path: Path) -> tuple[dict[str, Path], str]:
    """Return the single-volume files of the case that ``path`` is the segmentation of, and its label scheme."""
    case = case_of(path)
    if case is None:
        return {}, DEFAULT_SCHEME
    return {} if case.channels else dict(case.images), case.label_scheme


def _require_same_voxels(seg: VolumeFile, head: VolumeFile) -> None:
    one, other = seg.header, head.header
    if not same_grid(one, other):
        raise DataError(
            f"{one.path}: expected the voxel grid of {other.path}, {other.shape}, got {one.shape} or another "
            "affine; a segmentation lies on the voxels of its scan: resample it (nearest) or name its own scan."
        )


def _field_of_view(file: VolumeFile, placement: GridPlacement) -> VolumeFile:
    """Return a volume that is head throughout; a ramp, since one intensity throughout is refused."""
    ramp = np.linspace(1.0, 2.0, file.data.size, dtype=np.float32).reshape(file.data.shape)
    return VolumeFile(ramp + max(0.0, placement.intensity.lower), file.header)
