"""Preprocessed cases: the result of the deterministic transforms, in the form that is cached.

Intensities are stored as uint16: half the memory of float32, an error below 8e-6 of the range (float16 has 2.4e-4 near
1), and exact at 0 and 1, so the background stays exactly 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.data.cases import Case
from prod9.data.labels import canonical_seg
from prod9.data.placement import GridPlacement, Placed, require_same_grid
from prod9.data.seg_loss import Kept
from prod9.errors import DataError
from prod9.label_maps import coded, join
from prod9.modalities import SEG
from prod9.volumes import VolumeFile, read_channels

_FULL_SCALE = np.float32(65535)


@dataclass(frozen=True)
class CaseVolumes:
    """One case on the grid.

    Attributes:
        images: uint16 [M H W D], quantised, in the order of the modalities.
        seg: canonical labels [H W D] of an unsigned type, or None.
        affine: 4×4, voxel to mm (RAS+).
        extent: voxels of the head's box before it was fitted to the grid, which cuts a larger head.
        kept: what the grid keeps of each label of the segmentation.
    """

    images: np.ndarray
    seg: np.ndarray | None
    affine: np.ndarray
    extent: tuple[int, int, int]
    kept: Mapping[int, Kept] = field(default_factory=dict)


def quantise(volume: np.ndarray) -> np.ndarray:
    """Return uint16 of intensities in [0, 1]."""
    return np.rint(volume * _FULL_SCALE).astype(np.uint16)


def dequantise(stored: np.ndarray) -> Tensor:
    """Undo :func:`quantise`: return float32 in [0, 1], on the CPU and in new memory."""
    return torch.from_numpy(np.divide(stored, _FULL_SCALE, dtype=np.float32))


class Preprocessor:
    """Reads one case and brings it to the grid. Deterministic and without state, so threads may share it.

    The modality ``seg`` is the label map of the case, coded: its segmentation within the brain that its scan shows.
    """

    def __init__(self, placement: GridPlacement, modalities: Sequence[str]) -> None:
        self._placement = placement
        self._modalities = tuple(modalities)

    def __call__(self, case: Case) -> CaseVolumes:
        """Return the volumes of ``case``; DataError naming a file that cannot be used."""
        placed = self.place(case)
        if self._modalities == (SEG,):
            images = quantise(self._label_map(placed, case))[None]
        else:
            images = np.stack([quantise(placed.images[m]) for m in self._modalities])
        return CaseVolumes(
            images=images,
            seg=placed.seg,
            affine=placed.affine,
            extent=placed.extent,
            kept=placed.kept,
        )

    def place(self, case: Case) -> Placed:
        """Return the same before quantisation, with the way back to the files."""
        files = _read_files(case, [name for name in self._modalities if name != SEG] or list(case.images))
        require_same_grid(
            [file.header for file in files.values()],
            remedy="bring the case to one grid first (`prod9 data preprocess`)",
        )
        seg = files.pop("seg", None)
        if not any(file.data.any() for file in files.values()):
            folder = next(iter(case.images.values())).parent
            raise DataError(f"{folder}: expected a head, got background only; remove the case.")
        if seg is not None:
            seg = VolumeFile(canonical_seg(seg.data, case.label_scheme, seg.header.path), seg.header)
        return self._placement.place(files, seg=seg)

    @staticmethod
    def _label_map(placed: Placed, case: Case) -> np.ndarray:
        assert placed.seg is not None  # find_cases asks for it
        try:
            return coded(join(placed.seg, placed.inside))
        except ValueError as error:
            raise DataError(f"{case.seg}: {error}") from error


def _read_files(case: Case, modalities: Sequence[str]) -> dict[str, VolumeFile]:
    """Return the volumes of ``case`` and ``seg``; a 4D file with several of them is decompressed once."""
    paths = {name: case.images[name] for name in modalities}
    if case.seg is not None:
        paths["seg"] = case.seg
    by_path: dict[Path, list[str]] = {}
    for name, path in paths.items():
        by_path.setdefault(path, []).append(name)
    files: dict[str, VolumeFile] = {}
    for path, held in by_path.items():
        read = read_channels(path, [case.channels.get(name) for name in held])
        files |= {name: read[case.channels.get(name)] for name in held}
    return {name: files[name] for name in paths}
