"""The part of a check that reads headers only: some thousand files per second."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prod9.data.cases import Case
from prod9.data.checking.findings import Finding, error, note, warning
from prod9.data.layouts.names import SEG
from prod9.errors import DataError
from prod9.files import sha256
from prod9.system.progress import Progress
from prod9.system.wording import plural
from prod9.volumes import VolumeHeader, cautions, looks_whole, read, read_header, signature

AFFINE_TOLERANCE = 1e-2
"""Largest difference (mm, and mm per voxel) between affines of one grid, as in training."""
LEAST_OVERLAP = 0.6
"""Part that the scans of a case must share: less, and they were not registered."""
_ANISOTROPY = 3.0
_SHOWN = 3


@dataclass
class Headers:
    """Headers of files that can be read: case → kind (modality or ``seg``) → header."""

    by_case: dict[str, dict[str, VolumeHeader]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def count(self, what: Callable[[VolumeHeader], str]) -> dict[str, int]:
        """Return how many volumes have each value of ``what``, the most frequent first."""
        found = Counter(what(h) for kinds in self.by_case.values() for h in kinds.values())
        return dict(found.most_common())


def sides(shape: Sequence[int]) -> str:
    """Return ``240×240×155``."""
    return "×".join(map(str, shape))


def millimetres(spacing: Sequence[float]) -> str:
    """Return ``1×1×6`` to a hundredth."""
    return "×".join(f"{round(mm, 2):g}" for mm in spacing)


def check_headers(cases: Sequence[Case], *, progress: Progress | None = None) -> Headers:
    """Read every header and compare those of a case, and of all cases."""
    headers = Headers()
    for done, case in enumerate(cases, start=1):
        kinds = headers.by_case.setdefault(case.case_id, {})
        for kind, path in _files(case):
            try:
                header = read_header(path, channel=case.channels.get(kind))
                known = {other.path for other in kinds.values()}
                if path not in known and not looks_whole(header):
                    # Reading it raises its exact error, if it has one.
                    read(path, channel=case.channels.get(kind), allow_non_finite=True)
            except (DataError, OSError) as problem:
                # The channels of one 4D file have the same error.
                if not any(f.case == case.case_id and f.message == str(problem) for f in headers.findings):
                    headers.findings.append(error("unreadable", str(problem), case.case_id))
                continue
            kinds[kind] = header
        headers.findings += [*_grid(case, kinds), *_fields(case, kinds), *_single_headers(case, kinds)]
        if progress is not None:
            progress(done, len(cases))
    headers.findings += [*_spacings(headers), *_orientations(headers), *_doubles(cases, headers)]
    return headers


def _files(case: Case) -> Iterator[tuple[str, Path]]:
    yield from case.images.items()
    if case.seg is not None:
        yield SEG, case.seg


def _grid(case: Case, kinds: dict[str, VolumeHeader]) -> Iterator[Finding]:
    if not kinds:
        return
    first, *others = kinds.values()
    for header in others:
        if header.shape != first.shape:
            got = f"{sides(header.shape)} voxels against {sides(first.shape)}"
        else:
            gap = float(np.abs(header.affine - first.affine).max())
            if gap <= AFFINE_TOLERANCE:
                continue
            got = f"affines that differ by up to {gap:.3g}"
        yield error(
            "grid",
            f"{header.path}: expected the voxel grid of {first.path}, got {got}; bring the case to one "
            "grid with `prod9 data preprocess`.",
            case.case_id,
        )


def _fields(case: Case, kinds: dict[str, VolumeHeader]) -> Iterator[Finding]:
    """Warn of a scan whose field of view lies beside that of the first; all of it that headers can tell."""
    images = [header for kind, header in kinds.items() if kind != SEG]
    for header in images[1:]:
        share = _shared_field(images[0], header)
        if share < LEAST_OVERLAP:
            yield unregistered(
                header.path, images[0].path, f"{share:.0%} of their fields of view", case.case_id
            )


def _shared_field(first: VolumeHeader, second: VolumeHeader) -> float:
    """Return the common part of two fields of view as boxes along RAS, as a share of the smaller one."""
    boxes = []
    for header in (first, second):
        ends = [(-0.5, side - 0.5) for side in header.shape]
        corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
        placed = corners @ header.affine[:3, :3].T + header.affine[:3, 3]
        boxes.append((placed.min(axis=0), placed.max(axis=0)))
    low, high = np.maximum(boxes[0][0], boxes[1][0]), np.minimum(boxes[0][1], boxes[1][1])
    smaller = min(float(np.prod(top - bottom)) for bottom, top in boxes)
    return float(np.prod(np.maximum(high - low, 0))) / smaller


def unregistered(path: Path, other: Path, what: str, case: str) -> Finding:
    """Return the warning for two scans of a case that do not lie on each other.

    Args:
        path: of the first scan.
        other: of the second.
        what: how much they share, in words.
        case: the name of the case.
    """
    return warning(
        "unregistered",
        f"{path}: expected to lie on {other}, got {what} in common; register the case with `prod9 data preprocess`.",
        case,
    )


def _single_headers(case: Case, kinds: dict[str, VolumeHeader]) -> Iterator[Finding]:
    for header in kinds.values():
        trailing = header.stored_shape[3:]
        if trailing and trailing == (1,) * len(trailing):
            stored = sides(header.stored_shape)
            yield note("axis", f"{header.path}: {stored} is read as {sides(header.shape)}.", case.case_id)
    found = [text for header in kinds.values() if (text := cautions(header).get("slice"))]
    if found:
        yield warning("slice", found[0], case.case_id)


def _orientations(headers: Headers) -> Iterator[Finding]:
    """Yield one warning for all files: a set that lacks the codes usually lacks them everywhere."""
    kinds = (header for kinds in headers.by_case.values() for header in kinds.values())
    found = [text for header in kinds if (text := cautions(header).get("orientation"))]
    if found:
        more = f" The same holds for {len(found) - 1} more." if len(found) > 1 else ""
        yield warning("orientation", found[0] + more)


def _spacings(headers: Headers) -> Iterator[Finding]:
    found: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for case, kinds in headers.by_case.items():
        for header in list(kinds.values())[:1]:
            found[tuple(round(mm, 2) for mm in header.ras_spacing)].append(case)
            longest, shortest = max(header.spacing), min(header.spacing)
            if longest / shortest > _ANISOTROPY:
                yield warning(
                    "anisotropic",
                    f"{header.path}: voxels of {millimetres(header.spacing)} mm are {longest / shortest:.1f} times as "
                    "long as wide; resampling cannot restore what lies between slices: choose data.spacing "
                    "with that in mind, or leave the case out.",
                    case,
                )
    if len(found) > 1:
        listed = ", ".join(
            f"{millimetres(mm)} mm in {len(cases)} ({cases[0]})" for mm, cases in found.items()
        )
        yield warning(
            "spacings", f"voxel sizes (along RAS) differ: {listed}; set data.spacing to resample them."
        )


def _doubles(cases: Sequence[Case], headers: Headers) -> Iterator[Finding]:
    """Find images of equal content; segmentations may be equal, for example all empty."""
    readable = {header.path for kinds in headers.by_case.values() for header in kinds.values()}
    owners = {path: case for case in cases for path in case.images.values() if path in readable}
    alike: dict[tuple[int, bytes], list[Path]] = defaultdict(list)
    for path in owners:
        alike[signature(path)].append(path)
    for group in alike.values():
        by_content: dict[str, list[Path]] = defaultdict(list)
        for path in group if len(group) > 1 else []:
            by_content[sha256(path)].append(path)
        for first, *others in by_content.values():
            for other in others:
                yield same_content(first, other, owners[other].case_id)


def same_content(first: Path, other: Path, case: str) -> Finding:
    """Return the error for two files that hold the same volume."""
    return error(
        "doubled", f"{other}: expected a volume of its own, got the content of {first}; remove one.", case
    )


def check_identity(cases: Sequence[Case]) -> Iterator[Finding]:
    """Find numbers of patients that are too small for a split."""
    patients = Counter(case.patient_id for case in cases)
    if len(patients) < _SHOWN:
        yield warning(
            "few",
            f"{plural(patients, 'patient')} cannot be divided into training, validation and test; add some, or set "
            "shares of data.split to 0.",
        )
