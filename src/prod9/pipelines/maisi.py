"""From a class label to brain volumes by rectified flow: sample a latent, decode it.

``MAISIPipeline.from_checkpoint`` needs a run, checkpoint or export folder of ``stage: maisi_diffusion`` and
nothing else: the header names the autoencoder by path and SHA-256, the scale of the latents, the sampler
settings, the grid and its affine.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from prod9.autoencoder.inference import AutoencoderInferenceWrapper
from prod9.config.load import config_from_dict
from prod9.config.schema import MaisiDiffusionConfig
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.models.checkpoint_manager import CheckpointManager, Source
from prod9.models.factory import ModelFactory
from prod9.pipelines.labels import AbstractLabelPipeline
from prod9.pipelines.placement import GridPlacement

_LOG = logging.getLogger("prod9")
_SAME_MM = 0.01


class MAISIPipeline(AbstractLabelPipeline):
    """Label-conditional generation with a trained U-Net and a trained MAISI autoencoder.

    grid: voxels ``(H, W, D)``, a multiple of the autoencoder's factor times the U-Net's. scale_factor: what
    latents were multiplied by in training. spacing: mm to condition on, default that of ``affine``; another
    one than the network was trained with is tried, with a warning. The others: see the base class.
    """

    def __init__(
        self,
        *,
        diffusion: DiffusionModelRF,
        autoencoder: AutoencoderInferenceWrapper,
        sampler: RectifiedFlowSampler,
        scale_factor: float,
        label_map: dict[str, int],
        grid: tuple[int, int, int],
        affine: np.ndarray,
        spacing: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        sha256: dict[str, str] | None = None,
        placement: GridPlacement | None = None,
    ) -> None:
        factor = autoencoder.autoencoder.downsampling_factor
        unit = factor * diffusion.downsampling_factor
        if any(side % unit for side in grid):
            raise ValueError(
                f"grid must be a multiple of {unit}, the autoencoder's factor {factor} times the U-Net's "
                f"{diffusion.downsampling_factor}, got {tuple(grid)}; use "
                f"{tuple(-(-side // unit) * unit for side in grid)}."
            )
        super().__init__(
            label_map=label_map, grid=grid, affine=affine, device=device, sha256=sha256, placement=placement
        )
        self.diffusion = diffusion.to(self.device).eval()
        self.autoencoder = autoencoder.to(self.device).eval()
        self.sampler = sampler
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
        device: str | torch.device = "cpu",
        autoencoder: Source | None = None,
        overrides: Sequence[str | tuple[str, Any]] = (),
        spacing: Sequence[float] | None = None,
    ) -> "MAISIPipeline":
        """Build from a run folder, checkpoint file or export folder of stage ``maisi_diffusion``.

        autoencoder: where stage 1 is now, if it has moved; its hash must still be the recorded one.
        overrides: changes to the recorded config as ``load_config`` takes them, for example
        ``["sampler.steps=10", ("sampler.solver", "heun")]``. Raises CheckpointError for a missing, damaged,
        foreign or replaced file, ConfigError for bad settings.
        """
        loaded = CheckpointManager.load_diffusion(path, device=device)
        config = config_from_dict(loaded.header["config"], source=str(loaded.path), overrides=overrides)
        assert isinstance(config, MaisiDiffusionConfig)  # load_diffusion checked the stage
        upstream = CheckpointManager.load_vae(loaded, path=autoencoder, device=device)
        data = loaded.header["data"]
        return cls(
            diffusion=loaded.network,
            autoencoder=ModelFactory.create_inference_wrapper(upstream.network, config.sliding_window),
            sampler=ModelFactory.create_flow_sampler(config.sampler, config.flow),
            scale_factor=float(data["scale_factor"]),
            label_map=data["label_map"],
            grid=tuple(data["grid"]),
            affine=np.asarray(data["reference_affine"]),
            spacing=spacing,
            device=device,
            sha256={"diffusion": loaded.sha256, "autoencoder": upstream.sha256},
            placement=GridPlacement.from_header(data),
        )

    @property
    def latent_grid(self) -> tuple[int, ...]:
        """Latent positions along each axis."""
        return tuple(side // self.autoencoder.autoencoder.downsampling_factor for side in self.grid)

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return self.sampler.steps

    def sample_label(self, label: int, seeds: Sequence[int], report: Callable[[float], None]) -> torch.Tensor:
        """Return latents ``[B Z h w d]`` of the class ``label``, in the autoencoder's scale."""
        return self.sample_latents(self.condition_of(label, len(seeds)), seeds=seeds, report=report)

    def condition_of(self, label: int, count: int) -> FlowCondition:
        """Return what the network is told of ``count`` volumes of the class ``label``."""
        labels = torch.full((count,), label, dtype=torch.int64)
        spacing = torch.tensor(self.spacing, dtype=torch.float32).expand(count, 3)
        return FlowCondition.of_heads(labels, spacing)

    @torch.inference_mode()
    def sample_latents(
        self,
        condition: FlowCondition,
        *,
        seeds: Sequence[int],
        report: Callable[[float], None] | None = None,
        **arguments: Any,
    ) -> torch.Tensor:
        """Return latents ``[B Z h w d]`` for a condition, one seed a sample, in the autoencoder's scale.

        report: called with the share done, up to 0.9: the rest of a volume's time is decoding. arguments: those of
        ``RectifiedFlowSampler.sample_with_controlnet``, with a ``controlnet`` among them.
        """
        sample = self.sampler.sample_with_controlnet if "controlnet" in arguments else self.sampler.sample
        latents = sample(
            self.diffusion.predict,
            (len(seeds), self.diffusion.latent_channels, *self.latent_grid),
            condition.to(self.device),
            [torch.Generator(self.device).manual_seed(s) for s in seeds],
            callback=None if report is None else lambda state: report(0.9 * state.step / state.steps),
            **arguments,
        )
        return latents / self.scale_factor

    @torch.inference_mode()
    def decode_sample(self, sample: torch.Tensor) -> np.ndarray:
        """Return the volume of one latent ``[1 Z h w d]``: float32 ``[H W D]`` in [0, 1]."""
        volume = self.autoencoder.decode(sample)[0, 0]
        return volume.float().clamp(0.0, 1.0).cpu().numpy()


def _text(spacing: np.ndarray) -> str:
    return " × ".join(f"{mm:g}" for mm in spacing)


def _respaced(affine: np.ndarray, factors: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    centre = (np.asarray(grid, dtype=np.float64) - 1) / 2
    changed = affine.copy()
    changed[:3, :3] = affine[:3, :3] * factors
    changed[:3, 3] = affine[:3, :3] @ centre + affine[:3, 3] - changed[:3, :3] @ centre
    return changed
