"""From a NIfTI file through the latent and back: what stage 1 keeps of a volume.

The file may have any orientation, size and, where the checkpoint records a spacing, any spacing. It is
prepared exactly as in training, and the result is laid back into the file's own voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from monai import transforms as mt
from monai.data.meta_tensor import MetaTensor

from prod9 import volumes
from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.data.transforms import IntensityScaling
from prod9.errors import DataError
from prod9.training.config import config_from_dict
from prod9.training.metrics import psnr
from prod9.training.model.checkpoint_manager import CheckpointManager
from prod9.training.model.model_factory import ModelFactory
from prod9.volumes import VolumeHeader


@dataclass(frozen=True)
class Reconstruction:
    """A volume after a pass through the latent.

    data: float32 ``[H W D]`` in the axes, shape and intensities of the file. header: that of the file.
    latent: float32 ``[Z h w d]``, codes (FSQ) or z_mu (KL). tokens: int64 ``[h w d]``, None for KL.
    grid_affine: 4×4, voxel to mm of the RAS grid that the network saw. psnr, psnr_head: dB on that grid,
    intensities in [0, 1], over all voxels and over those of the head.
    """

    data: np.ndarray
    header: VolumeHeader
    latent: np.ndarray
    tokens: np.ndarray | None
    grid_affine: np.ndarray
    psnr: float
    psnr_head: float


@dataclass(frozen=True)
class _Prepared:
    """A volume as the network wants it, and what is needed to go back.

    unit: float32 ``[H W D]`` in [0, 1]; head: bool of the same shape, True where the head is. start: their
    first voxel within ``placed`` (``[1 H W D]``, RAS, recorded spacing); it may lie outside. low, high: the
    raw intensities of 0 and 1.
    """

    unit: np.ndarray
    head: np.ndarray
    placed: MetaTensor
    start: tuple[int, ...]
    low: float
    high: float


class ReconstructionPipeline:
    """Encodes and decodes files with a trained autoencoder of either family.

    spacing: mm to resample to, None for the file's. grid: voxels ``(H, W, D)`` that a head is padded to;
    a larger head keeps its size. intensity: how raw values become [0, 1]. sha256: of the checkpoint.
    """

    def __init__(
        self,
        *,
        autoencoder: AutoencoderInferenceWrapper,
        spacing: tuple[float, float, float] | None,
        grid: tuple[int, int, int],
        intensity: IntensityScaling,
        device: str | torch.device = "cpu",
        sha256: str = "",
    ) -> None:
        self.device = torch.device(device)
        self.autoencoder = autoencoder.to(self.device).eval()
        self.spacing = spacing
        self.grid = grid
        self.intensity = intensity
        self.sha256 = sha256

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        stage: Literal["autoencoder", "maisi_vae"] = "autoencoder",
        device: str | torch.device = "cpu",
        overrides: Sequence[str | tuple[str, Any]] = (),
    ) -> "ReconstructionPipeline":
        """Build from a run folder, checkpoint file or export folder of ``stage``.

        overrides: changes to the recorded config, for example ``["sliding_window.strategy=sliding_window"]``.
        Raises CheckpointError, or ConfigError for bad settings.
        """
        loaded = CheckpointManager.load_autoencoder(path, stage=stage, device=device)
        config = config_from_dict(loaded.header["config"], source=str(loaded.path), overrides=overrides)
        data = loaded.header["data"]
        return cls(
            autoencoder=ModelFactory.create_inference_wrapper(loaded.network, config.sliding_window),
            spacing=None if data["spacing"] is None else tuple(data["spacing"]),
            grid=tuple(data["grid"]),
            intensity=IntensityScaling(**data["intensity"]),
            device=device,
            sha256=loaded.sha256,
        )

    @property
    def has_tokens(self) -> bool:
        """Whether the latent is discrete."""
        return isinstance(self.autoencoder.autoencoder, AutoencoderFSQ)

    @torch.inference_mode()
    def reconstruct(self, path: str | Path) -> Reconstruction:
        """Read ``path``, pass it through the latent, and return it in its own geometry; raises DataError."""
        file = volumes.read(Path(path))
        ras, ras_affine = volumes.to_ras(file.data, file.header.affine)
        prepared = self._prepare(ras, ras_affine, file.header.path)
        x = torch.from_numpy(prepared.unit)[None, None].to(self.device)
        output = self.autoencoder(x)
        unit = output.reconstruction.float().clamp(0.0, 1.0)
        head = torch.from_numpy(prepared.head)[None, None].to(self.device)
        restored = self._restore(unit[0, 0].cpu().numpy(), prepared, ras, ras_affine)
        return Reconstruction(
            data=volumes.from_ras(restored, file.header),
            header=file.header,
            latent=output.latent[0].float().cpu().numpy(),
            tokens=None if output.tokens is None else output.tokens[0].cpu().numpy(),
            grid_affine=_shifted(prepared.placed.affine.numpy(), prepared.start),
            psnr=float(psnr(unit, x)),
            psnr_head=float(psnr(unit, x, mask=head)),
        )

    def _prepare(self, ras: np.ndarray, affine: np.ndarray, path: Path) -> _Prepared:
        """Do what the preprocessing of training does, except that a head beyond the grid is not cut."""
        placed = _meta(ras, affine)
        if self.spacing is not None:
            placed = cast(MetaTensor, mt.Spacing(pixdim=self.spacing, mode="bilinear")(placed))
        raw = placed.numpy()[0]
        head = self._head(raw)
        if not head.any():
            raise DataError(f"{path}: expected a head, got background only; leave this file out.")
        low, high = self._bounds(raw[head], path)
        start, shape = self._window(head)
        unit = np.where(head, np.clip((raw - low) / (high - low), 0.0, 1.0), 0.0).astype(np.float32)
        return _Prepared(_cut(unit, start, shape), _cut(head, start, shape), placed, start, low, high)

    def _head(self, raw: np.ndarray) -> np.ndarray:
        return self.intensity.foreground(torch.from_numpy(np.ascontiguousarray(raw))).numpy()

    def _bounds(self, inside: np.ndarray, path: Path) -> tuple[float, float]:
        scaling = self.intensity
        if scaling.mode == "range":
            return scaling.lower, scaling.upper
        low, high = np.percentile(inside, (scaling.lower, scaling.upper))
        if not high > low:
            raise DataError(
                f"{path}: expected different intensities inside the head, got {low:g} throughout; "
                "leave this file out."
            )
        return float(low), float(high)

    def _window(self, head: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return start and shape of the window around the head: the grid, or whole tokens beyond it."""
        factor = self.autoencoder.autoencoder.downsampling_factor
        start, shape = [], []
        for positions, side in zip(np.nonzero(head), self.grid, strict=True):
            first, extent = int(positions.min()), int(np.ptp(positions)) + 1
            side = max(side, -(-extent // factor) * factor)
            start.append(first - (side - extent) // 2)
            shape.append(side)
        return tuple(start), tuple(shape)

    def _restore(
        self, unit: np.ndarray, prepared: _Prepared, ras: np.ndarray, affine: np.ndarray
    ) -> np.ndarray:
        """Return raw intensities on the voxels of ``ras``; what is background there stays as it is."""
        whole = _paste(unit, prepared.start, prepared.placed.shape[1:])
        if self.spacing is not None:
            back = mt.SpatialResample(mode="bilinear", padding_mode="border")
            placed = _meta(whole, prepared.placed.affine.numpy())
            whole = back(placed, dst_affine=torch.from_numpy(affine), spatial_size=ras.shape).numpy()[0]
        raw = whole * (prepared.high - prepared.low) + prepared.low
        # The background lies outside the scale of the head: its 0 is not the head's lower percentile.
        return np.where(self._head(ras), raw, ras).astype(np.float32)


def _meta(volume: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None], affine=torch.from_numpy(affine))


def _overlap(
    start: Sequence[int], shape: Sequence[int], whole: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where a window lies in the whole, and where that part lies in the window."""
    bounds = [(max(s, 0), min(s + n, length)) for s, n, length in zip(start, shape, whole, strict=True)]
    inside = tuple(slice(low, high) for low, high in bounds)
    return inside, tuple(slice(low - s, high - s) for (low, high), s in zip(bounds, start, strict=True))


def _cut(whole: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Return the window of ``shape`` from ``start``, zero where it sticks out."""
    window = np.zeros(tuple(shape), dtype=whole.dtype)
    inside, part = _overlap(start, shape, whole.shape)
    window[part] = whole[inside]
    return window


def _paste(window: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Undo ``_cut``: lay the window into zeros of ``shape``."""
    whole = np.zeros(tuple(shape), dtype=window.dtype)
    inside, part = _overlap(start, window.shape, shape)
    whole[inside] = window[part]
    return whole


def _shifted(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Return ``affine`` with its origin at voxel ``start``."""
    shifted = np.array(affine, dtype=np.float64)
    shifted[:3, 3] = affine[:3, :3] @ np.asarray(start, dtype=np.float64) + affine[:3, 3]
    return shifted
