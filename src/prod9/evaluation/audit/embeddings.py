"""Embeddings that the copy audit compares: they hardly change when a copy is shifted, rescaled or noisy.

Each embedding returns one row per mirroring of a volume, so that a mirrored copy is found as well. None of them needs
weights from elsewhere.
"""

from collections.abc import Iterable
from itertools import islice, product
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prod9.data.intensity import find_background
from prod9.errors import DataError
from prod9.evaluation.judges.features import AutoencoderFeatures
from prod9.evaluation.judges.loading import load_autoencoder
from prod9.evaluation.sets.volume_sets import Preparation
from prod9.types import Volume
from prod9.volumes import VolumeFile, to_ras

Mirror = tuple[int, ...]
"""Array axes 0, 1, 2 of the RAS volume that are reversed."""

ALL_MIRRORS: tuple[Mirror, ...] = tuple(
    tuple(axis for axis in range(3) if chosen[axis]) for chosen in product((False, True), repeat=3)
)
LEFT_RIGHT: tuple[Mirror, ...] = ((), (0,))

CELLS = 24
_OVERSAMPLING = 3
_HEAD = 0.15
"""Share of the brightest intensity above which a voxel belongs to the head; background noise is below it."""
_MARGIN = 1.25
_MAX_FITTED = 16
_LATENT_CELLS = 6


class Embedding(Protocol):
    """Turns a volume into one row per mirrored copy; row 0 is the volume as it is."""

    name: str
    mirrors: tuple[Mirror, ...]

    def __call__(self, file: VolumeFile, *, mirrored: bool) -> Tensor:
        """Return float32 rows ``[V D]``: one, or with ``mirrored`` one for each of ``mirrors``.

        Raises DataError for a volume of a single intensity.
        """
        ...


class VoxelEmbedding:
    """Details of a volume in a coarse cube around the centre of its head.

    The cube follows the head, which removes shifts; dividing by the brightness removes intensity scaling, and averaging
    over cells removes most of the noise. Subtracting the mean of 3³ neighbouring cells leaves what distinguishes one
    head from another. The cube has a side of ``field_mm`` and ``cells`` cells along each axis.
    """

    mirrors: tuple[Mirror, ...] = ALL_MIRRORS

    def __init__(self, *, field_mm: float, cells: int = CELLS) -> None:
        self.field_mm = field_mm
        self.cells = cells
        self.name = f"voxels-{cells}-{field_mm:.0f}mm"

    @classmethod
    def fit(cls, files: Iterable[VolumeFile], *, cells: int = CELLS) -> "VoxelEmbedding":
        """Choose the field so that the heads of the first files fit into it with a margin."""
        sides = []
        for file in islice(files, _MAX_FITTED):
            data, affine = to_ras(file.data, file.header.affine)
            planes = [np.flatnonzero(found) for found in _along_axes(_unit(file, data)[1])]
            extent = np.asarray([int(places.max() - places.min()) + 1 for places in planes])
            sides.append(float(max(extent * np.linalg.norm(affine[:3, :3], axis=0))))
        if not sides:
            raise ValueError("expected at least one training volume to choose the field of view, got none")
        return cls(field_mm=_MARGIN * max(sides), cells=cells)

    def __call__(self, file: VolumeFile, *, mirrored: bool) -> Tensor:
        """Return rows of as many values as a cube of side ``cells`` has."""
        cube = F.avg_pool3d(self.cube(file, self.cells * _OVERSAMPLING)[None], _OVERSAMPLING)
        detail = (cube - F.avg_pool3d(cube, 3, stride=1, padding=1))[0]
        turned = [
            detail.flip(mirror) if mirror else detail for mirror in self.mirrors[: None if mirrored else 1]
        ]
        return F.normalize(torch.stack(turned).flatten(1), dim=1)

    def cube(self, file: VolumeFile, side: int) -> Tensor:
        """Return the head in the centre of a cube of samples of side ``side``, float32, its brightest part at 1."""
        data, affine = to_ras(file.data, file.header.affine)
        unit, head = _unit(file, data)
        centre = [float(np.arange(len(n)) @ n / n.sum()) for n in _along_axes(head)]
        offsets = ((torch.arange(side) + 0.5) / side - 0.5) * self.field_mm
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        axes = [
            2 * (centre[a] + offsets / float(spacing[a]) + 0.5) / unit.shape[a] - 1  # grid_sample's own scale
            for a in range(3)
        ]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[..., [2, 1, 0]].float()
        return F.grid_sample(unit[None, None], places[None], align_corners=False)[0, 0]


class LatentEmbedding:
    """Latents of a stage-1 encoder, averaged over 6³ cells of the grid it was trained on.

    ``preparation`` brings files to that grid. Only left and right are mirrored: each mirroring costs one pass of the
    encoder.
    """

    mirrors: tuple[Mirror, ...] = LEFT_RIGHT

    def __init__(
        self, extractor: AutoencoderFeatures, preparation: Preparation, *, device: torch.device
    ) -> None:
        self.extractor = AutoencoderFeatures(extractor.autoencoder, scales=(_LATENT_CELLS,))
        self.preparation = preparation
        self.device = device
        self.name = f"latents-{self.extractor.name.removeprefix('autoencoder-')}"

    @torch.inference_mode()
    def __call__(self, file: VolumeFile, *, mirrored: bool) -> Tensor:
        """Return rows of Z · 6³ values."""
        x: Volume = self.preparation.place(file).to(self.device)
        rows = [
            self.extractor(x.flip([2 + axis for axis in mirror]) if mirror else x)
            for mirror in self.mirrors[: None if mirrored else 1]
        ]
        return torch.cat(rows).float().cpu().clone()


def load_latents(model: str, *, device: torch.device) -> LatentEmbedding:
    """Return the embedding of the autoencoder that ``model`` is or builds on: a run, checkpoint or export."""
    loaded = load_autoencoder(model, device=device)
    data = loaded.header["data"]
    preparation = Preparation(tuple(data["grid"]), data["spacing"] and tuple(data["spacing"]))
    return LatentEmbedding(AutoencoderFeatures(loaded.network), preparation, device=device)


def _unit(file: VolumeFile, data: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return intensities from 0 (background) to about 1 and the bool mask of the head, both ``[H W D]``.

    A z-scored scan has tissue below its background, which is then no intensity like others.
    """
    low, high = np.percentile(data, (1.0, 99.5))
    around, background = None, find_background(data)
    if background.values and low < min(background.values) - background.tolerance:
        around = background.covers(data)
        low, high = np.percentile(data[~around], (1.0, 99.5)) if not around.all() else (low, low)
    if not high > low:
        raise DataError(
            f"{file.header.path}: expected a volume with different intensities, got {low:g} nearly everywhere; leave "
            "this file out."
        )
    # In place and in float32: the percentiles are float64 and would double the memory.
    unit = np.subtract(data, np.float32(low), order="C")
    unit *= np.float32(1.0 / (high - low))
    if around is not None:
        unit[around] = 0.0
    volume = torch.from_numpy(unit)
    return volume, volume > _HEAD


def _along_axes(head: Tensor) -> list[np.ndarray]:
    """Return how many voxels of the head lie in each plane of each axis."""
    plain = head.numpy().view(np.uint8)
    columns = plain.sum(2, dtype=np.int32)
    return [columns.sum(1), columns.sum(0), plain.reshape(-1, plain.shape[2]).sum(0, dtype=np.int32)]
