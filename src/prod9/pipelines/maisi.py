"""From a class label to brain volumes by rectified flow: sample a latent, decode it.

``MAISIPipeline.from_checkpoint`` needs a run, checkpoint or export folder of ``stage: maisi_diffusion`` and
nothing else: the header names the autoencoder by path and SHA-256, the scale of the latents, the sampler
settings, the grid and its affine.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch

from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.config.schema import MaisiDiffusionConfig, RunConfig
from prod9.devices import torch_device
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.models.checkpoint_manager import CheckpointManager, Source
from prod9.models.factory import ModelFactory
from prod9.pipelines.detail import BESIDE, DetailBase, DetailChoice, find_detail
from prod9.pipelines.labels import AbstractLabelPipeline, VolumeGrid
from prod9.pipelines.recorded import Overrides, config_of, grid_of, hash_of, weak_of
from prod9.system.progress import Share

_LOG = logging.getLogger("prod9")
_SAME_MM = 0.01


class MAISIPipeline(AbstractLabelPipeline):
    """Label-conditional generation with a trained U-Net and a trained MAISI autoencoder.

    Args:
        diffusion: predicts velocities; put in evaluation mode and moved to ``device``.
        scale_factor: the factor that latents were multiplied by in training.
        grid: voxels ``(H, W, D)``, a multiple of the autoencoder's factor times that of the U-Net.
        spacing: mm to condition on, by default that of ``affine``; one that the network was not trained with is
            accepted with a warning.
        weak: the weaker network of the sampler's ``autoguidance_scale``; None where that is 0.
        others: see :class:`AbstractLabelPipeline`.

    Raises:
        ValueError: for a ``grid`` that does not fit the networks.
    """

    sampler: RectifiedFlowSampler

    def __init__(
        self,
        *,
        diffusion: DiffusionModelRF,
        autoencoder: AutoencoderInferenceWrapper,
        sampler: RectifiedFlowSampler,
        scale_factor: float,
        spacing: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        sha256: dict[str, str] | None = None,
        weak: DiffusionModelRF | None = None,
        **volumes: Unpack[VolumeGrid],
    ) -> None:
        factor, grid = autoencoder.autoencoder.downsampling_factor, volumes["grid"]
        unit = factor * diffusion.downsampling_factor
        if any(side % unit for side in grid):
            raise ValueError(
                f"grid: expected a multiple of {unit}, the autoencoder's factor {factor} times the U-Net's "
                f"{diffusion.downsampling_factor}, got {tuple(grid)}; use "
                f"{tuple(-(-side // unit) * unit for side in grid)}."
            )
        super().__init__(autoencoder=autoencoder, sampler=sampler, device=device, sha256=sha256, **volumes)
        self.diffusion = diffusion.to(self.device).eval()
        self.weak = None if weak is None else weak.to(self.device).eval()
        self.scale_factor = scale_factor
        trained = np.linalg.norm(self.affine[:3, :3], axis=0)
        self.spacing = trained if spacing is None else np.asarray(spacing, dtype=np.float64)
        if diffusion.include_spacing_input and np.abs(self.spacing - trained).max() > _SAME_MM:
            _LOG.warning(
                "spacing %s mm was not trained on: the network saw %s mm alone, so sizes may be off.",
                _text(self.spacing),
                _text(trained),
            )
            # Voxels are then of that size in the files too; the middle of the volume stays where it is.
            self.affine = _respaced(self.affine, self.spacing / trained, self.grid)

    @classmethod
    def from_checkpoint(
        cls,
        path: Source,
        *,
        device: str | torch.device = "auto",
        autoencoder: Source | None = None,
        overrides: Overrides = (),
        settings: RunConfig | None = None,
        spacing: Sequence[float] | None = None,
        detail: DetailChoice | None = BESIDE,
        beside: Sequence[Source] = (),
    ) -> "MAISIPipeline":
        """Build from a run folder, checkpoint file or export folder of stage ``maisi_diffusion``.

        Raises what :meth:`prod9.pipelines.maskgit.MaskGiTPipeline.from_checkpoint` raises.

        Args:
            spacing: mm of a voxel, by default as trained.
            beside: more models beside which a detail flow is looked for.
            others: see :meth:`prod9.pipelines.maskgit.MaskGiTPipeline.from_checkpoint`.
        """
        device = torch_device(device)
        loaded = CheckpointManager.load_diffusion(path, device=device)
        config = config_of(loaded, MaisiDiffusionConfig, overrides=overrides, settings=settings)
        stage1 = CheckpointManager.load_vae(loaded, path=autoencoder, device=device)
        weak = weak_of(loaded, config, device)
        pipeline = cls(
            diffusion=loaded.network,
            autoencoder=ModelFactory.create_inference_wrapper(stage1.network, config.sliding_window),
            sampler=ModelFactory.create_flow_sampler(config.sampler, config.flow, autoguided=True),
            scale_factor=float(loaded.header["data"]["scale_factor"]),
            spacing=spacing,
            device=device,
            sha256={"diffusion": loaded.sha256, "autoencoder": stage1.sha256, **hash_of(weak)},
            weak=None if weak is None else weak.network,
            **grid_of(loaded),
        )
        pipeline.know_covariates(config.covariates)
        base = DetailBase(
            stage="maisi_detail",
            key="autoencoder",
            sha256=stage1.sha256,
            beside=[*beside, path, stage1.path],
            label_map=pipeline.label_map,
            scans=stage1.header["data"],
        )
        pipeline.sharpen_with(find_detail(detail, base, device))
        return pipeline

    def sample_label(self, label: int, seeds: Sequence[int], report: Share) -> torch.Tensor:
        """Return latents ``[B Z h w d]`` of the class ``label``, in the autoencoder's scale."""
        return self.sample_latents(self.condition_of(label, seeds), seeds=seeds, report=report)

    def condition_of(self, label: int, seeds: Sequence[int]) -> FlowCondition:
        """Return the condition of a volume of the class ``label`` for each of ``seeds``."""
        labels = torch.full((len(seeds),), label, dtype=torch.int64)
        spacing = torch.tensor(self.spacing, dtype=torch.float32).expand(len(seeds), 3)
        return replace(FlowCondition.of_heads(labels, spacing), covariates=self.covariates_of(seeds))

    @torch.inference_mode()
    def sample_latents(
        self,
        condition: FlowCondition,
        *,
        seeds: Sequence[int],
        report: Share | None = None,
        **arguments: Any,
    ) -> torch.Tensor:
        """Return latents ``[B Z h w d]`` for a condition, in the autoencoder's scale.

        Args:
            condition: of B samples.
            seeds: one per sample.
            report: called with the share done, up to 0.9: the rest of a volume's time is decoding.
            arguments: those of ``RectifiedFlowSampler.sample_with_controlnet``, with a ``controlnet`` among them.
        """
        sample = self.sampler.sample_with_controlnet if "controlnet" in arguments else self.sampler.sample
        latents = sample(
            self.diffusion.predict,
            (len(seeds), self.diffusion.latent_channels, *self.latent_grid),
            condition.to(self.device),
            [torch.Generator(self.device).manual_seed(s) for s in seeds],
            callback=None if report is None else lambda state: report(0.9 * state.step / state.steps),
            weak=None if self.weak is None else self.weak.predict,
            **arguments,
        )
        return latents / self.scale_factor

    def decode_sample(self, sample: torch.Tensor) -> np.ndarray:
        """Return the volume of one latent ``[1 Z h w d]``."""
        return self.decode_latent(sample)


def _text(spacing: np.ndarray) -> str:
    return " × ".join(f"{mm:g}" for mm in spacing)


def _respaced(affine: np.ndarray, factors: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    centre = (np.asarray(grid, dtype=np.float64) - 1) / 2
    changed = affine.copy()
    changed[:3, :3] = affine[:3, :3] * factors
    changed[:3, 3] = affine[:3, :3] @ centre + affine[:3, 3] - changed[:3, :3] @ centre
    return changed
