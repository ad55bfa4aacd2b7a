"""Fingerprint of a dataset, kept in a file (an idea of nnU-Net).

It gives the voxel size to resample to, the grid that holds every head, and the intensities to expect.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.checking.report import Report
from prod9.errors import DataError
from prod9.files import atomic_write, reading

FORMAT = 1
_UNIT = 16
"""Grids are multiples of this: every downsampling factor and patch size that is shipped divides it."""
_MARGIN = 1.02
_COVERED = 99.0


def fingerprint(report: Report) -> dict[str, Any]:
    """Return the fingerprint of a deep ``report`` as plain values.

    ``spacing_mm`` is the median voxel size over cases along RAS, ``head_mm`` holds the sides of the head's box, median
    and largest, and ``grid`` the voxels that hold the head of 99% of the cases at that spacing, a multiple of 16 on
    each axis. Raises DataError when the report has errors or holds no voxels.
    """
    report.require_ok("a dataset")
    facts = report.to_dict()
    # Training crops to the union of the modalities: the largest box of each case counts.
    boxes = np.asarray(
        [
            max((stats.box_mm for stats in case.images.values()), key=np.prod)
            for case in report.voxels
            if case.images
        ]
    )
    if not boxes.size:
        raise DataError(f"{report.root}: expected voxels to sum up, got none.")
    spacings = np.asarray(
        [next(iter(kinds.values())).ras_spacing for kinds in report.headers.by_case.values()]
    )
    spacing = np.median(spacings, axis=0)
    keep = (
        "root",
        "layout",
        "cases",
        "patients",
        "modalities",
        "segmentations",
        "shapes",
        "spacings_mm",
        "parts",
    )
    return {
        "format": FORMAT,
        **{key: facts[key] for key in keep},
        "resample": len(report.headers.count(lambda h: str([round(mm, 2) for mm in h.ras_spacing]))) > 1,
        "spacing_mm": [round(float(mm), 3) for mm in spacing],
        "head_mm": {"median": _rounded(np.median(boxes, axis=0)), "largest": _rounded(boxes.max(axis=0))},
        "grid": fit_grid(np.percentile(boxes, _COVERED, axis=0).tolist(), spacing.tolist()),
        "intensities": facts["intensities"],
        "labels": facts["labels"],
    }


def fit_grid(head_mm: Sequence[float], spacing: Sequence[float]) -> list[int]:
    """Return the voxels along each axis that hold ``head_mm`` at ``spacing``, rounded up to a multiple of 16."""
    return [
        max(_UNIT, int(-(-(side * _MARGIN / mm) // _UNIT)) * _UNIT)
        for side, mm in zip(head_mm, spacing, strict=True)
    ]


def write_fingerprint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_fingerprint(path: Path) -> dict[str, Any]:
    """Read what :func:`write_fingerprint` wrote; DataError for another file."""
    with reading(path, "a fingerprint", remedy="make it with `prod9 data info DIR --output FILE`"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {str(content['format'])[:20]} instead of {FORMAT}")
    return content


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 1) for value in values]
