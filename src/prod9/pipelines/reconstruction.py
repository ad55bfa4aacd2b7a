"""From a NIfTI file through the latent and back: how much of a volume stage 1 preserves.

The file may have any orientation, size and, where the checkpoint records a spacing, any spacing. It is
prepared exactly as in training, and the result is laid back into the file's own voxels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from prod9 import volumes
from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.config.schema import RunConfig
from prod9.config.sections import RunSection
from prod9.data.intensity import IntensityScaling
from prod9.devices import torch_device
from prod9.measures.metrics import psnr
from prod9.models.checkpoint_manager import CheckpointManager, Source, require_scans
from prod9.models.factory import ModelFactory
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.recorded import Overrides, config_of
from prod9.volumes import VolumeFile, VolumeHeader


@dataclass(frozen=True)
class Reconstruction:
    """A volume after a pass through the latent.

    Attributes:
        data: float32 ``[H W D]`` in the axes, shape and intensities of the file.
        header: that of the file.
        latent: float32 ``[Z h w d]``, codes (FSQ) or z_mu (KL).
        tokens: int64 ``[h w d]``, None for KL.
        grid_affine: 4×4, voxel to mm of the RAS grid on which the network works.
        psnr: dB on that grid, intensities in [0, 1], over all voxels.
        psnr_head: the same over the voxels of the head.
    """

    data: np.ndarray
    header: VolumeHeader
    latent: np.ndarray
    tokens: np.ndarray | None
    grid_affine: np.ndarray
    psnr: float
    psnr_head: float


class ReconstructionPipeline:
    """Encodes and decodes files with a trained autoencoder of either family.

    Args:
        autoencoder: stage 1; put in evaluation mode and moved to ``device``.
        spacing: mm to resample to, None for the file's.
        grid: voxels ``(H, W, D)`` that a head is padded to; a larger head keeps its size.
        intensity: how raw values become [0, 1].
        crop: False to keep the whole field of view, as with MedMNIST3D.
        device: where to compute.
        sha256: of the checkpoint.
    """

    def __init__(
        self,
        *,
        autoencoder: AutoencoderInferenceWrapper,
        spacing: tuple[float, float, float] | None,
        grid: tuple[int, int, int],
        intensity: IntensityScaling,
        crop: bool = True,
        device: str | torch.device = "cpu",
        sha256: str = "",
    ) -> None:
        self.device = torch.device(device)
        self.autoencoder = autoencoder.to(self.device).eval()
        self.placement = GridPlacement(spacing=spacing, grid=grid, intensity=intensity, crop=crop)
        self.sha256 = sha256

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        stage: Literal["autoencoder", "maisi_vae"] = "autoencoder",
        device: str | torch.device = "auto",
        overrides: Overrides = (),
        settings: RunConfig | None = None,
    ) -> "ReconstructionPipeline":
        """Build from a run folder, checkpoint file or export folder of ``stage``.

        Raises what :meth:`prod9.pipelines.maskgit.MaskGiTPipeline.from_checkpoint` raises.

        Args:
            stage: ``autoencoder`` or ``maisi_vae``.
            others: see :meth:`prod9.pipelines.maskgit.MaskGiTPipeline.from_checkpoint`.
        """
        device = torch_device(device)
        loaded = CheckpointManager.load_autoencoder(path, stage=stage, device=device)
        require_scans(loaded)
        config = config_of(loaded, RunSection, overrides=overrides, settings=settings)
        data = loaded.header["data"]
        return cls(
            autoencoder=ModelFactory.create_inference_wrapper(loaded.network, config.sliding_window),
            spacing=None if data["spacing"] is None else tuple(data["spacing"]),
            grid=tuple(data["grid"]),
            intensity=IntensityScaling(**data["intensity"]),
            crop=data.get("crop_foreground", True),
            device=device,
            sha256=loaded.sha256,
        )

    @property
    def has_tokens(self) -> bool:
        """Whether the latent is discrete."""
        return isinstance(self.autoencoder.autoencoder, AutoencoderFSQ)

    @torch.inference_mode()
    def reconstruct(self, source: str | Path | VolumeFile) -> Reconstruction:
        """Pass a file, or a volume that was read, through the latent and return it in its own geometry.

        Raises DataError.
        """
        file = source if isinstance(source, VolumeFile) else volumes.read(Path(source))
        factor = self.autoencoder.autoencoder.downsampling_factor
        placed = self.placement.place({"volume": file}, multiple_of=factor)
        x = torch.from_numpy(placed.images["volume"])[None, None].to(self.device)
        output = self.autoencoder(x)
        unit = output.reconstruction.float().clamp(0.0, 1.0)
        head = torch.from_numpy(placed.inside)[None, None].to(self.device)
        return Reconstruction(
            data=placed.restore(unit[0, 0].cpu().numpy()),
            header=file.header,
            latent=output.latent[0].float().cpu().numpy(),
            tokens=None if output.tokens is None else output.tokens[0].cpu().numpy(),
            grid_affine=placed.affine,
            psnr=float(psnr(unit, x)),
            psnr_head=float(psnr(unit, x, mask=head)),
        )
