"""The deep part of a check: read every voxel, verify checksums, and compute statistics."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prod9.data.cases import Case
from prod9.data.checking.findings import Finding, error, note, warning
from prod9.data.checking.headers import LEAST_OVERLAP, same_content, unregistered
from prod9.data.checking.thumbnails import Thumbnail, slices
from prod9.data.intensity import find_background
from prod9.data.labels import canonical_seg
from prod9.data.layouts.names import MODALITIES
from prod9.errors import DataError, Prod9Error
from prod9.system.progress import Progress
from prod9.volumes import VolumeFile, read, read_channels, to_ras

PERCENTILES = (0.0, 0.5, 50.0, 99.5, 100.0)
BINS = 48
MAX_THUMBNAILS = 60
"""Cases that a page shows: it stays below a few MB."""
_MIN_BACKGROUND = 0.01
_COARSE = 4
_WHOLE = 0.98
"""Share of voxels from which a head is the whole volume: its scan has noise around it, and tells nothing."""


@dataclass(frozen=True)
class ImageStats:
    """Statistics of one volume; its foreground is everything that is not background.

    Attributes:
        percentiles: of the foreground, at ``PERCENTILES``.
        mean: of the foreground.
        deviation: standard deviation of the foreground.
        foreground: its share of all voxels.
        box: sides of its box along the axes of RAS, in voxels.
        box_mm: the same in mm.
        histogram: counts of the foreground in ``BINS`` equal bins from its 0.5th to its 99.5th percentile.
        background: description of the background; None where it is 0, as usual.
    """

    percentiles: tuple[float, ...]
    mean: float
    deviation: float
    foreground: float
    box: tuple[int, int, int]
    box_mm: tuple[float, float, float]
    histogram: tuple[int, ...]
    background: str | None = None


@dataclass
class CaseVoxels:
    """Statistics and findings of one case.

    Attributes:
        case_id: of the case.
        images: statistics by modality.
        labels_ml: canonical label → millilitres.
        seg_values: label values in the file.
        digests: hashes of the voxels by file.
        findings: what is wrong with its files.
        scheme: what the labels of its segmentation mean, by the name of a label scheme.
        thumbnail: small pictures of its scans.
    """

    case_id: str
    images: dict[str, ImageStats] = field(default_factory=dict)
    labels_ml: dict[int, float] = field(default_factory=dict)
    seg_values: tuple[int, ...] = ()
    digests: dict[Path, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    scheme: str | None = None
    thumbnail: Thumbnail | None = None


def read_cases(
    cases: Sequence[Case], *, num_workers: int = 1, progress: Progress | None = None
) -> Iterator[CaseVoxels]:
    """Read ``cases`` in order, ``num_workers`` at a time; decompression releases the interpreter lock."""
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for done, result in enumerate(pool.map(read_case, cases), start=1):
                if progress is not None:
                    progress(done, len(cases))
                yield result
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_case(case: Case) -> CaseVoxels:
    """Read all files of ``case``; an error in one does not hide errors in the others."""
    result, scans, heads = CaseVoxels(case.case_id), {}, list[tuple[Path, np.ndarray]]()
    for path in dict.fromkeys(case.images.values()):
        kinds = [kind for kind, file in case.images.items() if file == path]
        try:
            volumes = read_channels(path, [case.channels.get(kind) for kind in kinds], allow_non_finite=True)
        except (DataError, OSError) as problem:
            result.findings.append(error("unreadable", str(problem), case.case_id))
            continue
        for kind, volume in zip(kinds, volumes.values(), strict=True):
            if _add_image(result, kind, volume, alone=len(kinds) == 1):
                data = np.asarray(to_ras(volume.data, volume.header.affine)[0])
                scans[kind] = (data, result.images[kind].percentiles[3])
            if not any(finding.code in ("non-finite", "constant") for finding in result.findings):
                _compare_heads(result, heads, volume)
    labels = None if case.seg is None else _add_seg(result, case)
    if labels is not None and scans:
        _compare_lesion(result, case, labels, next(iter(scans.items())))
    order = sorted(scans, key=lambda kind: (*MODALITIES, kind).index(kind))
    result.thumbnail = slices({kind: scans[kind] for kind in order}, labels)
    return result


def find_doubles(results: Sequence[CaseVoxels]) -> Iterator[Finding]:
    """Find volumes with equal voxels, however they are stored."""
    first: dict[str, Path] = {}
    for result in results:
        for path, digest in result.digests.items():
            if first.setdefault(digest, path) != path:
                yield same_content(first[digest], path, result.case_id)


def find_backgrounds(results: Sequence[CaseVoxels]) -> Iterator[Finding]:
    """Yield one note for all volumes whose background is not 0."""
    found = [
        (r, kind, s.background) for r in results for kind, s in r.images.items() if s.background is not None
    ]
    if found:
        (first, kind, value), total = found[0], sum(len(result.images) for result in results)
        yield note(
            "background",
            f"the background of {len(found)} of {total} volumes is not 0 (in {kind} of {first.case_id} it is {value}); "
            "it is detected, and volumes that are generated or reconstructed from these have it too.",
        )


def summarise(results: Sequence[CaseVoxels]) -> dict[str, dict[str, float]]:
    """Return modality → median over volumes of each percentile, of the mean and of the foreground."""
    by_kind: dict[str, list[ImageStats]] = defaultdict(list)
    for result in results:
        for kind, stats in result.images.items():
            by_kind[kind].append(stats)
    table = {}
    for kind, all_stats in by_kind.items():
        medians = np.median([stats.percentiles for stats in all_stats], axis=0).tolist()
        table[kind] = {f"p{p:g}": value for p, value in zip(PERCENTILES, medians, strict=True)}
        table[kind]["mean"] = float(np.median([stats.mean for stats in all_stats]))
        table[kind]["foreground"] = float(np.median([stats.foreground for stats in all_stats]))
    return table


def label_summary(results: Sequence[CaseVoxels]) -> dict[int, dict[str, float]]:
    """Return canonical label → number of cases with it, and its median volume there in ml."""
    present = Counter(label for result in results for label in result.labels_ml)
    return {
        label: {
            "cases": present[label],
            "median_ml": float(np.median([r.labels_ml[label] for r in results if label in r.labels_ml])),
        }
        for label in sorted(present)
    }


def _add_image(result: CaseVoxels, kind: str, volume: VolumeFile, *, alone: bool) -> bool:
    """Add the statistics of a volume, or what is wrong with it; return whether it can be shown."""
    path, data = volume.header.path, volume.data
    wrong = int(data.size - np.isfinite(data).sum())
    if wrong:
        result.findings.append(
            error(
                "non-finite",
                f"{path}: expected finite voxels, got {wrong} NaN or infinite of {data.size} in {kind}; repair the "
                "file (for example with numpy.nan_to_num) or leave the case out.",
                result.case_id,
            )
        )
        return False
    if data.min() == data.max():
        result.findings.append(
            error(
                "constant",
                f"{path}: expected different intensities, got {data.flat[0]:g} throughout {kind}; leave the case out.",
                result.case_id,
            )
        )
        return False
    stats = image_stats(volume)
    if 1 - stats.foreground < _MIN_BACKGROUND:
        result.findings.append(
            warning(
                "background",
                f"{path}: {1 - stats.foreground:.1%} of {kind} is background, so the head's box is the whole volume; "
                "strip the skull, or use data.intensity mode range.",
                result.case_id,
            )
        )
    result.images[kind] = stats
    if alone:
        result.digests[path] = hashlib.blake2b(np.ascontiguousarray(data).data, digest_size=16).hexdigest()
    return True


def _compare_heads(result: CaseVoxels, heads: list[tuple[Path, np.ndarray]], volume: VolumeFile) -> None:
    """Warn if the head lies elsewhere than in the first scan of the same grid; every fourth voxel tells."""
    coarse = volume.data[::_COARSE, ::_COARSE, ::_COARSE]
    head = ~find_background(coarse).covers(coarse)
    if not heads:
        heads.append((volume.header.path, head))
    elif heads[0][1].shape == head.shape and 0 < heads[0][1].mean() < _WHOLE:
        first, other = heads[0]
        share = float((head & other).sum() / max(1, (head | other).sum()))
        if share < LEAST_OVERLAP:
            what = f"{share:.0%} of their heads"
            result.findings.append(unregistered(volume.header.path, first, what, result.case_id))


def _compare_lesion(
    result: CaseVoxels, case: Case, labels: np.ndarray, scan: tuple[str, tuple[np.ndarray, float]]
) -> None:
    """Warn of labels that lie beside the head of a scan; nothing where they are on other voxels, which headers tell."""
    kind, (data, _) = scan
    if data.shape != labels.shape or not labels.any():
        return
    outside = float(find_background(data).covers(data)[labels > 0].mean())
    if outside > 1 - LEAST_OVERLAP:
        result.findings.append(
            warning(
                "outside",
                f"{case.seg}: expected labels within the head of {case.images[kind]}, got {outside:.0%} outside; "
                "check that both show one patient, and register the case with `prod9 data preprocess`.",
                case.case_id,
            )
        )


def image_stats(volume: VolumeFile) -> ImageStats:
    """Return the statistics of a volume that has finite voxels of more than one intensity."""
    data, affine = to_ras(volume.data, volume.header.affine)
    return array_stats(np.asarray(data), np.linalg.norm(affine[:3, :3], axis=0).tolist())


def array_stats(data: np.ndarray, spacing: Sequence[float]) -> ImageStats:
    """Return the statistics of ``data [H W D]`` along the axes of RAS. spacing: mm."""
    background = find_background(data)
    inside = ~background.covers(data)
    values = data[inside]
    box = tuple(_extent(np.asarray(inside.any(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3))
    percentiles = np.percentile(values, PERCENTILES)
    histogram, _ = np.histogram(
        values, bins=BINS, range=(percentiles[1], max(percentiles[3], percentiles[1] + 1e-6))
    )
    return ImageStats(
        percentiles=tuple(percentiles.tolist()),
        mean=float(values.mean()),
        deviation=float(values.std()),
        foreground=float(inside.mean()),
        box=(box[0], box[1], box[2]),
        box_mm=tuple((np.asarray(box) * np.asarray(spacing)).tolist()),
        histogram=tuple(histogram.tolist()),
        background=None if background.is_zero else str(background),
    )


def _add_seg(result: CaseVoxels, case: Case) -> np.ndarray | None:
    """Add what the segmentation of ``case`` holds; return its canonical labels in RAS, None if it cannot be read."""
    assert case.seg is not None
    try:
        volume = read(case.seg, allow_non_finite=True)
        labels = canonical_seg(volume.data, case.label_scheme, case.seg)
    except (Prod9Error, OSError) as problem:
        code = "labels" if "expected labels" in str(problem) else "unreadable"
        result.findings.append(error(code, str(problem), case.case_id))
        return None
    result.seg_values = tuple(np.unique(np.rint(volume.data)).astype(int).tolist())
    voxel_ml = abs(float(np.linalg.det(volume.header.affine[:3, :3]))) / 1000
    values, counts = np.unique(labels, return_counts=True)
    result.labels_ml = {int(v): float(n * voxel_ml) for v, n in zip(values, counts, strict=True) if v}
    result.scheme = case.label_scheme
    return np.asarray(to_ras(labels, volume.header.affine)[0])


def _extent(present: np.ndarray) -> int:
    where = np.flatnonzero(present)
    return int(where[-1] - where[0] + 1) if where.size else 0
