"""What was done to a case, as JSON and as transforms that other programs read: enough to go back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prod9.data.registration.geometry import Array
from prod9.errors import DataError
from prod9.files import atomic_write
from prod9.json_files import read_object, write_json

RECORD = "preprocess.json"
FORMAT = 1
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ScanRecord:
    """One scan of a case.

    Attributes:
        source: the file that it came from.
        sha256: of that file.
        channel: place in a 4D file that holds several, or None.
        shape: voxels of the file.
        affine: 4×4, its voxels to mm of RAS+.
        to_atlas: 4×4, mm of the scan to mm of the atlas.
        to_reference: 4×4, mm of the scan to mm of the reference scan.
        overlap: of its foreground with that of the reference scan, intersection over union, once registered.
        information: mutual information with what it was registered to, before and after.
    """

    source: str
    sha256: str
    channel: int | None
    shape: tuple[int, int, int]
    affine: list[list[float]]
    to_atlas: list[list[float]]
    to_reference: list[list[float]]
    overlap: float
    information: tuple[float, float]

    @property
    def matrix(self) -> Array:
        """``to_atlas`` as an array."""
        return np.asarray(self.to_atlas)


@dataclass(frozen=True)
class CaseRecord:
    """One case.

    Attributes:
        case_id: its name.
        reference: modality that the others were registered to.
        settings: what it was made with.
        brain_ml: volume of the brain; None if nothing was stripped.
        mask_sha256: of the file with its brain mask, if one was given.
        scans: by modality.
        seg: source, SHA-256 and the modality that it was drawn on; None without a segmentation.
    """

    case_id: str
    reference: str
    settings: dict[str, Any]
    brain_ml: float | None
    mask_sha256: str | None
    scans: Mapping[str, ScanRecord]
    seg: dict[str, str] | None

    def write(self, folder: Path) -> None:
        """Write the record and one transform file a scan into the folder of the case, the record last."""
        for name, scan in self.scans.items():
            write_transform(folder / f"{self.case_id}-{name}-to-atlas.tfm", scan.matrix)
        content = {"format": FORMAT, **asdict(self)}
        write_json(folder / RECORD, content)

    @classmethod
    def read(cls, folder: Path) -> "CaseRecord":
        """Read the record of a case; DataError if there is none, or a damaged one."""
        path = folder / RECORD
        remedy = "give a folder of a case that `prod9 data preprocess` made"
        content = read_object(path, "the record of a preprocessed case", remedy=remedy)
        if content.pop("format", None) != FORMAT:
            raise DataError(
                f"{path}: expected a record of format {FORMAT}, got another; make the case again."
            )
        try:
            scans = {name: _scan(scan) for name, scan in content.pop("scans").items()}
            record = cls(scans=scans, **content)
            for scan in scans.values():
                for matrix in (scan.affine, scan.to_atlas):
                    if np.asarray(matrix, dtype=np.float64).shape != (4, 4):
                        raise ValueError("a matrix is not 4×4")
                if len(scan.shape) != 3 or not all(
                    isinstance(n, int) and 0 < n < 1 << 15 for n in scan.shape
                ):
                    raise ValueError("a shape is not one of a volume")
        except (TypeError, ValueError, KeyError, AttributeError) as problem:
            raise DataError(
                f"{path}: expected the record of a case, got a damaged one ({problem}); {remedy}."
            ) from None
        return record


def _scan(content: Mapping[str, Any]) -> ScanRecord:
    """Return the record of a scan; the seconds that earlier versions noted are left out."""
    return ScanRecord(**{name: value for name, value in content.items() if name != "seconds"})


def write_transform(path: Path, to_atlas: Array) -> None:
    """Write a transform as ITK's text format, which ITK-SNAP, 3D Slicer and ANTs read.

    By ITK's convention it takes points of the atlas to points of the scan, in LPS: that resamples the scan to the
    atlas.
    """
    lps = _LPS @ np.linalg.inv(to_atlas) @ _LPS
    numbers = " ".join(f"{value:.17g}" for value in [*lps[:3, :3].ravel(), *lps[:3, 3]])
    text = (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="ascii")
