"""From files to network input and back, in one place for training, inference, evaluation and planning.

The head and the bounds of the intensities are found on raw voxels; then volumes are reoriented, resampled, and padded
or cropped to the grid. The result records these steps and can undo them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from monai import transforms as mt
from monai.data.meta_tensor import MetaTensor

from prod9 import volumes
from prod9.data.intensity import IntensityScaling, Scale, bounding_box
from prod9.data.seg_loss import Kept, kept_labels
from prod9.data.window import Frame, Window, layers_of
from prod9.errors import DataError
from prod9.volumes import VolumeFile, VolumeHeader

TOLERANCE = 1e-2
"""Millimetres by which the affines of one voxel grid may differ."""

_LOG = logging.getLogger("prod9")
_HALF = 0.499
"""Least share of head of a resampled voxel that is head; below one half, so that rounding does not decide ties."""
_TRACE = 1e-3
"""Least share of head at which the intensity of the head can be separated from that of its surroundings."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A head on the model's grid, and the way back to the voxels of the first file, the reference.

    Attributes:
        images: name → float32 ``[H W D]`` in [0, 1], 0 outside the volume's own head.
        inside: bool ``[H W D]``, True where any volume has head.
        seg: uint8 ``[H W D]``, labels as in the file, or None.
        kept: what the grid keeps of each label.
        affine: 4×4, voxel of the grid to mm.
        extent: voxels of the head's box before it was fitted to the grid.
        cut: share of the head outside the grid.
        reference: header of the reference.
        head: ``inside`` on the voxels and in the axes of the reference.
        low: raw intensity of the reference that becomes 0.
        high: raw intensity of the reference that becomes 1.
        raw: voxels of the reference.
        window: place of the grid.
    """

    images: dict[str, np.ndarray]
    inside: np.ndarray
    seg: np.ndarray | None
    kept: Mapping[int, Kept]
    affine: np.ndarray
    extent: tuple[int, int, int]
    cut: float
    reference: VolumeHeader
    head: np.ndarray
    low: float
    high: float
    raw: np.ndarray
    window: Window

    def restore(self, unit: np.ndarray, *, difference: bool = False) -> np.ndarray:
        """Return ``unit [H W D]``, in [0, 1] on the grid, as float32 on the voxels of the reference.

        Axes and intensities are those of the reference, and so are the voxels outside the head. A ``difference`` of
        intensities is scaled but not shifted, and 0 outside the head.
        """
        whole = self.lay_back(unit)
        raw = whole * (self.high - self.low) + (0.0 if difference else self.low)
        return np.where(self.head, raw, 0.0 if difference else self.raw).astype(np.float32)

    def lay_back(self, data: np.ndarray) -> np.ndarray:
        """Return ``data [H W D]`` of the grid on the voxels and in the axes of the reference; 0 outside the grid.

        Inside the head, only voxels of the head are interpolated, so that its border is not mixed with the background.
        """
        whole, frame = self.window.paste(data), self.window.frame
        if not frame.resampled:
            return volumes.from_ras(whole, self.reference)
        inside = self.window.paste(self.inside.astype(np.float32))
        moved = frame.to_file(np.stack([whole * inside, inside, whole]))
        head_only, share, plain = (volumes.from_ras(layer, self.reference) for layer in moved)
        filled = np.divide(head_only, share, out=np.zeros_like(plain), where=share > _TRACE)
        return np.where(self.head & (share > _TRACE), filled, plain)


@dataclass(kw_only=True, eq=False)
class GridPlacement:
    """Brings files to a model's grid: RAS, intensities, spacing, box of all heads, pad or crop.

    Attributes:
        spacing: mm to resample to; None keeps that of the file.
        grid: voxels ``(H, W, D)``.
        intensity: how raw values become [0, 1].
        crop: False centres the whole field of view, as for MedMNIST3D, instead of the head's box.

    Example:
        >>> import numpy as np
        >>> from prod9 import volumes
        >>> from prod9.data.intensity import IntensityScaling
        >>> from prod9.data.placement import GridPlacement
        >>> volumes.write("t1.nii", np.pad(np.arange(1, 513).reshape(8, 8, 8), 4), np.diag([2, 2, 2, 1]))
        >>> scan, scaling = volumes.read("t1.nii"), IntensityScaling("percentile", lower=0, upper=100)
        >>> placed = GridPlacement(spacing=None, grid=(12, 12, 12), intensity=scaling).place({"T1": scan})
        >>> placed.images["T1"].shape
        (12, 12, 12)
        >>> bool(np.allclose(placed.restore(placed.images["T1"]), scan.data, atol=1e-3))
        True
    """

    spacing: tuple[float, float, float] | None
    grid: tuple[int, int, int]
    intensity: IntensityScaling
    crop: bool = True
    _named_background: bool = field(default=False, init=False)

    @classmethod
    def from_header(cls, data: Mapping[str, Any]) -> "GridPlacement":
        """Build from the ``data`` part of a checkpoint's header."""
        spacing = data["spacing"]
        return cls(
            spacing=None if spacing is None else tuple(spacing),
            grid=tuple(data["grid"]),
            intensity=IntensityScaling(**data["intensity"]),
            crop=data.get("crop_foreground", True),
        )

    def place(
        self,
        files: Mapping[str, VolumeFile],
        *,
        seg: VolumeFile | None = None,
        multiple_of: int | None = None,
        resample: bool = False,
    ) -> Placed:
        """Bring ``files`` of one patient to the model's grid; the first is the reference.

        Files are assumed to be registered: nothing is moved.

        Args:
            files: name → volume, on the voxels of the reference.
            seg: labels on the voxels of the reference, resampled by nearest neighbours.
            multiple_of: a head larger than the grid gets the voxels that it needs, a multiple of this along each
                axis; None cuts it to the grid.
            resample: accept ``files`` on other voxels than the reference, and resample them by their affines.

        Raises:
            DataError: without files, for a volume without a head or of one intensity, one on other voxels unless
                ``resample``, and one that would be too large at the model's spacing.
        """
        if not files:
            raise DataError("expected at least one volume to bring to the model's grid, got none; name one.")
        reference = next(iter(files.values()))
        if not resample:
            require_same_grid([file.header for file in files.values()])
        scales = {name: self._scale(file) for name, file in files.items()}
        units, heads = zip(
            *(on_voxels(file, scales[name], reference.header) for name, file in files.items()), strict=True
        )
        head = np.logical_or.reduce(list(heads))
        units, inside, frame = self._on_spacing(units, heads, reference.header)
        if not inside.any():
            spacing = " × ".join(f"{side:g}" for side in np.round(self.spacing or (), 2))
            raise DataError(
                f"{reference.header.path}: expected a head larger than a voxel of {spacing} mm, got "
                "one that vanishes between the voxels; leave the volume out."
            )
        box = bounding_box(inside) if self.crop else [slice(0, side) for side in frame.shape]
        window = Window.around(frame, box, self.grid, multiple_of=multiple_of)
        labels, kept = (None, {}) if seg is None else self._place_seg(seg, window)
        bounds = scales[next(iter(files))]
        extent = [s.stop - s.start for s in box]
        return Placed(
            images={name: window.cut(unit) for name, unit in zip(files, units, strict=True)},
            inside=window.cut(inside),
            seg=labels,
            kept=kept,
            affine=window.affine,
            extent=(extent[0], extent[1], extent[2]),
            cut=share_beyond(head, reference.header, window.affine, window.sides),
            reference=reference.header,
            head=head,
            low=float(bounds.low),
            high=float(bounds.high),
            raw=reference.data,
            window=window,
        )

    def _scale(self, file: VolumeFile) -> Scale:
        scale = self.intensity.scale(file.data, file.header.path)
        if (
            self.intensity.mode == "percentile"
            and not scale.background.is_zero
            and not self._named_background
        ):
            self._named_background = True  # logged once, since it is the same in the whole cohort
            _LOG.warning(
                "%s: the background is %s, not 0; it is taken as background in this and all other volumes.",
                file.header.path,
                scale.background,
            )
        return scale

    def _on_spacing(
        self, units: Sequence[np.ndarray], heads: Sequence[np.ndarray], header: VolumeHeader
    ) -> tuple[np.ndarray, np.ndarray, Frame]:
        """Return units float32 ``[N H W D]`` and head bool ``[H W D]`` at the model's spacing, and their frame."""
        if all(np.array_equal(head, heads[0]) for head in heads[1:]):
            heads = heads[:1]  # skull-stripped data sets have one head for all volumes: resample it once
        turned, shares = (
            np.stack([volumes.to_ras(data, header.affine)[0] for data in group], dtype=np.float32)
            for group in (units, heads)
        )
        frame = Frame.of_file(header)
        if self.spacing is not None:
            voxels = np.linalg.norm(frame.affine[:3, :3], axis=0).tolist()
            # Refuses volumes that would be too large.
            volumes.resampled_shape(frame.shape, voxels, self.spacing, path=header.path)
            layers = layers_of(np.concatenate([turned, shares]), frame.affine)
            moved = cast(MetaTensor, self._spacing("bilinear")(layers))
            affine, moved = moved.affine.numpy().astype(np.float64), np.asarray(moved)
            if moved.shape[1:] != frame.shape or not np.allclose(affine, frame.affine, atol=1e-3):
                turned, shares = moved[: len(turned)], moved[len(turned) :]
                frame = replace(frame, shape=moved.shape[1:], affine=affine, resampled=True)
        units_within, inside = _within_head(turned, shares)
        return units_within, np.logical_or.reduce(inside), frame

    def _spacing(self, mode: str) -> mt.Spacing:
        return mt.Spacing(pixdim=cast(Sequence[float], self.spacing), mode=mode, dtype=np.float32)

    def _place_seg(self, seg: VolumeFile, window: Window) -> tuple[np.ndarray, dict[int, Kept]]:
        turned, _ = volumes.to_ras(seg.data, seg.header.affine)
        if window.frame.resampled:
            layers = layers_of(turned[None], window.frame.file_affine)
            turned = np.asarray(self._spacing("nearest")(layers))[0]
        placed = window.cut(turned).astype(np.uint8)
        return placed, kept_labels(seg, placed, window.affine)


def on_voxels(file: VolumeFile, scale: Scale, reference: VolumeHeader) -> tuple[np.ndarray, np.ndarray]:
    """Return unit float32 and head bool of a file, ``[H W D]`` on the voxels of ``reference``, in its axes."""
    unit, head = scale.to_unit(file.data), scale.head
    if same_grid(file.header, reference):
        return unit, head
    moved = np.asarray(
        mt.SpatialResample(mode="bilinear", padding_mode="zeros")(
            layers_of(np.stack([unit, head.astype(np.float32)]), file.header.affine),
            dst_affine=torch.from_numpy(reference.affine),
            spatial_size=reference.shape,
        )
    )
    units, inside = _within_head(moved[:1], moved[1:])
    return units[0], inside[0]


def _within_head(units: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return resampled units float32 ``[N H W D]``, and bool ``[N or 1 H W D]``, True in the head.

    Before resampling, units were 0 outside the head; dividing by ``shares``, the resampled heads as float
    ``[N or 1 H W D]``, removes the background from the mean again.
    """
    inside = shares >= _HALF
    spread = np.broadcast_to(shares, units.shape)
    result = np.divide(units, spread, out=np.zeros(units.shape, np.float32), where=spread >= _HALF)
    return result.clip(0.0, 1.0, out=result), inside


def require_same_grid(
    headers: Sequence[VolumeHeader],
    *,
    remedy: str = "register them first, or pass --resample if they are registered and only the voxels differ",
) -> None:
    """Refuse volumes that are not on the voxels of the first (DataError naming both files)."""
    first = headers[0]
    for header in headers:
        if same_grid(header, first):
            continue
        got = f"{header.shape} or another affine"
        if _in_other_order(header, first):
            got = f"the same voxels stored in another order, {header.orientation} instead of {first.orientation}"
        raise DataError(
            f"{header.path}: expected the voxel grid of {first.path}, {first.shape}, got {got}; {remedy}."
        )


def same_grid(one: VolumeHeader, other: VolumeHeader) -> bool:
    """Return whether two volumes are on the same voxels, within :data:`TOLERANCE`."""
    return one.shape == other.shape and np.allclose(one.affine, other.affine, atol=TOLERANCE)


def _in_other_order(one: VolumeHeader, other: VolumeHeader) -> bool:
    """Return whether the axes of one volume are those of another, mirrored or exchanged."""
    if sorted(one.shape) != sorted(other.shape) or one.orientation == other.orientation:
        return False
    corners = [
        np.array(
            [header.affine @ (*place, 1) for place in product(*((0, side - 1) for side in header.shape))]
        )
        for header in (one, other)
    ]
    first, second = (sorted(np.round(one[:, :3], 2).tolist()) for one in corners)
    return np.allclose(first, second, atol=2 * TOLERANCE + 0.01)


def share_beyond(
    head: np.ndarray, header: VolumeHeader, grid_affine: np.ndarray, grid: Sequence[int]
) -> float:
    """Return the share of the True voxels of ``head`` whose centres lie outside the grid.

    Args:
        head: bool ``[H W D]`` on the voxels of a file.
        header: of that file.
        grid_affine: 4×4, voxel of the grid to mm.
        grid: voxels of the grid.
    """
    found = np.argwhere(head)
    if not len(found):
        return 0.0
    to_grid = np.linalg.inv(grid_affine) @ header.affine
    places = found @ to_grid[:3, :3].T + to_grid[:3, 3]
    outside = ((places < -0.5) | (places > np.asarray(grid) - 0.5)).any(1)
    return float(cast(np.ndarray, outside).mean())
