"""Check a MedMNIST3D file: counts and labels always, every voxel and its checksum on request."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.cases import PARTS, Part
from prod9.data.checking.findings import Finding, error, note, warning
from prod9.data.checking.fingerprint import FORMAT, fit_grid
from prod9.data.checking.headers import sides
from prod9.data.checking.summary import AbstractReport
from prod9.data.checking.thumbnails import Thumbnail, planes
from prod9.data.checking.voxels import MAX_THUMBNAILS, CaseVoxels, array_stats
from prod9.data.layouts.medmnist import SHAPE_SETS, MedMNIST3DFile, is_published, open_medmnist3d, read_array
from prod9.errors import DataError
from prod9.system.progress import Progress
from prod9.system.wording import are, listing


@dataclass(kw_only=True)
class MedMNIST3DReport(AbstractReport):
    """What was found in a MedMNIST3D file.

    Attributes:
        name: of the set.
        classes: names of the labels, in order.
        file: None where ``root`` is no such file.
        labels: class labels of each part that can be read.
        published: whether it is the file as published; None without the deep check.
    """

    name: str
    classes: tuple[str, ...]
    file: MedMNIST3DFile | None = None
    labels: dict[Part, np.ndarray] = field(default_factory=dict)
    published: bool | None = None

    def facts(self) -> dict[str, Any]:
        """Return what is there, under the names of the check of folders."""
        numbers = {str(part): number for part, number in self.file.counts.items()} if self.file else {}
        total = sum(numbers.values())
        side = self.file.side if self.file else 0
        found = {str(part): Counter(labels.tolist()) for part, labels in self.labels.items()}
        return {
            "root": str(self.root),
            "layout": "medmnist3d",
            "label_schemes": {},
            "names": {self.name: total},
            "cases": total,
            "patients": total,
            "time_points": 1,
            "visits": {},
            "modalities": {self.name: total},
            "segmentations": 0,
            "shapes": {sides((side,) * 3): total},
            "spacings_mm": {"not told": total},
            "orientations": {"not told": total},
            "types": {"uint8": total},
            "parts": numbers,
            "classes": {
                part: {name: own[label] for label, name in enumerate(self.classes)}
                for part, own in found.items()
            },
            "published": self.published,
            "ignored_files": 0,
        }


def check_medmnist3d(
    path: Path,
    *,
    classes: Mapping[str, tuple[str, ...]],
    deep: bool = False,
    progress: Progress | None = None,
) -> MedMNIST3DReport:
    """Check the MedMNIST3D file ``path``.

    Raises DataError for a name that belongs to no set, and for a file that does not exist.

    Args:
        path: the file; its name is that of the set.
        classes: names of the labels of each set, in order.
        deep: read and hash every voxel.
        progress: called after each sample.
    """
    name, _, size = path.name.removesuffix(".npz").partition("_")
    if name not in classes or size not in ("", "64"):
        raise DataError(
            f"{path}: expected {', '.join(classes)} with .npz or _64.npz, got another name; rename it, since the "
            "name defines the labels."
        )
    report = MedMNIST3DReport(root=path, name=name, classes=classes[name])
    if not path.is_file():
        raise DataError(
            f"{path}: expected a MedMNIST3D file, got nothing there; place it, or correct the path."
        )
    try:
        report.file = open_medmnist3d(path.parent, name, int(size or 28))
    except DataError as problem:
        report.findings.append(error("unreadable", str(problem)))
        return report
    for part in PARTS:
        report.findings += _read_labels(report, part)
    if name in SHAPE_SETS:
        report.findings.append(note("shapes", f"{path}: {name} holds binary shapes, not images."))
    if deep:
        report.findings += _look_inside(report, report.file, progress)
    return report


def fingerprint_medmnist3d(report: MedMNIST3DReport) -> dict[str, Any]:
    """Return the fingerprint of the file for ``prod9 plan``; DataError when the report has errors."""
    report.require_ok("a file")
    assert report.file is not None  # a file that cannot be opened is an error
    facts = report.to_dict()
    keep = (
        "layout",
        "cases",
        "patients",
        "modalities",
        "segmentations",
        "shapes",
        "parts",
        "classes",
        "intensities",
    )
    return {
        "format": FORMAT,
        "root": str(report.root.parent),
        "name": report.name,
        "size": report.file.side,
        **{key: facts[key] for key in keep},
        "resample": False,
        "spacing_mm": None,
        "grid": fit_grid([report.file.side / 1.02] * 3, [1.0] * 3),
    }


def _read_labels(report: MedMNIST3DReport, part: Part) -> Iterator[Finding]:
    assert report.file is not None  # its headers were read
    try:
        labels = report.file.labels(part)
    except DataError as problem:
        yield error("unreadable", str(problem))
        return
    report.labels[part] = labels
    known = len(report.classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= known))
    if not labels.size:
        yield error("empty", f"{report.root}: expected samples in {part}, got none; download the file again.")
    elif wrong.size:
        yield error(
            "labels",
            f"{report.root}: expected labels 0 to {known - 1} for {report.name}, got {labels[wrong[0]]} in {part} "
            f"sample {wrong[0]} ({wrong.size} such); give the file the name of the set it holds.",
        )
    absent = [
        name for label, name in enumerate(report.classes) if labels.size and not (labels == label).any()
    ]
    if absent:
        yield warning("absent", f"{report.root}: no {part} sample is of {', '.join(absent)}.")


def _look_inside(
    report: MedMNIST3DReport, file: MedMNIST3DFile, progress: Progress | None
) -> Iterator[Finding]:
    total, done, owners = sum(file.counts.values()), 0, dict[bytes, tuple[Part, str]]()
    step = max(1, total // MAX_THUMBNAILS)
    for part in PARTS:
        try:
            images = read_array(report.root, f"{part}_images")  # zipfile compares the checksum at the end
        except DataError as problem:
            yield error("unreadable", str(problem))
            continue
        names, constant = file.identities(part), []
        for index, image in enumerate(images):
            done += 1
            if progress is not None:
                progress(done, total)
            if image.min() == image.max():
                constant.append(names[index])
                continue
            yield from _double(report.root, image, (part, names[index]), owners)
            stats = array_stats(image, (1.0, 1.0, 1.0))
            shown = _shown(image, stats.percentiles[3]) if done % step == 0 else None
            report.voxels.append(CaseVoxels(names[index], {report.name: stats}, thumbnail=shown))
        if constant:
            yield _constant(report.root, part, constant, len(images))
    report.published = is_published(report.root)
    if not report.published:
        yield note("other", f"{report.root}: not the published file; its own counts are used.")


def _double(
    path: Path, image: np.ndarray, mine: tuple[Part, str], owners: dict[bytes, tuple[Part, str]]
) -> Iterator[Finding]:
    """Find samples of equal voxels: in two parts they spoil the scores, in one part they count twice."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
    part, name = owners.setdefault(digest, mine)
    if name == mine[1]:
        return
    text = f"{path}: expected a volume of its own as {mine[1]}, got that of {name}"
    if part != mine[0]:
        yield error(
            "leak", f"{text}, in another part; scores on {mine[0]} would be too good: use a file without it."
        )
    else:
        yield warning("doubled", f"{text}; it counts twice.")


def _constant(path: Path, part: Part, names: Sequence[str], total: int) -> Finding:
    return warning(
        "constant",
        f"{path}: {len(names)} of {total} {part} samples {are(names)} of one intensity ({listing(names)}); nothing "
        "can be learnt from them: a newer release of the file may have corrected them.",
    )


def _shown(image: np.ndarray, bright: float) -> Thumbnail:
    return Thumbnail(("axis 3", "axis 2", "axis 1"), planes(image, bright))
