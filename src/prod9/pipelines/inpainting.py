"""Draw a region of a volume again and leave every other voxel as it is, bit for bit.

The region is first closed with what lies around it, so that neither a lesion nor a void in it reaches the
tokens beside it; tokens whose voxels touch it are then drawn, given all others. What comes back is laid into
the file's own voxels, its border brought to the level of the surroundings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from scipy import ndimage

from prod9.errors import ConfigError, DataError
from prod9.generator.condition import MaskGiTCondition
from prod9.nifti.voxels import comes_back
from prod9.pipelines.control import ControlPipeline
from prod9.pipelines.labels import draw_samples
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.pipelines.placement import HEAD_THRESHOLD, Placed, align, share_beyond
from prod9.pipelines.steering import repeated
from prod9.system.progress import FineProgress, Share
from prod9.volumes import VolumeFile, VolumeHeader


@dataclass(frozen=True)
class Inpainted:
    """One sample: data float32 on the voxels of the source; index and seed as in a GeneratedVolume."""

    data: np.ndarray
    index: int
    seed: int


@dataclass(frozen=True, eq=False)
class _Job:
    """A source that is prepared for sampling.

    Attributes:
        source: the volume.
        closed: its voxels with the region filled from around.
        region: bool on the same voxels.
        placed: the closed source on the model's grid.
        tokens: int64 ``[1 h w d]`` of the closed source.
        mask: bool ``[1 h w d]``, True where tokens are drawn again.
    """

    source: VolumeFile
    closed: np.ndarray
    region: np.ndarray
    placed: Placed
    tokens: torch.Tensor
    mask: torch.Tensor


class InpaintingPipeline:
    """Redraws regions with a label-conditional model, under control where there is a control network.

    Args:
        generator: loads, samples and decodes.
        control: steers it by a segmentation, or None.
        blend: voxels of the model's grid, from the border inwards, over which what is drawn is brought to the
            level of its surroundings; 0 for none.
        margin: tokens around those that touch the region that are drawn again as well.

    Raises:
        ConfigError: for a model that needs other modalities as well, and a ``blend`` wider than its grid.
        ValueError: for a ``blend`` or ``margin`` below 0.
    """

    def __init__(
        self,
        *,
        generator: MaskGiTPipeline,
        control: ControlPipeline | None = None,
        blend: float = 2.0,
        margin: int = 0,
    ) -> None:
        if generator.kind != "label_conditional":
            raise ConfigError(
                f"model: expected one of kind 'label_conditional', got {generator.kind!r}, which needs other "
                "modalities as well; name demo/label or a run of the stage2_label configs."
            )
        if blend < 0 or margin < 0:
            raise ValueError(f"blend, margin: expected at least 0, got {blend} and {margin}.")
        if not blend <= max(generator.grid):
            raise ConfigError(
                f"blend: expected 0 to {max(generator.grid)}, the voxels along the model's grid, got {blend}; choose "
                "less, for example 2."
            )
        self.generator = generator
        self.control = control
        self.blend = blend
        self.margin = margin

    def inpaint(
        self,
        source: VolumeFile,
        region: VolumeFile,
        label: str,
        *,
        seg: VolumeFile | None = None,
        num_samples: int = 1,
        seed: int = 0,
        start: int = 0,
        batch_size: int = 1,
        resample: bool = False,
        progress: FineProgress | None = None,
    ) -> Iterator[Inpainted]:
        """Yield samples ``start … start + num_samples - 1`` of ``source`` with its region drawn again.

        Sample k draws from ``derived_seed(seed + k, label)`` and depends on no other sample. Raises ConfigError for an
        unknown label, DataError for a region that is empty, covers everything, has other voxels, or lies outside of
        the volume or of the model's grid.

        Args:
            source: the volume.
            region: not 0 where to draw.
            label: the modality of ``source``.
            seg: canonical labels of what is wanted there, on the voxels of ``source``; needed with control.
            num_samples: how many to draw.
            seed: of sample 0.
            start: index of the first sample.
            batch_size: samples drawn together.
            resample: bring a region of other voxels to those of ``source``.
            progress: called with the samples done, fractions included, and ``num_samples``.
        """
        label = self.generator.known_label(label)
        self.check(label, seg is not None)
        job = self._ready(source, region_on(source, region, resample=resample), region.header, label, seg)
        number = self.generator.label_map[label]
        samples = draw_samples(
            partial(self._tokens, job, number),
            label=number,
            num_samples=num_samples,
            seed=seed,
            batch_size=batch_size,
            start=start,
            report=None if progress is None else lambda done: progress(done, num_samples),
        )
        return (
            Inpainted(self._composed(job, self._decoded(tokens, label, seed + index)), index, seed + index)
            for index, tokens in samples
        )

    def check(self, label: str, has_seg: bool) -> None:
        """Refuse with a ConfigError what cannot be drawn, before anything is computed."""
        self.generator.known_label(label)
        if self.control is not None:
            self.control.check(label, has_seg)
        elif has_seg:
            raise ConfigError("control: expected a control network with --seg, got none; add --control RUN.")

    def _tokens(self, job: _Job, label: int, seeds: Sequence[int], report: Share) -> torch.Tensor:
        count = len(seeds)
        condition = MaskGiTCondition(
            torch.full((count,), label, dtype=torch.int64), covariates=self.generator.covariates_of(seeds)
        )
        given = {
            "initial_tokens": job.tokens.expand(count, -1, -1, -1),
            "initial_mask": job.mask.expand(count, -1, -1, -1),
        }
        if self.control is None:
            return self.generator.sample_tokens(condition, seeds=seeds, report=report, **given)
        segs = repeated(job.placed.seg, count)
        return self.control.sample_tokens(
            condition, segs=segs, labels=[label] * count, seeds=seeds, report=report, **given
        )

    def _decoded(self, tokens: torch.Tensor, label: str, seed: int) -> np.ndarray:
        """Return what was drawn, on the model's grid."""
        return self.generator.sharpened(self.generator.decode_tokens(tokens), label, seed)

    @torch.inference_mode()
    def _ready(
        self,
        source: VolumeFile,
        region: np.ndarray,
        region_header: VolumeHeader,
        label: str,
        seg: VolumeFile | None,
    ) -> _Job:
        generator, placement = self.generator, self.generator.placement
        closed = _closed(source, region)
        head = region & placement.intensity.head(closed)
        if not head.any():
            raise DataError(
                f"{region_header.path}: expected a region in the head, got {int(region.sum())} voxels with "
                "background around them; check that it belongs to this volume."
            )
        placed = placement.place({label: VolumeFile(closed, source.header)}, seg=seg)
        beyond = share_beyond(head, source.header, placed.affine, placement.grid)
        if beyond:
            raise DataError(
                f"{region_header.path}: expected a region within the model's grid of {placement.grid} voxels, "
                f"got {beyond:.0%} of it beyond; make the region smaller."
            )
        x = torch.from_numpy(placed.images[label])[None, None].to(generator.device)
        tokens = generator.autoencoder.quantize_stage_2_inputs(x)
        factor = generator.grid[0] // generator.token_grid[0]
        mask = touched_tokens(region, source.header.affine, placed.affine, factor, generator.token_grid)
        if self.margin:
            mask = ndimage.binary_dilation(mask, iterations=self.margin)
        return _Job(source, closed, region, placed, tokens, torch.from_numpy(mask)[None].to(generator.device))

    def _composed(self, job: _Job, decoded: np.ndarray) -> np.ndarray:
        """Return the source with its region replaced by ``decoded``, on the source's voxels."""
        placed, region = job.placed, job.region
        drawn = placed.lay_back(decoded)
        span = placed.high - placed.low
        if self.blend > 0:
            drawn = drawn + self._correction(job, (job.closed - placed.low) / span - drawn)
        raw = np.clip(drawn, 0.0, 1.0) * span + placed.low
        # What is decoded as background gets the background value of the source, not the lowest one of the head.
        background = ~placed.head & (drawn < HEAD_THRESHOLD)
        raw = np.where(background, job.closed, raw)
        return np.where(region, raw, job.source.data).astype(np.float32)

    def _correction(self, job: _Job, error: np.ndarray) -> np.ndarray:
        """Return the correction that brings the border of the region to its surroundings and fades inwards.

        error: source minus decoded, known outside of the region only. Its local mean there (a Gaussian half as wide as
        the blend) is continued into the region and fades out linearly over the blend.
        """
        spacing = np.asarray(job.source.header.spacing)
        width = self.blend * float(np.cbrt(abs(np.linalg.det(job.placed.affine[:3, :3]))))
        sigma = width / 2 / spacing
        known = (job.placed.head & ~job.region).astype(np.float32)
        weight = ndimage.gaussian_filter(known, sigma)
        mean = ndimage.gaussian_filter(error * known, sigma) / np.maximum(weight, 1e-6)
        # Half a voxel less: the border lies between voxel centres.
        inwards = np.asarray(ndimage.distance_transform_edt(job.region, sampling=spacing))
        depth = inwards - 0.5 * float(spacing.min())
        fade = np.clip(1.0 - depth / width, 0.0, 1.0)
        return np.where(job.region & (weight > 1e-4), fade * mean, 0.0)


def storage_dtype(source: VolumeFile) -> np.dtype:
    """Return the dtype in which all voxels of ``source`` can be written back, scaled as in its file.

    That is the file's own if it is an integer type from which every voxel comes back equal, else float32.
    """
    header = source.header
    kept = np.issubdtype(header.dtype, np.integer) and comes_back(source.data, header.dtype, header.scaling)
    return header.dtype if kept else np.dtype(np.float32)


def touched_tokens(
    region: np.ndarray,
    affine: np.ndarray,
    grid_affine: np.ndarray,
    factor: int,
    token_grid: Sequence[int],
) -> np.ndarray:
    """Return bool ``[h w d]``, True for tokens whose voxels a voxel of ``region`` overlaps.

    Points of each voxel are tested, from corner to corner, no further apart than a token is wide: a thick slice may
    span several tokens.

    Args:
        region: bool on the voxels of ``affine``.
        affine: 4×4 of the region, voxel to mm.
        grid_affine: 4×4 of the model's grid.
        factor: voxels of the grid per token and axis.
        token_grid: tokens along each axis.
    """
    found = np.argwhere(region).astype(np.float64)
    to_grid = np.linalg.inv(grid_affine) @ affine
    touched = np.zeros(tuple(token_grid), dtype=bool)
    pieces = np.ceil(np.abs(to_grid[:3, :3]).max(0) / factor).astype(int)
    for point in product(*(np.linspace(-0.49, 0.49, count + 1) for count in pieces)):
        places = (found + point) @ to_grid[:3, :3].T + to_grid[:3, 3]
        tokens = np.floor((places + 0.5) / factor).astype(np.int64)
        inside = ((tokens >= 0) & (tokens < np.asarray(token_grid))).all(1)
        touched[tuple(tokens[inside].T)] = True
    return touched


def region_on(source: VolumeFile, region: VolumeFile, *, resample: bool) -> np.ndarray:
    """Return bool on the voxels of ``source``: where ``region`` is not 0. Raises DataError; see ``inpaint``."""
    header = region.header
    drawn = VolumeFile((region.data != 0).astype(np.float32), header)
    moved = align({"source": source, "region": drawn}, resample=resample)["region"].data >= 0.5
    beyond = share_beyond(drawn.data != 0, header, source.header.affine, source.header.shape)
    if beyond:
        raise DataError(
            f"{header.path}: expected a region within {source.header.path}, got {beyond:.0%} of it outside of "
            "the volume; check that the two belong together."
        )
    if not moved.any() or moved.all():
        got = "none" if not moved.any() else "all of them"
        raise DataError(
            f"{header.path}: expected some voxels that are not 0, the region to draw anew, got {got}."
        )
    return moved


def _closed(source: VolumeFile, region: np.ndarray) -> np.ndarray:
    """Return the source with each voxel of the region replaced by the nearest one outside of it."""
    nearest = ndimage.distance_transform_edt(
        region, sampling=source.header.spacing, return_distances=False, return_indices=True
    )
    return source.data[tuple(np.asarray(nearest))]
