"""Lesions as masks within a brain, along the axes of RAS: read from a segmentation and the scan of its case."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from prod9.data.intensity import find_background
from prod9.data.labels import canonical_seg
from prod9.data.layouts.find import case_of
from prod9.data.layouts.names import bare
from prod9.errors import DataError
from prod9.volumes import read, to_ras

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Lesion:
    """A segmentation within a brain: labels uint8 and brain bool ``[H W D]``, axes along RAS, and their affine."""

    labels: Array
    brain: Array
    affine: Array

    @property
    def spacing(self) -> Array:
        """Voxel size in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def ml(self) -> float:
        """Volume of all labels together."""
        return float((self.labels > 0).sum() * np.prod(self.spacing) / 1000)

    def cropped(self) -> "Lesion":
        """Return the part within the box of the brain, so that the field of view is centred on the head."""
        box = ndi.find_objects(self.brain.astype(np.uint8))[0]
        affine = self.affine.copy()
        affine[:3, 3] = self.affine[:3] @ [*(part.start for part in box), 1]
        return Lesion(self.labels[box], self.brain[box], affine)


@dataclass(frozen=True)
class LesionFile:
    """A segmentation: its file, a scan on its voxels or None, its label scheme and its patient."""

    path: Path
    scan: Path | None
    scheme: str
    patient: str

    @classmethod
    def of(cls, path: Path, *, brain: Path | None = None, label_scheme: str = "auto") -> "LesionFile":
        """Find a scan of the case of ``path``, unless ``brain`` is given.

        Without one, the patient is the file's own name. Scheme ``auto`` takes that of the case, else canonical.
        """
        own = case_of(path)
        scheme = "canonical" if own is None else own.label_scheme
        if own is not None and brain is None:
            brain = next((image for name, image in own.images.items() if name not in own.channels), None)
        patient = bare(path.name) if own is None else own.patient_id
        return cls(path, brain, scheme if label_scheme == "auto" else label_scheme, patient)

    def load(self) -> Lesion:
        """Read it; without a scan, the whole field of view counts as brain.

        Raises DataError for values outside of the scheme, a scan on other voxels, an empty one, and one with its skull.
        """
        seg = read(self.path)
        labels, affine = to_ras(canonical_seg(seg.data, self.scheme, self.path), seg.header.affine)
        if self.scan is None:
            return Lesion(np.asarray(labels), np.ones(labels.shape, bool), affine)
        image = read(self.scan)
        if seg.data.shape != image.data.shape or not np.allclose(
            seg.header.affine, image.header.affine, atol=1e-2
        ):
            raise DataError(
                f"{self.path}: expected the voxels of {self.scan}, got others; bring both to one grid "
                "(`prod9 data preprocess`), or name another scan with --brain."
            )
        brain = ~find_background(image.data).covers(image.data)
        if not brain.any():
            raise DataError(
                f"{self.scan}: expected a scan of a head, got background only; name another with --brain."
            )
        if brain.all():
            raise DataError(
                f"{self.scan}: expected a scan without skull, got one without background; strip it, or use --brain."
            )
        return Lesion(np.asarray(labels), np.asarray(to_ras(brain, seg.header.affine)[0]), affine)
