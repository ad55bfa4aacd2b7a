"""One case: its scans registered to each other, brought to the atlas, stripped, and written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.cases import Case
from prod9.data.checking.headers import LEAST_OVERLAP
from prod9.data.labels import canonical_seg
from prod9.data.layouts.names import SEG, identify
from prod9.data.registration import stripping
from prod9.data.registration.atlas import Atlas
from prod9.data.registration.geometry import (
    Array,
    Placed,
    apply,
    filled_around,
    foreground,
    masked_head,
    overlap,
    resample,
)
from prod9.data.registration.quality import write_picture
from prod9.data.registration.record import CaseRecord, ScanRecord
from prod9.data.registration.rigid import WORKING_MM, Rigid, register
from prod9.errors import DataError
from prod9.files import sha256
from prod9.volumes import VolumeHeader, read, write

SUFFIXES = {"T1": "t1n", "T1ce": "t1c", "T2": "t2w", "FLAIR": "t2f", SEG: "seg"}
"""Ends of names, as in BraTS since 2023; a modality of another name keeps it."""
_MASK = "brain_mask"
_NEGATIVE = 0.05
_COVERED = 0.6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How cases are made.

    Attributes:
        atlas: where to.
        stripping: how the brain is found.
        reference: modality that the others are registered to; None takes T1ce, else T1, else the first.
        seg_on: modality on whose voxels segmentations are drawn; None takes that with the same voxels.
        spacing_mm: of the results.
    """

    atlas: Atlas
    stripping: stripping.Stripping
    reference: str | None = None
    seg_on: str | None = None
    spacing_mm: float = 1.0

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values, for records."""
        return {
            "atlas": self.atlas.name,
            "atlas_sha256": self.atlas.digest,
            "stripping": self.stripping.describe(),
            "reference": self.reference,
            "seg_on": self.seg_on,
            "spacing_mm": self.spacing_mm,
        }


@dataclass(eq=False)
class _Scan:
    volume: Placed
    header: VolumeHeader
    to_reference: Array
    found: Rigid | None = None
    overlap: float = 1.0


def preprocess_case(case: Case, folder: Path, settings: Settings) -> CaseRecord:
    """Write the results of ``case`` into ``folder``, which is empty, and return the record.

    Raises DataError, with the file, when a step fails: scans that do not align, a mask that is none, a segmentation
    on an unknown grid.
    """
    scans = {name: _load(case, name) for name in case.images}
    reference = _reference(case, settings)
    fixed = scans[reference].volume
    inside = foreground(fixed.data)
    for name, scan in scans.items():
        if name != reference:
            _register(scan, fixed, inside, case.images[name], case.images[reference])
    found = _to_atlas(fixed, settings.atlas, case.images[reference])
    scans[reference].found = found
    to_atlas = np.linalg.inv(found.matrix)
    brain = _brain(case, settings, fixed, to_atlas)
    shape, affine = settings.atlas.shape, settings.atlas.affine
    images = {}
    for name, scan in scans.items():
        back = np.linalg.inv(to_atlas @ scan.to_reference)
        images[name] = moved_scan(scan.volume, shape, affine, back, brain=brain)
        write(folder / _file_name(case, name), images[name], affine)
    if brain is not None:
        write(folder / f"{case.case_id}-{_MASK}.nii.gz", brain, affine, dtype=np.uint8)
    seg = _write_seg(case, folder, settings, scans, to_atlas) if case.seg is not None else None
    write_picture(folder, images, settings.atlas)
    mask = settings.stripping.mask_file(case.case_id)
    voxel_ml = settings.spacing_mm**3 / 1000
    record = CaseRecord(
        case_id=case.case_id,
        reference=reference,
        settings=settings.describe(),
        brain_ml=None if brain is None else round(float(brain.sum()) * voxel_ml, 1),
        mask_sha256=None if mask is None else sha256(mask),
        scans={name: _record(case, name, scan, to_atlas) for name, scan in scans.items()},
        seg=seg,
    )
    record.write(folder)
    return record


def _load(case: Case, name: str) -> _Scan:
    path = case.images[name]
    file = read(path, channel=case.channels.get(name))
    data, top = file.data, float(np.percentile(file.data, 99.5))
    if data.min() == data.max():
        raise DataError(
            f"{path}: expected different intensities, got {data.flat[0]:g} throughout; leave it out."
        )
    if float(data.min()) < -_NEGATIVE * max(top, 0.0):
        raise DataError(
            f"{path}: expected intensities as a scanner writes them, 0 and above, got {data.min():g} to "
            f"{data.max():g}; give the scan before any normalisation."
        )
    return _Scan(Placed(np.maximum(data, 0), file.header.affine), file.header, np.eye(4))


def _reference(case: Case, settings: Settings) -> str:
    wanted = settings.reference
    if wanted is None:
        return next((name for name in ("T1ce", "T1") if name in case.images), next(iter(case.images)))
    if wanted not in case.images:
        raise DataError(
            f"{case.case_id}: expected a scan of --reference {wanted}, got {', '.join(case.images)}; choose one "
            "of them."
        )
    return wanted


def _register(scan: _Scan, fixed: Placed, inside: Array, path: Path, reference: Path) -> None:
    """Register ``scan`` to ``fixed``; DataError if they do not lie on each other afterwards."""
    try:
        found = register(fixed, scan.volume, working_mm=_working_mm(fixed))
    except DataError as problem:
        raise DataError(f"{path} and {reference}: {problem}; check that both show the patient.") from problem
    scan.to_reference, scan.found = np.linalg.inv(found.matrix), found
    mask = Placed(foreground(scan.volume.data), scan.volume.affine)
    shape, affine = fixed.data.shape, fixed.affine
    moved = resample(mask, shape, affine, found.matrix, order=0) > 0.5
    everywhere = Placed(np.ones(mask.data.shape, np.float32), mask.affine)
    seen = resample(everywhere, shape, affine, found.matrix, order=0) > 0.5
    scan.overlap = overlap(inside, moved, within=seen)
    if scan.overlap < LEAST_OVERLAP:
        raise DataError(
            f"{path}: expected to be registered to {reference}, got an overlap of {scan.overlap:.0%} after the search; "
            "check that both show the same patient and that their headers say how they lie, or leave this one out."
        )


def _to_atlas(fixed: Placed, atlas: Atlas, path: Path) -> Rigid:
    """Register the reference scan to the atlas; the result takes mm of the atlas to mm of the scan."""
    try:
        found = register(atlas.scan, fixed, mask=atlas.compared, working_mm=_working_mm(fixed))
    except DataError as problem:
        raise DataError(
            f"{path} and the atlas {atlas.name}: {problem}; check that it shows a head."
        ) from problem
    head = Placed(foreground(fixed.data), fixed.affine)
    points = apply(atlas.scan.affine, np.argwhere(atlas.brain)[::50].astype(float))
    voxels = np.rint(apply(np.linalg.inv(fixed.affine) @ found.matrix, points)).astype(int)
    seen = ((voxels >= 0) & (voxels < fixed.data.shape)).all(axis=1)
    covered = float(head.data[tuple(voxels[seen].T)].mean()) if seen.any() else 0.0
    if covered < _COVERED:
        raise DataError(
            f"{path}: expected to be registered to the atlas {atlas.name}, got {covered:.0%} of its brain within the "
            "head after the search; check that it shows a head and that its header says how it lies."
        )
    return found


def _working_mm(fixed: Placed) -> float:
    return float(np.clip(fixed.spacing.min(), WORKING_MM, 2 * WORKING_MM))


def _brain(case: Case, settings: Settings, fixed: Placed, to_atlas: Array) -> Array | None:
    """Return the brain on the grid of the results; None if nothing is stripped."""
    shape, affine, back = settings.atlas.shape, settings.atlas.affine, np.linalg.inv(to_atlas)
    path = settings.stripping.mask_file(case.case_id)
    if path is not None:
        mask = stripping.given_mask(path, fixed)
        return stripping.to_grid(mask, fixed.affine, shape, affine, back)
    if settings.stripping.command:
        scan = Placed(resample(fixed, shape, affine, back, order=3), affine)
        return stripping.run_command(settings.stripping.command, scan)
    return None


def moved_scan(
    scan: Placed, shape: tuple[int, ...], affine: Array, transform: Array, *, brain: Array | None
) -> Array:
    """Return a scan on another grid, with 0 outside its brain, or its head, and only there.

    0 is how later steps know the background. The border of a scan that was masked before is not mixed with that
    background, and what cubic interpolation swings beyond the border does not count as head.

    Args:
        scan: with intensities of 0 and above.
        shape: of the grid.
        affine: 4×4, its voxels to mm.
        transform: mm of the grid to mm of the scan.
        brain: bool of ``shape``; None takes nothing off.
    """
    head = None if brain is not None else masked_head(scan.data)
    if head is not None:
        scan = Placed(filled_around(scan.data, head), scan.affine)
        brain = stripping.to_grid(head, scan.affine, shape, affine, transform)
    image = resample(scan, shape, affine, transform, order=3)
    if brain is None or not brain.any():
        return image
    least = 1e-3 * float(np.percentile(image[brain], 99.5))
    return np.where(brain, np.maximum(image, max(least, 1e-6)), 0).astype(np.float32)


def _write_seg(
    case: Case, folder: Path, settings: Settings, scans: Mapping[str, _Scan], to_atlas: Array
) -> dict[str, str]:
    """Write the segmentation, moved with the scan that it was drawn on."""
    assert case.seg is not None
    file = read(case.seg)
    # The result is a folder of files; names without a year say no scheme: values are then read as canonical ones.
    canonical = canonical_seg(file.data, case.label_scheme, case.seg)
    labels = canonical if identify(case.case_id).year is None else np.rint(file.data)
    if settings.seg_on is not None and settings.seg_on not in scans:
        raise DataError(
            f"{case.seg}: expected a scan of --seg-on {settings.seg_on}, got {', '.join(scans)}; choose one of them."
        )
    candidates = [settings.seg_on] if settings.seg_on else _by_preference(case, settings)
    on = next((name for name in candidates if _same_grid(file.header, scans[name].header)), None)
    if on is None:
        raise DataError(
            f"{case.seg}: expected the voxels of {' or '.join(candidates)}, got others; name the scan that it was "
            "drawn on with --seg-on, or remove the segmentation."
        )
    back = np.linalg.inv(to_atlas @ scans[on].to_reference)
    grid = settings.atlas.shape, settings.atlas.affine
    moved = resample(Placed(labels, file.header.affine), *grid, back, order=0)
    if labels.any() and not moved.any():
        raise DataError(
            f"{case.seg}: expected labels within the atlas, got all of them beside it; check the file."
        )
    write(folder / _file_name(case, SEG), moved, settings.atlas.affine, dtype=np.uint8)
    return {"source": str(case.seg.resolve()), "sha256": sha256(case.seg), "on": on}


def _by_preference(case: Case, settings: Settings) -> list[str]:
    first = _reference(case, settings)
    return [first, *(name for name in case.images if name != first)]


def _same_grid(first: VolumeHeader, second: VolumeHeader) -> bool:
    return first.shape == second.shape and bool(np.allclose(first.affine, second.affine, atol=1e-2))


def _record(case: Case, name: str, scan: _Scan, to_atlas: Array) -> ScanRecord:
    channel = case.channels.get(name)
    found = scan.found
    assert found is not None
    return ScanRecord(
        source=str(case.images[name].resolve()),
        sha256=sha256(case.images[name]),
        channel=None if channel is None else channel.index,
        shape=scan.header.shape,
        affine=scan.header.affine.tolist(),
        to_atlas=(to_atlas @ scan.to_reference).tolist(),
        to_reference=scan.to_reference.tolist(),
        overlap=round(scan.overlap, 4),
        information=(round(found.before, 4), round(found.information, 4)),
    )


def _file_name(case: Case, kind: str) -> str:
    return f"{case.case_id}-{SUFFIXES.get(kind, kind)}.nii.gz"
